"""Values of the ONNX graph while it is lowered: where each lies, and in which order of axes.

TFLite computes images as NHWC, ONNX as NCHW. Values are not transposed eagerly: each remembers the
order in which its axes are stored, operators that work in any order keep it, a Transpose of the
ONNX graph only changes that record, and a TRANSPOSE is emitted where an operator needs an order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from converters.tflite.graph import Graph, Shape, Tensor
from edge_core.tensors import Array

Axes = tuple[int, ...]


class PlacedValue(msgspec.Struct, frozen=True):
    """``shape`` is the ONNX shape. Axis i of ``tensor`` holds axis ``axes[i]`` of it.

    A constant has an ``array``, in ONNX order, and no tensor yet.
    """

    shape: Shape
    dtype: Any  # numpy.dtype
    tensor: Tensor | None = None
    axes: Axes = ()
    array: Array | None = None


def identity(rank: int) -> Axes:
    """The order of ONNX itself."""
    return tuple(range(rank))


def channels_last(rank: int) -> Axes:
    """N, spatial axes, C."""
    return (0, *range(2, rank), 1)


def memory_shape(shape: Sequence[int], axes: Axes) -> Shape:
    """The shape of a tensor that stores ``shape`` in the order ``axes``."""
    return tuple(shape[axis] for axis in axes)


class Placer:
    """Moves values into the order that an operator needs, each value once per order."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._moved: dict[tuple[int, Axes], Tensor] = {}

    def place(self, value: PlacedValue, axes: Axes | None = None) -> Tensor:
        """The tensor that holds ``value`` in the order ``axes``; None is that of ONNX."""
        axes = identity(len(value.shape)) if axes is None else axes
        if value.array is not None:
            return self._graph.constant(np.transpose(value.array, axes))
        tensor = value.tensor
        assert tensor is not None
        if value.axes == axes:
            return tensor
        key = (id(tensor), tuple(value.axes.index(axis) for axis in axes))
        if key not in self._moved:
            self._moved[key] = self._move(tensor, key[1])
        return self._moved[key]

    def _move(self, tensor: Tensor, order: Axes) -> Tensor:
        """Axis i of the result is axis order[i] of ``tensor``."""
        shape = tuple(tensor.shape[axis] for axis in order)
        real = [axis for axis in order if tensor.shape[axis] != 1]
        if real == sorted(real):  # only axes of size 1 move: no data does
            return reshape(self._graph, tensor, shape)
        if len(order) > MAX_TRANSPOSE:
            return self._move_joined(tensor, order, shape)
        return self._graph.emit("TRANSPOSE", [tensor, self._graph.ints(order)], shape)

    def _move_joined(self, tensor: Tensor, order: Axes, shape: Shape) -> Tensor:
        """A transpose of more axes than the kernel has: axes that stay neighbours are joined."""
        groups: list[list[int]] = []
        for axis in (axis for axis in order if tensor.shape[axis] != 1):
            if groups and axis == groups[-1][-1] + 1:
                groups[-1].append(axis)
            else:
                groups.append([axis])
        by_source = sorted(range(len(groups)), key=lambda group: groups[group][0])
        sizes = [
            int(np.prod([tensor.shape[axis] for axis in groups[group]])) for group in by_source
        ]
        joined = reshape(self._graph, tensor, tuple(sizes))
        perm = [by_source.index(group) for group in range(len(groups))]
        out = tuple(sizes[place] for place in perm)
        moved = self._graph.emit("TRANSPOSE", [joined, self._graph.ints(perm)], out)
        return reshape(self._graph, moved, shape)


MAX_TRANSPOSE = 6  # axes of the TRANSPOSE kernel, since TensorFlow 2.8


def reshape(graph: Graph, tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """``tensor`` with the same bytes in another shape; itself if it has that shape."""
    shape = tuple(int(size) for size in shape)
    if tensor.shape == shape:
        return tensor
    if tensor.data is not None:
        return graph.constant(tensor.data.reshape(shape))
    new = np.array(shape, np.int32)
    return graph.emit("RESHAPE", [tensor, graph.ints(shape)], shape, new_shape=new)


def constant(array: Array) -> PlacedValue:
    """A value known at conversion."""
    return PlacedValue(array.shape, array.dtype, array=array)
