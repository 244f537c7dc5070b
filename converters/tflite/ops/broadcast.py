"""Operands of different shapes and orders, made ready for one operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node
from converters.tflite.values import Axes, Value, channels_last, identity, stored_shape

MAX_RANK = 4  # of operands that every kernel version broadcasts


def widened(n: Node, value: Value, rank: int) -> Value:
    """The value with axes of size 1 in front, up to ``rank``."""
    more = rank - len(value.shape)
    if not more:
        return value
    ones, shape = (1,) * more, (1,) * more + value.shape
    if value.array is not None:
        return Value(shape, value.dtype, array=value.array.reshape(shape))
    assert value.tensor is not None
    tensor = n.reshaped(value.tensor, ones + value.tensor.shape)
    return Value(shape, value.dtype, tensor, (*range(more), *(a + more for a in value.axes)))


def aligned(n: Node, values: Sequence[Value]) -> tuple[list[Tensor], Axes]:
    """Tensors of one rank and one order: that of the largest operand that is no constant."""
    rank = max(len(v.shape) for v in values)
    wide = [widened(n, v, rank) for v in values]
    order = identity(rank)
    sized = [(math.prod(v.shape), v.axes == channels_last(rank), v.axes)
             for v in wide if v.array is None]  # fmt: skip
    if sized:
        order = max(sized)[2]
    return [n.place(v, order) for v in wide], order


def broadcast(shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The common shape."""
    return tuple(int(d) for d in np.broadcast_shapes(*map(tuple, shapes)))


def apply(n: Node, code: str, values: Sequence[Value], dtype: Any = None) -> tuple[Tensor, Axes]:
    """An elementwise operator over any number of operands that broadcast."""
    tensors, order = aligned(n, values)
    return emit(n, code, tensors, dtype), order


def emit(
    n: Node, code: str, tensors: Sequence[Tensor], dtype: Any = None, **options: Any
) -> Tensor:
    """The operator over tensors of one rank; more axes than kernels broadcast are joined."""
    shape = broadcast([t.shape for t in tensors])
    if len(shape) <= MAX_RANK:
        return n.emit(code, tensors, shape, dtype, **options)
    joined = _joined([t.shape for t in tensors], shape)
    small = [n.reshaped(t, [math.prod(t.shape[i] for i in g) for g in joined]) for t in tensors]
    out = n.emit(code, small, [math.prod(shape[i] for i in g) for g in joined], dtype, **options)
    return n.reshaped(out, shape)


def _joined(shapes: Sequence[Sequence[int]], shape: Sequence[int]) -> list[list[int]]:
    """Neighbouring axes that every operand either has whole or broadcasts."""
    groups: list[list[int]] = []
    previous: tuple[bool, ...] = ()
    for i, size in enumerate(shape):
        if size == 1:
            continue
        kind = tuple(s[i] == 1 for s in shapes)
        if groups and kind == previous:
            groups[-1].append(i)
        else:
            groups.append([i])
        previous = kind
    return groups or [[0]]


def per_channel(n: Node, like: Value, array: Any) -> Tensor:
    """A constant vector over axis 1, placed to broadcast with ``like``'s own order."""
    rank = len(like.shape)
    shape = [1] * rank
    shape[1] = -1
    wide = np.asarray(array, np.float32).reshape(shape)
    axes = like.axes or identity(rank)
    return n.graph.constant(np.transpose(wide, axes))


__all__ = ["aligned", "apply", "broadcast", "emit", "per_channel", "stored_shape", "widened"]
