"""Operands of different shapes and orders, aligned for one operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node
from converters.tflite.values import Axes, PlacedValue, channels_last, identity, memory_shape

MAX_RANK = 4  # of operands that every kernel version broadcasts


def widen_rank(node: Node, value: PlacedValue, rank: int) -> PlacedValue:
    """The value with axes of size 1 prepended, up to ``rank``."""
    more = rank - len(value.shape)
    if not more:
        return value
    ones, shape = (1,) * more, (1,) * more + value.shape
    if value.array is not None:
        return PlacedValue(shape, value.dtype, array=value.array.reshape(shape))
    assert value.tensor is not None
    tensor = node.reshape(value.tensor, ones + value.tensor.shape)
    return PlacedValue(
        shape, value.dtype, tensor, (*range(more), *(axis + more for axis in value.axes))
    )


def align_operands(node: Node, values: Sequence[PlacedValue]) -> tuple[list[Tensor], Axes]:
    """Tensors of one rank and one order: that of the largest operand that is not constant."""
    rank = max(len(value.shape) for value in values)
    wide = [widen_rank(node, value, rank) for value in values]
    order = identity(rank)
    sized = [(math.prod(value.shape), value.axes == channels_last(rank), value.axes)
             for value in wide if value.array is None]  # fmt: skip
    if sized:
        order = max(sized)[2]
    return [node.place(value, order) for value in wide], order


def broadcast_shape(shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The shape that these broadcast to."""
    return tuple(int(size) for size in np.broadcast_shapes(*map(tuple, shapes)))


def apply_elementwise(
    node: Node, code: str, values: Sequence[PlacedValue], dtype: Any = None
) -> tuple[Tensor, Axes]:
    """An elementwise operator over operands that broadcast; the result and its order."""
    tensors, order = align_operands(node, values)
    return emit_broadcast(node, code, tensors, dtype), order


def emit_broadcast(
    node: Node, code: str, tensors: Sequence[Tensor], dtype: Any = None, **options: Any
) -> Tensor:
    """The operator over tensors of one rank and order, of ``dtype`` or that of the first.

    Kernels broadcast up to MAX_RANK axes: with more, neighbouring axes are joined.
    """
    shape = broadcast_shape([tensor.shape for tensor in tensors])
    if len(shape) <= MAX_RANK:
        return node.emit(code, tensors, shape, dtype, **options)
    joined = _join_axes([tensor.shape for tensor in tensors], shape)
    small = [
        node.reshape(tensor, [math.prod(tensor.shape[axis] for axis in group) for group in joined])
        for tensor in tensors
    ]
    out = node.emit(
        code,
        small,
        [math.prod(shape[axis] for axis in group) for group in joined],
        dtype,
        **options,
    )
    return node.reshape(out, shape)


def _join_axes(shapes: Sequence[Sequence[int]], shape: Sequence[int]) -> list[list[int]]:
    """Groups of neighbouring axes that each operand either has in full or broadcasts."""
    groups: list[list[int]] = []
    previous: tuple[bool, ...] = ()
    for i, size in enumerate(shape):
        if size == 1:
            continue
        kind = tuple(operand[i] == 1 for operand in shapes)
        if groups and kind == previous:
            groups[-1].append(i)
        else:
            groups.append([i])
        previous = kind
    return groups or [[0]]


def place_per_channel(node: Node, like: PlacedValue, array: Any) -> Tensor:
    """A constant vector [channels] along axis 1 of ``like``, in the order of ``like``."""
    rank = len(like.shape)
    shape = [1] * rank
    shape[1] = -1
    wide = np.asarray(array, np.float32).reshape(shape)
    axes = like.axes or identity(rank)
    return node.graph.constant(np.transpose(wide, axes))


__all__ = [
    "align_operands",
    "apply_elementwise",
    "broadcast_shape",
    "emit_broadcast",
    "memory_shape",
    "place_per_channel",
    "widen_rank",
]
