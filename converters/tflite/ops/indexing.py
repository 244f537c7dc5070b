"""Operators that look elements up by index."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node, op
from converters.tflite.ops.arithmetic import Math, cast
from converters.tflite.ops.broadcast import emit
from converters.tflite.ops.movement import sliced
from converters.tflite.ops.reductions import axis_last
from converters.tflite.values import Value

MAX_ROWS = 2**31 - 1
TABLE = 4096  # elements; a float constant of this size that ids look up rows of is an embedding


def wrapped(n: Node, index: Tensor, size: int) -> Tensor:
    """Indices from 0 on: negative ones count from the end."""
    if index.data is not None:
        return n.const(np.where(index.data < 0, index.data + size, index.data), index.dtype)
    m = Math(n)
    return m(
        "SELECT_V2",
        m("LESS", index, 0, dtype=np.bool_),
        m("ADD", index, size),
        index,
        dtype=index.dtype,
    )


@op("Gather")
def _gather(n: Node) -> None:
    data, index = n.value(0), n.value(1)
    axis = int(n.attr("axis", 0)) % len(data.shape)
    if _is_table(data, axis):
        n.give(_looked_up(n, data, index))
        return
    size = data.shape[axis]
    if index.array is not None and not index.shape:
        _take_one(n, data, axis, int(index.array) % size)
        return
    at = wrapped(n, n.place(index), size)
    x = n.place(data)
    n.give(n.emit("GATHER", [x, at], n.shape, axis=axis))


def _is_table(v: Value, axis: int) -> bool:
    array = v.array
    return (
        array is not None
        and array.dtype == np.float32
        and array.ndim == 2
        and axis == 0
        and array.size >= TABLE
    )


def _looked_up(n: Node, table: Value, ids: Value) -> Tensor:
    """Rows by flat int32 ids: the form that quantisers know. An id out of range is an error of
    the runtime, and so is a negative one."""
    flat = n.reshaped(cast(n, n.place(ids), np.int32), (int(np.prod(ids.shape)),))
    assert table.array is not None
    rows = n.emit(
        "EMBEDDING_LOOKUP",
        [flat, n.graph.constant(table.array)],
        (*flat.shape, table.shape[1]),
        np.float32,
    )
    return n.reshaped(rows, (*ids.shape, table.shape[1]))


def _take_one(n: Node, data: Value, axis: int, index: int) -> None:
    at = data.axes.index(axis)
    x = n.place(data, data.axes)
    begin, size = [0] * len(x.shape), list(x.shape)
    begin[at], size[at] = index, 1
    row = n.emit("SLICE", [x, n.ints(begin), n.ints(size)], size)
    kept = [a for a in data.axes if a != axis]
    shape = [d for i, d in enumerate(x.shape) if i != at]
    n.give(n.reshaped(row, shape), tuple(sorted(kept).index(a) for a in kept))


def wide(n: Node, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The tensor in a type that every kernel has, and the way back: booleans go as uint8."""
    if x.dtype != np.bool_:
        return x, lambda y: y
    return cast(n, x, np.uint8), lambda y: cast(n, y, np.bool_)


@op("GatherElements")
def _gather_elements(n: Node) -> None:
    data, index = n.value(0), n.value(1)
    rank = len(data.shape)
    axis = int(n.attr("axis", 0)) % rank
    order = (*(a for a in range(rank) if a != axis), axis)
    # Elsewhere than along the axis, an index looks into its own row only.
    x = sliced(
        n,
        n.place(data, order),
        [0] * rank,
        [*(index.shape[a] for a in order[:-1]), data.shape[axis]],
    )
    at = wrapped(n, cast(n, n.place(index, order), np.int32), data.shape[axis])
    rows, shape = math.prod(at.shape[:-1]), at.shape
    x, back = wide(n, n.reshaped(x, (rows, data.shape[axis])))
    at = n.reshaped(at, (rows, shape[-1]))
    if rows == 1:  # one row: GATHER as the oldest runtimes have it
        y = n.emit(
            "GATHER",
            [n.reshaped(x, x.shape[1:]), n.reshaped(at, at.shape[1:])],
            at.shape[1:],
            axis=0,
        )
    else:
        y = n.emit("GATHER", [x, at], at.shape, axis=1, batch_dims=1)
    n.give(n.reshaped(back(y), shape), order)


