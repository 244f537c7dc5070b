"""The ranges of weights that we give to the quantiser, which takes the largest weight's. Pure.

four bits   the range that loses least: the largest of few steps is better clipped a little than
            all others rounded more coarsely
biases      wide enough that the bias, in steps of input times weight, fits into 32 bits.
            ai-edge-quantizer 0.10 lets it wrap: of EfficientNet-Lite0's dead channels, whose
            weights are all but zero, 5 turn from a positive constant to a negative one
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from converters.tflite import flatbuffer
from edge_core.tensors import Array

# How a weight is stored: bits, what has a scale of its own in the quantiser's words, and how many
# weights of a row that is (0: not a part of a row).
FORMS = {
    "int8": (8, "CHANNELWISE", 0),
    "int8-tensor": (8, "TENSORWISE", 0),
    "int4": (4, "CHANNELWISE", 0),
    "int4-block32": (4, "BLOCKWISE_32", 32),
    "int4-block64": (4, "BLOCKWISE_64", 64),
}
LARGEST = 7  # of four bits, symmetric; the quantiser divides the range by it
FACTORS = np.linspace(1.0, 0.6, 17)
MAX_BIAS = 2.0**30  # steps; corrections of biases come on top

Ranges = dict[str, dict[str, Array]]  # the quantiser's statistics: name -> "min", "max"


def compute_four_bit_ranges(
    model: flatbuffer.Model, ops: Iterable[tuple[flatbuffer.Op, str]]
) -> Ranges:
    """Ranges of the four-bit weights among ops given with their forms."""
    ranges = {}
    for op, form in ops:
        tensor = model.subgraphs[0].tensors[op.inputs[1]]
        weights = flatbuffer.constant(model, tensor)
        if weights is None or not form.startswith("int4"):
            continue
        block = FORMS[form][2]
        limits = find_bounds(weights, block or weights.shape[1])
        limits = limits[:, :, 0] if block else limits[:, 0]
        ranges[flatbuffer.tensor_name(tensor)] = {"min": -limits, "max": limits}
    return ranges


def find_bounds(weights: Array, size: int) -> Array:
    """The range, as its positive end, that leaves the least squared error: rows x blocks x 1.

    A block is ``size`` weights of a row.
    """
    grouped = weights.reshape(len(weights), -1, size).astype(np.float32)
    largest = np.abs(grouped).max(axis=2, keepdims=True)
    best: Array = largest.copy()
    least: Array = np.full(largest.shape, np.inf, np.float32)
    for factor in FACTORS:
        scale = np.maximum(largest * np.float32(factor / LARGEST), np.finfo(np.float32).tiny)
        rounded = np.clip(np.round(grouped / scale), -LARGEST - 1, LARGEST) * scale
        error = np.square(rounded - grouped).sum(axis=2, keepdims=True)
        better = error < least
        least = np.where(better, error, least)
        best = np.where(better, largest * np.float32(factor), best)
    return best


def compute_eight_bit_ranges(
    model: flatbuffer.Model,
    ops: Iterable[flatbuffer.Op],
    extremes: Mapping[str, tuple[float, float]],
) -> Ranges:
    """Ranges per channel of the weights of ops with a bias and 8-bit inputs."""
    tensors = model.subgraphs[0].tensors
    ranges: Ranges = {}
    for op in ops:
        weight, bias = tensors[op.inputs[1]], _find_bias(model, op)
        values, source = (
            flatbuffer.constant(model, weight),
            flatbuffer.tensor_name(tensors[op.inputs[0]]),
        )
        if bias is None or values is None or source not in extremes:
            continue
        low, high = extremes[source]
        step = (max(high, 0.0) - min(low, 0.0)) / 255
        axis = 3 if flatbuffer.op_name(model, op) == "DEPTHWISE_CONV_2D" else 0
        others = tuple(k for k in range(values.ndim) if k != axis)
        limits = np.abs(values).max(axis=others, keepdims=True)
        needed = 127 * np.abs(bias) / (max(step, 1e-12) * MAX_BIAS)
        limits = np.maximum(limits, needed.reshape(limits.shape)).astype(np.float32)
        before = ranges.get(flatbuffer.tensor_name(weight), {"max": limits})["max"]
        limits = np.maximum(limits, before)
        ranges[flatbuffer.tensor_name(weight)] = {"min": -limits, "max": limits}
    return ranges


def _find_bias(model: flatbuffer.Model, op: flatbuffer.Op) -> Array | None:
    has = (
        flatbuffer.op_name(model, op) != "TRANSPOSE_CONV"
        and len(op.inputs) > 2
        and op.inputs[2] >= 0
    )
    return flatbuffer.constant(model, model.subgraphs[0].tensors[op.inputs[2]]) if has else None
