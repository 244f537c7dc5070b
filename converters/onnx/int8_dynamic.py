"""ONNX -> ONNX with int8 MatMul whose activations are quantised as they come: the fast INT8 form
of text models, without calibration.

MatMul and Gemm get a scale per channel, lookup tables one per row. Conv is left alone (as
ConvInteger EfficientNet-Lite0 took ten times as long as in float), and so are recurrent ops,
whose errors add up from step to step (Silero-VAD's probability was off by up to 0.80).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from converters.foreign_errors import translate_foreign_errors
from converters.onnx.candidate_file import clamp_versions, write_quantised
from converters.onnx.lookup import store_tables_int8
from converters.onnx.model_file import load_checked, load_model, save_model
from converters.spec import Conversion, Job, Spec
from edge_core.extras import need

SPEC = Spec(
    name="onnx-int8-dynamic",
    title="dynamic INT8 MatMul, a scale per channel",
    target="onnx",
    sources=("onnx",),
    runtimes=("onnxruntime",),
    precision="int8",
    scheme="dynamic",
    suffix=".onnx",
    extra="onnx",
    min_opset=11,  # DynamicQuantizeLinear
)
OPS = ("MatMul",)  # Gemm is rewritten to it first


def convert(job: Job) -> Conversion:
    """Write the model with int8 products; raises ConvertError if hardly any weights are in them."""
    quantization = need("onnxruntime.quantization", SPEC.extra)
    original = load_model(job.model)
    model = clamp_versions(original, job.ceiling, SPEC.min_opset)
    store_tables_int8(model)
    with tempfile.TemporaryDirectory() as folder:
        source, quantised = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        save_model(model, source)
        with translate_foreign_errors(
            "onnxruntime could not quantise the model", hint="try onnx-int8-weights"
        ):
            quantization.quantize_dynamic(
                source, quantised, op_types_to_quantize=list(OPS), per_channel=True,
                weight_type=quantization.QuantType.QInt8, extra_options={"MatMulConstBOnly": True},
            )  # fmt: skip
            model = load_checked(quantised)
    return write_quantised(model, job, original)
