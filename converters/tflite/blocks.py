"""The range of four-bit weights that loses least. Pure.

With fifteen steps, the largest of a block's weights is better clipped a little than all others
rounded more coarsely.
"""

from __future__ import annotations

import numpy as np

from edge_core.tensors import Array

LARGEST = 7  # of four bits, symmetric; the quantiser divides the range by it
FACTORS = np.linspace(1.0, 0.6, 17)


def bounds(weights: Array, size: int) -> Array:
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
