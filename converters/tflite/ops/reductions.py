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
    """One reduction operator, with the arithmetic of the norms and logarithms around it."""
    value = node.value(0)
    rank = len(value.shape)
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
            return node.set_output_value(value)
        axes = [] if node.attr("noop_with_empty_axes", 0) else list(range(rank))
    axes = [axis % rank for axis in axes]
    calc, tensor = Math(node), node.place(value, value.axes)
    keep = bool(node.attr("keepdims", 1))
    if node.op == "ReduceL1":
        tensor = calc("ABS", tensor)
    elif node.op in ("ReduceL2", "ReduceSumSquare"):
        tensor = calc("MUL", tensor, tensor)
    elif node.op == "ReduceLogSumExp":
        return _lower_log_sum_exp(node, tensor, value.axes, axes, keep)
    kind = tensor.dtype
    if kind == np.bool_:
        code = {"REDUCE_MAX": "REDUCE_ANY", "REDUCE_MIN": "REDUCE_ALL"}.get(REDUCTIONS[node.op])
        if code is None:
            raise node.refusal("it has no boolean form")
        result, order = reduce_axes(node, code, tensor, value.axes, axes, keep)
        return node.set_output(result, order)
    result, order = reduce_axes(node, REDUCTIONS[node.op], tensor, value.axes, axes, keep)
    if node.op == "ReduceL2":
        result = calc("SQRT", result)
    elif node.op == "ReduceLogSum":
        result = calc("LOG", result)
    return node.set_output(result, order)


def reduce_axes(
    node: Node, code: str, tensor: Tensor, order: Axes, axes: list[int], keep: bool
) -> tuple[Tensor, Axes]:
    """Reduce the ONNX axes ``axes`` of a tensor stored in ``order`` by the operator ``code``.

    Returns the result and its order; with ``keep`` the reduced axes stay with size 1.
    """
    at = sorted(order.index(kept_axis) for kept_axis in axes)
    left = [size for i, size in enumerate(tensor.shape) if i not in at]
    full = [1 if i in at else size for i, size in enumerate(tensor.shape)]
    if not at:
        return tensor, order
    if 0 in tensor.shape:
        result = node.const(np.full(full if keep else left, EMPTY[code]), tensor.dtype)
    else:
        result = node.emit(code, [tensor, node.ints(at)], full if keep else left, keep_dims=keep)
    if keep:
        return result, order
    kept = [kept_axis for kept_axis in order if kept_axis not in axes]
    ranks = {kept_axis: i for i, kept_axis in enumerate(sorted(kept))}
    return result, tuple(ranks[kept_axis] for kept_axis in kept)


def _lower_log_sum_exp(
    node: Node, tensor: Tensor, order: Axes, axes: list[int], keep: bool
) -> None:
    calc = Math(node)
    if 0 in tensor.shape or not axes:
        total, order = reduce_axes(node, "SUM", calc("EXP", tensor), order, axes, keep)
        return node.set_output(calc("LOG", total), order)
    top, _ = reduce_axes(node, "REDUCE_MAX", tensor, order, axes, True)
    inner_total, out = reduce_axes(
        node, "SUM", calc("EXP", emit_broadcast(node, "SUB", [tensor, top])), order, axes, keep
    )
    return node.set_output(
        calc("ADD", calc("LOG", inner_total), node.reshape(top, inner_total.shape)), out
    )


def lower_arg_extremum(node: Node) -> None:
    """ARG_MAX or ARG_MIN; the last of equal elements by reversing the axis first."""
    value = node.value(0)
    rank = len(value.shape)
    axis = int(node.attr("axis", 0)) % rank
    at, tensor = value.axes.index(axis), node.place(value, value.axes)
    last = bool(node.attr("select_last_index", 0))
    if last:
        tensor = node.emit("REVERSE_V2", [tensor, node.ints([at])], tensor.shape)
    shape = [size for i, size in enumerate(tensor.shape) if i != at]
    code = "ARG_MAX" if node.op == "ArgMax" else "ARG_MIN"
    result = node.emit(code, [tensor, node.ints([at])], shape, np.int64, output_type=4)
    if last:
        result = Math(node)("SUB", value.shape[axis] - 1, result)
    if node.attr("keepdims", 1):
        full = [1 if i == at else size for i, size in enumerate(tensor.shape)]
        node.set_output(node.reshape(result, full), value.axes)
        return
    kept = [kept_axis for kept_axis in value.axes if kept_axis != axis]
    node.set_output(result, tuple(sorted(kept).index(kept_axis) for kept_axis in kept))


def place_axis_last(node: Node, value: PlacedValue, axis: int) -> tuple[Tensor, Axes]:
    """The value with that ONNX axis last in memory and the others as stored; and the order."""
    order = (
        (*(kept_axis for kept_axis in value.axes if kept_axis != axis), axis)
        if value.axes
        else identity(len(value.shape))
    )
    return node.place(value, order), order


def lower_softmax(node: Node) -> None:
    """SOFTMAX, LOG_SOFTMAX or a ONE_HOT of ARG_MAX over the last stored axis."""
    value = node.value(0)
    rank = len(value.shape)
    new = node.scope.opsets.get("", 13) >= 13
    axis = int(node.attr("axis", -1 if new else 1)) % max(rank, 1)
    if new:
        tensor, order = place_axis_last(node, value, axis)
        node.set_output(_emit_softmax(node, tensor), order)
        return
    # Up to opset 12 all axes from that one on are flattened.
    flat = (math.prod(value.shape[:axis]), math.prod(value.shape[axis:]))
    node.set_output(
        node.reshape(_emit_softmax(node, node.reshape(node.place(value), flat)), value.shape)
    )


def _emit_softmax(node: Node, tensor: Tensor) -> Tensor:
    if node.op == "Softmax":
        return node.emit("SOFTMAX", [tensor], tensor.shape, beta=1.0)
    if node.op == "LogSoftmax":
        return node.emit("LOG_SOFTMAX", [tensor], tensor.shape)
    depth = tensor.shape[-1]
    top = node.emit(
        "ARG_MAX",
        [tensor, node.ints([len(tensor.shape) - 1])],
        tensor.shape[:-1],
        np.int32,
        output_type=2,
    )
    one, zero = node.const(1.0, tensor.dtype), node.const(0.0, tensor.dtype)
    inputs = [top, node.const(depth, np.int32), one, zero]
    return node.emit("ONE_HOT", inputs, tensor.shape, tensor.dtype, axis=-1)


def lower_cum_sum(node: Node) -> None:
    """CUMSUM."""
    value = node.value(0)
    axis = int(node.require_constant(1, "axis").reshape(())) % len(value.shape)
    tensor = node.place(value, value.axes)
    inputs = [tensor, node.const(value.axes.index(axis), np.int32)]
    options = {
        "exclusive": bool(node.attr("exclusive", 0)),
        "reverse": bool(node.attr("reverse", 0)),
    }
    node.set_output(node.emit("CUMSUM", inputs, tensor.shape, **options), value.axes)


__all__ = ["cast", "place_axis_last", "reduce_axes"]
