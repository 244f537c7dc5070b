"""Rounding that keeps what a kernel adds up to. Pure.

Rounded to nearest, a kernel's weights leave an error of their own sum, and inputs that share a
mean, as after ReLU, multiply it: a whole channel shifts. Handing each weight's error on to those
that are still to be rounded keeps the sum within a part of a step. It is GPTQ (Frantar et al.
2022) for inputs of equal variance and correlation, for which its matrix has a closed form.

EfficientNet-Lite0, int8 weights alone, 100 crops: 23.6 dB signal to noise and top-1 agreement 0.85
to nearest; 26.5 dB and 0.93 so. Where inputs have no common mean (MiniLM) it makes no difference.
"""

from __future__ import annotations

import numpy as np

from edge_core.tensors import Array


def round_keeping_sums(steps: Array, largest: int) -> Array:
    """Integers for values given in steps, rounded along the last axis, in ±``largest``."""
    rounded = np.empty_like(steps)
    carried = np.zeros(steps.shape[:-1], steps.dtype)
    count = steps.shape[-1]
    for k in range(count):
        exact = steps[..., k] + carried
        rounded[..., k] = np.clip(np.round(exact), -largest, largest)
        # As much variance in common as alone; up to ten times as much made less than 0.3 dB.
        carried += (exact - rounded[..., k]) / (count - k)
    return rounded


def refit_kernels(kernel: Array, scale: Array, mean: Array, largest: int) -> tuple[Array, Array]:
    """Integers in ±``largest`` for kernels, and what each output loses by them on average.

    ``kernel`` is groups x outputs of a group x weights of one, ``scale`` a step of its weights,
    ``mean`` what the weights of a group meet on average.
    """
    steps = np.maximum(scale, np.finfo(np.float32).tiny)
    rounded = round_keeping_sums(kernel / steps, largest)
    lost = (kernel - rounded * steps) @ mean[:, :, None]
    return rounded, lost.ravel()
