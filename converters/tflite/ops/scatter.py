"""Operators that write elements at given indices.

All of them write rows into rows: data [rows, width], one index for each of the updates [k, width].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node
from converters.tflite.ops.arithmetic import Math, cast
from converters.tflite.ops.broadcast import emit_broadcast
from converters.tflite.ops.indexing import MAX_ROWS, flatten_indices, widen_booleans, wrap_indices
from converters.tflite.ops.movement import pad_tensor
from edge_core.tensors import Array

COMBINED = {"add": "ADD", "mul": "MUL", "max": "MAXIMUM", "min": "MINIMUM"}
REDUCED = {"mul": "REDUCE_PROD", "max": "REDUCE_MAX", "min": "REDUCE_MIN"}
MAX_DENSE = 2**22  # elements of the table of every row against every update


def scatter_rows(node: Node, data: Tensor, rows: Tensor, updates: Tensor, how: str) -> Tensor:
    """``data`` [rows, width] with ``updates`` [k, width] at ``rows`` [k] (int32, >= 0).

    ``how`` is none (write), add, mul, max or min; raises ConvertError for any other.
    """
    if how != "none" and how not in COMBINED:
        raise node.refusal(f"reduction '{how}' is unknown", "none, add, mul, max and min are known")
    if not updates.shape[0] or not updates.shape[1] or not data.shape[0]:
        return data
    if rows.data is not None and (rows.data.min() < 0 or rows.data.max() >= data.shape[0]):
        raise node.refusal(f"an index is out of range: there are {data.shape[0]} rows")
    if how == "none" and rows.data is not None:
        return _scatter_known_rows(node, data, rows.data, updates)
    if how == "none":
        # The standard forbids duplicate indices, so each row is written at most once.
        return _overwrite_rows(node, data, rows, updates)
    if how == "add":
        return emit_broadcast(node, "ADD", [data, _scatter_sums(node, rows, updates, data.shape)])
    return _combine_rows(node, data, rows, updates, how)


def _scatter_known_rows(node: Node, data: Tensor, rows: Array, updates: Tensor) -> Tensor:
    """Constant indices: each row is gathered from its final source; the last update wins."""
    count, width = data.shape
    table = np.arange(count)
    table[rows] = count + np.arange(len(rows))
    both = node.emit("CONCATENATION", [data, updates], (count + len(rows), width), axis=0)
    return node.emit("GATHER", [both, node.ints(table)], data.shape, axis=0)


def _scatter_sums(node: Node, rows: Tensor, updates: Tensor, shape: Sequence[int]) -> Tensor:
    """SCATTER_ND: a tensor of zeros with the updates summed at each index."""
    index = node.reshape(rows, (rows.shape[0], 1))
    return node.emit("SCATTER_ND", [index, updates, node.ints(shape)], shape, updates.dtype)


def _overwrite_rows(node: Node, data: Tensor, rows: Tensor, updates: Tensor) -> Tensor:
    ones = node.const(np.ones((rows.shape[0], 1)), np.int32)
    hit = Math(node)(
        "GREATER", _scatter_sums(node, rows, ones, (data.shape[0], 1)), 0, dtype=np.bool_
    )
    new = _scatter_sums(node, rows, updates, data.shape)
    return emit_broadcast(node, "SELECT_V2", [hit, new, data], data.dtype)


def _combine_rows(node: Node, data: Tensor, rows: Tensor, updates: Tensor, how: str) -> Tensor:
    """Compare every row with every update, as TFLite's scatter can only sum."""
    (count, width), many = data.shape, rows.shape[0]
    if count * many * width > MAX_DENSE:
        raise node.refusal(
            f"reduction '{how}' of {many} updates into {count} rows of {width} is too much"
        )
    kind = data.dtype
    if how == "mul":
        neutral = 1.0
    elif kind == np.float32:
        neutral = -math.inf if how == "max" else math.inf
    else:
        bounds = np.iinfo(kind)
        neutral = bounds.min if how == "max" else bounds.max
    places = node.const(np.arange(count)[:, None], np.int32)
    hit = emit_broadcast(node, "EQUAL", [node.reshape(rows, (1, many)), places], np.bool_)
    candidates = node.reshape(updates, (1, many, width))
    none = node.const(np.full((1, 1, 1), neutral), kind)
    spread = emit_broadcast(
        node, "SELECT_V2", [node.reshape(hit, (count, many, 1)), candidates, none], kind
    )
    each = node.emit(REDUCED[how], [spread, node.ints([1])], data.shape, keep_dims=False)
    return emit_broadcast(node, COMBINED[how], [data, each])


