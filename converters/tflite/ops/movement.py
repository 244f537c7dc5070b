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
    v = node.value(0)
    perm = node.attr("perm") or list(range(len(v.shape)))[::-1]
    node.set_output_value(transpose_value(v, tuple(perm)))


def transpose_value(v: PlacedValue, perm: Axes) -> PlacedValue:
    """Axis i of the result is axis perm[i]; nothing is moved."""
    if v.array is not None:
        array = np.transpose(v.array, perm)
        return PlacedValue(array.shape, v.dtype, array=array)
    shape = tuple(v.shape[p] for p in perm)
    return PlacedValue(shape, v.dtype, v.tensor, tuple(perm.index(a) for a in v.axes))


def lower_reshape(node: Node) -> None:
    if node.op == "Reshape":
        node.require_constant(1, "its shape")
    node.set_output_value(reshape_value(node, node.value(0), node.shape))


def reshape_value(node: Node, v: PlacedValue, shape: Sequence[int]) -> PlacedValue:
    """The value in another shape; its order in memory is kept where that is the same thing."""
    shape = tuple(shape)
    if v.array is not None:
        return PlacedValue(shape, v.dtype, array=v.array.reshape(shape))
    axes = carry_order(v.shape, v.axes, shape)
    if axes is None:
        return PlacedValue(shape, v.dtype, node.reshape(node.place(v), shape), identity(len(shape)))
    tensor = node.reshape(node.place(v, v.axes), memory_shape(shape, axes))
    return PlacedValue(shape, v.dtype, tensor, axes)


def carry_order(before: Sequence[int], axes: Axes, after: Sequence[int]) -> Axes | None:
    """The order of ``after`` for which a value stored in the order ``axes`` need not move."""
    if 0 in before:
        return None
    groups = _match_segments(before, after)
    placed: list[tuple[int, list[int]]] = []
    for old, new in groups:
        at = [axes.index(a) for a in old if before[a] != 1]
        real = [i for i, a in enumerate(axes) if before[a] != 1]
        ranks = [real.index(i) for i in at]
        if ranks != list(range(ranks[0], ranks[0] + len(ranks))) if ranks else False:
            return None
        placed.append((ranks[0] if ranks else len(axes), new))
    return tuple(a for _, new in sorted(placed, key=lambda p: p[0]) for a in new)


def _match_segments(
    before: Sequence[int], after: Sequence[int]
) -> list[tuple[list[int], list[int]]]:
    """The shortest runs of axes of equal size on both sides."""
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        old: list[int] = []
        new: list[int] = []
        a = b = 1
        while not (old or new) or a != b:
            if (a <= b and i < len(before)) or j >= len(after):
                a *= before[i]
                old.append(i)
                i += 1
            else:
                b *= after[j]
                new.append(j)
                j += 1
        found.append((old, new))
    return found


