"""Bias correction: better integers at the same scales make up for what quantising takes. Pure.

    layers of a quantised model -> measure_inputs() on the float model -> correct_layer()
                                -> the format stores the integers, and correct_bias() of its biases

    weights  rounded so that each kernel keeps its sum (rounding.py), or, where a layer sees many
             rows, by what its inputs have in common (gptq.py)
    biases   b += (W - Wq) E[x]: the remaining shift of the mean is known, so it is compensated
             (Nagel et al. 2019, "Data-Free Quantization", section 4.2, with measured means)

Both cost nothing at run time. Means measured on the quantised model, layer after layer, overfit
the samples. converters/onnx/bias_correction.py and converters/tflite/bias_correction.py find the
layers of a file, run its float model and store the results; their docstrings have the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

import msgspec
import numpy as np

from converters.gptq import round_by_moments
from converters.rounding import refit_kernels
from edge_core.tensors import Array, Feeds

MAX_SAMPLES = 64

Source = TypeVar("Source", str, int)  # how a format names its tensors


class Layer(msgspec.Struct, Generic[Source], frozen=True, kw_only=True):
    """One quantised layer, as all formats have it."""

    source: Source  # the float model's tensor that it takes
    kernel: Array  # float64 weights: groups x outputs of a group x weights of one output
    scale: Array  # a step of the weights; broadcasts to the kernel
    largest: int  # integer; the smallest is its negative
    many_rows: bool = False  # rounded by moments; needs a single group


AnyLayer = TypeVar("AnyLayer", bound=Layer)  # type: ignore[type-arg]  # of either source


class Correction(msgspec.Struct, frozen=True):
    """What becomes of a layer: its integers, and what its outputs lose by them on average."""

    kernel: Array  # integers as floats, of the layer's shape
    lost: Array  # float64: one value per output of all groups


def pick_samples(samples: Sequence[Feeds], count: int = MAX_SAMPLES) -> list[Feeds]:
    """At most ``count`` samples, evenly spread over the set."""
    indices = np.linspace(0, len(samples) - 1, min(len(samples), count)).round()
    return [samples[int(index)] for index in indices]


def measure_inputs(
    layers: Sequence[AnyLayer],
    activations: Iterable[Mapping[Source, Array]],
    count: int,
    measure_mean: Callable[[AnyLayer, Array], Array],
) -> list[Array]:
    """What each layer's kernel meets on ``count`` samples, whose tensors ``activations`` gives.

    Of a layer with many rows the sum of x xT over all rows, inputs x inputs; of others the mean,
    groups x weights of one output. ``measure_mean`` gives the latter for one sample. Layers with
    the same input share their moments.
    """
    means = [np.zeros((len(layer.kernel), layer.kernel.shape[2])) for layer in layers]
    widths = {layer.source: layer.kernel.shape[2] for layer in layers if layer.many_rows}
    moments = {source: np.zeros((width, width)) for source, width in widths.items()}
    for values in activations:
        for source, total in moments.items():
            rows = values[source].reshape(-1, len(total)).astype(np.float64)
            total += rows.T @ rows
        for layer, mean in zip(layers, means, strict=True):
            if not layer.many_rows:
                mean += measure_mean(layer, values[layer.source]) / count
    return [
        moments[layer.source] if layer.many_rows else mean
        for layer, mean in zip(layers, means, strict=True)
    ]


def correct_layer(layer: Layer[Source], measured: Array) -> Correction:
    """The layer's integers, rounded with what measure_inputs() found for it.

    A layer that sees many rows keeps its bias: the rows of a padded sentence are mostly padding,
    and correcting MiniLM for their mean costs it (cosine 0.99897 -> 0.99883).
    """
    if not layer.many_rows:
        return Correction(*refit_kernels(layer.kernel, layer.scale, measured, layer.largest))
    scale = np.broadcast_to(layer.scale, layer.kernel.shape)[0]
    rounded = round_by_moments(layer.kernel[0], scale, measured, layer.largest)
    return Correction(rounded[np.newaxis], np.zeros(len(rounded)))


def correct_bias(bias: Array, scale: Array, lost: Array) -> Array:
    """A bias of the same type and shape that makes up for ``lost``, one real value per output.

    ``scale`` is a step of an integer bias, one or one per output; a float bias does not need it.
    """
    if bias.dtype.kind == "f":
        shifted: Array = bias + lost.astype(bias.dtype)
        return shifted
    limits = np.iinfo(bias.dtype)
    moved = bias.astype(np.float64) + np.round(lost / scale)
    corrected: Array = np.clip(moved, limits.min, limits.max).astype(bias.dtype)
    return corrected
