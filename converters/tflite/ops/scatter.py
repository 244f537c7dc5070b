"""Operators that write elements to places given by index.

All of them are rows written into rows: data [D, R], one index for each of the updates [K, R].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node, op
from converters.tflite.ops.arithmetic import Math, cast
from converters.tflite.ops.broadcast import emit
from converters.tflite.ops.indexing import MAX_ROWS, flat_rows, wide, wrapped
from converters.tflite.ops.movement import padded
from edge_core.tensors import Array

COMBINED = {"add": "ADD", "mul": "MUL", "max": "MAXIMUM", "min": "MINIMUM"}
REDUCED = {"mul": "REDUCE_PROD", "max": "REDUCE_MAX", "min": "REDUCE_MIN"}
MAX_DENSE = 2**22  # elements of the table of every place against every update


def scattered(n: Node, data: Tensor, rows: Tensor, updates: Tensor, how: str) -> Tensor:
    """``data`` with the updates at ``rows`` (int32, none negative) written or combined."""
    if how != "none" and how not in COMBINED:
        raise n.refusal(f"reduction '{how}' is unknown", "none, add, mul, max and min are known")
    if not updates.shape[0] or not updates.shape[1] or not data.shape[0]:
        return data
    if rows.data is not None and (rows.data.min() < 0 or rows.data.max() >= data.shape[0]):
        raise n.refusal(f"an index is not below {data.shape[0]}")
    if how == "none" and rows.data is not None:
        return _by_table(n, data, rows.data, updates)
    if how == "none":
        # The standard forbids an index that comes twice; so each place is written at most once.
        return _written(n, data, rows, updates)
    if how == "add":
        return emit(n, "ADD", [data, _sums(n, rows, updates, data.shape)])
    return _combined(n, data, rows, updates, how)


def _by_table(n: Node, data: Tensor, rows: Array, updates: Tensor) -> Tensor:
    """Known indices: every row is read from where it is in the end; the last update wins."""
    count, width = data.shape
    table = np.arange(count)
    table[rows] = count + np.arange(len(rows))
    both = n.emit("CONCATENATION", [data, updates], (count + len(rows), width), axis=0)
    return n.emit("GATHER", [both, n.ints(table)], data.shape, axis=0)


def _sums(n: Node, rows: Tensor, updates: Tensor, shape: Sequence[int]) -> Tensor:
    """SCATTER_ND: zeros, and the sum of what is written to each place."""
    index = n.reshaped(rows, (rows.shape[0], 1))
    return n.emit("SCATTER_ND", [index, updates, n.ints(shape)], shape, updates.dtype)


def _written(n: Node, data: Tensor, rows: Tensor, updates: Tensor) -> Tensor:
    ones = n.const(np.ones((rows.shape[0], 1)), np.int32)
    hit = Math(n)("GREATER", _sums(n, rows, ones, (data.shape[0], 1)), 0, dtype=np.bool_)
    new = _sums(n, rows, updates, data.shape)
    return emit(n, "SELECT_V2", [hit, new, data], data.dtype)


def _combined(n: Node, data: Tensor, rows: Tensor, updates: Tensor, how: str) -> Tensor:
    """Every place against every update: TFLite's scatter knows only sums."""
    (count, width), k = data.shape, rows.shape[0]
    if count * k * width > MAX_DENSE:
        raise n.refusal(
            f"reduction '{how}' of {k} updates into {count} rows of {width} is too much"
        )
    kind = data.dtype
    if how == "mul":
        neutral = 1.0
    elif kind == np.float32:
        neutral = -math.inf if how == "max" else math.inf
    else:
        bounds = np.iinfo(kind)
        neutral = bounds.min if how == "max" else bounds.max
    places = n.const(np.arange(count)[:, None], np.int32)
    hit = emit(n, "EQUAL", [n.reshaped(rows, (1, k)), places], np.bool_)
    given = n.reshaped(updates, (1, k, width))
    none = n.const(np.full((1, 1, 1), neutral), kind)
    spread = emit(n, "SELECT_V2", [n.reshaped(hit, (count, k, 1)), given, none], kind)
    each = n.emit(REDUCED[how], [spread, n.ints([1])], data.shape, keep_dims=False)
    return emit(n, COMBINED[how], [data, each])


def _computable(n: Node, x: Tensor, how: str) -> Tensor:
    """8-bit integers are combined as int32: TFLite's own would be quantised arithmetic."""
    return cast(n, x, np.int32) if how != "none" and x.dtype in (np.int8, np.uint8) else x