def lower_concat(node: Node) -> None:
    values = [v for i in range(len(node.proto.input)) if math.prod((v := node.value(i)).shape)]
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
    v = node.value(0)
    axis = int(node.attr("axis", 0)) % len(v.shape)
    sizes = node.read_int_list(1, "split", None)
    if sizes is None:
        count = len(node.proto.output)
        each = -(-v.shape[axis] // count)
        sizes = [each] * (count - 1) + [v.shape[axis] - each * (count - 1)]
    at, tensor = v.axes.index(axis), node.place(v, v.axes)
    start = 0
    for i, size in enumerate(sizes):
        if node.has_output(i):
            begin = [0] * len(v.shape)
            begin[at] = start
            node.set_output(
                slice_tensor(
                    node, tensor, begin, [*tensor.shape[:at], size, *tensor.shape[at + 1 :]]
                ),
                v.axes,
                i,
            )
        start += size


def slice_tensor(node: Node, x: Tensor, begin: Sequence[int], size: Sequence[int]) -> Tensor:
    """The block of ``size`` that starts at ``begin``."""
    if tuple(size) == x.shape:
        return x
    return node.emit("SLICE", [x, node.ints(begin), node.ints(size)], size)


def lower_slice(node: Node) -> None:
    v = node.value(0)
    rank = len(v.shape)
    starts, ends = node.read_int_list(1, "starts", None), node.read_int_list(2, "ends", None)
    assert starts is not None
    assert ends is not None
    axes = node.read_int_list(3, "axes", list(range(len(starts)))) or []
    steps = node.read_int_list(4, "steps", [1] * len(starts)) or []
    spans = [range(d) for d in v.shape]
    for a, s, e, step in zip(axes, starts, ends, steps, strict=True):
        spans[a % rank] = range(v.shape[a % rank])[
            slice(s, e if step > 0 or e >= -v.shape[a % rank] else None, step)
        ]
    node.set_output(pick_ranges(node, node.place(v, v.axes), [spans[a] for a in v.axes]), v.axes)


def pick_ranges(node: Node, x: Tensor, spans: Sequence[range]) -> Tensor:
    """The elements of each axis that its range names."""
    for axis, span in enumerate(spans):
        if span.step < 0 and len(span) > 1:
            shape = (*x.shape[:axis], len(span), *x.shape[axis + 1 :])
            x = node.emit("GATHER", [x, node.ints(span)], shape, axis=axis)
    spans = [range(len(s)) if s.step < 0 and len(s) > 1 else s for s in spans]
    size = tuple(map(len, spans))
    if all(s.step == 1 or len(s) <= 1 for s in spans):
        return slice_tensor(node, x, [s.start if len(s) else 0 for s in spans], size)
    end = [s[-1] + 1 if len(s) else 0 for s in spans]
    steps = [s.step if len(s) > 1 else 1 for s in spans]
    inputs = [
        x,
        node.ints(s.start if len(s) else 0 for s in spans),
        node.ints(end),
        node.ints(steps),
    ]
    return node.emit("STRIDED_SLICE", inputs, size)


def lower_pad(node: Node) -> None:
    v = node.value(0)
    rank = len(v.shape)
    pads = node.read_int_list(1, "pads", None) or []
    axes = [a % rank for a in (node.read_int_list(3, "axes", None) or range(rank))]
    value = node.array(2)
    if node.has_input(2) and value is None:
        raise node.refusal("its constant_value is computed at run time")
    fill = node.attr("value", 0.0) if value is None else value.item()
    around = [(0, 0)] * rank
    for i, a in enumerate(axes):
        around[a] = (pads[i], pads[i + len(axes)])
    x = node.place(v, v.axes)
    node.set_output(
        pad_tensor(node, x, [around[a] for a in v.axes], node.attr("mode", "constant"), fill),
        v.axes,
    )


def pad_tensor(
    node: Node,
    x: Tensor,
    around: Sequence[tuple[int, int]],
    mode: str = "constant",
    fill: float = 0,
) -> Tensor:
    """``x`` with more elements at both ends of each axis; negative counts take some away."""
    cut = [(max(-a, 0), max(-b, 0)) for a, b in around]
    if any(a or b for a, b in cut):
        x = pick_ranges(node, x, [range(a, d - b) for d, (a, b) in zip(x.shape, cut, strict=True)])
        around = [(max(a, 0), max(b, 0)) for a, b in around]
    if not any(a or b for a, b in around):
        return x
    shape = [d + a + b for d, (a, b) in zip(x.shape, around, strict=True)]
    if mode == "constant":
        table = node.graph.constant(np.array(around, np.int32))
        if fill == 0:
            return node.emit("PAD", [x, table], shape)
        return node.emit("PADV2", [x, table, node.const(fill, x.dtype)], shape)
    for axis, (a, b) in enumerate(around):
        if a or b:
            size = x.shape[axis]
            if mode not in ("reflect", "edge", "wrap"):
                raise node.refusal(f"mode '{mode}' is not in TFLite")
            index = np.pad(np.arange(size), (a, b), mode=mode)  # type: ignore[call-overload]
            new = (*x.shape[:axis], len(index), *x.shape[axis + 1 :])
            x = node.emit("GATHER", [x, node.ints(index)], new, axis=axis)
    return x


def lower_expand(node: Node) -> None:
    v = widen_rank(node, node.value(0), len(node.shape))
    if v.shape == node.shape:
        node.set_output_value(v)
        return
    new = memory_shape(node.shape, v.axes)
    node.set_output(node.emit("BROADCAST_TO", [node.place(v, v.axes), node.ints(new)], new), v.axes)


def lower_tile(node: Node) -> None:
    v = node.value(0)
    counts = [int(c) for c in node.require_constant(1, "repeats")]
    inputs = [node.place(v, v.axes), node.ints(counts[a] for a in v.axes)]
    node.set_output(node.emit("TILE", inputs, memory_shape(node.shape, v.axes)), v.axes)


def lower_depth_to_space(node: Node) -> None:
    b, last = int(node.attr("blocksize")), channels_last(4)
    if node.attr("mode", "DCR") == "DCR":
        shape = memory_shape(node.shape, last)
        node.set_output(
            node.emit("DEPTH_TO_SPACE", [node.place_input(0, last)], shape, block_size=b), last
        )
        return
    batch, c, h, w = node.value(0).shape
    wide = reshape_value(node, node.value(0), (batch, c // (b * b), b, b, h, w))
    moved = transpose_value(wide, (0, 1, 4, 2, 5, 3))
    node.set_output_value(reshape_value(node, moved, node.shape))


def lower_space_to_depth(node: Node) -> None:
    if node.attr("mode", "DCR") == "CRD":
        b = int(node.attr("blocksize"))
        batch, c, h, w = node.value(0).shape
        wide = reshape_value(node, node.value(0), (batch, c, h // b, b, w // b, b))
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
