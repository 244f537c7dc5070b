"""Operators that move data and compute nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node
from converters.tflite.ops.broadcast import align_operands, widen_rank
from converters.tflite.values import Axes, PlacedValue, channels_last, identity, memory_shape

REFLECT, SYMMETRIC = 0, 1


def lower_transpose(node: Node) -> None:
    """Only the order that the value remembers changes: no operator."""
    value = node.value(0)
    perm = node.attr("perm") or list(range(len(value.shape)))[::-1]
    node.set_output_value(transpose_value(value, tuple(perm)))


def transpose_value(value: PlacedValue, perm: Axes) -> PlacedValue:
    """Axis i of the result is axis perm[i]; no data moves."""
    if value.array is not None:
        array = np.transpose(value.array, perm)
        return PlacedValue(array.shape, value.dtype, array=array)
    shape = tuple(value.shape[axis] for axis in perm)
    return PlacedValue(
        shape, value.dtype, value.tensor, tuple(perm.index(axis) for axis in value.axes)
    )


def lower_reshape(node: Node) -> None:
    """RESHAPE, in the stored order where the bytes allow it."""
    if node.op == "Reshape":
        node.require_constant(1, "its shape")
    node.set_output_value(reshape_value(node, node.value(0), node.shape))


def reshape_value(node: Node, value: PlacedValue, shape: Sequence[int]) -> PlacedValue:
    """The value in another ONNX shape; data moves only where the stored order does not allow it."""
    shape = tuple(shape)
    if value.array is not None:
        return PlacedValue(shape, value.dtype, array=value.array.reshape(shape))
    axes = carry_order(value.shape, value.axes, shape)
    if axes is None:
        return PlacedValue(
            shape, value.dtype, node.reshape(node.place(value), shape), identity(len(shape))
        )
    tensor = node.reshape(node.place(value, value.axes), memory_shape(shape, axes))
    return PlacedValue(shape, value.dtype, tensor, axes)


def carry_order(before: Sequence[int], axes: Axes, after: Sequence[int]) -> Axes | None:
    """The order of ``after`` in which a value stored in the order ``axes`` keeps its bytes.

    ``before`` and ``after`` are ONNX shapes of equal size; None if there is no such order.
    """
    if 0 in before:
        return None
    groups = _match_segments(before, after)
    placed: list[tuple[int, list[int]]] = []
    for old, new in groups:
        at = [axes.index(axis) for axis in old if before[axis] != 1]
        real = [place for place, axis in enumerate(axes) if before[axis] != 1]
        ranks = [real.index(place) for place in at]
        if ranks != list(range(ranks[0], ranks[0] + len(ranks))) if ranks else False:
            return None
        placed.append((ranks[0] if ranks else len(axes), new))
    return tuple(axis for _, new in sorted(placed, key=lambda group: group[0]) for axis in new)


def _match_segments(
    before: Sequence[int], after: Sequence[int]
) -> list[tuple[list[int], list[int]]]:
    """The shortest runs of axes of equal size on both sides."""
    segments: list[tuple[list[int], list[int]]] = []
    old_axis = new_axis = 0
    while old_axis < len(before) or new_axis < len(after):
        old: list[int] = []
        new: list[int] = []
        old_size = new_size = 1
        while not (old or new) or old_size != new_size:
            if (old_size <= new_size and old_axis < len(before)) or new_axis >= len(after):
                old_size *= before[old_axis]
                old.append(old_axis)
                old_axis += 1
            else:
                new_size *= after[new_axis]
                new.append(new_axis)
                new_axis += 1
        segments.append((old, new))
    return segments


def lower_concat(node: Node) -> None:
    """CONCATENATION in the order of the largest input; empty inputs are left out."""
    values = [
        value for i in range(len(node.proto.input)) if math.prod((value := node.value(i)).shape)
    ]
    if not values:
        values = [node.value(0)]
    axis = int(node.attr("axis")) % len(node.shape)
    tensors, order = align_operands(node, values)
    if len(tensors) == 1:
        node.set_output(tensors[0], order)
        return
    at = order.index(axis)
    node.set_output(
        node.emit("CONCATENATION", tensors, memory_shape(node.shape, order), axis=at), order
    )


def lower_split(node: Node) -> None:
    """A SLICE for each output that is used."""
    value = node.value(0)
    axis = int(node.attr("axis", 0)) % len(value.shape)
    sizes = node.read_int_list(1, "split", None)
    if sizes is None:
        count = len(node.proto.output)
        each = -(-value.shape[axis] // count)
        sizes = [each] * (count - 1) + [value.shape[axis] - each * (count - 1)]
    at, tensor = value.axes.index(axis), node.place(value, value.axes)
    start = 0
    for i, size in enumerate(sizes):
        if node.has_output(i):
            begin = [0] * len(value.shape)
            begin[at] = start
            node.set_output(
                slice_tensor(
                    node, tensor, begin, [*tensor.shape[:at], size, *tensor.shape[at + 1 :]]
                ),
                value.axes,
                i,
            )
        start += size


def slice_tensor(node: Node, tensor: Tensor, begin: Sequence[int], size: Sequence[int]) -> Tensor:
    """The block of ``size`` that starts at ``begin``; both have the order of the stored axes."""
    if tuple(size) == tensor.shape:
        return tensor
    return node.emit("SLICE", [tensor, node.ints(begin), node.ints(size)], size)


def lower_slice(node: Node) -> None:
    """SLICE, STRIDED_SLICE, or GATHER for a negative step."""
    value = node.value(0)
    rank = len(value.shape)
    starts, ends = node.read_int_list(1, "starts", None), node.read_int_list(2, "ends", None)
    assert starts is not None
    assert ends is not None
    axes = node.read_int_list(3, "axes", list(range(len(starts)))) or []
    steps = node.read_int_list(4, "steps", [1] * len(starts)) or []
    spans = [range(size) for size in value.shape]
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        spans[axis % rank] = range(value.shape[axis % rank])[
            slice(start, end if step > 0 or end >= -value.shape[axis % rank] else None, step)
        ]
    node.set_output(
        pick_ranges(node, node.place(value, value.axes), [spans[axis] for axis in value.axes]),
        value.axes,
    )


def pick_ranges(node: Node, tensor: Tensor, spans: Sequence[range]) -> Tensor:
    """The elements that a range selects on each stored axis."""
    for axis, span in enumerate(spans):
        if span.step < 0 and len(span) > 1:
            shape = (*tensor.shape[:axis], len(span), *tensor.shape[axis + 1 :])
            tensor = node.emit("GATHER", [tensor, node.ints(span)], shape, axis=axis)
    spans = [range(len(span)) if span.step < 0 and len(span) > 1 else span for span in spans]
    size = tuple(map(len, spans))
    if all(span.step == 1 or len(span) <= 1 for span in spans):
        return slice_tensor(node, tensor, [span.start if len(span) else 0 for span in spans], size)
    end = [span[-1] + 1 if len(span) else 0 for span in spans]
    steps = [span.step if len(span) > 1 else 1 for span in spans]
    inputs = [
        tensor,
        node.ints(span.start if len(span) else 0 for span in spans),
        node.ints(end),
        node.ints(steps),
    ]
    return node.emit("STRIDED_SLICE", inputs, size)


def lower_pad(node: Node) -> None:
    """PAD or PADV2; the other modes are a GATHER per axis."""
    data = node.value(0)
    rank = len(data.shape)
    pads = node.read_int_list(1, "pads", None) or []
    axes = [axis % rank for axis in (node.read_int_list(3, "axes", None) or range(rank))]
    fill_constant = node.array(2)
    if node.has_input(2) and fill_constant is None:
        raise node.refusal("its constant_value is computed at run time")
    fill = node.attr("value", 0.0) if fill_constant is None else fill_constant.item()
    around = [(0, 0)] * rank
    for i, axis in enumerate(axes):
        around[axis] = (pads[i], pads[i + len(axes)])
    tensor = node.place(data, data.axes)
    node.set_output(
        pad_tensor(
            node, tensor, [around[axis] for axis in data.axes], node.attr("mode", "constant"), fill
        ),
        data.axes,
    )


def pad_tensor(
    node: Node,
    tensor: Tensor,
    around: Sequence[tuple[int, int]],
    mode: str = "constant",
    fill: float = 0,
) -> Tensor:
    """``tensor`` with (before, after) elements added to each stored axis.

    Negative counts crop. ``mode`` is one of ONNX's Pad: constant (with ``fill``), reflect, edge
    or wrap; raises ConvertError for any other.
    """
    cut = [(max(-before, 0), max(-after, 0)) for before, after in around]
    if any(before or after for before, after in cut):
        tensor = pick_ranges(
            node,
            tensor,
            [
                range(before, size - after)
                for size, (before, after) in zip(tensor.shape, cut, strict=True)
            ],
        )
        around = [(max(before, 0), max(after, 0)) for before, after in around]
    if not any(before or after for before, after in around):
        return tensor
    shape = [
        size + before + after for size, (before, after) in zip(tensor.shape, around, strict=True)
    ]
    if mode == "constant":
        table = node.graph.constant(np.array(around, np.int32))
        if fill == 0:
            return node.emit("PAD", [tensor, table], shape)
        return node.emit("PADV2", [tensor, table, node.const(fill, tensor.dtype)], shape)
    for axis, (before, after) in enumerate(around):
        if before or after:
            size = tensor.shape[axis]
            if mode not in ("reflect", "edge", "wrap"):
                raise node.refusal(f"mode '{mode}' is not in TFLite")
            index = np.pad(np.arange(size), (before, after), mode=mode)  # type: ignore[call-overload]
            new = (*tensor.shape[:axis], len(index), *tensor.shape[axis + 1 :])
            tensor = node.emit("GATHER", [tensor, node.ints(index)], new, axis=axis)
    return tensor


def lower_expand(node: Node) -> None:
    """BROADCAST_TO."""
    value = widen_rank(node, node.value(0), len(node.shape))
    if value.shape == node.shape:
        node.set_output_value(value)
        return
    new = memory_shape(node.shape, value.axes)
    node.set_output(
        node.emit("BROADCAST_TO", [node.place(value, value.axes), node.ints(new)], new), value.axes
    )


def lower_tile(node: Node) -> None:
    """TILE."""
    value = node.value(0)
    counts = [int(count) for count in node.require_constant(1, "repeats")]
    inputs = [node.place(value, value.axes), node.ints(counts[axis] for axis in value.axes)]
    node.set_output(node.emit("TILE", inputs, memory_shape(node.shape, value.axes)), value.axes)


def lower_depth_to_space(node: Node) -> None:
    """DEPTH_TO_SPACE, or RESHAPE and TRANSPOSE in the mode CRD."""
    block, last = int(node.attr("blocksize")), channels_last(4)
    if node.attr("mode", "DCR") == "DCR":
        shape = memory_shape(node.shape, last)
        node.set_output(
            node.emit("DEPTH_TO_SPACE", [node.place_input(0, last)], shape, block_size=block), last
        )
        return
    batch, channels, height, width = node.value(0).shape
    wide = reshape_value(
        node, node.value(0), (batch, channels // (block * block), block, block, height, width)
    )
    moved = transpose_value(wide, (0, 1, 4, 2, 5, 3))
    node.set_output_value(reshape_value(node, moved, node.shape))


def lower_space_to_depth(node: Node) -> None:
    """SPACE_TO_DEPTH, or RESHAPE and TRANSPOSE in the mode CRD."""
    if node.attr("mode", "DCR") == "CRD":
        block = int(node.attr("blocksize"))
        batch, channels, height, width = node.value(0).shape
        wide = reshape_value(
            node, node.value(0), (batch, channels, height // block, block, width // block, block)
        )
        node.set_output_value(
            reshape_value(node, transpose_value(wide, (0, 1, 3, 5, 2, 4)), node.shape)
        )
        return
    last = channels_last(4)
    shape = memory_shape(node.shape, last)
    inputs = [node.place_input(0, last)]
    node.set_output(
        node.emit("SPACE_TO_DEPTH", inputs, shape, block_size=int(node.attr("blocksize"))), last
    )
