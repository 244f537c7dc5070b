"""Normalising over channels: by constants, and by neighbours."""

from __future__ import annotations

import numpy as np

from converters.tflite.node import Node
from converters.tflite.ops.broadcast import emit_broadcast, place_per_channel
from converters.tflite.ops.elementwise import Math
from converters.tflite.ops.movement import pad_tensor, slice_tensor
from converters.tflite.ops.normalising import standardise
from converters.tflite.values import channels_last


def lower_batch_normalization(node: Node) -> None:
    if node.attr("training_mode", 0):
        raise node.refusal("training mode is not inference")
    scale, bias, mean, variance = (
        node.require_constant(i, "a statistic").astype(np.float64) for i in range(1, 5)
    )
    factor = scale / np.sqrt(variance + node.attr("epsilon", 1e-5))
    v = node.value(0)
    x = node.place(v, v.axes)
    y = emit_broadcast(node, "MUL", [x, place_per_channel(node, v, factor)])
    node.set_output(
        emit_broadcast(node, "ADD", [y, place_per_channel(node, v, bias - mean * factor)]), v.axes
    )


def lower_instance_normalization(node: Node) -> None:
    v = node.value(0)
    x = node.place(v, v.axes)
    at = [i for i, a in enumerate(v.axes) if a > 1]
    y = standardise(node, x, at, float(node.attr("epsilon", 1e-5)))
    y = emit_broadcast(
        node, "MUL", [y, place_per_channel(node, v, node.require_constant(1, "scale"))]
    )
    node.set_output(
        emit_broadcast(
            node, "ADD", [y, place_per_channel(node, v, node.require_constant(2, "bias"))]
        ),
        v.axes,
    )


def lower_lrn(node: Node) -> None:
    size, alpha = int(node.attr("size")), float(node.attr("alpha", 1e-4))
    calc, last = Math(node), channels_last(len(node.shape))
    x = node.place_input(0, last)
    around = [*[(0, 0)] * (len(x.shape) - 1), ((size - 1) // 2, size // 2)]
    squares = pad_tensor(node, calc("MUL", x, x), around)
    parts = [
        slice_tensor(node, squares, [*[0] * (len(x.shape) - 1), i], x.shape) for i in range(size)
    ]
    total = parts[0]
    for part in parts[1:]:
        total = calc("ADD", total, part)
    base = calc("ADD", calc("MUL", total, alpha / size), float(node.attr("bias", 1.0)))
    node.set_output(calc("DIV", x, calc("POW", base, float(node.attr("beta", 0.75)))), last)
