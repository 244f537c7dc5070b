"""Weights of an ONNX graph: which tensors they are, and how one is replaced by fewer bits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from converters.onnx.model_file import iter_graphs, iter_nodes
from converters.rounding import round_keeping_sums
from edge_core.extras import need
from edge_core.tensors import Array

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

MIN_VALUES = 1024  # below this the scales and nodes weigh more than what is saved


class Weight(msgspec.Struct, frozen=True):
    """A float weight that exactly one node takes."""

    node: NodeProto
    tensor: TensorProto
    values: Array
    axis: int  # of the output channels; of the rows of a lookup table


def find_weights(model: ModelProto, ops: Collection[str]) -> Iterator[Weight]:
    """Weights of those ops, in the order of the graph."""
    onnx = need("onnx", "onnx")
    known = {tensor.name: tensor for tensor in model.graph.initializer}
    uses = Counter(name for node in iter_nodes(model) for name in node.input)
    uses.update(value.name for graph in iter_graphs(model.graph) for value in graph.output)
    for node in list(model.graph.node):
        index = 0 if node.op_type == "Gather" else 1
        if node.op_type not in ops or node.domain or len(node.input) <= index:
            continue
        tensor = known.get(node.input[index])
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT or uses[tensor.name] > 1:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        axis = _find_channel_axis(node, values.ndim)
        if values.size >= MIN_VALUES and axis is not None:
            yield Weight(node, tensor, values, axis)


def read_attribute(node: NodeProto, name: str, default: Any) -> Any:
    """The value of a node's attribute, or ``default``."""
    helper = need("onnx.helper", "onnx")
    return next(
        (
            helper.get_attribute_value(attribute)
            for attribute in node.attribute
            if attribute.name == name
        ),
        default,
    )


def replace_by_integers(
    model: ModelProto, weight: Weight, integers: TensorProto, scale: Array, **attributes: int
) -> NodeProto:
    """Store ``integers`` and ``scale`` in place of a weight; return the node that gives floats."""
    onnx = need("onnx", "onnx")
    name = weight.tensor.name
    weight.tensor.CopyFrom(integers)
    weight.tensor.name = f"{name}_quantised"
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(scale.astype(np.float32), f"{name}_scale")
    )
    node: NodeProto = onnx.helper.make_node(
        "DequantizeLinear",
        [weight.tensor.name, f"{name}_scale"],
        [name],
        f"{name}_dequantise",
        **attributes,
    )
    return node


def store_int8(model: ModelProto, weight: Weight) -> NodeProto:
    """Store a weight as int8, a scale per channel; return the node that gives floats."""
    scale = compute_channel_scales(weight.values, weight.axis, 127)
    kernels = np.moveaxis(weight.values, weight.axis, 0)
    steps = kernels.reshape(len(kernels), -1) / scale[:, None]
    integers = round_keeping_sums(steps, 127).astype(np.int8).reshape(kernels.shape)
    stored = need("onnx.numpy_helper", "onnx").from_array(np.moveaxis(integers, 0, weight.axis))
    return replace_by_integers(model, weight, stored, scale, axis=weight.axis)


def insert_first(model: ModelProto, new: list[NodeProto]) -> None:
    """Insert nodes that depend on constants only."""
    after = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*new, *after])


def replace_node(model: ModelProto, old: NodeProto, new: list[NodeProto]) -> None:
    """Put ``new`` where ``old`` was."""
    before = list(model.graph.node)
    index = next(i for i, n in enumerate(before) if n.output[0] == old.output[0])
    del model.graph.node[:]
    model.graph.node.extend([*before[:index], *new, *before[index + 1 :]])


def compute_channel_scales(values: Array, axis: int, largest: int) -> Array:
    """One symmetric scale per channel, so that its largest weight becomes ``largest``."""
    others = tuple(i for i in range(values.ndim) if i != axis)
    peak = np.abs(values).max(axis=others)
    scales: Array = np.where(peak > 0, peak, 1.0) / largest
    return scales


def _find_channel_axis(node: NodeProto, rank: int) -> int | None:
    match node.op_type:
        case "Conv":
            return 0
        case "ConvTranspose":
            return 1
        case "Gemm":
            return 0 if read_attribute(node, "transB", 0) else 1
        case "MatMul":
            return rank - 1 if rank > 1 else None
        case "Gather":
            return 0 if read_attribute(node, "axis", 0) == 0 and rank == 2 else None
    return None
