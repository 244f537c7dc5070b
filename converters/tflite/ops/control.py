"""Control flow, decided at conversion: If, Loop and Scan become the operators that they would run.

What only a run can decide is refused, but for an If whose branches may both be computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from converters.tflite.graph import Op
from converters.tflite.node import Node
from converters.tflite.ops.broadcast import emit_broadcast
from converters.tflite.ops.movement import slice_tensor
from converters.tflite.values import PlacedValue, constant, identity
from edge_core.extras import need

if TYPE_CHECKING:
    from onnx import GraphProto

MAX_UNROLLED = 8192  # ONNX nodes of all trips of one Loop or Scan
# Operators that end the run when the input at that place holds something out of range.
FALLIBLE = {
    "GATHER": 1, "GATHER_ND": 1, "SCATTER_ND": 0, "EMBEDDING_LOOKUP": 0, "FLOOR_MOD": 1,
    "FLOOR_DIV": 1, "REVERSE_SEQUENCE": 1, "SLICE": 1,
}  # fmt: skip


def lower_body(node: Node, body: GraphProto, given: Sequence[PlacedValue]) -> list[PlacedValue]:
    """Lower a subgraph with these inputs; its outputs."""
    onnx = need("onnx", "onnx")
    known = {t.name: constant(onnx.numpy_helper.to_array(t)) for t in body.initializer}
    known |= {v.name: value for v, value in zip(body.input, given, strict=True)}
    scope = node.scope.make_inner(known)
    scope.lower_nodes(body.node)
    return [scope.values[v.name] for v in body.output]


def lower_if(node: Node) -> None:
    condition = node.array(0)
    if condition is not None:
        chosen = "then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"
        for i, v in enumerate(lower_body(node, node.attributes[chosen], ())):
            if node.has_output(i):
                node.set_output_value(v, i)
        return
    start = len(node.graph.ops)
    yes = lower_body(node, node.attributes["then_branch"], ())
    no = lower_body(node, node.attributes["else_branch"], ())
    for emitted in node.graph.ops[start:]:
        if _can_fail(emitted):
            raise node.refusal(
                f"its condition is computed at run time, and {emitted.code} may fail in the branch "
                "that is not taken"
            )
    for i, (a, b) in enumerate(zip(yes, no, strict=True)):
        if node.has_output(i):
            node.set_output_value(_select(node, a, b), i)


def _can_fail(emitted: Op) -> bool:
    at = FALLIBLE.get(emitted.code)
    if emitted.code == "DIV" and emitted.outputs[0].dtype != np.float32:
        at = 1
    if at is None:
        return False
    tensor = emitted.inputs[at]
    return tensor is not None and tensor.data is None


def _select(node: Node, a: PlacedValue, b: PlacedValue) -> PlacedValue:
    """One of two values, by the condition of the If; both are computed."""
    if a.shape != b.shape or a.dtype != b.dtype:
        raise node.refusal(
            f"its condition is computed at run time, and its branches give {a.dtype} {a.shape} "
            f"and {b.dtype} {b.shape}"
        )
    rank = len(a.shape)
    axes = a.axes or b.axes or identity(rank)
    left, right = node.place(a, axes), node.place(b, axes)
    condition = node.reshape(node.place_input(0), (1,) * rank)
    if rank:
        tensor = emit_broadcast(node, "SELECT_V2", [condition, left, right], a.dtype)
    else:
        tensor = node.emit("SELECT_V2", [condition, left, right], (), a.dtype)
    return PlacedValue(a.shape, a.dtype, tensor, axes)


def lower_loop(node: Node) -> None:
    body = node.attributes["body"]
    trips = (
        int(node.require_constant(0, "its trip count").reshape(-1)[0])
        if node.has_input(0)
        else None
    )
    going = (
        bool(node.require_constant(1, "its condition").reshape(-1)[0])
        if node.has_input(1)
        else True
    )
    state = [node.value(i) for i in range(2, len(node.proto.input))]
    collected: list[list[PlacedValue]] = [[] for _ in body.output[1 + len(state) :]]
    trip = 0
    while going and (trips is None or trip < trips):
        _check_unrolled_size(node, len(body.node), trip + 1 if trips is None else trips)
        given = [constant(np.array(trip, np.int64)), constant(np.array(True))]
        again, *made = lower_body(node, body, [*given, *state])
        if again.array is None:
            raise node.refusal("whether it goes on is computed at run time")
        going = bool(again.array.reshape(-1)[0])
        state = made[: len(state)]
        for found, v in zip(collected, made[len(state) :], strict=True):
            found.append(v)
        trip += 1
    if any(node.has_output(len(state) + i) for i in range(len(collected))) and not trip:
        raise node.refusal("it makes no trip, so that an output is empty")
    _set_outputs(node, [*state, *(stack_values(node, found, 0) for found in collected if found)])


def _check_unrolled_size(node: Node, nodes: int, trips: int) -> None:
    if nodes * trips > MAX_UNROLLED:
        raise node.refusal(
            f"{trips} trips of {nodes} nodes are more than the {MAX_UNROLLED} that are unrolled",
            "make fewer trips, or run it outside of the model",
        )


def _set_outputs(node: Node, values: Sequence[PlacedValue]) -> None:
    for i, v in enumerate(values):
        if node.has_output(i):
            node.set_output_value(v, i)


def lower_scan(node: Node) -> None:
    if node.scope.opsets.get("", 9) < 9:
        _lower_scan_8(node)
        return
    given = [node.value(i) for i in range(len(node.proto.input))]
    _set_outputs(node, _unroll_scan(node, given))


def _lower_scan_8(node: Node) -> None:
    """Opset 8: a batch in axis 0 of everything, and the steps in axis 1."""
    if node.has_input(0):
        raise node.refusal("sequence_lens is not lowered", "export with opset 9 or later")
    given = [node.value(i) for i in range(1, len(node.proto.input))]
    rows = [
        _unroll_scan(node, [take_index(node, v, 0, b) for v in given], "directions")
        for b in range(given[0].shape[0])
    ]
    _set_outputs(node, [stack_values(node, row, 0) for row in zip(*rows, strict=True)])


def _unroll_scan(
    node: Node, given: list[PlacedValue], directions: str = "scan_input_directions"
) -> list[PlacedValue]:
    """The last states and what each trip gave, stacked."""
    body, count = node.attributes["body"], int(node.attr("num_scan_inputs"))
    state, scanned = given[: len(given) - count], given[len(given) - count :]
    axes = _read_axes(node, "scan_input_axes", [len(v.shape) for v in scanned])
    backwards = node.attr(directions) or [0] * count
    trips = scanned[0].shape[axes[0]]
    _check_unrolled_size(node, len(body.node), trips)
    collected: list[list[PlacedValue]] = [[] for _ in body.output[len(state) :]]
    for trip in range(trips):
        parts = [
            take_index(node, v, axis, trips - 1 - trip if back else trip)
            for v, axis, back in zip(scanned, axes, backwards, strict=True)
        ]
        made = lower_body(node, body, [*state, *parts])
        state = made[: len(state)]
        for found, v in zip(collected, made[len(state) :], strict=True):
            found.append(v)
    if not trips:
        raise node.refusal("it makes no trip")
    out_axes = _read_axes(
        node, "scan_output_axes", [len(found[0].shape) + 1 for found in collected]
    )
    reverse = node.attr("scan_output_directions") or [0] * len(collected)
    outputs = [
        stack_values(node, found[::-1] if back else found, axis)
        for found, axis, back in zip(collected, out_axes, reverse, strict=True)
    ]
    return [*state, *outputs]


def _read_axes(node: Node, name: str, ranks: list[int]) -> list[int]:
    given = node.attr(name) or [0] * len(ranks)
    return [int(a) % rank for a, rank in zip(given, ranks, strict=True)]


def take_index(node: Node, v: PlacedValue, axis: int, index: int) -> PlacedValue:
    """``v`` at one index of an axis, which it then has no more."""
    shape = (*v.shape[:axis], *v.shape[axis + 1 :])
    if v.array is not None:
        return constant(v.array.take(index, axis))
    x, at = node.place(v, v.axes), v.axes.index(axis)
    begin = [index if i == at else 0 for i in range(len(x.shape))]
    size = [1 if i == at else d for i, d in enumerate(x.shape)]
    row = slice_tensor(node, x, begin, size)
    row = node.reshape(row, [d for i, d in enumerate(x.shape) if i != at])
    axes = tuple(a - (a > axis) for a in v.axes if a != axis)
    return PlacedValue(shape, v.dtype, row, axes)


def stack_values(node: Node, values: Sequence[PlacedValue], axis: int) -> PlacedValue:
    """Values of one shape, along a new axis."""
    arrays = [v.array for v in values if v.array is not None]
    if len(arrays) == len(values):
        return constant(np.stack(arrays, axis))
    one = values[0].shape
    if any(v.shape != one for v in values):
        raise node.refusal("what its trips give differs in shape")
    before, after = math.prod(one[:axis]), math.prod(one[axis:])
    tensors = [node.reshape(node.place(v), (before, after)) for v in values]
    joined = tensors[0]
    if len(tensors) > 1:
        joined = node.emit("CONCATENATION", tensors, (before, after * len(tensors)), axis=1)
    shape = (*one[:axis], len(values), *one[axis:])
    return PlacedValue(shape, values[0].dtype, node.reshape(joined, shape), identity(len(shape)))


def lower_optional_has_element(node: Node) -> None:
    node.set_output_value(constant(np.array(node.has_input(0))))


def lower_optional_get_element(node: Node) -> None:
    node.set_output_value(node.value(0))
