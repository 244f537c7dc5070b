"""Operators that reduce axes, and those that normalise by a reduction."""

from __future__ import annotations

import math

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node
from converters.tflite.ops.broadcast import emit_broadcast
from converters.tflite.ops.elementwise import Math, cast
from converters.tflite.values import Axes, PlacedValue, identity

REDUCTIONS = {
    "ReduceMean": "MEAN", "ReduceSum": "SUM", "ReduceMax": "REDUCE_MAX", "ReduceMin": "REDUCE_MIN",
    "ReduceProd": "REDUCE_PROD", "ReduceL1": "SUM", "ReduceL2": "SUM", "ReduceSumSquare": "SUM",
    "ReduceLogSum": "SUM", "ReduceLogSumExp": "SUM",
}  # fmt: skip
EMPTY = {
    "REDUCE_MAX": -np.inf,
    "REDUCE_MIN": np.inf,
    "REDUCE_PROD": 1.0,
    "SUM": 0.0,
    "MEAN": np.nan,
    "REDUCE_ANY": False,
    "REDUCE_ALL": True,
}


def lower_reduction(node: Node) -> None:
    v = node.value(0)
    rank = len(v.shape)
    axes = node.read_int_list(1, "axes", None)
    if not axes:
        if node.attr("noop_with_empty_axes", 0) and node.op in (
            "ReduceMean",
            "ReduceSum",
            "ReduceMax",
            "ReduceMin",
            "ReduceProd",
            "ReduceLogSumExp",
        ):
            return node.set_output_value(v)
        axes = [] if node.attr("noop_with_empty_axes", 0) else list(range(rank))
    axes = [a % rank for a in axes]
    calc, x = Math(node), node.place(v, v.axes)
    keep = bool(node.attr("keepdims", 1))
    if node.op == "ReduceL1":
        x = calc("ABS", x)
    elif node.op in ("ReduceL2", "ReduceSumSquare"):
        x = calc("MUL", x, x)
    elif node.op == "ReduceLogSumExp":
        return _lower_log_sum_exp(node, x, v.axes, axes, keep)
    kind = x.dtype
    if kind == np.bool_:
        code = {"REDUCE_MAX": "REDUCE_ANY", "REDUCE_MIN": "REDUCE_ALL"}.get(REDUCTIONS[node.op])
        if code is None:
            raise node.refusal("it has no boolean form")
        y, order = reduce_axes(node, code, x, v.axes, axes, keep)
        return node.set_output(y, order)
    y, order = reduce_axes(node, REDUCTIONS[node.op], x, v.axes, axes, keep)
    if node.op == "ReduceL2":
        y = calc("SQRT", y)
    elif node.op == "ReduceLogSum":
        y = calc("LOG", y)
    return node.set_output(y, order)


def reduce_axes(
    node: Node, code: str, x: Tensor, order: Axes, axes: list[int], keep: bool
) -> tuple[Tensor, Axes]:
    """Reduce the ONNX axes ``axes`` of a tensor stored in ``order``; gives also the new order."""
    at = sorted(order.index(a) for a in axes)
    left = [d for i, d in enumerate(x.shape) if i not in at]
    full = [1 if i in at else d for i, d in enumerate(x.shape)]
    if not at:
        return x, order
    if 0 in x.shape:
        y = node.const(np.full(full if keep else left, EMPTY[code]), x.dtype)
    else:
        y = node.emit(code, [x, node.ints(at)], full if keep else left, keep_dims=keep)
    if keep:
        return y, order
    kept = [a for a in order if a not in axes]
    ranks = {a: i for i, a in enumerate(sorted(kept))}
    return y, tuple(ranks[a] for a in kept)


def _lower_log_sum_exp(node: Node, x: Tensor, order: Axes, axes: list[int], keep: bool) -> None:
    calc = Math(node)
    if 0 in x.shape or not axes:
        y, order = reduce_axes(node, "SUM", calc("EXP", x), order, axes, keep)
        return node.set_output(calc("LOG", y), order)
    top, _ = reduce_axes(node, "REDUCE_MAX", x, order, axes, True)
    total, out = reduce_axes(
        node, "SUM", calc("EXP", emit_broadcast(node, "SUB", [x, top])), order, axes, keep
    )
    return node.set_output(calc("ADD", calc("LOG", total), node.reshape(top, total.shape)), out)


def lower_arg_extremum(node: Node) -> None:
    v = node.value(0)
    rank = len(v.shape)
    axis = int(node.attr("axis", 0)) % rank
    at, x = v.axes.index(axis), node.place(v, v.axes)
    last = bool(node.attr("select_last_index", 0))
    if last:
        x = node.emit("REVERSE_V2", [x, node.ints([at])], x.shape)
    shape = [d for i, d in enumerate(x.shape) if i != at]
    code = "ARG_MAX" if node.op == "ArgMax" else "ARG_MIN"
    y = node.emit(code, [x, node.ints([at])], shape, np.int64, output_type=4)
    if last:
        y = Math(node)("SUB", v.shape[axis] - 1, y)
    if node.attr("keepdims", 1):
        full = [1 if i == at else d for i, d in enumerate(x.shape)]
        node.set_output(node.reshape(y, full), v.axes)
        return
    kept = [a for a in v.axes if a != axis]
    node.set_output(y, tuple(sorted(kept).index(a) for a in kept))


def place_axis_last(node: Node, v: PlacedValue, axis: int) -> tuple[Tensor, Axes]:
    """The value with that axis last in memory, everything else as it lies."""
    order = (*(a for a in v.axes if a != axis), axis) if v.axes else identity(len(v.shape))
    return node.place(v, order), order


def lower_softmax(node: Node) -> None:
    v = node.value(0)
    rank = len(v.shape)
    new = node.scope.opsets.get("", 13) >= 13
    axis = int(node.attr("axis", -1 if new else 1)) % max(rank, 1)
    if new:
        x, order = place_axis_last(node, v, axis)
        node.set_output(_emit_softmax(node, x), order)
        return
    # Up to opset 12 all axes from that one on are one.
    flat = (math.prod(v.shape[:axis]), math.prod(v.shape[axis:]))
    node.set_output(node.reshape(_emit_softmax(node, node.reshape(node.place(v), flat)), v.shape))


def _emit_softmax(node: Node, x: Tensor) -> Tensor:
    if node.op == "Softmax":
        return node.emit("SOFTMAX", [x], x.shape, beta=1.0)
    if node.op == "LogSoftmax":
        return node.emit("LOG_SOFTMAX", [x], x.shape)
    depth = x.shape[-1]
    top = node.emit(
        "ARG_MAX", [x, node.ints([len(x.shape) - 1])], x.shape[:-1], np.int32, output_type=2
    )
    one, zero = node.const(1.0, x.dtype), node.const(0.0, x.dtype)
    inputs = [top, node.const(depth, np.int32), one, zero]
    return node.emit("ONE_HOT", inputs, x.shape, x.dtype, axis=-1)


def lower_cum_sum(node: Node) -> None:
    v = node.value(0)
    axis = int(node.require_constant(1, "axis").reshape(())) % len(v.shape)
    x = node.place(v, v.axes)
    inputs = [x, node.const(v.axes.index(axis), np.int32)]
    options = {
        "exclusive": bool(node.attr("exclusive", 0)),
        "reverse": bool(node.attr("reverse", 0)),
    }
    node.set_output(node.emit("CUMSUM", inputs, x.shape, **options), v.axes)


__all__ = ["cast", "place_axis_last", "reduce_axes"]
