"""ONNX -> float ONNX that the device's runtime loads: the candidate all others are held against."""

from __future__ import annotations

from converters.onnx import graph as onnx_graph
from converters.onnx.file import load
from converters.spec import Converted, Job, Spec

SPEC = Spec(
    name="onnx-fp32",
    title="float, graph simplified",
    target="onnx",
    runtimes=("onnxruntime",),
    precision="fp32",
    scheme="float",
    suffix=".onnx",
    extra="onnx",
)


def convert(job: Job) -> Converted:
    """Write the model in an opset that the device loads."""
    model = onnx_graph.clamp(load(job.model), job.ceiling, SPEC.min_opset)
    return onnx_graph.write(model, job)
