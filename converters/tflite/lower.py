"""A static ONNX graph as a float TFLite file, operator by operator.

to_tflite(model, out, layout="NHWC") -> Lowered
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from converters.onnx.model_file import load_model
from converters.tflite import flatbuffer, versions
from converters.tflite.folding import fold
from converters.tflite.graph import Graph
from converters.tflite.node import Lowering
from converters.tflite.ops.table import LOWERINGS
from converters.tflite.patterns import rewrite
from converters.tflite.scope import Scope
from converters.tflite.values import PlacedValue, Placer, channels_last, constant, identity
from edge_core.errors import ConvertError
from edge_core.extras import need
from edge_core.tensors import TensorSpec

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

NHWC = (0, 2, 3, 1)
# An input that such an op reads first is an image.
IMAGE_OPS = (
    "Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool",
    "BatchNormalization", "InstanceNormalization", "Resize", "Upsample", "DepthToSpace",
    "SpaceToDepth",
)  # fmt: skip
PASSING = ("Add", "Sub", "Mul", "Div", "Cast", "Clip", "Pad", "Relu", "Identity", "Concat")


class Lowered(msgspec.Struct, frozen=True):
    """The inputs and outputs of the file; layout is "NHWC" where it differs from ONNX."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Lowerer:
    """One conversion."""

    def __init__(self, model: ModelProto, layout: str, lowerings: Mapping[str, Lowering]) -> None:
        self.graph = Graph()
        self.placer = Placer(self.graph)
        self._model, self._layout, self._lowerings = model, layout, lowerings

    def lower(self) -> Lowered:
        """Fill the graph; raises ConvertError that names the op that cannot be lowered."""
        onnx = need("onnx", "onnx")
        graph = rewrite(self._model).graph
        known = {
            initializer.name: constant(onnx.numpy_helper.to_array(initializer))
            for initializer in graph.initializer
        }
        inputs = [self._input(entry, known) for entry in graph.input if entry.name not in known]
        opsets = {entry.domain: entry.version for entry in self._model.opset_import}
        opsets.setdefault("", opsets.pop("ai.onnx", 1))
        scope = Scope(self.graph, self.placer, self._lowerings, known, opsets)
        scope.lower_nodes(graph.node)
        outputs = [self._output(entry.name, scope.values[entry.name]) for entry in graph.output]
        fold(self.graph)
        self.graph.finish()
        return Lowered(tuple(inputs), tuple(outputs))

    def _input(self, proto: Any, known: dict[str, PlacedValue]) -> TensorSpec:
        onnx = need("onnx", "onnx")
        kind = proto.type.tensor_type
        dims = kind.shape.dim
        shape = tuple(dimension.dim_value for dimension in dims)
        if any(
            not dimension.HasField("dim_value") or dimension.dim_value < 0 for dimension in dims
        ):
            raise ConvertError(f"the shape of input '{proto.name}' is not fixed", hint="--shape")
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        last = (
            self._layout == "NHWC" and len(shape) == 4 and _is_image(self._model.graph, proto.name)
        )
        axes = NHWC if last else identity(len(shape))
        tensor = self.graph.input(proto.name, tuple(shape[axis] for axis in axes), dtype)
        known[proto.name] = PlacedValue(shape, dtype, tensor, axes)
        return TensorSpec(proto.name, str(dtype), tensor.shape, "NHWC" if last else "")

    def _output(self, name: str, value: PlacedValue) -> TensorSpec:
        image = self._layout == "NHWC" and value.axes == channels_last(4)
        tensor = self.placer.place(value, NHWC if image else None)
        ends = (*self.graph.inputs, *self.graph.outputs)
        if tensor.data is not None or tensor in ends:  # an output must be a tensor of its own
            shape = np.array(tensor.shape, np.int32)
            tensor = self.graph.emit(
                "RESHAPE", [tensor, self.graph.ints(tensor.shape)], tensor.shape, new_shape=shape
            )
        tensor.name = name
        self.graph.outputs.append(tensor)
        return TensorSpec(name, str(tensor.dtype), tensor.shape, "NHWC" if image else "")


def _is_image(graph: GraphProto, name: str) -> bool:
    """Whether the first op behind an input, past those that pass images on, is an image op."""
    seen, wave = {name}, [name]
    while wave:
        now = wave.pop()
        for node in graph.node:
            if now not in node.input:
                continue
            if node.op_type in IMAGE_OPS and node.input[0] == now:
                return True
            if node.op_type in PASSING and node.output[0] not in seen:
                seen.add(node.output[0])
                wave.append(node.output[0])
    return False


def to_tflite(
    model: Path,
    out: Path,
    *,
    layout: str = "NHWC",
    lowerings: Mapping[str, Lowering] = LOWERINGS,
) -> Lowered:
    """Write the float TFLite file of a static ONNX model; raises ConvertError.

    With ``layout`` "NHWC", image inputs and outputs have their channels last; with "NCHW" they
    keep the order of the ONNX model. ``lowerings`` maps the name of an op to its function.
    """
    return write(load_model(model), out, layout=layout, lowerings=lowerings)


def write(
    model: ModelProto,
    out: Path,
    *,
    layout: str,
    lowerings: Mapping[str, Lowering] = LOWERINGS,
) -> Lowered:
    """to_tflite() for a model in memory."""
    lowerer = Lowerer(model, layout, lowerings)
    lowered = lowerer.lower()
    built = lowerer.graph.to_model()
    versions.stamp(built)
    flatbuffer.write(built, out)
    return lowered
