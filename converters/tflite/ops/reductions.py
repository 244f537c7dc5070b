"""Operators that reduce axes, and those that normalise by a reduction."""

from __future__ import annotations

import math

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node, op
from converters.tflite.ops.broadcast import emit
from converters.tflite.ops.elementwise import Math, cast
from converters.tflite.values import Axes, Value, identity

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


@op(*REDUCTIONS)
def _reduce(n: Node) -> None:
    v = n.value(0)
    rank = len(v.shape)
    axes = n.listed(1, "axes", None)
    if not axes:
        if n.attr("noop_with_empty_axes", 0) and n.op in (
            "ReduceMean",
            "ReduceSum",
            "ReduceMax",
            "ReduceMin",
            "ReduceProd",
            "ReduceLogSumExp",
        ):
            return n.give_value(v)
        axes = [] if n.attr("noop_with_empty_axes", 0) else list(range(rank))
    axes = [a % rank for a in axes]
    m, x = Math(n), n.place(v, v.axes)
    keep = bool(n.attr("keepdims", 1))
    if n.op == "ReduceL1":
        x = m("ABS", x)
    elif n.op in ("ReduceL2", "ReduceSumSquare"):
        x = m("MUL", x, x)
    elif n.op == "ReduceLogSumExp":
        return _log_sum_exp(n, x, v.axes, axes, keep)
    kind = x.dtype
    if kind == np.bool_:
        code = {"REDUCE_MAX": "REDUCE_ANY", "REDUCE_MIN": "REDUCE_ALL"}.get(REDUCTIONS[n.op])
        if code is None:
            raise n.refusal("it has no boolean form")
        y, order = reduced(n, code, x, v.axes, axes, keep)
        return n.give(y, order)
    y, order = reduced(n, REDUCTIONS[n.op], x, v.axes, axes, keep)
    if n.op == "ReduceL2":
        y = m("SQRT", y)
    elif n.op == "ReduceLogSum":
        y = m("LOG", y)
    return n.give(y, order)


def reduced(
    n: Node, code: str, x: Tensor, order: Axes, axes: list[int], keep: bool
) -> tuple[Tensor, Axes]:
    """Reduce the ONNX axes ``axes`` of a tensor stored in ``order``; gives also the new order."""
    at = sorted(order.index(a) for a in axes)
    left = [d for i, d in enumerate(x.shape) if i not in at]
    full = [1 if i in at else d for i, d in enumerate(x.shape)]
    if not at:
        return x, order
    if 0 in x.shape:
        y = n.const(np.full(full if keep else left, EMPTY[code]), x.dtype)
    else:
        y = n.emit(code, [x, n.ints(at)], full if keep else left, keep_dims=keep)
    if keep:
        return y, order
    kept = [a for a in order if a not in axes]
    ranks = {a: i for i, a in enumerate(sorted(kept))}
    return y, tuple(ranks[a] for a in kept)


def _log_sum_exp(n: Node, x: Tensor, order: Axes, axes: list[int], keep: bool) -> None:
    m = Math(n)
    if 0 in x.shape or not axes:
        y, order = reduced(n, "SUM", m("EXP", x), order, axes, keep)
        return n.give(m("LOG", y), order)
    top, _ = reduced(n, "REDUCE_MAX", x, order, axes, True)
    total, out = reduced(n, "SUM", m("EXP", emit(n, "SUB", [x, top])), order, axes, keep)
    return n.give(m("ADD", m("LOG", total), n.reshaped(top, total.shape)), out)


@op("ArgMax", "ArgMin")
def _arg(n: Node) -> None:
    v = n.value(0)
    rank = len(v.shape)
    axis = int(n.attr("axis", 0)) % rank
    at, x = v.axes.index(axis), n.place(v, v.axes)
    last = bool(n.attr("select_last_index", 0))
    if last:
        x = n.emit("REVERSE_V2", [x, n.ints([at])], x.shape)
    shape = [d for i, d in enumerate(x.shape) if i != at]
    code = "ARG_MAX" if n.op == "ArgMax" else "ARG_MIN"
    y = n.emit(code, [x, n.ints([at])], shape, np.int64, output_type=4)
    if last:
        y = Math(n)("SUB", v.shape[axis] - 1, y)
    if n.attr("keepdims", 1):
        full = [1 if i == at else d for i, d in enumerate(x.shape)]
        n.give(n.reshaped(y, full), v.axes)
        return
    kept = [a for a in v.axes if a != axis]
    n.give(y, tuple(sorted(kept).index(a) for a in kept))


def axis_last(n: Node, v: Value, axis: int) -> tuple[Tensor, Axes]:
    """The value with that axis last in memory, everything else as it lies."""
    order = (*(a for a in v.axes if a != axis), axis) if v.axes else identity(len(v.shape))
    return n.place(v, order), order


@op("Softmax", "LogSoftmax", "Hardmax")
def _softmax(n: Node) -> None:
    v = n.value(0)
    rank = len(v.shape)
    new = n.scope.opsets.get("", 13) >= 13
    axis = int(n.attr("axis", -1 if new else 1)) % max(rank, 1)
    if new:
        x, order = axis_last(n, v, axis)
        n.give(_over_last(n, x), order)
        return
    # Up to opset 12 all axes from that one on are one.
    flat = (math.prod(v.shape[:axis]), math.prod(v.shape[axis:]))
    n.give(n.reshaped(_over_last(n, n.reshaped(n.place(v), flat)), v.shape))


def _over_last(n: Node, x: Tensor) -> Tensor:
    if n.op == "Softmax":
        return n.emit("SOFTMAX", [x], x.shape, beta=1.0)
    if n.op == "LogSoftmax":
        return n.emit("LOG_SOFTMAX", [x], x.shape)
    depth = x.shape[-1]
    top = n.emit("ARG_MAX", [x, n.ints([len(x.shape) - 1])], x.shape[:-1], np.int32, output_type=2)
    one, zero = n.const(1.0, x.dtype), n.const(0.0, x.dtype)
    inputs = [top, n.const(depth, np.int32), one, zero]
    return n.emit("ONE_HOT", inputs, x.shape, x.dtype, axis=-1)


@op("CumSum")
def _cumsum(n: Node) -> None:
    v = n.value(0)
    axis = int(n.constant(1, "axis").reshape(())) % len(v.shape)
    x = n.place(v, v.axes)
    inputs = [x, n.const(v.axes.index(axis), np.int32)]
    options = {"exclusive": bool(n.attr("exclusive", 0)), "reverse": bool(n.attr("reverse", 0))}
    n.give(n.emit("CUMSUM", inputs, x.shape, **options), v.axes)


__all__ = ["axis_last", "cast", "reduced"]
