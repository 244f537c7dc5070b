"""Losses that look the class of each example up."""

from __future__ import annotations

import math

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node, op
from converters.tflite.ops.elementwise import Math
from converters.tflite.ops.reductions import axis_last


@op("NegativeLogLikelihoodLoss")
def _nll(n: Node) -> None:
    x, _ = axis_last(n, n.value(0), 1)
    _give_loss(n, x)


@op("SoftmaxCrossEntropyLoss")
def _cross_entropy(n: Node) -> None:
    x, order = axis_last(n, n.value(0), 1)
    logs = n.emit("LOG_SOFTMAX", [x], x.shape)
    _give_loss(n, logs)
    if n.wants(1):
        n.give(logs, order, 1)


def _give_loss(n: Node, logs: Tensor) -> None:
    """The loss from log probabilities whose classes lie last in memory."""
    m, classes = Math(n), logs.shape[-1]
    v = n.value(1)
    # The other axes lie as axis_last() leaves them: those of the first input without the classes.
    order = tuple(a - (a > 1) for a in n.value(0).axes or range(len(logs.shape)) if a != 1)
    ids = n.reshaped(n.place(v, order), (math.prod(v.shape),))
    ignored = n.attr("ignore_index")
    if ignored is not None:
        # -1 is no class: it has a row of False.
        same = m("EQUAL", ids, ignored, dtype=np.bool_)
        ids = m("SELECT_V2", same, n.const([-1], ids.dtype), ids, dtype=ids.dtype)
    flat = n.reshaped(logs, (ids.shape[0], classes))
    on, off = n.const(True, bool), n.const(False, bool)
    inputs = [ids, n.const(classes, np.int32), on, off]
    chosen = n.emit("ONE_HOT", inputs, flat.shape, bool, axis=-1)
    weight = n.const(np.ones((1, classes)))
    if n.has(2):
        weight = n.reshaped(n.stored(2), (1, classes))
    factor = _summed(n, m("SELECT_V2", chosen, weight, n.const([[0.0]]), dtype=logs.dtype))
    picked = _summed(n, m("SELECT_V2", chosen, flat, n.const([[0.0]]), dtype=logs.dtype))
    loss = m("NEG", m("MUL", picked, factor))
    how = n.attr("reduction", "mean")
    if how == "none":
        n.give(n.reshaped(loss, tuple(v.shape[a] for a in order)), order)
        return
    total = n.emit("SUM", [loss, n.ints([0])], (), keep_dims=False)
    if how == "mean":
        total = m("DIV", total, n.emit("SUM", [factor, n.ints([0])], (), keep_dims=False))
    n.give(total)


def _summed(n: Node, x: Tensor) -> Tensor:
    return n.emit("SUM", [x, n.ints([1])], x.shape[:1], keep_dims=False)
