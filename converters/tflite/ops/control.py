"""Control flow, unrolled at conversion: If, Loop and Scan become the operators they would run.

What is only known at run time is refused, except an If whose branches can both be computed.
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

MAX_UNROLLED = 8192  # ONNX nodes over all trips of one Loop or Scan
# Operators that abort the run if the input at that place holds a value out of range.
FALLIBLE = {
    "GATHER": 1, "GATHER_ND": 1, "SCATTER_ND": 0, "EMBEDDING_LOOKUP": 0, "FLOOR_MOD": 1,
    "FLOOR_DIV": 1, "REVERSE_SEQUENCE": 1, "SLICE": 1,
}  # fmt: skip


def lower_body(node: Node, body: GraphProto, inputs: Sequence[PlacedValue]) -> list[PlacedValue]:
    """Lower a subgraph with these inputs; its outputs."""
    onnx = need("onnx", "onnx")
    known = {
        initializer.name: constant(onnx.numpy_helper.to_array(initializer))
        for initializer in body.initializer
    }
    known |= {entry.name: value for entry, value in zip(body.input, inputs, strict=True)}
    scope = node.scope.make_inner(known)
    scope.lower_nodes(body.node)
    return [scope.values[entry.name] for entry in body.output]


def lower_if(node: Node) -> None:
    """The branch that a constant condition selects, or SELECT_V2 over both branches."""
    condition = node.array(0)
    if condition is not None:
        chosen = "then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"
        for i, value in enumerate(lower_body(node, node.attributes[chosen], ())):
            if node.has_output(i):
                node.set_output_value(value, i)
        return
    start = len(node.graph.ops)
    then_values = lower_body(node, node.attributes["then_branch"], ())
    else_values = lower_body(node, node.attributes["else_branch"], ())
    for emitted in node.graph.ops[start:]:
        if _can_fail(emitted):
            raise node.refusal(
                f"its condition is computed at run time, and {emitted.code} may fail in the branch "
                "that is not taken"
            )
    for i, (yes_value, no_value) in enumerate(zip(then_values, else_values, strict=True)):
        if node.has_output(i):
            node.set_output_value(_select(node, yes_value, no_value), i)


def _can_fail(emitted: Op) -> bool:
    at = FALLIBLE.get(emitted.code)
    if emitted.code == "DIV" and emitted.outputs[0].dtype != np.float32:
        at = 1
    if at is None:
        return False
    tensor = emitted.inputs[at]
    return tensor is not None and tensor.data is None


def _select(node: Node, left: PlacedValue, right: PlacedValue) -> PlacedValue:
    """One of two values, by the condition of the If; both are computed."""
    if left.shape != right.shape or left.dtype != right.dtype:
        raise node.refusal(
            f"its condition is computed at run time, and its branches give "
            f"{left.dtype} {left.shape} and {right.dtype} {right.shape}"
        )
    rank = len(left.shape)
    axes = left.axes or right.axes or identity(rank)
    left_tensor, right_tensor = node.place(left, axes), node.place(right, axes)
    condition = node.reshape(node.place_input(0), (1,) * rank)
    if rank:
        tensor = emit_broadcast(
            node, "SELECT_V2", [condition, left_tensor, right_tensor], left.dtype
        )
    else:
        tensor = node.emit("SELECT_V2", [condition, left_tensor, right_tensor], (), left.dtype)
    return PlacedValue(left.shape, left.dtype, tensor, axes)


def lower_loop(node: Node) -> None:
    """The body once for each trip; the trip count or the condition must be constant."""
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
        trip_inputs = [constant(np.array(trip, np.int64)), constant(np.array(True))]
        again, *results = lower_body(node, body, [*trip_inputs, *state])
        if again.array is None:
            raise node.refusal("its loop condition is computed at run time")
        going = bool(again.array.reshape(-1)[0])
        state = results[: len(state)]
        for series, value in zip(collected, results[len(state) :], strict=True):
            series.append(value)
        trip += 1
    if any(node.has_output(len(state) + i) for i in range(len(collected))) and not trip:
        raise node.refusal("it makes no trip, so that an output is empty")
    _set_outputs(node, [*state, *(stack_values(node, series, 0) for series in collected if series)])


def _check_unrolled_size(node: Node, nodes: int, trips: int) -> None:
    if nodes * trips > MAX_UNROLLED:
        raise node.refusal(
            f"{trips} trips of {nodes} nodes are more than the {MAX_UNROLLED} that are unrolled",
            "make fewer trips, or run the loop outside the model",
        )


def _set_outputs(node: Node, values: Sequence[PlacedValue]) -> None:
    for i, value in enumerate(values):
        if node.has_output(i):
            node.set_output_value(value, i)


def lower_scan(node: Node) -> None:
    """The body once for each step of the scanned axis."""
    if node.scope.opsets.get("", 9) < 9:
        _lower_scan_8(node)
        return
    inputs = [node.value(i) for i in range(len(node.proto.input))]
    _set_outputs(node, _unroll_scan(node, inputs))


def _lower_scan_8(node: Node) -> None:
    """Opset 8: axis 0 of every value is the batch, axis 1 the steps."""
    if node.has_input(0):
        raise node.refusal("sequence_lens is not lowered", "export with opset 9 or later")
    inputs = [node.value(i) for i in range(1, len(node.proto.input))]
    rows = [
        _unroll_scan(node, [take_index(node, value, 0, row) for value in inputs], "directions")
        for row in range(inputs[0].shape[0])
    ]
    _set_outputs(node, [stack_values(node, row, 0) for row in zip(*rows, strict=True)])


def _unroll_scan(
    node: Node, inputs: list[PlacedValue], directions: str = "scan_input_directions"
) -> list[PlacedValue]:
    """The final states, and the outputs of all trips stacked."""
    body, count = node.attributes["body"], int(node.attr("num_scan_inputs"))
    state, scanned = inputs[: len(inputs) - count], inputs[len(inputs) - count :]
    axes = _read_axes(node, "scan_input_axes", [len(value.shape) for value in scanned])
    backwards = node.attr(directions) or [0] * count
    trips = scanned[0].shape[axes[0]]
    _check_unrolled_size(node, len(body.node), trips)
    collected: list[list[PlacedValue]] = [[] for _ in body.output[len(state) :]]
    for trip in range(trips):
        parts = [
            take_index(node, value, axis, trips - 1 - trip if back else trip)
            for value, axis, back in zip(scanned, axes, backwards, strict=True)
        ]
        results = lower_body(node, body, [*state, *parts])
        state = results[: len(state)]
        for series, value in zip(collected, results[len(state) :], strict=True):
            series.append(value)
    if not trips:
        raise node.refusal("it makes no trip")
    out_axes = _read_axes(
        node, "scan_output_axes", [len(series[0].shape) + 1 for series in collected]
    )
    reverse = node.attr("scan_output_directions") or [0] * len(collected)
    outputs = [
        stack_values(node, series[::-1] if back else series, axis)
        for series, axis, back in zip(collected, out_axes, reverse, strict=True)
    ]
    return [*state, *outputs]


def _read_axes(node: Node, name: str, ranks: list[int]) -> list[int]:
    axes = node.attr(name) or [0] * len(ranks)
    return [int(axis) % rank for axis, rank in zip(axes, ranks, strict=True)]


def take_index(node: Node, value: PlacedValue, axis: int, index: int) -> PlacedValue:
    """``value`` at one index of an axis; the axis is removed."""
    shape = (*value.shape[:axis], *value.shape[axis + 1 :])
    if value.array is not None:
        return constant(value.array.take(index, axis))
    tensor, at = node.place(value, value.axes), value.axes.index(axis)
    begin = [index if i == at else 0 for i in range(len(tensor.shape))]
    size = [1 if i == at else length for i, length in enumerate(tensor.shape)]
    row = slice_tensor(node, tensor, begin, size)
    row = node.reshape(row, [length for i, length in enumerate(tensor.shape) if i != at])
    axes = tuple(old_axis - (old_axis > axis) for old_axis in value.axes if old_axis != axis)
    return PlacedValue(shape, value.dtype, row, axes)


def stack_values(node: Node, values: Sequence[PlacedValue], axis: int) -> PlacedValue:
    """Values of one shape stacked along a new axis."""
    arrays = [value.array for value in values if value.array is not None]
    if len(arrays) == len(values):
        return constant(np.stack(arrays, axis))
    one = values[0].shape
    if any(value.shape != one for value in values):
        raise node.refusal("the outputs of its trips differ in shape")
    before, after = math.prod(one[:axis]), math.prod(one[axis:])
    tensors = [node.reshape(node.place(value), (before, after)) for value in values]
    joined = tensors[0]
    if len(tensors) > 1:
        joined = node.emit("CONCATENATION", tensors, (before, after * len(tensors)), axis=1)
    shape = (*one[:axis], len(values), *one[axis:])
    return PlacedValue(shape, values[0].dtype, node.reshape(joined, shape), identity(len(shape)))


def lower_optional_has_element(node: Node) -> None:
    """A constant: whether the input is there."""
    node.set_output_value(constant(np.array(node.has_input(0))))


def lower_optional_get_element(node: Node) -> None:
    """The input itself."""
    node.set_output_value(node.value(0))
