"""Normalising over channels: by constants, and by neighbours."""

from __future__ import annotations

import numpy as np

from converters.tflite.node import Node, op
from converters.tflite.ops.broadcast import emit, per_channel
from converters.tflite.ops.elementwise import Math
from converters.tflite.ops.movement import padded, sliced
from converters.tflite.ops.normalising import standardised
from converters.tflite.values import channels_last


@op("BatchNormalization")
def _batch_norm(n: Node) -> None:
    if n.attr("training_mode", 0):
        raise n.refusal("training mode is not inference")
    scale, bias, mean, variance = (
        n.constant(i, "a statistic").astype(np.float64) for i in range(1, 5)
    )
    factor = scale / np.sqrt(variance + n.attr("epsilon", 1e-5))
    v = n.value(0)
    x = n.place(v, v.axes)
    y = emit(n, "MUL", [x, per_channel(n, v, factor)])
    n.give(emit(n, "ADD", [y, per_channel(n, v, bias - mean * factor)]), v.axes)


@op("InstanceNormalization")
def _instance_norm(n: Node) -> None:
    v = n.value(0)
    x = n.place(v, v.axes)
    at = [i for i, a in enumerate(v.axes) if a > 1]
    y = standardised(n, x, at, float(n.attr("epsilon", 1e-5)))
    y = emit(n, "MUL", [y, per_channel(n, v, n.constant(1, "scale"))])
    n.give(emit(n, "ADD", [y, per_channel(n, v, n.constant(2, "bias"))]), v.axes)


@op("LRN")
def _lrn(n: Node) -> None:
    size, alpha = int(n.attr("size")), float(n.attr("alpha", 1e-4))
    m, last = Math(n), channels_last(len(n.shape))
    x = n.stored(0, last)
    around = [*[(0, 0)] * (len(x.shape) - 1), ((size - 1) // 2, size // 2)]
    squares = padded(n, m("MUL", x, x), around)
    parts = [sliced(n, squares, [*[0] * (len(x.shape) - 1), i], x.shape) for i in range(size)]
    total = parts[0]
    for part in parts[1:]:
        total = m("ADD", total, part)
    base = m("ADD", m("MUL", total, alpha / size), float(n.attr("bias", 1.0)))
    n.give(m("DIV", x, m("POW", base, float(n.attr("beta", 0.75)))), last)
