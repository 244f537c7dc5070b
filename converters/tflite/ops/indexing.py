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
    """Indices from 0 on: negative ones count from the end."""
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
    x = node.place(data)
    node.set_output(node.emit("GATHER", [x, at], node.shape, axis=axis))


def _is_embedding_table(v: PlacedValue, axis: int) -> bool:
    array = v.array
    return (
        array is not None
        and array.dtype == np.float32
        and array.ndim == 2
        and axis == 0
        and array.size >= TABLE
    )


def _look_up_rows(node: Node, table: PlacedValue, ids: PlacedValue) -> Tensor:
    """Rows by flat int32 ids: the form that quantisers know. An id out of range is an error of
    the runtime, and so is a negative one."""
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
    x = node.place(data, data.axes)
    begin, size = [0] * len(x.shape), list(x.shape)
    begin[at], size[at] = index, 1
    row = node.emit("SLICE", [x, node.ints(begin), node.ints(size)], size)
    kept = [a for a in data.axes if a != axis]
    shape = [d for i, d in enumerate(x.shape) if i != at]
    node.set_output(node.reshape(row, shape), tuple(sorted(kept).index(a) for a in kept))


def widen_booleans(node: Node, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The tensor in a type that every kernel has, and the way back: booleans go as uint8."""
    if x.dtype != np.bool_:
        return x, lambda y: y
    return cast(node, x, np.uint8), lambda y: cast(node, y, np.bool_)


def lower_gather_elements(node: Node) -> None:
    data, index = node.value(0), node.value(1)
    rank = len(data.shape)
    axis = int(node.attr("axis", 0)) % rank
    order = (*(a for a in range(rank) if a != axis), axis)
    # Elsewhere than along the axis, an index looks into its own row only.
    x = slice_tensor(
        node,
        node.place(data, order),
        [0] * rank,
        [*(index.shape[a] for a in order[:-1]), data.shape[axis]],
    )
    at = wrap_indices(node, cast(node, node.place(index, order), np.int32), data.shape[axis])
    rows, shape = math.prod(at.shape[:-1]), at.shape
    x, back = widen_booleans(node, node.reshape(x, (rows, data.shape[axis])))
    at = node.reshape(at, (rows, shape[-1]))
    if rows == 1:  # one row: GATHER as the oldest runtimes have it
        y = node.emit(
            "GATHER",
            [node.reshape(x, x.shape[1:]), node.reshape(at, at.shape[1:])],
            at.shape[1:],
            axis=0,
        )
    else:
        y = node.emit("GATHER", [x, at], at.shape, axis=1, batch_dims=1)
    node.set_output(node.reshape(back(y), shape), order)


def lower_gather_nd(node: Node) -> None:
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
    x, back = widen_booleans(node, node.reshape(node.place(data), (lead * inner, rest)))
    y = node.emit("GATHER", [x, node.reshape(rows, (count,))], (count, rest), axis=0)
    node.set_output(node.reshape(back(y), node.shape))


def flatten_indices(node: Node, index: Tensor, sizes: Sequence[int]) -> Tensor:
    """Index vectors [..., k] into axes of these sizes, as int32 indices into them all as one."""
    k, count = len(sizes), math.prod(index.shape[:-1])
    at = node.reshape(cast(node, index, np.int32), (count, k))
    if not k:
        return node.const(np.zeros(count), np.int32)
    if math.prod(sizes) > MAX_ROWS:
        raise node.refusal(f"{math.prod(sizes)} rows are more than 32-bit indices reach")
    steps = np.array([math.prod(sizes[i + 1 :]) for i in range(k)], np.int32)
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
    v = node.value(0)
    k = int(node.require_constant(1, "k").reshape(())) if node.has_input(1) else 0
    if 0 in v.shape:
        node.set_output_value(v)
        return
    keep = np.ones(v.shape[-2:], bool)
    keep = np.triu(keep, k) if node.attr("upper", 1) else np.tril(keep, k)
    keep = keep.reshape((1,) * (len(v.shape) - 2) + keep.shape)
    tensor, back = widen_booleans(node, node.place(v))
    nothing = node.const(np.zeros((1,) * len(v.shape)), tensor.dtype)
    node.set_output(
        back(
            emit_broadcast(
                node, "SELECT_V2", [node.const(keep, bool), tensor, nothing], tensor.dtype
            )
        )
    )


def lower_eye_like(node: Node) -> None:
    rows, columns = node.value(0).shape
    node.set_output(node.const(np.eye(rows, columns, int(node.attr("k", 0))), node.dtypes[0]))


def lower_compress(node: Node) -> None:
    kept = np.flatnonzero(node.require_constant(1, "its condition"))
    v, axis = node.value(0), node.attr("axis")
    if axis is None:
        x = node.reshape(node.place(v), (math.prod(v.shape),))
        node.set_output(node.emit("GATHER", [x, node.ints(kept)], (len(kept),), axis=0))
        return
    at, x = v.axes.index(axis % len(v.shape)), node.place(v, v.axes)
    shape = (*x.shape[:at], len(kept), *x.shape[at + 1 :])
    node.set_output(node.emit("GATHER", [x, node.ints(kept)], shape, axis=at), v.axes)


def lower_one_hot(node: Node) -> None:
    v = node.value(0)
    depth = int(node.require_constant(1, "its depth").reshape(()))
    axis = int(node.attr("axis", -1)) % (len(v.shape) + 1)
    kind = np.int64 if v.dtype == np.int64 else np.int32
    at = wrap_indices(node, cast(node, node.place(v), kind), depth)
    values = node.place_input(2)
    off, on = (node.reshape(slice_tensor(node, values, [i], [1]), ()) for i in (0, 1))
    if values.data is not None:
        off, on = (node.const(values.data[i], values.dtype) for i in (0, 1))
    y = node.emit(
        "ONE_HOT",
        [at, node.const(depth, np.int32), on, off],
        (*v.shape, depth),
        values.dtype,
        axis=-1,
    )
    rank = len(v.shape) + 1
    order = (*(a for a in range(rank) if a != axis), axis)
    node.set_output(y, order)


def lower_reverse_sequence(node: Node) -> None:
    v = node.value(0)
    seq, batch = int(node.attr("time_axis", 0)), int(node.attr("batch_axis", 1))
    inputs = [node.place(v, v.axes), node.place_input(1)]
    options = {"seq_dim": v.axes.index(seq), "batch_dim": v.axes.index(batch)}
    node.set_output(node.emit("REVERSE_SEQUENCE", inputs, inputs[0].shape, **options), v.axes)


def lower_top_k(node: Node) -> None:
    v = node.value(0)
    old = node.scope.opsets.get("", 11) < 10
    k = int(node.attr("k")) if old else int(node.require_constant(1, "k").reshape(()))
    axis, largest = int(node.attr("axis", -1)) % len(v.shape), bool(node.attr("largest", 1))
    x, order = place_axis_last(node, v, axis)
    if v.dtype not in (np.float32, np.int32, np.int64):
        x = cast(node, x, np.int32)
    calc = Math(node)

    def turned(t: Tensor) -> Tensor:
        """The order reversed; of integers as -1 - x, which the lowest number has too."""
        if largest:
            return t
        return calc("NEG", t) if t.dtype == np.float32 else calc("SUB", -1, t)

    x = turned(x)
    shape = (*x.shape[:-1], k)
    top, at = node.graph.emit_many(
        "TOPK_V2", [x, node.const(k, np.int32)], [shape] * 2, dtypes=[x.dtype, np.int32]
    )
    if node.has_output(0):
        node.set_output(cast(node, turned(top), v.dtype), order)
    if node.has_output(1):
        node.set_output(cast(node, at, np.int64), order, 1)


def refuse_dynamic_shape(node: Node) -> None:
    raise node.refusal("the shape of its result depends on values computed at run time")
