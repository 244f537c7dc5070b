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
    signatures = [s for s in model.signatureDefs or () if s.signatureKey == SIGNATURE.encode()]
    maps = [m for s in signatures for m in (*s.inputs, *s.outputs)]
    names = {m.tensorIndex: m.name.decode() for m in maps}

    def specs(indices: Iterable[int]) -> Specs:
        return tuple(_make_spec(graph.tensors[i], names.get(i, "")) for i in indices)

    return specs(graph.inputs), specs(graph.outputs)


def _make_spec(t: flatbuffer.Tensor, name: str) -> TensorSpec:
    scale, zero = 0.0, 0
    if flatbuffer.has_scale(t) and len(t.quantization.scale) == 1:
        scale, zero = float(t.quantization.scale[0]), int(t.quantization.zeroPoint[0])
    own = name or flatbuffer.tensor_name(t)
    given = t.shapeSignature if t.shapeSignature is not None else flatbuffer.shape(t)
    shape = tuple(int(d) if d >= 0 else f"{own}.{i}" for i, d in enumerate(given))
    return TensorSpec(own, flatbuffer.type_name(t).lower(), shape, "", scale, zero)
