"""Control flow, decided at conversion: If, Loop and Scan become the operators that they would run.

What only a run can decide is refused, but for an If whose branches may both be computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from converters.tflite.graph import Op
from converters.tflite.node import Node, op
from converters.tflite.ops.broadcast import emit
from converters.tflite.ops.movement import sliced
from converters.tflite.values import Value, constant, identity
from edge_core.extras import need

if TYPE_CHECKING:
    from onnx import GraphProto

MAX_UNROLLED = 8192  # ONNX nodes of all trips of one Loop or Scan
# Operators that end the run when the input at that place holds something out of range.
FALLIBLE = {
    "GATHER": 1, "GATHER_ND": 1, "SCATTER_ND": 0, "EMBEDDING_LOOKUP": 0, "FLOOR_MOD": 1,
    "FLOOR_DIV": 1, "REVERSE_SEQUENCE": 1, "SLICE": 1,
}  # fmt: skip


def run_body(n: Node, body: GraphProto, given: Sequence[Value]) -> list[Value]:
    """Lower a subgraph with these inputs; its outputs."""
    onnx = need("onnx", "onnx")
    known = {t.name: constant(onnx.numpy_helper.to_array(t)) for t in body.initializer}
    known |= {v.name: value for v, value in zip(body.input, given, strict=True)}
    scope = n.scope.inner(known)
    scope.run(body.node)
    return [scope.values[v.name] for v in body.output]


@op("If")
def _if(n: Node) -> None:
    condition = n.array(0)
    if condition is not None:
        chosen = "then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"
        for i, v in enumerate(run_body(n, n.attributes[chosen], ())):
            if n.wants(i):
                n.give_value(v, i)
        return
    start = len(n.graph.ops)
    yes = run_body(n, n.attributes["then_branch"], ())
    no = run_body(n, n.attributes["else_branch"], ())
    for emitted in n.graph.ops[start:]:
        if _may_fail(emitted):
            raise n.refusal(
                f"its condition is computed at run time, and {emitted.code} may fail in the branch "
                "that is not taken"
            )
    for i, (a, b) in enumerate(zip(yes, no, strict=True)):
        if n.wants(i):
            n.give_value(_selected(n, a, b), i)


def _may_fail(emitted: Op) -> bool:
    at = FALLIBLE.get(emitted.code)
    if emitted.code == "DIV" and emitted.outputs[0].dtype != np.float32:
        at = 1
    if at is None:
        return False
    tensor = emitted.inputs[at]
    return tensor is not None and tensor.data is None


def _selected(n: Node, a: Value, b: Value) -> Value:
    """One of two values, by the condition of the If; both are computed."""
    if a.shape != b.shape or a.dtype != b.dtype:
        raise n.refusal(
            f"its condition is computed at run time, and its branches give {a.dtype} {a.shape} "
            f"and {b.dtype} {b.shape}"
        )
    rank = len(a.shape)
    axes = a.axes or b.axes or identity(rank)
    left, right = n.place(a, axes), n.place(b, axes)
    condition = n.reshaped(n.stored(0), (1,) * rank)
    if rank:
        tensor = emit(n, "SELECT_V2", [condition, left, right], a.dtype)
    else:
        tensor = n.emit("SELECT_V2", [condition, left, right], (), a.dtype)
    return Value(a.shape, a.dtype, tensor, axes)


@op("Loop")
def _loop(n: Node) -> None:
    body = n.attributes["body"]
    trips = int(n.constant(0, "its trip count").reshape(-1)[0]) if n.has(0) else None
    going = bool(n.constant(1, "its condition").reshape(-1)[0]) if n.has(1) else True
    state = [n.value(i) for i in range(2, len(n.proto.input))]
    collected: list[list[Value]] = [[] for _ in body.output[1 + len(state) :]]
    trip = 0
    while going and (trips is None or trip < trips):
        _bounded(n, len(body.node), trip + 1 if trips is None else trips)
        given = [constant(np.array(trip, np.int64)), constant(np.array(True))]
        again, *made = run_body(n, body, [*given, *state])
        if again.array is None:
            raise n.refusal("whether it goes on is computed at run time")
        going = bool(again.array.reshape(-1)[0])
        state = made[: len(state)]
        for found, v in zip(collected, made[len(state) :], strict=True):
            found.append(v)
        trip += 1
    if any(n.wants(len(state) + i) for i in range(len(collected))) and not trip:
        raise n.refusal("it makes no trip, so that an output is empty")
    _give_all(n, [*state, *(stacked(n, found, 0) for found in collected if found)])


def _bounded(n: Node, nodes: int, trips: int) -> None:
    if nodes * trips > MAX_UNROLLED:
        raise n.refusal(
            f"{trips} trips of {nodes} nodes are more than the {MAX_UNROLLED} that are unrolled",
            "make fewer trips, or run it outside of the model",
        )


def _give_all(n: Node, values: Sequence[Value]) -> None:
    for i, v in enumerate(values):
        if n.wants(i):
            n.give_value(v, i)


@op("Scan")
def _scan(n: Node) -> None:
    if n.scope.opsets.get("", 9) < 9:
        _scan_8(n)
        return
    given = [n.value(i) for i in range(len(n.proto.input))]
    _give_all(n, _scanned(n, given))


def _scan_8(n: Node) -> None:
    """Opset 8: a batch in axis 0 of everything, and the steps in axis 1."""
    if n.has(0):
        raise n.refusal("sequence_lens is not lowered", "export with opset 9 or later")
    given = [n.value(i) for i in range(1, len(n.proto.input))]
    rows = [
        _scanned(n, [taken(n, v, 0, b) for v in given], "directions")
        for b in range(given[0].shape[0])
    ]
    _give_all(n, [stacked(n, row, 0) for row in zip(*rows, strict=True)])


def _scanned(n: Node, given: list[Value], directions: str = "scan_input_directions") -> list[Value]:
    """The last states and what each trip gave, stacked."""
    body, count = n.attributes["body"], int(n.attr("num_scan_inputs"))
    state, scanned = given[: len(given) - count], given[len(given) - count :]
    axes = _axes(n, "scan_input_axes", [len(v.shape) for v in scanned])
    backwards = n.attr(directions) or [0] * count
    trips = scanned[0].shape[axes[0]]
    _bounded(n, len(body.node), trips)
    collected: list[list[Value]] = [[] for _ in body.output[len(state) :]]
    for trip in range(trips):
        parts = [
            taken(n, v, axis, trips - 1 - trip if back else trip)
            for v, axis, back in zip(scanned, axes, backwards, strict=True)
        ]
        made = run_body(n, body, [*state, *parts])
        state = made[: len(state)]
        for found, v in zip(collected, made[len(state) :], strict=True):
            found.append(v)
    if not trips:
        raise n.refusal("it makes no trip")
    out_axes = _axes(n, "scan_output_axes", [len(found[0].shape) + 1 for found in collected])
    reverse = n.attr("scan_output_directions") or [0] * len(collected)
    outputs = [
        stacked(n, found[::-1] if back else found, axis)
        for found, axis, back in zip(collected, out_axes, reverse, strict=True)
    ]
    return [*state, *outputs]


def _axes(n: Node, name: str, ranks: list[int]) -> list[int]:
    given = n.attr(name) or [0] * len(ranks)
    return [int(a) % rank for a, rank in zip(given, ranks, strict=True)]


def taken(n: Node, v: Value, axis: int, index: int) -> Value:
    """``v`` at one index of an axis, which it then has no more."""
    shape = (*v.shape[:axis], *v.shape[axis + 1 :])
    if v.array is not None:
        return constant(v.array.take(index, axis))
    x, at = n.place(v, v.axes), v.axes.index(axis)
    begin = [index if i == at else 0 for i in range(len(x.shape))]
    size = [1 if i == at else d for i, d in enumerate(x.shape)]
    row = sliced(n, x, begin, size)
    row = n.reshaped(row, [d for i, d in enumerate(x.shape) if i != at])
    axes = tuple(a - (a > axis) for a in v.axes if a != axis)
    return Value(shape, v.dtype, row, axes)


def stacked(n: Node, values: Sequence[Value], axis: int) -> Value:
    """Values of one shape, along a new axis."""
    arrays = [v.array for v in values if v.array is not None]
    if len(arrays) == len(values):
        return constant(np.stack(arrays, axis))
    one = values[0].shape
    if any(v.shape != one for v in values):
        raise n.refusal("what its trips give differs in shape")
    before, after = math.prod(one[:axis]), math.prod(one[axis:])
    tensors = [n.reshaped(n.place(v), (before, after)) for v in values]
    joined = tensors[0]
    if len(tensors) > 1:
        joined = n.emit("CONCATENATION", tensors, (before, after * len(tensors)), axis=1)
    shape = (*one[:axis], len(values), *one[axis:])
    return Value(shape, values[0].dtype, n.reshaped(joined, shape), identity(len(shape)))


@op("OptionalHasElement")
def _has_element(n: Node) -> None:
    n.give_value(constant(np.array(n.has(0))))


@op("OptionalGetElement")
def _get_element(n: Node) -> None:
    n.give_value(n.value(0))
