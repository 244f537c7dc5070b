"""ONNX -> ONNX whose weights are stored as fp16: half the file at float speed.

Each weight gets a Cast to float, which the runtime folds when it loads the file. Computing in fp16
is another matter: CPU kernels for it are few, and EfficientNet-Lite0 ran 1.4 times slower.
"""

from __future__ import annotations

import numpy as np

from converters.onnx.candidate_file import clamp_versions, write_smaller
from converters.onnx.model_file import load_model
from converters.onnx.weights import insert_first
from converters.spec import Conversion, Job, Spec
from edge_core.extras import need

SPEC = Spec(
    name="onnx-fp16",
    title="weights stored as fp16, computed in float",
    target="onnx",
    sources=("onnx",),
    runtimes=("onnxruntime",),
    precision="fp16",
    scheme="storage",
    suffix=".onnx",
    extra="onnx",
    min_opset=9,  # Cast as it is today
)
MIN_VALUES = 64  # smaller tensors are scales, shapes and limits, which some ops want as constants
MAX_FP16 = 65504.0
SCALED = ("QuantizeLinear", "DequantizeLinear")


def convert(job: Job) -> Conversion:
    """Write the model with fp16 weights; raises ConvertError if it has hardly any float weights."""
    onnx = need("onnx", "onnx")
    original = load_model(job.model)
    model = clamp_versions(original, job.ceiling, SPEC.min_opset)
    # Scales must be constants for the runtime to join the ops around them.
    kept = {name for node in model.graph.node if node.op_type in SCALED for name in node.input[1:]}
    kept.update(value.name for value in model.graph.output)
    casts, notes = [], []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or tensor.name in kept:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        if values.size < MIN_VALUES:
            continue
        if np.abs(values).max() > MAX_FP16:
            notes.append(f"'{tensor.name}' stays float: it has values above {MAX_FP16:.0f}")
            continue
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}_fp16"))
        to = onnx.TensorProto.FLOAT
        casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], f"{name}_float", to=to))
    insert_first(model, casts)
    return write_smaller(model, job, original, notes=tuple(notes))