def _to_arithmetic_type(node: Node, tensor: Tensor, how: str) -> Tensor:
    """8-bit integers are combined as int32: TFLite's own would be quantised arithmetic."""
    return (
        cast(node, tensor, np.int32)
        if how != "none" and tensor.dtype in (np.int8, np.uint8)
        else tensor
    )


def _set_scattered(
    node: Node, shape: Sequence[int], rows: Tensor, parts: tuple[Tensor, Tensor]
) -> None:
    """Set the output to scatter_rows() in the shape of the data."""
    how, kind = node.attr("reduction", "none"), parts[0].dtype
    (data, back), (updates, _) = (
        widen_booleans(node, _to_arithmetic_type(node, tensor, how)) for tensor in parts
    )
    if kind == np.bool_ and how != "none":
        raise node.refusal(f"reduction '{how}' of booleans is not lowered")
    result = back(scatter_rows(node, data, rows, updates, how))
    node.set_output(node.reshape(cast(node, result, kind), shape))


def lower_scatter_nd(node: Node) -> None:
    """Rows at flattened index vectors."""
    data, index, updates = node.value(0), node.value(1), node.value(2)
    depth = index.shape[-1]
    count, width = math.prod(data.shape[:depth]), math.prod(data.shape[depth:])
    rows = flatten_indices(node, node.place(index), data.shape[:depth])
    parts = (
        node.reshape(node.place(data), (count, width)),
        node.reshape(node.place(updates), (rows.shape[0], width)),
    )
    _set_scattered(node, data.shape, rows, parts)


def lower_scatter_elements(node: Node) -> None:
    """Single elements at flat indices."""
    data, index, updates = node.value(0), node.value(1), node.value(2)
    axis = int(node.attr("axis", 0)) % len(data.shape)
    size, count = math.prod(data.shape), math.prod(index.shape)
    if size > MAX_ROWS:
        raise node.refusal(f"{size} elements are more than 32-bit indices reach")
    steps = [math.prod(data.shape[i + 1 :]) for i in range(len(data.shape))]
    at = wrap_indices(node, cast(node, node.place(index), np.int32), data.shape[axis])
    base = sum(
        positions * step
        for other, (positions, step) in enumerate(
            zip(np.indices(index.shape, sparse=True), steps, strict=True)
        )
        if other != axis
    )
    if at.data is not None:
        rows = node.const(at.data * steps[axis] + base, np.int32)
    else:
        rows = Math(node)("MUL", at, steps[axis]) if steps[axis] != 1 else at
        if np.any(base):
            rows = emit_broadcast(
                node,
                "ADD",
                [
                    rows,
                    node.const(
                        np.reshape(base, np.shape(base) or (1,) * len(index.shape)), np.int32
                    ),
                ],
            )
    parts = node.reshape(node.place(data), (size, 1)), node.reshape(node.place(updates), (count, 1))
    _set_scattered(node, data.shape, node.reshape(rows, (count,)), parts)


