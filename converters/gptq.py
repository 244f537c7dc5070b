"""Rounding by what the inputs of a layer have in common (GPTQ, Frantar et al. 2022). Pure.

Each weight's rounding error is handed on to the weights still to be rounded, by as much as their
inputs go together. Worth it where a layer sees many rows and has few bits: MiniLM, 200 sentences
not calibrated on, cosine 0.965 -> 0.981 with four bits, 0.9990 -> 0.9991 with eight. Convolutions
of EfficientNet-Lite0 gain nothing over round_keeping_sums() (converters/rounding.py).
"""

from __future__ import annotations

import numpy as np

from edge_core.tensors import Array

DAMPING = 0.1  # of the mean square; MiniLM, four bits: 0.980 with 0.01, 0.981 with 0.1
COLUMNS = 128  # whose errors reach the rest at once


def round_by_moments(weights: Array, scale: Array, moments: Array, largest: int) -> Array:
    """Integers in ±``largest`` for ``weights``, outputs x inputs, in steps of ``scale`` of the
    same shape; float64.

    ``moments`` is the sum of x xT over the rows that the layer sees, inputs x inputs.
    """
    unrounded = weights.astype(np.float64)
    rounded = np.empty_like(unrounded)
    spread = _factor_inverse(moments)
    count = unrounded.shape[1]
    for start in range(0, count, COLUMNS):
        stop = min(start + COLUMNS, count)
        errors = np.empty((len(unrounded), stop - start))
        for k in range(start, stop):
            rounded[:, k] = np.clip(np.round(unrounded[:, k] / scale[:, k]), -largest, largest)
            errors[:, k - start] = (unrounded[:, k] - rounded[:, k] * scale[:, k]) / spread[k, k]
            unrounded[:, k:stop] -= np.outer(errors[:, k - start], spread[k, k:stop])
        unrounded[:, stop:] -= errors @ spread[start:stop, stop:]
    return rounded


def _factor_inverse(moments: Array) -> Array:
    """The upper Cholesky factor of the inverse: row k is how an error in k is handed on."""
    mean_square = np.diag(moments).mean() or 1.0  # all inputs zero: nothing to hand on
    damped = moments + DAMPING * mean_square * np.eye(len(moments))
    factor: Array = np.linalg.cholesky(np.linalg.inv(damped)).T
    return factor
