"""Operators that look elements up by index."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node
from converters.tflite.ops.arithmetic import Math, cast
from converters.tflite.ops.broadcast import emit_broadcast
from converters.tflite.ops.movement import slice_tensor
from converters.tflite.ops.reductions import place_axis_last
from converters.tflite.values import PlacedValue

MAX_ROWS = 2**31 - 1
TABLE = 4096  # elements; a float constant of this size that ids look up rows of is an embedding


def wrap_indices(node: Node, index: Tensor, size: int) -> Tensor:
    """``index`` with negative entries counted from the end of an axis of ``size``."""
    if index.data is not None:
        return node.const(np.where(index.data < 0, index.data + size, index.data), index.dtype)
    calc = Math(node)
    return calc(
        "SELECT_V2",
        calc("LESS", index, 0, dtype=np.bool_),
        calc("ADD", index, size),
        index,
        dtype=index.dtype,
    )


def lower_gather(node: Node) -> None:
    """GATHER; EMBEDDING_LOOKUP of rows of a large float table, SLICE at one constant index."""
    data, index = node.value(0), node.value(1)
    axis = int(node.attr("axis", 0)) % len(data.shape)
    if _is_embedding_table(data, axis):
        node.set_output(_look_up_rows(node, data, index))
        return
    size = data.shape[axis]
    if index.array is not None and not index.shape:
        _take_one(node, data, axis, int(index.array) % size)
        return
    at = wrap_indices(node, node.place(index), size)
    tensor = node.place(data)
    node.set_output(node.emit("GATHER", [tensor, at], node.shape, axis=axis))


def _is_embedding_table(value: PlacedValue, axis: int) -> bool:
    array = value.array
    return (
        array is not None
        and array.dtype == np.float32
        and array.ndim == 2
        and axis == 0
        and array.size >= TABLE
    )


def _look_up_rows(node: Node, table: PlacedValue, ids: PlacedValue) -> Tensor:
    """Rows by flat int32 ids: the form that quantisers know. An id out of range is an error of
    the runtime, and so is a negative one.
    """
    flat = node.reshape(cast(node, node.place(ids), np.int32), (int(np.prod(ids.shape)),))
    assert table.array is not None
    rows = node.emit(
        "EMBEDDING_LOOKUP",
        [flat, node.graph.constant(table.array)],
        (*flat.shape, table.shape[1]),
        np.float32,
    )
    return node.reshape(rows, (*ids.shape, table.shape[1]))


def _take_one(node: Node, data: PlacedValue, axis: int, index: int) -> None:
    at = data.axes.index(axis)
    tensor = node.place(data, data.axes)
    begin, size = [0] * len(tensor.shape), list(tensor.shape)
    begin[at], size[at] = index, 1
    row = node.emit("SLICE", [tensor, node.ints(begin), node.ints(size)], size)
    kept = [kept_axis for kept_axis in data.axes if kept_axis != axis]
    shape = [length for i, length in enumerate(tensor.shape) if i != at]
    node.set_output(
        node.reshape(row, shape), tuple(sorted(kept).index(kept_axis) for kept_axis in kept)
    )


def widen_booleans(node: Node, tensor: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Booleans as uint8, which every kernel has, and the function that casts back.

    Other types stay as they are.
    """
    if tensor.dtype != np.bool_:
        return tensor, lambda result: result
    return cast(node, tensor, np.uint8), lambda result: cast(node, result, np.bool_)