@op("GatherND")
def _gather_nd(n: Node) -> None:
    data, index, batch = n.value(0), n.value(1), int(n.attr("batch_dims", 0))
    depth = index.shape[-1]
    rows = flat_rows(n, n.place(index), data.shape[batch : batch + depth])
    lead, rest = math.prod(data.shape[:batch]), math.prod(data.shape[batch + depth :])
    inner = math.prod(data.shape[batch : batch + depth])
    rows = n.reshaped(rows, (lead, rows.shape[0] // max(lead, 1)))
    if lead > 1:
        rows = emit(n, "ADD", [rows, n.const(np.arange(lead)[:, None] * inner, np.int32)])
    count = math.prod(rows.shape)
    x, back = wide(n, n.reshaped(n.place(data), (lead * inner, rest)))
    y = n.emit("GATHER", [x, n.reshaped(rows, (count,))], (count, rest), axis=0)
    n.give(n.reshaped(back(y), n.shape))


def flat_rows(n: Node, index: Tensor, sizes: Sequence[int]) -> Tensor:
    """Index vectors [..., k] into axes of these sizes, as int32 indices into them all as one."""
    k, count = len(sizes), math.prod(index.shape[:-1])
    at = n.reshaped(cast(n, index, np.int32), (count, k))
    if not k:
        return n.const(np.zeros(count), np.int32)
    if math.prod(sizes) > MAX_ROWS:
        raise n.refusal(f"{math.prod(sizes)} rows are more than 32-bit indices reach")
    steps = np.array([math.prod(sizes[i + 1 :]) for i in range(k)], np.int32)
    if at.data is not None:
        return n.const(
            (np.where(at.data < 0, at.data + np.array(sizes), at.data) * steps).sum(1), np.int32
        )
    total = None
    for i, (size, step) in enumerate(zip(sizes, steps, strict=True)):
        column = wrapped(n, n.reshaped(sliced(n, at, [0, i], [count, 1]), (count,)), size)
        if step != 1:
            column = Math(n)("MUL", column, int(step))
        total = column if total is None else emit(n, "ADD", [total, column])
    assert total is not None
    return total


@op("Trilu")
def _trilu(n: Node) -> None:
    v = n.value(0)
    k = int(n.constant(1, "k").reshape(())) if n.has(1) else 0
    if 0 in v.shape:
        n.give_value(v)
        return
    keep = np.ones(v.shape[-2:], bool)
    keep = np.triu(keep, k) if n.attr("upper", 1) else np.tril(keep, k)
    keep = keep.reshape((1,) * (len(v.shape) - 2) + keep.shape)
    tensor, back = wide(n, n.place(v))
    nothing = n.const(np.zeros((1,) * len(v.shape)), tensor.dtype)
    n.give(back(emit(n, "SELECT_V2", [n.const(keep, bool), tensor, nothing], tensor.dtype)))


@op("EyeLike")
def _eye_like(n: Node) -> None:
    rows, columns = n.value(0).shape
    n.give(n.const(np.eye(rows, columns, int(n.attr("k", 0))), n.dtypes[0]))


@op("Compress")
def _compress(n: Node) -> None:
    kept = np.flatnonzero(n.constant(1, "its condition"))
    v, axis = n.value(0), n.attr("axis")
    if axis is None:
        x = n.reshaped(n.place(v), (math.prod(v.shape),))
        n.give(n.emit("GATHER", [x, n.ints(kept)], (len(kept),), axis=0))
        return
    at, x = v.axes.index(axis % len(v.shape)), n.place(v, v.axes)
    shape = (*x.shape[:at], len(kept), *x.shape[at + 1 :])
    n.give(n.emit("GATHER", [x, n.ints(kept)], shape, axis=at), v.axes)


@op("OneHot")
def _one_hot(n: Node) -> None:
    v = n.value(0)
    depth = int(n.constant(1, "its depth").reshape(()))
    axis = int(n.attr("axis", -1)) % (len(v.shape) + 1)
    kind = np.int64 if v.dtype == np.int64 else np.int32
    at = wrapped(n, cast(n, n.place(v), kind), depth)
    values = n.stored(2)
    off, on = (n.reshaped(sliced(n, values, [i], [1]), ()) for i in (0, 1))
    if values.data is not None:
        off, on = (n.const(values.data[i], values.dtype) for i in (0, 1))
    y = n.emit(
        "ONE_HOT", [at, n.const(depth, np.int32), on, off], (*v.shape, depth), values.dtype, axis=-1
    )
    rank = len(v.shape) + 1
    order = (*(a for a in range(rank) if a != axis), axis)
    n.give(y, order)


@op("ReverseSequence")
def _reverse_sequence(n: Node) -> None:
    v = n.value(0)
    seq, batch = int(n.attr("time_axis", 0)), int(n.attr("batch_axis", 1))
    inputs = [n.place(v, v.axes), n.stored(1)]
    options = {"seq_dim": v.axes.index(seq), "batch_dim": v.axes.index(batch)}
    n.give(n.emit("REVERSE_SEQUENCE", inputs, inputs[0].shape, **options), v.axes)


@op("TopK")
def _top_k(n: Node) -> None:
    v = n.value(0)
    old = n.scope.opsets.get("", 11) < 10
    k = int(n.attr("k")) if old else int(n.constant(1, "k").reshape(()))
    axis, largest = int(n.attr("axis", -1)) % len(v.shape), bool(n.attr("largest", 1))
    x, order = axis_last(n, v, axis)
    if v.dtype not in (np.float32, np.int32, np.int64):
        x = cast(n, x, np.int32)
    m = Math(n)

    def turned(t: Tensor) -> Tensor:
        """The order reversed; of integers as -1 - x, which the lowest number has too."""
        if largest:
            return t
        return m("NEG", t) if t.dtype == np.float32 else m("SUB", -1, t)

    x = turned(x)
    shape = (*x.shape[:-1], k)
    top, at = n.graph.emit_many(
        "TOPK_V2", [x, n.const(k, np.int32)], [shape] * 2, dtypes=[x.dtype, np.int32]
    )
    if n.wants(0):
        n.give(cast(n, turned(top), v.dtype), order)
    if n.wants(1):
        n.give(cast(n, at, np.int64), order, 1)


@op("ConstantOfShape", "Range", "NonZero", "NonMaxSuppression", "Unique")
def _dynamic(n: Node) -> None:
    raise n.refusal("the shape of its result depends on values computed at run time")
