"""ONNX -> ONNX with dynamic INT8 in convolutions too (ConvInteger). Not recommended: it is here so
that what it does to a model can be measured (edge build --with onnx-int8-dynamic-conv) instead of
believed. It is what onnxruntime's quantize_dynamic does by default.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec

from converters.foreign_errors import foreign
from converters.onnx import graph as onnx_graph
from converters.onnx import int8_dynamic as onnx_int8_dynamic
from converters.onnx.file import checked, load, save
from converters.spec import Converted, Job
from edge_core.extras import need

SPEC = msgspec.structs.replace(
    onnx_int8_dynamic.SPEC,
    name="onnx-int8-dynamic-conv",
    title="dynamic INT8 MatMul and Conv",
)


def convert(job: Job) -> Converted:
    """Write the model with int8 products; raises ConvertError if hardly any weights are in them."""
    q = need("onnxruntime.quantization", SPEC.extra)
    original = load(job.model)
    model = onnx_graph.clamp(original, job.ceiling, SPEC.min_opset)
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        save(model, source)
        with foreign("onnxruntime could not quantise the model", hint="try onnx-int8-weights"):
            # The CPU has a ConvInteger kernel for unsigned weights only.
            q.quantize_dynamic(source, made, per_channel=False, weight_type=q.QuantType.QUInt8)
            model = checked(made)
    return onnx_graph.write_quantised(model, job, original)
