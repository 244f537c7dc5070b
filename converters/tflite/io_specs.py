"""What a .tflite file takes and gives."""

from __future__ import annotations

from collections.abc import Iterable

from converters.tflite import flatbuffer
from edge_core.runtimes.tflite import SIGNATURE
from edge_core.tensors import TensorSpec

Specs = tuple[TensorSpec, ...]


def read_io_specs(model: flatbuffer.Model) -> tuple[Specs, Specs]:
    """Inputs and outputs, by the names of the signature that the runtime adapter uses, else by
    their tensors'.

    A free dimension is named after its input. Layouts are not known: the format has none.
    """
    graph = model.subgraphs[0]
    signatures = [
        signature
        for signature in model.signatureDefs or ()
        if signature.signatureKey == SIGNATURE.encode()
    ]
    maps = [entry for signature in signatures for entry in (*signature.inputs, *signature.outputs)]
    names = {entry.tensorIndex: entry.name.decode() for entry in maps}

    def specs(indices: Iterable[int]) -> Specs:
        return tuple(_make_spec(graph.tensors[index], names.get(index, "")) for index in indices)

    return specs(graph.inputs), specs(graph.outputs)


def _make_spec(tensor: flatbuffer.Tensor, name: str) -> TensorSpec:
    scale, zero = 0.0, 0
    if flatbuffer.has_scale(tensor) and len(tensor.quantization.scale) == 1:
        scale, zero = float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0])
    own = name or flatbuffer.tensor_name(tensor)
    dims = tensor.shapeSignature if tensor.shapeSignature is not None else flatbuffer.shape(tensor)
    shape = tuple(int(dim) if dim >= 0 else f"{own}.{i}" for i, dim in enumerate(dims))
    return TensorSpec(own, flatbuffer.type_name(tensor).lower(), shape, "", scale, zero)
