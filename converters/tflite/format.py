"""Reading a .tflite file: what it takes and gives, what it is made of, what it costs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from converters.foreign_errors import translate_foreign_errors
from converters.spec import Description, Format, Shapes
from converters.tflite import flatbuffer
from converters.tflite.io_specs import Specs, read_io_specs
from converters.tflite.versions import find_min_runtime
from edge_core.errors import InputError

CONVOLUTIONS = ("CONV_2D", "TRANSPOSE_CONV", "CONV_3D")
RECURRENT = (
    "LSTM", "UNIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_LSTM", "RNN",
    "UNIDIRECTIONAL_SEQUENCE_RNN", "BIDIRECTIONAL_SEQUENCE_RNN", "SVDF",
)  # fmt: skip
TABLES = ("GATHER", "EMBEDDING_LOOKUP")


def describe(path: Path, shapes: Shapes) -> Description:
    """Describe the first subgraph; raises InputError for a file that is no TFLite model, or one
    with free dimensions, or ``shapes``: they are fixed in the file."""
    if shapes:
        raise InputError(f"{path.name}: the shapes of a .tflite file are fixed")
    model = flatbuffer.read(path)
    inputs, outputs = read_io_specs(model)
    if free := [s for s in inputs if s.dynamic]:
        raise InputError(
            f"{path.name}: the shape of input '{free[0].name}' is not fixed",
            hint="convert it with fixed shapes; an ONNX file can be given --shape",
        )
    with translate_foreign_errors(f"{path.name} is damaged"):  # such as weights without dimensions
        return _describe(model, inputs, outputs)


def _describe(model: flatbuffer.Model, inputs: Specs, outputs: Specs) -> Description:
    graph = model.subgraphs[0]
    kinds = Counter(flatbuffer.op_name(model, op) for op in graph.operators)
    macs = Counter[str]()
    for kind, count in _macs(model):
        macs[kind] += count
    return Description(
        inputs=inputs,
        outputs=outputs,
        ops=dict(sorted(kinds.items())),
        parameters=sum(math.prod(flatbuffer.shape(t)) for t in flatbuffer.iter_weights(model)),
        weight_bytes=sum(flatbuffer.count_weight_bytes(model)),
        macs=None if any(kinds[r] for r in RECURRENT) else macs.total(),
        facets=_facets(model, kinds, macs),
    )


def _macs(model: flatbuffer.Model) -> Iterator[tuple[str, int]]:
    graph = model.subgraphs[0]
    for op in graph.operators:
        kind = flatbuffer.op_name(model, op)
        shapes = [flatbuffer.shape(graph.tensors[i]) for i in op.inputs if i >= 0]
        out = math.prod(flatbuffer.shape(graph.tensors[op.outputs[0]]))
        if kind == "DEPTHWISE_CONV_2D":
            yield "depthwise", out * math.prod(shapes[1][1:3])
        elif kind in ("CONV_2D", "CONV_3D"):
            yield "conv", out * math.prod(shapes[1][1:] if kind == "CONV_2D" else shapes[1][:-1])
        elif kind == "TRANSPOSE_CONV":
            yield "conv", math.prod(shapes[2]) * math.prod(shapes[1][:-1])
        elif kind == "FULLY_CONNECTED":
            yield "matmul", out * shapes[1][-1]
        elif kind == "BATCH_MATMUL":
            adjoint = bool(op.builtinOptions and op.builtinOptions.adjX)
            yield "matmul", out * shapes[0][-2 if adjoint else -1]


def _facets(model: flatbuffer.Model, kinds: Counter[str], macs: Counter[str]) -> dict[str, float]:
    graph = model.subgraphs[0]
    total, weights = macs.total() or 1, sum(flatbuffer.count_weight_bytes(model)) or 1
    tables = {
        i: math.prod(flatbuffer.shape(graph.tensors[i])) * 4
        for op in graph.operators
        if flatbuffer.op_name(model, op) in TABLES
        for i in op.inputs
        if i >= 0 and flatbuffer.type_name(graph.tensors[i]) == "FLOAT32"
        and flatbuffer.constant(model, graph.tensors[i]) is not None
    }  # fmt: skip
    quantised = sum(flatbuffer.has_scale(t) for g in model.subgraphs for t in g.tensors)
    return {
        "conv_share": (macs["conv"] + macs["depthwise"]) / total,
        "depthwise_convs": float(kinds["DEPTHWISE_CONV_2D"]),
        "matmul_share": macs["matmul"] / total,
        "recurrent_ops": float(sum(kinds[r] for r in RECURRENT)),
        "embedding_share": sum(tables.values()) / weights,
        "quantised_ops": float(quantised),
        "weight_mb": weights / 1e6,
    }


def _read_file_specs(path: Path) -> tuple[Specs, Specs]:
    return read_io_specs(flatbuffer.read(path))


def _read_needed_versions(path: Path) -> dict[str, str]:
    return {"min_runtime": find_min_runtime(flatbuffer.read(path))}


TFLITE = Format(
    name="tflite",
    suffixes=(".tflite",),
    runtimes=("litert", "tflite-runtime"),
    describe=describe,
    read_io_specs=_read_file_specs,
    read_versions=_read_needed_versions,
)
