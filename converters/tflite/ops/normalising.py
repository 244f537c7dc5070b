"""Operators that bring values to a mean of 0, a deviation of 1 or a norm of 1."""

from __future__ import annotations

import math

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node
from converters.tflite.ops.broadcast import emit_broadcast, widen_rank
from converters.tflite.ops.elementwise import Math
from converters.tflite.ops.movement import reshape_value
from converters.tflite.values import Axes, PlacedValue

TINY = float(np.finfo(np.float32).tiny)


def standardise(node: Node, x: Tensor, at: list[int], epsilon: float) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) over the axes ``at`` of the tensor."""
    return standardise_with_statistics(node, x, at, epsilon)[0]


def standardise_with_statistics(
    node: Node, x: Tensor, at: list[int], epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, with the mean and 1 / sqrt(variance + epsilon)."""
    calc = Math(node)
    mean = _emit_mean(node, x, at)
    centred = emit_broadcast(node, "SUB", [x, mean])
    variance = _emit_mean(node, calc("MUL", centred, centred), at)
    inverse = calc("RSQRT", calc("ADD", variance, epsilon))
    return emit_broadcast(node, "MUL", [centred, inverse]), mean, inverse


def _emit_mean(node: Node, x: Tensor, at: list[int]) -> Tensor:
    shape = [1 if i in at else d for i, d in enumerate(x.shape)]
    return node.emit("MEAN", [x, node.ints(at)], shape, keep_dims=True)


def _require_float(node: Node) -> PlacedValue:
    v = node.value(0)
    if v.dtype != np.float32:
        raise node.refusal(f"{v.dtype} is not lowered")
    return v


def _apply_parameter(node: Node, y: Tensor, code: str, index: int, axes: Axes) -> Tensor:
    """``y`` with an input that broadcasts with its last axes, if that input is there."""
    if not node.has_input(index):
        return y
    wide = widen_rank(node, node.value(index), len(axes))
    return emit_broadcast(node, code, [y, node.place(wide, axes)])


def _trailing_axes(node: Node, v: PlacedValue) -> list[int]:
    """Where the axes from the attribute ``axis`` on lie in memory."""
    first = int(node.attr("axis", -1)) % len(v.shape)
    return [i for i, a in enumerate(v.axes) if a >= first]


def lower_layer_normalization(node: Node) -> None:
    v = _require_float(node)
    epsilon = float(node.attr("epsilon", 1e-5))
    y, mean, inverse = standardise_with_statistics(
        node, node.place(v, v.axes), _trailing_axes(node, v), epsilon
    )
    y = _apply_parameter(node, y, "MUL", 1, v.axes)
    node.set_output(_apply_parameter(node, y, "ADD", 2, v.axes), v.axes)
    for i, tensor in ((1, mean), (2, inverse)):
        if node.has_output(i):
            node.set_output(tensor, v.axes, i)


def lower_rms_normalization(node: Node) -> None:
    v, calc = _require_float(node), Math(node)
    x = node.place(v, v.axes)
    square = _emit_mean(node, calc("MUL", x, x), _trailing_axes(node, v))
    y = emit_broadcast(
        node, "MUL", [x, calc("RSQRT", calc("ADD", square, float(node.attr("epsilon", 1e-5))))]
    )
    node.set_output(_apply_parameter(node, y, "MUL", 1, v.axes), v.axes)


def lower_lp_normalization(node: Node) -> None:
    v, calc = _require_float(node), Math(node)
    at = v.axes.index(int(node.attr("axis", -1)) % len(v.shape))
    x, p = node.place(v, v.axes), int(node.attr("p", 2))
    if p not in (1, 2):
        raise node.refusal(f"p is {p}, not 1 or 2")
    size = calc("ABS", x) if p == 1 else calc("MUL", x, x)
    shape = [1 if i == at else d for i, d in enumerate(x.shape)]
    norm = node.emit("SUM", [size, node.ints([at])], shape, keep_dims=True)
    norm = norm if p == 1 else calc("SQRT", norm)
    # Nothing but zeros has the norm 0, and stays zeros.
    node.set_output(emit_broadcast(node, "DIV", [x, calc("MAXIMUM", norm, TINY)]), v.axes)


def lower_mean_variance_normalization(node: Node) -> None:
    v, calc = _require_float(node), Math(node)
    axes = [int(a) % len(v.shape) for a in node.attr("axes") or (0, 2, 3)]
    at = [i for i, a in enumerate(v.axes) if a in axes]
    x = node.place(v, v.axes)
    centred = emit_broadcast(node, "SUB", [x, _emit_mean(node, x, at)])
    deviation = calc("SQRT", _emit_mean(node, calc("MUL", centred, centred), at))
    node.set_output(emit_broadcast(node, "DIV", [centred, calc("ADD", deviation, 1e-9)]), v.axes)


def lower_group_normalization(node: Node) -> None:
    v = _require_float(node)
    batch, channels, *spatial = v.shape
    groups = int(node.attr("num_groups"))
    each = channels // groups
    split = reshape_value(node, v, (batch, groups, each, math.prod(spatial)))
    at = [i for i, a in enumerate(split.axes) if a > 1]
    epsilon = float(node.attr("epsilon", 1e-5))
    y = standardise(node, node.place(split, split.axes), at, epsilon)
    for i, code in ((1, "MUL"), (2, "ADD")):
        # Up to opset 20 a scale for each group, then one for each channel.
        given = node.value(i)
        wide = (1, groups, given.shape[0] // groups, 1)
        y = emit_broadcast(
            node, code, [y, node.place(reshape_value(node, given, wide), split.axes)]
        )
    made = PlacedValue(split.shape, v.dtype, y, split.axes)
    node.set_output_value(reshape_value(node, made, v.shape))
