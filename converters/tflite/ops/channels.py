"""Normalisation over channels: by constants, and by neighbours."""

from __future__ import annotations

import numpy as np

from converters.tflite.node import Node
from converters.tflite.ops.broadcast import emit_broadcast, place_per_channel
from converters.tflite.ops.elementwise import Math
from converters.tflite.ops.movement import pad_tensor, slice_tensor
from converters.tflite.ops.normalising import standardise
from converters.tflite.values import channels_last


def lower_batch_normalization(node: Node) -> None:
    """MUL and ADD by constants per channel."""
    if node.attr("training_mode", 0):
        raise node.refusal("training mode is not inference")
    scale, bias, mean, variance = (
        node.require_constant(i, "a statistic").astype(np.float64) for i in range(1, 5)
    )
    factor = scale / np.sqrt(variance + node.attr("epsilon", 1e-5))
    value = node.value(0)
    tensor = node.place(value, value.axes)
    result = emit_broadcast(node, "MUL", [tensor, place_per_channel(node, value, factor)])
    node.set_output(
        emit_broadcast(node, "ADD", [result, place_per_channel(node, value, bias - mean * factor)]),
        value.axes,
    )


def lower_instance_normalization(node: Node) -> None:
    """Standardise each channel of each image, then MUL and ADD per channel."""
    value = node.value(0)
    tensor = node.place(value, value.axes)
    at = [i for i, axis in enumerate(value.axes) if axis > 1]
    result = standardise(node, tensor, at, float(node.attr("epsilon", 1e-5)))
    result = emit_broadcast(
        node, "MUL", [result, place_per_channel(node, value, node.require_constant(1, "scale"))]
    )
    node.set_output(
        emit_broadcast(
            node, "ADD", [result, place_per_channel(node, value, node.require_constant(2, "bias"))]
        ),
        value.axes,
    )


def lower_lrn(node: Node) -> None:
    """Divide by a power of the sum of squares over neighbouring channels."""
    size, alpha = int(node.attr("size")), float(node.attr("alpha", 1e-4))
    calc, last = Math(node), channels_last(len(node.shape))
    tensor = node.place_input(0, last)
    around = [*[(0, 0)] * (len(tensor.shape) - 1), ((size - 1) // 2, size // 2)]
    squares = pad_tensor(node, calc("MUL", tensor, tensor), around)
    parts = [
        slice_tensor(node, squares, [*[0] * (len(tensor.shape) - 1), i], tensor.shape)
        for i in range(size)
    ]
    total = parts[0]
    for part in parts[1:]:
        total = calc("ADD", total, part)
    base = calc("ADD", calc("MUL", total, alpha / size), float(node.attr("bias", 1.0)))
    node.set_output(calc("DIV", tensor, calc("POW", base, float(node.attr("beta", 0.75)))), last)
