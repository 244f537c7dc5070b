"""One ONNX node, as the functions of converters.tflite.ops see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from converters.tflite.graph import Shape, Tensor
from converters.tflite.values import Axes, PlacedValue, identity, reshape
from edge_core.errors import ConvertError
from edge_core.extras import need
from edge_core.tensors import Array

if TYPE_CHECKING:
    from onnx import NodeProto

    from converters.tflite.scope import Scope

Lowering = Callable[["Node"], None]
WAY_OUT = "an ONNX package (onnx-*) runs it; or replace the op before exporting"


class Node:
    """One ONNX node, as the functions of converters.tflite.ops see it."""

    def __init__(self, scope: Scope, proto: NodeProto, shapes: Sequence[Shape], dtypes: Any):
        self.scope, self.proto, self.op = scope, proto, proto.op_type
        self.graph, self._placer = scope.graph, scope.placer
        self.emit, self.ints = self.graph.emit, self.graph.ints
        self.shapes, self.dtypes = shapes, dtypes  # of the outputs
        helper = need("onnx.helper", "onnx")
        self.attributes = {
            attribute.name: helper.get_attribute_value(attribute) for attribute in proto.attribute
        }

    @property
    def shape(self) -> Shape:
        """The shape of the first output."""
        return self.shapes[0]

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute; bytes come as str."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def has_input(self, index: int) -> bool:
        """Whether the node has an input at that place."""
        return index < len(self.proto.input) and bool(self.proto.input[index])

    def has_output(self, index: int) -> bool:
        """Whether anybody reads that output."""
        return index < len(self.proto.output) and bool(self.proto.output[index])

    def value(self, index: int) -> PlacedValue:
        """The input at that place."""
        return self.scope.values[self.proto.input[index]]

    def array(self, index: int) -> Array | None:
        """An input that is constant; None if it is computed or absent."""
        return self.value(index).array if self.has_input(index) else None

    def require_constant(self, index: int, what: str) -> Array:
        """An input that must be constant; raises ConvertError, with ``what`` as its name."""
        array = self.array(index)
        if array is None:
            raise self.refusal(f"{what} is computed at run time")
        return array

    def read_int_list(
        self, index: int, name: str, default: Sequence[int] | None
    ) -> list[int] | None:
        """Integers that newer opsets give as a constant input and older ones as an attribute."""
        if self.has_input(index):
            return [int(number) for number in self.require_constant(index, name).reshape(-1)]
        numbers = self.attr(name, default)
        return None if numbers is None else [int(number) for number in numbers]

    def place_input(self, index: int, axes: Axes | None = None) -> Tensor:
        """An input as a tensor whose axes are in the order ``axes``; None is that of ONNX."""
        return self._placer.place(self.value(index), axes)

    def place(self, value: PlacedValue, axes: Axes | None = None) -> Tensor:
        """A value as a tensor whose axes are in the order ``axes``; None is that of ONNX."""
        return self._placer.place(value, axes)

    def const(self, value: Any, dtype: Any = np.float32) -> Tensor:
        """A constant tensor of ``dtype``."""
        return self.graph.constant(np.asarray(value, dtype))

    def reshape(self, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        """The same bytes in another shape."""
        return reshape(self.graph, tensor, shape)

    def set_output(self, tensor: Tensor, axes: Axes | None = None, index: int = 0) -> None:
        """Set an output to ``tensor``, stored in the order ``axes``; None is that of ONNX."""
        name = self.proto.output[index]
        if not tensor.name and tensor.data is None:
            tensor.name = name
        axes = identity(len(tensor.shape)) if axes is None else axes
        shape = tuple(tensor.shape[axes.index(i)] for i in range(len(axes)))
        if tensor.data is not None:
            array = np.transpose(tensor.data, [axes.index(i) for i in range(len(axes))])
            self.scope.values[name] = PlacedValue(shape, array.dtype, array=array)
        else:
            self.scope.values[name] = PlacedValue(shape, tensor.dtype, tensor, axes)

    def set_output_value(self, value: PlacedValue, index: int = 0) -> None:
        """Set an output to a value that exists already."""
        self.scope.values[self.proto.output[index]] = value

    def refusal(self, why: str, hint: str = "") -> ConvertError:
        """The error that names this node, to be raised."""
        name = f" ('{self.proto.name}')" if self.proto.name else ""
        return ConvertError(f"op {self.op}{name}: {why}", hint=hint or WAY_OUT)
