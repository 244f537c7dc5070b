"""What a convolution's kernel meets on average. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from converters.tflite import flatbuffer
from edge_core.tensors import Array

MAX_POSITIONS = 256  # of one feature map: an even grid tells its mean


def compute_mean_patch(x: Array, size: Sequence[int], options: Any) -> Array:
    """The mean over positions of what each tap meets: kernel height x width x channels.

    ``x`` is NHWC, ``options`` the schema's Conv2DOptions or DepthwiseConv2DOptions.
    """
    strides = (options.strideH, options.strideW)
    dilations = (options.dilationHFactor, options.dilationWFactor)
    window = [(k - 1) * d + 1 for k, d in zip(size, dilations, strict=True)]
    if options.padding == flatbuffer.schema().Padding.SAME:
        x = np.pad(x, [(0, 0), *_compute_same_padding(x.shape[1:3], window, strides), (0, 0)])
    counts = [(n - w) // s + 1 for n, w, s in zip(x.shape[1:3], window, strides, strict=True)]
    skip = math.ceil((len(x) * math.prod(counts) / MAX_POSITIONS) ** 0.5)

    def met(axis: int, tap: int) -> slice:
        start, stride = tap * dilations[axis], strides[axis]
        return slice(start, start + (counts[axis] - 1) * stride + 1, stride * skip)

    means = [
        x[:, met(0, i), met(1, j)].mean(axis=(0, 1, 2), dtype=np.float64)
        for i in range(size[0])
        for j in range(size[1])
    ]
    return np.array(means).reshape(*size, x.shape[3])


def _compute_same_padding(
    lengths: Sequence[int], window: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """Zeros before and after each axis: as many outputs as strides in the input."""
    total = [
        max((-(-n // s) - 1) * s + w - n, 0)
        for n, w, s in zip(lengths, window, strides, strict=True)
    ]
    return [(t // 2, t - t // 2) for t in total]
