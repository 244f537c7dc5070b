"""ONNX -> ONNX whose weights are stored as fp16: half the file at float speed.

Each weight gets a Cast to float, which the runtime folds when it loads the file. Computing in fp16
is another matter: CPU kernels for it are few, and EfficientNet-Lite0 ran 1.4 times slower.
"""

from __future__ import annotations

import numpy as np

from converters import onnx_graph
from converters.base import Converted, Job, Spec
from converters.onnx_file import load, tensor_bytes, weights
from converters.onnx_weights import put_first
from edge_core.extras import need

SPEC = Spec(
    name="onnx-fp16",
    title="weights stored as fp16, computed in float",
    target="onnx",
    runtime="onnxruntime",
    precision="fp16",
    scheme="storage",
    suffix=".onnx",
    extra="onnx",
    min_opset=9,
)
MIN_VALUES = 64  # smaller tensors are scales, shapes and limits, which some ops want as constants
MAX_FP16 = 65504.0


def convert(job: Job) -> Converted:
    """Write the model with fp16 weights; raises ConvertError if it has hardly any float weights."""
    onnx = need("onnx", "onnx")
    model = onnx_graph.clamp(load(job.model), job.ceiling, SPEC.min_opset)
    total = sum(map(tensor_bytes, weights(model)))
    outputs = {v.name for v in model.graph.output}
    stored, casts, notes = 0, [], []
    for t in model.graph.initializer:
        if t.data_type != onnx.TensorProto.FLOAT or t.name in outputs:
            continue
        values = onnx.numpy_helper.to_array(t)
        if values.size < MIN_VALUES:
            continue
        if np.abs(values).max() > MAX_FP16:
            notes.append(f"'{t.name}' stays float: it has values above {MAX_FP16:.0f}")
            continue
        name = t.name
        t.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}_fp16"))
        casts.append(onnx.helper.make_node("Cast", [t.name], [name], f"{name}_float", to=1))
        stored += values.nbytes
    put_first(model, casts)
    return onnx_graph.write(model, job, share=stored / total if total else 0.0, notes=tuple(notes))
