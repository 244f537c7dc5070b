"""Small ONNX graphs with one peculiarity each, for the tests of reading and converting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Shape = Sequence[int | str] | None


def value(name: str, shape: Shape, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def weight(name: str, *shape: int, scale: float = 1.0) -> onnx.TensorProto:
    """Normal values that depend on the name and the shape only."""
    rng = np.random.default_rng([len(name), *shape])
    return constant(name, (scale * rng.standard_normal(shape)).astype(np.float32))


def constant(name: str, values: Any, dtype: Any = None) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Sequence[onnx.TensorProto] = (),
    *,
    opset: int = 17,
    **more: Any,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, constants)
    imports = [helper.make_opsetid("", opset), *more.pop("imports", ())]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, **more)


def save_model(proto: onnx.ModelProto, path: Path) -> Path:
    onnx.save(proto, path)
    return path


def relu() -> onnx.ModelProto:
    """No weights at all."""
    return make_model(
        [helper.make_node("Relu", ["x"], ["y"])], [value("x", [1, 8])], [value("y", [1, 8])]
    )


def perceptron() -> onnx.ModelProto:
    """MatMul only, and an Add; token ids go through a lookup table."""
    return make_model(
        [
            helper.make_node("Gather", ["table", "ids"], ["rows"]),
            helper.make_node("MatMul", ["rows", "w"], ["product"]),
            helper.make_node("Add", ["product", "b"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["active"]),
            helper.make_node("MatMul", ["active", "v"], ["y"]),
        ],
        [value("ids", [1, 6], INT64)],
        [value("y", [1, 6, 40])],
        [
            weight("table", 50, 72), weight("w", 72, 96, scale=0.1), weight("b", 96),
            weight("v", 96, 40, scale=0.1),
        ],
    )  # fmt: skip


def recurrent(op: str) -> onnx.ModelProto:
    """An LSTM or GRU with a dense layer behind it."""
    gates = {"LSTM": 4, "GRU": 3}[op]
    return make_model(
        [
            helper.make_node(op, ["x", "wx", "wh"], ["states"], hidden_size=32),
            helper.make_node("Squeeze", ["states", "one"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["y"]),
        ],
        [value("x", [5, 1, 16])],
        [value("y", [5, 1, 256])],
        [
            weight("wx", 1, gates * 32, 16, scale=0.2), weight("wh", 1, gates * 32, 32, scale=0.2),
            weight("w", 32, 256, scale=0.2), constant("one", [1]),
        ],
    )  # fmt: skip


def branches(*, fixed: bool) -> onnx.ModelProto:
    """An If inside an If. ``fixed``: its condition is a fact of the shape, else of the values."""

    def branch(name: str, out: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(nodes, name, [], [value(out, [1, 4])])

    inner = helper.make_node(
        "If", ["wide"], ["chosen"],
        then_branch=branch("wide", "sum", helper.make_node("Add", ["x", "w"], ["sum"])),
        else_branch=branch("narrow", "product", helper.make_node("Mul", ["x", "w"], ["product"])),
    )  # fmt: skip
    outer = helper.make_node(
        "If", ["condition"], ["y"],
        then_branch=branch(
            "yes", "chosen",
            helper.make_node("Constant", [], ["two"], value=constant("", 2)),
            helper.make_node("Equal", ["two", "width"], ["wide"]),
            inner,
        ),
        else_branch=branch("no", "less", helper.make_node("Sub", ["x", "w"], ["less"])),
    )  # fmt: skip
    asked = (
        [
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("Gather", ["shape", "one"], ["columns"]),
            helper.make_node("Equal", ["columns", "four"], ["condition"]),
        ]
        if fixed
        else [
            helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
            helper.make_node("Greater", ["total", "zero"], ["condition"]),
        ]
    )
    return make_model(
        [*asked, outer],
        [value("x", [1, 4])],
        [value("y", [1, 4])],
        [
            weight("w", 1, 4), constant("width", 2), constant("one", 1), constant("four", 4),
            constant("zero", 0.0, np.float32),
        ],
    )  # fmt: skip


def convolution(
    *,
    opset: int = 17,
    width: int = 16,
    kernel: int = 3,
    rank: int = 2,
    bias: bool = True,
    **how: Any,
) -> onnx.ModelProto:
    """Conv -> Relu -> Conv, the first as ``how`` says."""
    groups = how.get("group", 1)
    window = [kernel] * rank
    names = ["x", "w", "b"] if bias else ["x", "w"]
    return make_model(
        [
            helper.make_node("Conv", names, ["c"], **how),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("Conv", ["r", "v", "d"], ["y"]),
        ],
        [value("x", [1, width, *[12] * rank])],
        [value("y", None)],
        [
            weight("w", 32, width // groups, *window, scale=0.3), weight("b", 32),
            weight("v", 8, 32, *[1] * rank, scale=0.3), weight("d", 8),
        ],
        opset=opset,
    )  # fmt: skip
