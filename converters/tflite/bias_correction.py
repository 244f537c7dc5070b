"""Bias correction of .tflite files: see converters/bias_correction.py for the method.

    corrector = BiasCorrector(model, samples)
    corrector.correct(quantised) -> number of layers, changed in place

The layers of a quantised file are those of its float file in the same order, so the k-th fully
connected or convolution op of one is the k-th of the other. EfficientNet-Lite0, static INT8, 200
crops of photos not calibrated on: 19.4 dB signal to noise and top-1 agreement 0.890 as
ai-edge-quantizer rounds, 21.9 dB and 0.945 with kept sums, 24.1 dB and 0.975 with biases as well.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from converters import bias_correction
from converters.bias_correction import (
    Correction,
    correct_bias,
    correct_layer,
    measure_inputs,
    pick_samples,
)
from converters.tflite import flatbuffer, ranges
from converters.tflite.patches import compute_mean_patch
from edge_core.tensors import Array, Feeds

MAX_INPUTS = 4096  # of a layer rounded by moments: they are a square matrix
OPS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
# Not -8: tflite-runtime 2.14 and its nightly 2.20 misread it (error 0.54 against 0.10).
LARGEST = {"INT8": 127, "INT4": 7}


class Layer(bias_correction.Layer[int], frozen=True, kw_only=True):
    """One quantised layer."""

    number: int  # among the model's layers
    kind: str
    options: Any  # of the op: strides, padding
    dims: tuple[int, ...]  # of the stored weights
    weight: flatbuffer.Tensor  # int8 or int4, changed in place
    bias: flatbuffer.Tensor | None  # integer or float, changed in place


class BiasCorrector:
    """Corrections of a float model's layers, once worked out: a search asks for them often.

    Its files differ in which layers are quantised, not in how.
    """

    def __init__(self, model: flatbuffer.Model, samples: Sequence[Feeds]) -> None:
        self._model, self._samples = model, samples
        self._corrections: dict[int, Correction] = {}  # by the layer's number

    def correct(self, quantised: flatbuffer.Model) -> int:
        """Change weights and biases of ``quantised``, made from the float model, in place.

        Without samples only the rounding changes, of layers that see one row. Returns the number
        of layers that were changed.
        """
        # Without samples nothing is known of many rows, and kept sums are no better than the
        # nearest: MiniLM in four bits 0.933 against 0.945.
        layers = [
            layer
            for layer in _find_layers(self._model, quantised)
            if self._samples or not layer.many_rows
        ]
        self._work_out([layer for layer in layers if layer.number not in self._corrections])
        for layer in layers:
            correction = self._corrections[layer.number]
            flatbuffer.set_constant(
                quantised, layer.weight, _unfold_kernel(layer, correction.kernel)
            )
            _store_bias(quantised, layer.bias, correction.lost)
        return len(layers)

    def _work_out(self, layers: list[Layer]) -> None:
        chosen = pick_samples(self._samples)
        activations = ranges.iter_activations(
            self._model, [layer.source for layer in layers], chosen
        )
        measured = measure_inputs(layers, activations, len(chosen), _measure_mean)
        for layer, statistic in zip(layers, measured, strict=True):
            self._corrections[layer.number] = correct_layer(layer, statistic)


def _store_bias(quantised: flatbuffer.Model, tensor: flatbuffer.Tensor | None, lost: Array) -> None:
    bias = flatbuffer.constant(quantised, tensor) if tensor is not None else None
    if tensor is None or bias is None or not lost.any():
        return
    scale = tensor.quantization.scale if bias.dtype.kind != "f" else 1.0
    corrected = correct_bias(bias, np.asarray(scale, np.float64), lost)
    flatbuffer.set_constant(quantised, tensor, corrected)


def _find_layers(model: flatbuffer.Model, quantised: flatbuffer.Model) -> Iterator[Layer]:
    graph, new = model.subgraphs[0], quantised.subgraphs[0]
    uses = Counter(int(index) for op in new.operators for index in op.inputs)
    pairs = zip(_list_layer_ops(model), _list_layer_ops(quantised), strict=True)
    for number, (old_op, op) in enumerate(pairs):
        kernel = flatbuffer.constant(model, graph.tensors[old_op.inputs[1]])
        weight = _find_constant(quantised, op.inputs[1], uses)
        if kernel is None or weight is None or flatbuffer.type_name(weight) not in LARGEST:
            continue  # computed, shared, or float
        kind = flatbuffer.op_name(model, old_op)
        source = flatbuffer.shape(graph.tensors[old_op.inputs[0]])
        groups = _count_groups(kind, kernel.shape, source)
        folded = _fold_kernel(kind, kernel.astype(np.float64), groups)
        yield Layer(
            number=number,
            kind=kind,
            options=old_op.builtinOptions,
            source=int(old_op.inputs[0]),
            many_rows=_sees_many_rows(kind, kernel.shape, source),
            dims=kernel.shape,
            kernel=folded,
            scale=_compute_scale(quantised, weight, folded.shape),
            largest=LARGEST[flatbuffer.type_name(weight)],
            weight=weight,
            bias=_find_unshared(new, op.inputs[2] if len(op.inputs) > 2 else -1, uses),
        )


def _list_layer_ops(model: flatbuffer.Model) -> list[flatbuffer.Op]:
    return [op for op in model.subgraphs[0].operators if flatbuffer.op_name(model, op) in OPS]


def _find_constant(
    model: flatbuffer.Model, index: int, uses: Counter[int]
) -> flatbuffer.Tensor | None:
    """The constant behind an input, through a DEQUANTIZE, if nothing else reads it."""
    graph = model.subgraphs[0]
    tensor = _find_unshared(graph, index, uses)
    if tensor is None or flatbuffer.constant(model, tensor) is not None:
        return tensor
    for op in graph.operators:
        if index in op.outputs and flatbuffer.op_name(model, op) == "DEQUANTIZE":
            return _find_unshared(graph, op.inputs[0], uses)
    return None


def _find_unshared(graph: Any, index: int, uses: Counter[int]) -> flatbuffer.Tensor | None:
    return graph.tensors[index] if index >= 0 and uses[index] == 1 else None


def _compute_scale(
    model: flatbuffer.Model, weight: flatbuffer.Tensor, dims: tuple[int, ...]
) -> Array:
    """One step of every weight: as the kernel, or with axes of length 1."""
    quantization = weight.quantization
    if quantization.details is None:
        scale = np.asarray(quantization.scale, np.float64)
        return scale.reshape(dims[0] if scale.size > 1 else 1, -1, 1)
    scales = flatbuffer.constant(model, model.subgraphs[0].tensors[quantization.details.scales])
    assert scales is not None  # blocks have constant scales
    repeated = np.repeat(scales.astype(np.float64), quantization.details.blockSize, axis=1)
    return repeated[np.newaxis]


def _sees_many_rows(kind: str, dims: tuple[int, ...], source: tuple[int, ...]) -> bool:
    if kind != "FULLY_CONNECTED" or dims[1] > MAX_INPUTS:
        return False
    return math.prod(source) > dims[1]


def _count_groups(kind: str, dims: tuple[int, ...], source: tuple[int, ...]) -> int:
    if kind == "DEPTHWISE_CONV_2D":
        return dims[3]
    return source[3] // dims[3] if kind == "CONV_2D" else 1


def _fold_kernel(kind: str, kernel: Array, groups: int) -> Array:
    """Weights as stored -> groups x outputs of a group x weights of one."""
    if kind == "DEPTHWISE_CONV_2D":
        return kernel.reshape(-1, groups).T[:, np.newaxis]
    return kernel.reshape(groups, len(kernel) // groups, -1)


def _unfold_kernel(layer: Layer, kernel: Array) -> Array:
    if layer.kind == "DEPTHWISE_CONV_2D":
        return kernel[:, 0].T.reshape(layer.dims)
    return kernel.reshape(layer.dims)


def _measure_mean(layer: Layer, values: Array) -> Array:
    """The mean of what the kernel meets in one sample's input: groups x weights of one."""
    if layer.kind == "FULLY_CONNECTED":
        mean: Array = values.reshape(-1, layer.dims[1]).mean(axis=0, dtype=np.float64)
        return mean[np.newaxis]
    taps = compute_mean_patch(values, layer.dims[1:3], layer.options)
    if layer.kind == "DEPTHWISE_CONV_2D":
        channels = values.shape[3]
        return np.repeat(taps.reshape(-1, channels).T, layer.dims[3] // channels, axis=0)
    grouped = taps.reshape(*taps.shape[:2], len(layer.kernel), -1)
    return grouped.transpose(2, 0, 1, 3).reshape(len(layer.kernel), -1)
