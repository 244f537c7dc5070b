"""ONNX -> ONNX with 4-bit convolution weights. Not recommended: it is here so that what it does to
a model can be measured (edge build --with onnx-int4-conv) instead of believed.

ONNX Runtime has no 4-bit Conv kernel: weights are made float at load and nothing gets faster.
Blocks of 32 input channels share a scale. Kernels with fewer inputs than that, depthwise ones
above all, are ruined first by 4 bits and take 8, a scale per channel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from converters import int4
from converters.onnx.candidate_file import clamp_versions, write_quantised
from converters.onnx.model_file import load_model
from converters.onnx.weights import (
    Weight,
    find_weights,
    insert_first,
    replace_by_integers,
    store_int8,
)
from converters.rounding import round_keeping_sums
from converters.spec import Conversion, Job, Spec
from edge_core.extras import need
from edge_core.tensors import Array

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

SPEC = Spec(
    name="onnx-int4-conv",
    title="4-bit convolution weights, computed in float",
    target="onnx",
    sources=("onnx",),
    runtimes=("onnxruntime",),
    precision="int4",
    scheme="weight-only",
    suffix=".onnx",
    extra="onnx",
    min_opset=21,  # the type INT4, and blocks in DequantizeLinear
)
BLOCK = 32
LARGEST = 7
SHRINK = np.linspace(1.0, 0.7, 7)  # of a block's largest weight: clipping a little may cost less


def convert(job: Job) -> Conversion:
    """Write the model with 4-bit Conv weights; raises ConvertError if it has hardly any."""
    original = load_model(job.model)
    model = clamp_versions(original, job.ceiling, SPEC.min_opset)
    nodes = [_replace_weight(model, weight) for weight in find_weights(model, ("Conv",))]
    insert_first(model, nodes)
    return write_quantised(model, job, original, options={"disable_quant_qdq": "1"})


def _replace_weight(model: ModelProto, weight: Weight) -> NodeProto:
    onnx = need("onnx", "onnx")
    values = weight.values
    if values.shape[1] < BLOCK:
        return store_int8(model, weight)
    codes, scale = quantise_blocks(np.moveaxis(values, 1, -1))
    codes = np.ascontiguousarray(np.moveaxis(codes, -1, 1))
    nibbles = int4.pack_nibbles(codes.ravel().view(np.uint8) & 15)
    stored = onnx.helper.make_tensor(
        "", onnx.TensorProto.INT4, codes.shape, nibbles.tobytes(), raw=True
    )
    scale = np.moveaxis(scale, -1, 1)
    return replace_by_integers(model, weight, stored, scale, axis=1, block_size=BLOCK)


def quantise_blocks(values: Array) -> tuple[Array, Array]:
    """Codes -7..7, and a scale for every BLOCK of them along the last axis."""
    width = values.shape[-1]
    blocks = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, -width % BLOCK)])
    blocks = blocks.reshape(*values.shape[:-1], -1, BLOCK)
    peak = np.maximum(np.abs(blocks).max(axis=-1, keepdims=True), np.finfo(np.float32).tiny)
    best_error = np.full(peak.shape, np.inf)
    codes, scales = np.zeros_like(blocks), np.zeros_like(peak)
    for share in SHRINK:
        scale = (peak * share / LARGEST).astype(np.float32)
        tried = round_keeping_sums(blocks / scale, LARGEST)
        error = np.square(tried * scale - blocks).sum(axis=-1, keepdims=True)
        better = error < best_error
        codes, scales = np.where(better, tried, codes), np.where(better, scale, scales)
        best_error = np.where(better, error, best_error)
    flat = codes.reshape(*values.shape[:-1], -1)[..., :width]
    return flat.astype(np.int8), scales[..., 0]
