"""ONNX -> float ONNX that the device's runtime loads: what all others are checked against."""

from __future__ import annotations

from converters.onnx.candidate_file import clamp_versions, write_candidate
from converters.onnx.model_file import load_model
from converters.spec import Conversion, Job, Spec

SPEC = Spec(
    name="onnx-fp32",
    title="float, graph simplified",
    target="onnx",
    sources=("onnx",),
    runtimes=("onnxruntime",),
    precision="fp32",
    scheme="float",
    suffix=".onnx",
    extra="onnx",
    is_reference=True,
)


def convert(job: Job) -> Conversion:
    """Write the model in an opset that the device loads."""
    model = clamp_versions(load_model(job.model), job.ceiling, SPEC.min_opset)
    return write_candidate(model, job)