def lower_tensor_scatter(node: Node) -> None:
    """The update written into the cache from a start index per batch element."""
    cache, update = node.value(0), node.value(1)
    rank = len(cache.shape)
    axis = int(node.attr("axis", -2)) % rank
    order = (0, axis, *(other for other in range(1, rank) if other != axis))
    past, new = node.place(cache, order), node.place(update, order)
    (batch, size), length, width = past.shape[:2], new.shape[1], math.prod(past.shape[2:])
    start = node.place_input(2) if node.has_input(2) else node.const(np.zeros(batch), np.int64)
    start = node.reshape(cast(node, start, np.int32), (batch, 1))
    calc, steps = Math(node), node.const(np.arange(length)[None], np.int32)
    at = emit_broadcast(node, "ADD", [start, steps])
    if node.attr("mode", "linear") == "circular":
        at = calc("FLOOR_MOD", at, size)
    at = emit_broadcast(node, "ADD", [at, node.const(np.arange(batch)[:, None] * size, np.int32)])
    parts = node.reshape(past, (batch * size, width)), node.reshape(new, (batch * length, width))
    result = _overwrite_rows(node, parts[0], node.reshape(at, (batch * length,)), parts[1])
    node.set_output(node.reshape(result, past.shape), order)


def lower_col2im(node: Node) -> None:
    """SCATTER_ND sums of blocks; what lies in the padding is dropped."""
    value, size = node.value(0), [int(length) for length in node.require_constant(1, "image_shape")]
    block = [int(length) for length in node.require_constant(2, "block_shape")]
    rank, many = len(size), [1] * len(size)
    strides, dilations = node.attr("strides") or many, node.attr("dilations") or many
    around = node.attr("pads") or [0] * 2 * rank
    # For each axis: where element k of the block at position p lies.
    grids = []
    for i in range(rank):
        span = (block[i] - 1) * dilations[i] + 1
        count = (size[i] + around[i] + around[i + rank] - span) // strides[i] + 1
        grids.append(
            np.arange(block[i])[:, None] * dilations[i] + np.arange(count) * strides[i] - around[i]
        )
    flat, inside = np.zeros((1, 1), np.int64), np.ones((1, 1), bool)
    for grid, length in zip(grids, size, strict=True):
        wide_shape = (flat.shape[0] * grid.shape[0], flat.shape[1] * grid.shape[1])
        flat = (flat[:, None, :, None] * length + grid[None, :, None, :]).reshape(wide_shape)
        inside = (
            inside[:, None, :, None] & ((grid >= 0) & (grid < length))[None, :, None, :]
        ).reshape(wide_shape)
    area, (taps, places) = math.prod(size), flat.shape
    batch, channels = value.shape[0], value.shape[1] // taps
    columns = node.reshape(node.place(value), (batch * channels, taps * places))
    columns = node.emit("TRANSPOSE", [columns, node.ints([1, 0])], columns.shape[::-1])
    # What lies in the padding goes to an extra row.
    rows = node.const(np.where(inside, flat, area).reshape(-1), np.int32)
    result = _scatter_sums(node, rows, columns, (area + 1, batch * channels))
    result = node.emit(
        "SLICE",
        [result, node.ints([0, 0]), node.ints([area, result.shape[1]])],
        (area, result.shape[1]),
    )
    result = node.emit("TRANSPOSE", [result, node.ints([1, 0])], result.shape[::-1])
    node.set_output(node.reshape(result, node.shape))


def lower_max_unpool(node: Node) -> None:
    """SCATTER_ND at the indices of the maxima."""
    value, rank = node.value(0), len(node.value(0).shape) - 2
    kernel, strides = node.attr("kernel_shape"), node.attr("strides") or [1] * rank
    around = node.attr("pads") or [0] * 2 * rank
    spatial = [
        (size - 1) * stride - around[i] - around[i + rank] + length
        for i, (size, stride, length) in enumerate(
            zip(value.shape[2:], strides, kernel, strict=True)
        )
    ]
    shape, count = (*value.shape[:2], *spatial), math.prod(value.shape)
    rows = node.reshape(cast(node, node.place_input(1), np.int32), (count,))
    result = _scatter_sums(
        node, rows, node.reshape(node.place(value), (count, 1)), (math.prod(shape), 1)
    )
    full_shape = (
        [int(size) for size in node.require_constant(2, "output_shape")]
        if node.has_input(2)
        else shape
    )
    more = [(0, wanted_size - size) for wanted_size, size in zip(full_shape, shape, strict=True)]
    node.set_output(pad_tensor(node, node.reshape(result, shape), more))