def lower_gather_elements(node: Node) -> None:
    """GATHER with a batch dimension: the axis goes last, all others are rows."""
    data, index = node.value(0), node.value(1)
    rank = len(data.shape)
    axis = int(node.attr("axis", 0)) % rank
    order = (*(other for other in range(rank) if other != axis), axis)
    # Elsewhere than along the axis, an index looks into its own row only.
    rows_tensor = slice_tensor(
        node,
        node.place(data, order),
        [0] * rank,
        [*(index.shape[other] for other in order[:-1]), data.shape[axis]],
    )
    at = wrap_indices(node, cast(node, node.place(index, order), np.int32), data.shape[axis])
    rows, shape = math.prod(at.shape[:-1]), at.shape
    rows_tensor, back = widen_booleans(node, node.reshape(rows_tensor, (rows, data.shape[axis])))
    at = node.reshape(at, (rows, shape[-1]))
    if rows == 1:  # one row: GATHER as the oldest runtimes have it
        result = node.emit(
            "GATHER",
            [node.reshape(rows_tensor, rows_tensor.shape[1:]), node.reshape(at, at.shape[1:])],
            at.shape[1:],
            axis=0,
        )
    else:
        result = node.emit("GATHER", [rows_tensor, at], at.shape, axis=1, batch_dims=1)
    node.set_output(node.reshape(back(result), shape), order)