def _scatter(n: Node, shape: Sequence[int], rows: Tensor, parts: tuple[Tensor, Tensor]) -> None:
    """Lower to scattered() and give the result the shape of the data."""
    how, kind = n.attr("reduction", "none"), parts[0].dtype
    (data, back), (updates, _) = (wide(n, _computable(n, t, how)) for t in parts)
    if kind == np.bool_ and how != "none":
        raise n.refusal(f"reduction '{how}' of booleans is not lowered")
    y = back(scattered(n, data, rows, updates, how))
    n.give(n.reshaped(cast(n, y, kind), shape))


@op("ScatterND")
def _scatter_nd(n: Node) -> None:
    data, index, updates = n.value(0), n.value(1), n.value(2)
    depth = index.shape[-1]
    count, width = math.prod(data.shape[:depth]), math.prod(data.shape[depth:])
    rows = flat_rows(n, n.place(index), data.shape[:depth])
    parts = (
        n.reshaped(n.place(data), (count, width)),
        n.reshaped(n.place(updates), (rows.shape[0], width)),
    )
    _scatter(n, data.shape, rows, parts)


@op("ScatterElements", "Scatter")
def _scatter_elements(n: Node) -> None:
    data, index, updates = n.value(0), n.value(1), n.value(2)
    axis = int(n.attr("axis", 0)) % len(data.shape)
    size, count = math.prod(data.shape), math.prod(index.shape)
    if size > MAX_ROWS:
        raise n.refusal(f"{size} elements are more than 32-bit indices reach")
    steps = [math.prod(data.shape[i + 1 :]) for i in range(len(data.shape))]
    at = wrapped(n, cast(n, n.place(index), np.int32), data.shape[axis])
    base = sum(
        i * s
        for a, (i, s) in enumerate(zip(np.indices(index.shape, sparse=True), steps, strict=True))
        if a != axis
    )
    if at.data is not None:
        rows = n.const(at.data * steps[axis] + base, np.int32)
    else:
        rows = Math(n)("MUL", at, steps[axis]) if steps[axis] != 1 else at
        if np.any(base):
            rows = emit(
                n,
                "ADD",
                [
                    rows,
                    n.const(np.reshape(base, np.shape(base) or (1,) * len(index.shape)), np.int32),
                ],
            )
    parts = n.reshaped(n.place(data), (size, 1)), n.reshaped(n.place(updates), (count, 1))
    _scatter(n, data.shape, n.reshaped(rows, (count,)), parts)


@op("TensorScatter")
def _tensor_scatter(n: Node) -> None:
    cache, update = n.value(0), n.value(1)
    rank = len(cache.shape)
    axis = int(n.attr("axis", -2)) % rank
    order = (0, axis, *(a for a in range(1, rank) if a != axis))
    past, new = n.place(cache, order), n.place(update, order)
    (batch, size), length, width = past.shape[:2], new.shape[1], math.prod(past.shape[2:])
    start = n.stored(2) if n.has(2) else n.const(np.zeros(batch), np.int64)
    start = n.reshaped(cast(n, start, np.int32), (batch, 1))
    m, steps = Math(n), n.const(np.arange(length)[None], np.int32)
    at = emit(n, "ADD", [start, steps])
    if n.attr("mode", "linear") == "circular":
        at = m("FLOOR_MOD", at, size)
    at = emit(n, "ADD", [at, n.const(np.arange(batch)[:, None] * size, np.int32)])
    parts = n.reshaped(past, (batch * size, width)), n.reshaped(new, (batch * length, width))
    y = _written(n, parts[0], n.reshaped(at, (batch * length,)), parts[1])
    n.give(n.reshaped(y, past.shape), order)


@op("Col2Im")
def _col2im(n: Node) -> None:
    v, size = n.value(0), [int(d) for d in n.constant(1, "image_shape")]
    block = [int(d) for d in n.constant(2, "block_shape")]
    rank, many = len(size), [1] * len(size)
    strides, dilations = n.attr("strides") or many, n.attr("dilations") or many
    around = n.attr("pads") or [0] * 2 * rank
    # For each axis: where element k of the block at position p lies.
    grids = []
    for i in range(rank):
        span = (block[i] - 1) * dilations[i] + 1
        count = (size[i] + around[i] + around[i + rank] - span) // strides[i] + 1
        grids.append(
            np.arange(block[i])[:, None] * dilations[i] + np.arange(count) * strides[i] - around[i]
        )
    flat, inside = np.zeros((1, 1), np.int64), np.ones((1, 1), bool)
    for g, d in zip(grids, size, strict=True):
        wide_shape = (flat.shape[0] * g.shape[0], flat.shape[1] * g.shape[1])
        flat = (flat[:, None, :, None] * d + g[None, :, None, :]).reshape(wide_shape)
        inside = (inside[:, None, :, None] & ((g >= 0) & (g < d))[None, :, None, :]).reshape(
            wide_shape
        )
    area, (k, places) = math.prod(size), flat.shape
    batch, channels = v.shape[0], v.shape[1] // k
    x = n.reshaped(n.place(v), (batch * channels, k * places))
    x = n.emit("TRANSPOSE", [x, n.ints([1, 0])], x.shape[::-1])
    # What lies in the padding goes to one row more.
    rows = n.const(np.where(inside, flat, area).reshape(-1), np.int32)
    y = _sums(n, rows, x, (area + 1, batch * channels))
    y = n.emit("SLICE", [y, n.ints([0, 0]), n.ints([area, y.shape[1]])], (area, y.shape[1]))
    y = n.emit("TRANSPOSE", [y, n.ints([1, 0])], y.shape[::-1])
    n.give(n.reshaped(y, n.shape))