def lower_indexed_max_pool(node: Node, around: Sequence[tuple[int, int]]) -> None:
    """A MaxPool of any type, with the flat index of each maximum in the input.

    ``around`` is the padding (before, after) per spatial axis.
    """
    value = node.value(0)
    kind, area = value.dtype, math.prod(value.shape[2:])
    table, by_column = _pool_tables(node, around)
    planes, (windows, taps) = math.prod(value.shape[:2]), table.shape
    tensor = node.reshape(node.place(value), (planes, area))
    tensor = tensor if kind == np.float32 else cast(node, tensor, np.int32)
    places = node.ints(table.reshape(-1))
    tensor = node.emit("GATHER", [tensor, places], (planes, windows * taps), axis=1)
    tensor = node.reshape(tensor, (planes, windows, taps))
    top = node.emit("REDUCE_MAX", [tensor, node.ints([2])], (planes, windows), keep_dims=False)
    node.set_output(cast(node, node.reshape(top, node.shape), kind))
    if not node.has_output(1):
        return
    names = by_column if node.attr("storage_order", 0) else table
    shape = (planes, windows)
    tap = node.emit("ARG_MAX", [tensor, node.ints([2])], shape, np.int32, output_type=2)
    first = node.const(np.arange(windows)[None] * taps, np.int32)
    entry = emit_broadcast(node, "ADD", [tap, first])
    where = node.emit("GATHER", [node.const(names.reshape(-1), np.int32), entry], shape, axis=0)
    start = node.const(np.arange(planes)[:, None] * area, np.int32)
    where = emit_broadcast(node, "ADD", [where, start])
    node.set_output(cast(node, node.reshape(where, node.shape), np.int64), index=1)


def _pool_tables(node: Node, around: Sequence[tuple[int, int]]) -> tuple[Array, Array]:
    """[windows, taps]: the flat index of each tap, in row-major and in column-major order."""
    size, out, ones = node.value(0).shape[2:], node.shape[2:], [1] * len(around)
    strides, dilations = node.attr("strides") or ones, node.attr("dilations") or ones
    # Per axis: which element is tap k of window o; -1: none.
    axes = []
    for i, length in enumerate(node.attr("kernel_shape")):
        start = np.arange(out[i])[:, None] * strides[i] - around[i][0]
        at = start + np.arange(length) * dilations[i]
        axes.append(np.where((at >= 0) & (at < size[i]), at, -1))
    table, by_column = (_window_table(axes, size, order) for order in ("C", "F"))
    if (table < 0).all(axis=1).any():
        raise node.refusal("one of its windows lies in the padding as a whole")
    # A tap in the padding repeats the first one outside it, which changes no maximum.
    first = (table >= 0).argmax(axis=1)[:, None]
    table, by_column = (
        np.where(entries < 0, np.take_along_axis(entries, first, 1), entries)
        for entries in (table, by_column)
    )
    return table, by_column


def _window_table(axes: Sequence[Array], size: Sequence[int], order: str) -> Array:
    """[windows, taps]: flat indices into an image of ``size``, -1 in the padding."""
    flat, inside = np.zeros((1, 1), np.int64), np.ones((1, 1), bool)
    steps = [math.prod(size[i + 1 :] if order == "C" else size[:i]) for i in range(len(size))]
    for at, step in zip(axes, steps, strict=True):
        shape = (flat.shape[0] * at.shape[0], flat.shape[1] * at.shape[1])
        flat = (flat[:, None, :, None] + at[None, :, None, :] * step).reshape(shape)
        inside = (inside[:, None, :, None] & (at >= 0)[None, :, None, :]).reshape(shape)
    return np.where(inside, flat, -1)
