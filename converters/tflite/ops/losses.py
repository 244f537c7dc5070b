"""Losses that look the class of each example up."""

from __future__ import annotations

import math

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node
from converters.tflite.ops.elementwise import Math
from converters.tflite.ops.reductions import place_axis_last


def lower_negative_log_likelihood_loss(node: Node) -> None:
    """The loss of log probabilities [batch, classes, ...]."""
    logs, _ = place_axis_last(node, node.value(0), 1)
    _set_loss(node, logs)


def lower_softmax_cross_entropy_loss(node: Node) -> None:
    """LOG_SOFTMAX over the classes, then the loss."""
    scores, order = place_axis_last(node, node.value(0), 1)
    logs = node.emit("LOG_SOFTMAX", [scores], scores.shape)
    _set_loss(node, logs)
    if node.has_output(1):
        node.set_output(logs, order, 1)


def _set_loss(node: Node, logs: Tensor) -> None:
    """The loss from log probabilities whose classes lie last in memory."""
    calc, classes = Math(node), logs.shape[-1]
    classes_value = node.value(1)
    # The other axes lie as axis_last() leaves them: those of the first input without the classes.
    order = tuple(
        axis - (axis > 1) for axis in node.value(0).axes or range(len(logs.shape)) if axis != 1
    )
    ids = node.reshape(node.place(classes_value, order), (math.prod(classes_value.shape),))
    ignored = node.attr("ignore_index")
    if ignored is not None:
        # -1 is no class: it has a row of False.
        same = calc("EQUAL", ids, ignored, dtype=np.bool_)
        ids = calc("SELECT_V2", same, node.const([-1], ids.dtype), ids, dtype=ids.dtype)
    flat = node.reshape(logs, (ids.shape[0], classes))
    on, off = node.const(True, bool), node.const(False, bool)
    inputs = [ids, node.const(classes, np.int32), on, off]
    chosen = node.emit("ONE_HOT", inputs, flat.shape, bool, axis=-1)
    weight = node.const(np.ones((1, classes)))
    if node.has_input(2):
        weight = node.reshape(node.place_input(2), (1, classes))
    factor = _sum_classes(
        node, calc("SELECT_V2", chosen, weight, node.const([[0.0]]), dtype=logs.dtype)
    )
    picked = _sum_classes(
        node, calc("SELECT_V2", chosen, flat, node.const([[0.0]]), dtype=logs.dtype)
    )
    loss = calc("NEG", calc("MUL", picked, factor))
    how = node.attr("reduction", "mean")
    if how == "none":
        node.set_output(
            node.reshape(loss, tuple(classes_value.shape[axis] for axis in order)), order
        )
        return
    total = node.emit("SUM", [loss, node.ints([0])], (), keep_dims=False)
    if how == "mean":
        total = calc("DIV", total, node.emit("SUM", [factor, node.ints([0])], (), keep_dims=False))
    node.set_output(total)


def _sum_classes(node: Node, tensor: Tensor) -> Tensor:
    return node.emit("SUM", [tensor, node.ints([1])], tensor.shape[:1], keep_dims=False)