def lower_gather_nd(node: Node) -> None:
    """GATHER of rows: the index vectors become flat indices."""
    data, index, batch = node.value(0), node.value(1), int(node.attr("batch_dims", 0))
    depth = index.shape[-1]
    rows = flatten_indices(node, node.place(index), data.shape[batch : batch + depth])
    lead, rest = math.prod(data.shape[:batch]), math.prod(data.shape[batch + depth :])
    inner = math.prod(data.shape[batch : batch + depth])
    rows = node.reshape(rows, (lead, rows.shape[0] // max(lead, 1)))
    if lead > 1:
        rows = emit_broadcast(
            node, "ADD", [rows, node.const(np.arange(lead)[:, None] * inner, np.int32)]
        )
    count = math.prod(rows.shape)
    table, back = widen_booleans(node, node.reshape(node.place(data), (lead * inner, rest)))
    result = node.emit("GATHER", [table, node.reshape(rows, (count,))], (count, rest), axis=0)
    node.set_output(node.reshape(back(result), node.shape))


def flatten_indices(node: Node, index: Tensor, sizes: Sequence[int]) -> Tensor:
    """Index vectors [..., k] into axes of these ``sizes`` as flat int32 indices [rows]."""
    depth, count = len(sizes), math.prod(index.shape[:-1])
    at = node.reshape(cast(node, index, np.int32), (count, depth))
    if not depth:
        return node.const(np.zeros(count), np.int32)
    if math.prod(sizes) > MAX_ROWS:
        raise node.refusal(f"{math.prod(sizes)} rows are more than 32-bit indices reach")
    steps = np.array([math.prod(sizes[i + 1 :]) for i in range(depth)], np.int32)
    if at.data is not None:
        return node.const(
            (np.where(at.data < 0, at.data + np.array(sizes), at.data) * steps).sum(1), np.int32
        )
    total = None
    for i, (size, step) in enumerate(zip(sizes, steps, strict=True)):
        column = wrap_indices(
            node, node.reshape(slice_tensor(node, at, [0, i], [count, 1]), (count,)), size
        )
        if step != 1:
            column = Math(node)("MUL", column, int(step))
        total = column if total is None else emit_broadcast(node, "ADD", [total, column])
    assert total is not None
    return total


def lower_trilu(node: Node) -> None:
    """SELECT_V2 with a constant triangle."""
    value = node.value(0)
    diagonal = int(node.require_constant(1, "k").reshape(())) if node.has_input(1) else 0
    if 0 in value.shape:
        node.set_output_value(value)
        return
    keep = np.ones(value.shape[-2:], bool)
    keep = np.triu(keep, diagonal) if node.attr("upper", 1) else np.tril(keep, diagonal)
    keep = keep.reshape((1,) * (len(value.shape) - 2) + keep.shape)
    tensor, back = widen_booleans(node, node.place(value))
    nothing = node.const(np.zeros((1,) * len(value.shape)), tensor.dtype)
    node.set_output(
        back(
            emit_broadcast(
                node, "SELECT_V2", [node.const(keep, bool), tensor, nothing], tensor.dtype
            )
        )
    )


def lower_eye_like(node: Node) -> None:
    """A constant."""
    rows, columns = node.value(0).shape
    node.set_output(node.const(np.eye(rows, columns, int(node.attr("k", 0))), node.dtypes[0]))


def lower_compress(node: Node) -> None:
    """GATHER at the places where the constant condition is true."""
    kept = np.flatnonzero(node.require_constant(1, "its condition"))
    value, axis = node.value(0), node.attr("axis")
    if axis is None:
        tensor = node.reshape(node.place(value), (math.prod(value.shape),))
        node.set_output(node.emit("GATHER", [tensor, node.ints(kept)], (len(kept),), axis=0))
        return
    at, tensor = value.axes.index(axis % len(value.shape)), node.place(value, value.axes)
    shape = (*tensor.shape[:at], len(kept), *tensor.shape[at + 1 :])
    node.set_output(node.emit("GATHER", [tensor, node.ints(kept)], shape, axis=at), value.axes)


def lower_one_hot(node: Node) -> None:
    """ONE_HOT over the last axis; negative indices count from the end."""
    value = node.value(0)
    depth = int(node.require_constant(1, "its depth").reshape(()))
    axis = int(node.attr("axis", -1)) % (len(value.shape) + 1)
    kind = np.int64 if value.dtype == np.int64 else np.int32
    at = wrap_indices(node, cast(node, node.place(value), kind), depth)
    values = node.place_input(2)
    off, on = (node.reshape(slice_tensor(node, values, [place], [1]), ()) for place in (0, 1))
    if values.data is not None:
        off, on = (node.const(values.data[place], values.dtype) for place in (0, 1))
    result = node.emit(
        "ONE_HOT",
        [at, node.const(depth, np.int32), on, off],
        (*value.shape, depth),
        values.dtype,
        axis=-1,
    )
    rank = len(value.shape) + 1
    order = (*(other for other in range(rank) if other != axis), axis)
    node.set_output(result, order)


def lower_reverse_sequence(node: Node) -> None:
    """REVERSE_SEQUENCE."""
    value = node.value(0)
    seq, batch = int(node.attr("time_axis", 0)), int(node.attr("batch_axis", 1))
    inputs = [node.place(value, value.axes), node.place_input(1)]
    options = {"seq_dim": value.axes.index(seq), "batch_dim": value.axes.index(batch)}
    node.set_output(node.emit("REVERSE_SEQUENCE", inputs, inputs[0].shape, **options), value.axes)


def lower_top_k(node: Node) -> None:
    """TOPK_V2; the smallest are the largest with the order reversed."""
    value = node.value(0)
    old = node.scope.opsets.get("", 11) < 10
    count = int(node.attr("k")) if old else int(node.require_constant(1, "k").reshape(()))
    axis, largest = int(node.attr("axis", -1)) % len(value.shape), bool(node.attr("largest", 1))
    tensor, order = place_axis_last(node, value, axis)
    if value.dtype not in (np.float32, np.int32, np.int64):
        tensor = cast(node, tensor, np.int32)
    calc = Math(node)

    def reverse_order(tensor: Tensor) -> Tensor:
        """The order reversed; of integers as -1 - x, which the lowest number has too."""
        if largest:
            return tensor
        return calc("NEG", tensor) if tensor.dtype == np.float32 else calc("SUB", -1, tensor)

    tensor = reverse_order(tensor)
    shape = (*tensor.shape[:-1], count)
    top, at = node.graph.emit_many(
        "TOPK_V2",
        [tensor, node.const(count, np.int32)],
        [shape] * 2,
        dtypes=[tensor.dtype, np.int32],
    )
    if node.has_output(0):
        node.set_output(cast(node, reverse_order(top), value.dtype), order)
    if node.has_output(1):
        node.set_output(cast(node, at, np.int64), order, 1)


def refuse_dynamic_shape(node: Node) -> None:
    """Refuse an op whose result has no shape before it runs."""
    raise node.refusal("the shape of its result depends on values computed at run time")
