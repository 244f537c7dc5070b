"""ONNX -> ONNX with dynamic INT8 in convolutions too (ConvInteger). Not recommended: it is here so
that what it does to a model can be measured (edge build --with onnx-int8-dynamic-conv) instead of
believed. It is what onnxruntime's quantize_dynamic does by default.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec

from converters.foreign_errors import translate_foreign_errors
from converters.onnx import int8_dynamic
from converters.onnx.candidate_file import clamp_versions, write_quantised
from converters.onnx.model_file import load_checked, load_model, save_model
from converters.spec import Conversion, Job
from edge_core.extras import need

SPEC = msgspec.structs.replace(
    int8_dynamic.SPEC,
    name="onnx-int8-dynamic-conv",
    title="dynamic INT8 MatMul and Conv",
)


def convert(job: Job) -> Conversion:
    """Write the model with int8 products; raises ConvertError if hardly any weights are in them."""
    quantization = need("onnxruntime.quantization", SPEC.extra)
    original = load_model(job.model)
    model = clamp_versions(original, job.ceiling, SPEC.min_opset)
    with tempfile.TemporaryDirectory() as folder:
        source, quantised = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        save_model(model, source)
        with translate_foreign_errors(
            "onnxruntime could not quantise the model", hint="try onnx-int8-weights"
        ):
            # The CPU has a ConvInteger kernel for unsigned weights only.
            quantization.quantize_dynamic(
                source, quantised, per_channel=False, weight_type=quantization.QuantType.QUInt8
            )
            model = load_checked(quantised)
    return write_quantised(model, job, original)
