"""What a convolution's kernel meets on average. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from converters.conv_windows import MAX_POSITIONS, find_same_padding, find_windows
from converters.tflite import flatbuffer
from edge_core.tensors import Array


def compute_mean_patch(values: Array, size: Sequence[int], options: Any) -> Array:
    """The mean over positions of what each tap meets: kernel height x width x channels, float64.

    ``values`` is NHWC, ``size`` the kernel's height and width, ``options`` the schema's
    Conv2DOptions or DepthwiseConv2DOptions.
    """
    strides = (options.strideH, options.strideW)
    dilations = (options.dilationHFactor, options.dilationWFactor)
    windows = find_windows(size, dilations)
    if options.padding == flatbuffer.schema().Padding.SAME:
        pads = find_same_padding(values.shape[1:3], windows, strides)
        values = np.pad(values, [(0, 0), *pads, (0, 0)])
    counts = [
        (length - window) // stride + 1
        for length, window, stride in zip(values.shape[1:3], windows, strides, strict=True)
    ]
    skip = math.ceil((len(values) * math.prod(counts) / MAX_POSITIONS) ** 0.5)

    def slice_positions(axis: int, tap: int) -> slice:
        start, stride = tap * dilations[axis], strides[axis]
        return slice(start, start + (counts[axis] - 1) * stride + 1, stride * skip)

    means = [
        values[:, slice_positions(0, i), slice_positions(1, j)].mean(
            axis=(0, 1, 2), dtype=np.float64
        )
        for i in range(size[0])
        for j in range(size[1])
    ]
    return np.array(means).reshape(*size, values.shape[3])
