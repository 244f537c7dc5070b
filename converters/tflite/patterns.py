"""Functions that exporters spell out in many nodes, recognised and replaced by one node each.

    rewrite(model) -> model

GELU arrives as Erf or Tanh with the arithmetic around it, in whatever order the framework wrote
the products; hard swish as a Clip. Such a subgraph is elementwise, so its values identify it: it is
evaluated at POINTS and compared with the function. The node that replaces it is of the domain OWN,
so the model's opset does not change.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from converters.onnx.model_file import iter_graphs
from edge_core.extras import need
from edge_core.tensors import Array

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

OWN = "edge-deploy"  # the domain of nodes that only converters.tflite.lower knows
DEPTH = 10  # nodes between the input of such a function and its output, on any path
TOLERANCE = 1e-6  # the two forms of GELU differ by 5e-4
POINTS = np.concatenate([np.linspace(-8, 8, 257), [-1000.0, -30.0, 30.0, 1000.0]])

_erf = np.vectorize(math.erf, otypes=[np.float64])
EVALUATED: dict[str, Callable[..., Array]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Pow": np.power,
    "Neg": np.negative, "Tanh": np.tanh, "Erf": _erf,
    "Relu": lambda points: np.maximum(points, 0.0),
}  # fmt: skip
BINARY = ("Add", "Sub", "Mul", "Div")


def _gelu(points: Array) -> Array:
    return np.asarray(0.5 * points * (1 + _erf(points / math.sqrt(2))))


def _gelu_tanh(points: Array) -> Array:
    return np.asarray(
        0.5 * points * (1 + np.tanh(math.sqrt(2 / math.pi) * (points + 0.044715 * points**3)))
    )


def _hard_swish(points: Array) -> Array:
    return np.asarray(points * np.clip(points / 6 + 0.5, 0, 1))


# By the op that every spelling of the function has: the op it becomes, its attributes, its values.
FUNCTIONS: dict[str, tuple[str, dict[str, str], Array]] = {
    "Erf": ("Gelu", {"approximate": "none"}, _gelu(POINTS)),
    "Tanh": ("Gelu", {"approximate": "tanh"}, _gelu_tanh(POINTS)),
    "Clip": ("HardSwish", {}, _hard_swish(POINTS)),
    "HardSigmoid": ("HardSwish", {}, _hard_swish(POINTS)),
}


def rewrite(model: ModelProto) -> ModelProto:
    """A copy in which each of these functions is one node; results and output names stay."""
    onnx = need("onnx", "onnx")
    copy: ModelProto = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = _Graph(copy)
    for node in list(copy.graph.node):
        match = graph.find_function(node) if node.op_type in FUNCTIONS and not node.domain else None
        if match is not None:
            last, name = match
            op, attributes, _ = FUNCTIONS[node.op_type]
            outputs = list(last.output)
            new = onnx.helper.make_node(op, [name], outputs, last.name, domain=OWN, **attributes)
            last.CopyFrom(new)
    if any(node.domain == OWN for node in copy.graph.node):
        copy.opset_import.append(onnx.helper.make_opsetid(OWN, 1))
        _drop_dead(copy)
    return copy


class _Graph:
    """The node that computes each value of the main graph, and those that read it."""

    def __init__(self, model: ModelProto) -> None:
        onnx = need("onnx", "onnx")
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.readers: defaultdict[str, list[NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for argument in node.input:
                self.readers[argument].append(node)
        self.scalars: dict[str, float] = {}
        tensors = [(initializer.name, initializer) for initializer in model.graph.initializer]
        self.constants = {name for name, _ in tensors}
        for node in model.graph.node:
            if node.op_type == "Constant":
                self.constants.update(node.output)
                tensors += [
                    (node.output[0], attribute.t)
                    for attribute in node.attribute
                    if attribute.name == "value"
                ]
        for name, tensor in tensors:
            if tensor.data_type == onnx.TensorProto.FLOAT and list(tensor.dims) in ([], [1]):
                self.scalars[name] = float(onnx.numpy_helper.to_array(tensor).reshape(()))

    def find_function(self, anchor: NodeProto) -> tuple[NodeProto, str] | None:
        """The node that gives the function's result and the name of its input; None if the
        anchor is no part of the function.
        """
        expected = FUNCTIONS[anchor.op_type][2]
        for last in self._below(anchor):
            for source in self._above(last):
                values = self._values(last.output[0], source, DEPTH)
                if values is not None and np.allclose(values, expected, TOLERANCE, TOLERANCE):
                    return last, source
        return None

    def _below(self, anchor: NodeProto, depth: int = 5) -> Iterator[NodeProto]:
        """The products that an anchor's result goes into."""
        if depth:
            for reader in self.readers[anchor.output[0]]:
                if reader.op_type in BINARY:
                    if reader.op_type in ("Mul", "Div"):
                        yield reader
                    yield from self._below(reader, depth - 1)

    def _above(self, node: NodeProto) -> Iterator[str]:
        """The values that a node is computed from, nearest first."""
        seen: dict[str, None] = {}
        wave = [node]
        for _ in range(DEPTH):
            names = [
                name
                for member in wave
                for name in member.input
                if name and name not in self.constants
            ]
            seen.update(dict.fromkeys(names))
            wave = [self.makers[name] for name in names if name in self.makers]
        return iter(seen)

    def _values(self, name: str, source: str, depth: int) -> Array | None:
        """``name`` as a function of ``source`` at POINTS; None if it depends on anything else."""
        if name == source:
            return POINTS
        if name in self.scalars:
            return np.array(self.scalars[name])
        node = self.makers.get(name)
        if node is None or node.domain or not depth:
            return None
        arguments = [
            None if not argument else self._values(argument, source, depth - 1)
            for argument in node.input
        ]
        with np.errstate(all="ignore"):
            return _evaluate(node, arguments)


def _evaluate(node: NodeProto, arguments: list[Array | None]) -> Array | None:
    attributes = {item.name: item.f for item in node.attribute}
    if node.op_type == "Clip" and arguments[0] is not None:
        bounds = [attributes.get("min", -math.inf), attributes.get("max", math.inf)]
        for i, name in enumerate(node.input[1:]):
            bound = arguments[i + 1]
            if name and (bound is None or bound.ndim):
                return None
            bounds[i] = float(bound) if name and bound is not None else bounds[i]
        return np.asarray(np.clip(arguments[0], *bounds))
    if any(item is None for item in arguments):
        return None
    if node.op_type == "HardSigmoid":
        alpha, beta = attributes.get("alpha", 0.2), attributes.get("beta", 0.5)
        return np.asarray(np.clip(alpha * np.asarray(arguments[0]) + beta, 0, 1))
    function = EVALUATED.get(node.op_type)
    return None if function is None else np.asarray(function(*arguments))


def _drop_dead(model: ModelProto) -> None:
    """Remove nodes whose results are no longer read."""
    while True:
        read = {value.name for value in model.graph.output}
        read |= {
            name for graph in iter_graphs(model.graph) for node in graph.node for name in node.input
        }
        read |= {value.name for graph in iter_graphs(model.graph) for value in graph.output}
        dead = [node for node in model.graph.node if not any(name in read for name in node.output)]
        if not dead:
            return
        for node in dead:
            model.graph.node.remove(node)