@op("MaxUnpool")
def _max_unpool(n: Node) -> None:
    v, rank = n.value(0), len(n.value(0).shape) - 2
    kernel, strides = n.attr("kernel_shape"), n.attr("strides") or [1] * rank
    around = n.attr("pads") or [0] * 2 * rank
    spatial = [
        (d - 1) * s - around[i] - around[i + rank] + k
        for i, (d, s, k) in enumerate(zip(v.shape[2:], strides, kernel, strict=True))
    ]
    shape, count = (*v.shape[:2], *spatial), math.prod(v.shape)
    rows = n.reshaped(cast(n, n.stored(1), np.int32), (count,))
    y = _sums(n, rows, n.reshaped(n.place(v), (count, 1)), (math.prod(shape), 1))
    wanted = [int(d) for d in n.constant(2, "output_shape")] if n.has(2) else shape
    more = [(0, w - d) for w, d in zip(wanted, shape, strict=True)]
    n.give(padded(n, n.reshaped(y, shape), more))


def max_pool(n: Node, around: Sequence[tuple[int, int]]) -> None:
    """A MaxPool that any type can have, with the flat index of each maximum in its input."""
    v, rank = n.value(0), len(around)
    strides, dilations = n.attr("strides") or [1] * rank, n.attr("dilations") or [1] * rank
    size, out = v.shape[2:], n.shape[2:]
    # Per axis: which element is tap k of window o; -1: none.
    axes = []
    for i, k in enumerate(n.attr("kernel_shape")):
        at = np.arange(out[i])[:, None] * strides[i] - around[i][0] + np.arange(k) * dilations[i]
        axes.append(np.where((at >= 0) & (at < size[i]), at, -1))
    table, by_column = (_windows(axes, size, order) for order in ("C", "F"))
    if (table < 0).all(axis=1).any():
        raise n.refusal("one of its windows lies in the padding as a whole")
    # A tap in the padding repeats the first one that is not: it changes no maximum.
    first = (table >= 0).argmax(axis=1)[:, None]
    table, by_column = (
        np.where(t < 0, np.take_along_axis(t, first, 1), t) for t in (table, by_column)
    )
    kind = v.dtype
    planes, (windows, taps) = math.prod(v.shape[:2]), table.shape
    x = n.reshaped(n.place(v), (planes, math.prod(size)))
    x = x if kind == np.float32 else cast(n, x, np.int32)
    x = n.emit("GATHER", [x, n.ints(table.reshape(-1))], (planes, windows * taps), axis=1)
    x = n.reshaped(x, (planes, windows, taps))
    top = n.emit("REDUCE_MAX", [x, n.ints([2])], (planes, windows), keep_dims=False)
    n.give(cast(n, n.reshaped(top, n.shape), kind))
    if not n.wants(1):
        return
    names = by_column if n.attr("storage_order", 0) else table
    tap = n.emit("ARG_MAX", [x, n.ints([2])], (planes, windows), np.int32, output_type=2)
    entry = emit(n, "ADD", [tap, n.const(np.arange(windows)[None] * taps, np.int32)])
    where = n.emit("GATHER", [n.const(names.reshape(-1), np.int32), entry], entry.shape, axis=0)
    where = emit(n, "ADD", [where, n.const(np.arange(planes)[:, None] * math.prod(size), np.int32)])
    n.give(cast(n, n.reshaped(where, n.shape), np.int64), index=1)


def _windows(axes: Sequence[Array], size: Sequence[int], order: str) -> Array:
    """[windows, taps]: flat indices into an image of ``size``, -1 in the padding."""
    flat, inside = np.zeros((1, 1), np.int64), np.ones((1, 1), bool)
    steps = [math.prod(size[i + 1 :] if order == "C" else size[:i]) for i in range(len(size))]
    for at, step in zip(axes, steps, strict=True):
        shape = (flat.shape[0] * at.shape[0], flat.shape[1] * at.shape[1])
        flat = (flat[:, None, :, None] + at[None, :, None, :] * step).reshape(shape)
        inside = (inside[:, None, :, None] & (at >= 0)[None, :, None, :]).reshape(shape)
    return np.where(inside, flat, -1)
