"""Operators that move data and compute nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node, op
from converters.tflite.ops.broadcast import aligned, widened
from converters.tflite.values import Axes, Value, channels_last, identity, stored_shape

REFLECT, SYMMETRIC = 0, 1


@op("Transpose")
def _transpose(n: Node) -> None:
    v = n.value(0)
    perm = n.attr("perm") or list(range(len(v.shape)))[::-1]
    n.give_value(transposed(v, tuple(perm)))


def transposed(v: Value, perm: Axes) -> Value:
    """Axis i of the result is axis perm[i]; nothing is moved."""
    if v.array is not None:
        array = np.transpose(v.array, perm)
        return Value(array.shape, v.dtype, array=array)
    shape = tuple(v.shape[p] for p in perm)
    return Value(shape, v.dtype, v.tensor, tuple(perm.index(a) for a in v.axes))


@op("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape(n: Node) -> None:
    if n.op == "Reshape":
        n.constant(1, "its shape")
    n.give_value(reshaped(n, n.value(0), n.shape))


def reshaped(n: Node, v: Value, shape: Sequence[int]) -> Value:
    """The value in another shape; its order in memory is kept where that is the same thing."""
    shape = tuple(shape)
    if v.array is not None:
        return Value(shape, v.dtype, array=v.array.reshape(shape))
    axes = carried(v.shape, v.axes, shape)
    if axes is None:
        return Value(shape, v.dtype, n.reshaped(n.place(v), shape), identity(len(shape)))
    tensor = n.reshaped(n.place(v, v.axes), stored_shape(shape, axes))
    return Value(shape, v.dtype, tensor, axes)


def carried(before: Sequence[int], axes: Axes, after: Sequence[int]) -> Axes | None:
    """The order of ``after`` for which a value stored in the order ``axes`` need not move."""
    if 0 in before:
        return None
    groups = _segments(before, after)
    placed: list[tuple[int, list[int]]] = []
    for old, new in groups:
        at = [axes.index(a) for a in old if before[a] != 1]
        real = [i for i, a in enumerate(axes) if before[a] != 1]
        ranks = [real.index(i) for i in at]
        if ranks != list(range(ranks[0], ranks[0] + len(ranks))) if ranks else False:
            return None
        placed.append((ranks[0] if ranks else len(axes), new))
    return tuple(a for _, new in sorted(placed, key=lambda p: p[0]) for a in new)


def _segments(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
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


@op("Concat")
def _concat(n: Node) -> None:
    values = [v for i in range(len(n.proto.input)) if math.prod((v := n.value(i)).shape)]
    if not values:
        values = [n.value(0)]
    axis = int(n.attr("axis")) % len(n.shape)
    tensors, order = aligned(n, values)
    if len(tensors) == 1:
        n.give(tensors[0], order)
        return
    at = order.index(axis)
    n.give(n.emit("CONCATENATION", tensors, stored_shape(n.shape, order), axis=at), order)


@op("Split")
def _split(n: Node) -> None:
    v = n.value(0)
    axis = int(n.attr("axis", 0)) % len(v.shape)
    sizes = n.listed(1, "split", None)
    if sizes is None:
        count = len(n.proto.output)
        each = -(-v.shape[axis] // count)
        sizes = [each] * (count - 1) + [v.shape[axis] - each * (count - 1)]
    at, tensor = v.axes.index(axis), n.place(v, v.axes)
    start = 0
    for i, size in enumerate(sizes):
        if n.wants(i):
            begin = [0] * len(v.shape)
            begin[at] = start
            n.give(
                sliced(n, tensor, begin, [*tensor.shape[:at], size, *tensor.shape[at + 1 :]]),
                v.axes,
                i,
            )
        start += size


def sliced(n: Node, x: Tensor, begin: Sequence[int], size: Sequence[int]) -> Tensor:
    """The block of ``size`` that starts at ``begin``."""
    if tuple(size) == x.shape:
        return x
    return n.emit("SLICE", [x, n.ints(begin), n.ints(size)], size)


@op("Slice")
def _slice(n: Node) -> None:
    v = n.value(0)
    rank = len(v.shape)
    starts, ends = n.listed(1, "starts", None), n.listed(2, "ends", None)
    assert starts is not None
    assert ends is not None
    axes = n.listed(3, "axes", list(range(len(starts)))) or []
    steps = n.listed(4, "steps", [1] * len(starts)) or []
    spans = [range(d) for d in v.shape]
    for a, s, e, step in zip(axes, starts, ends, steps, strict=True):
        spans[a % rank] = range(v.shape[a % rank])[
            slice(s, e if step > 0 or e >= -v.shape[a % rank] else None, step)
        ]
    n.give(picked(n, n.place(v, v.axes), [spans[a] for a in v.axes]), v.axes)


def picked(n: Node, x: Tensor, spans: Sequence[range]) -> Tensor:
    """The elements of each axis that its range names."""
    for axis, span in enumerate(spans):
        if span.step < 0 and len(span) > 1:
            shape = (*x.shape[:axis], len(span), *x.shape[axis + 1 :])
            x = n.emit("GATHER", [x, n.ints(span)], shape, axis=axis)
    spans = [range(len(s)) if s.step < 0 and len(s) > 1 else s for s in spans]
    size = tuple(map(len, spans))
    if all(s.step == 1 or len(s) <= 1 for s in spans):
        return sliced(n, x, [s.start if len(s) else 0 for s in spans], size)
    end = [s[-1] + 1 if len(s) else 0 for s in spans]
    steps = [s.step if len(s) > 1 else 1 for s in spans]
    inputs = [x, n.ints(s.start if len(s) else 0 for s in spans), n.ints(end), n.ints(steps)]
    return n.emit("STRIDED_SLICE", inputs, size)


@op("Pad")
def _pad(n: Node) -> None:
    v = n.value(0)
    rank = len(v.shape)
    pads = n.listed(1, "pads", None) or []
    axes = [a % rank for a in (n.listed(3, "axes", None) or range(rank))]
    value = n.array(2)
    if n.has(2) and value is None:
        raise n.refusal("its constant_value is computed at run time")
    fill = n.attr("value", 0.0) if value is None else value.item()
    around = [(0, 0)] * rank
    for i, a in enumerate(axes):
        around[a] = (pads[i], pads[i + len(axes)])
    x = n.place(v, v.axes)
    n.give(padded(n, x, [around[a] for a in v.axes], n.attr("mode", "constant"), fill), v.axes)


def padded(
    n: Node, x: Tensor, around: Sequence[tuple[int, int]], mode: str = "constant", fill: float = 0
) -> Tensor:
    """``x`` with more elements at both ends of each axis; negative counts take some away."""
    cut = [(max(-a, 0), max(-b, 0)) for a, b in around]
    if any(a or b for a, b in cut):
        x = picked(n, x, [range(a, d - b) for d, (a, b) in zip(x.shape, cut, strict=True)])
        around = [(max(a, 0), max(b, 0)) for a, b in around]
    if not any(a or b for a, b in around):
        return x
    shape = [d + a + b for d, (a, b) in zip(x.shape, around, strict=True)]
    if mode == "constant":
        table = n.graph.constant(np.array(around, np.int32))
        if fill == 0:
            return n.emit("PAD", [x, table], shape)
        return n.emit("PADV2", [x, table, n.const(fill, x.dtype)], shape)
    for axis, (a, b) in enumerate(around):
        if a or b:
            size = x.shape[axis]
            if mode not in ("reflect", "edge", "wrap"):
                raise n.refusal(f"mode '{mode}' is not in TFLite")
            index = np.pad(np.arange(size), (a, b), mode=mode)  # type: ignore[call-overload]
            new = (*x.shape[:axis], len(index), *x.shape[axis + 1 :])
            x = n.emit("GATHER", [x, n.ints(index)], new, axis=axis)
    return x


@op("Expand")
def _expand(n: Node) -> None:
    v = widened(n, n.value(0), len(n.shape))
    if v.shape == n.shape:
        n.give_value(v)
        return
    new = stored_shape(n.shape, v.axes)
    n.give(n.emit("BROADCAST_TO", [n.place(v, v.axes), n.ints(new)], new), v.axes)


@op("Tile")
def _tile(n: Node) -> None:
    v = n.value(0)
    counts = [int(c) for c in n.constant(1, "repeats")]
    inputs = [n.place(v, v.axes), n.ints(counts[a] for a in v.axes)]
    n.give(n.emit("TILE", inputs, stored_shape(n.shape, v.axes)), v.axes)


@op("DepthToSpace")
def _depth_to_space(n: Node) -> None:
    b, last = int(n.attr("blocksize")), channels_last(4)
    if n.attr("mode", "DCR") == "DCR":
        shape = stored_shape(n.shape, last)
        n.give(n.emit("DEPTH_TO_SPACE", [n.stored(0, last)], shape, block_size=b), last)
        return
    batch, c, h, w = n.value(0).shape
    wide = reshaped(n, n.value(0), (batch, c // (b * b), b, b, h, w))
    moved = transposed(wide, (0, 1, 4, 2, 5, 3))
    n.give_value(reshaped(n, moved, n.shape))


@op("SpaceToDepth")
def _space_to_depth(n: Node) -> None:
    if n.attr("mode", "DCR") == "CRD":
        b = int(n.attr("blocksize"))
        batch, c, h, w = n.value(0).shape
        wide = reshaped(n, n.value(0), (batch, c, h // b, b, w // b, b))
        n.give_value(reshaped(n, transposed(wide, (0, 1, 3, 5, 2, 4)), n.shape))
        return
    last = channels_last(4)
    shape = stored_shape(n.shape, last)
    inputs = [n.stored(0, last)]
    n.give(n.emit("SPACE_TO_DEPTH", inputs, shape, block_size=int(n.attr("blocksize"))), last)
