"""Operators that normalise values to a mean of 0, a deviation of 1 or a norm of 1."""

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


def standardise(node: Node, tensor: Tensor, at: list[int], epsilon: float) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) over the stored axes ``at``; the shape stays."""
    return standardise_with_statistics(node, tensor, at, epsilon)[0]


def standardise_with_statistics(
    node: Node, tensor: Tensor, at: list[int], epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, with the mean and 1 / sqrt(variance + epsilon), of size 1 on the axes ``at``."""
    calc = Math(node)
    mean = _emit_mean(node, tensor, at)
    centred = emit_broadcast(node, "SUB", [tensor, mean])
    variance = _emit_mean(node, calc("MUL", centred, centred), at)
    inverse = calc("RSQRT", calc("ADD", variance, epsilon))
    return emit_broadcast(node, "MUL", [centred, inverse]), mean, inverse


def _emit_mean(node: Node, tensor: Tensor, at: list[int]) -> Tensor:
    shape = [1 if i in at else size for i, size in enumerate(tensor.shape)]
    return node.emit("MEAN", [tensor, node.ints(at)], shape, keep_dims=True)


def _require_float(node: Node) -> PlacedValue:
    value = node.value(0)
    if value.dtype != np.float32:
        raise node.refusal(f"{value.dtype} is not lowered")
    return value


def _apply_parameter(node: Node, result: Tensor, code: str, index: int, axes: Axes) -> Tensor:
    """``result`` combined with an input that broadcasts with its last axes, if there is one."""
    if not node.has_input(index):
        return result
    wide = widen_rank(node, node.value(index), len(axes))
    return emit_broadcast(node, code, [result, node.place(wide, axes)])


def _trailing_axes(node: Node, value: PlacedValue) -> list[int]:
    """The stored positions of the axes from the attribute ``axis`` on."""
    first = int(node.attr("axis", -1)) % len(value.shape)
    return [i for i, axis in enumerate(value.axes) if axis >= first]


def lower_layer_normalization(node: Node) -> None:
    """Standardise over the axes from ``axis`` on, then scale and shift."""
    value = _require_float(node)
    epsilon = float(node.attr("epsilon", 1e-5))
    result, mean, inverse = standardise_with_statistics(
        node, node.place(value, value.axes), _trailing_axes(node, value), epsilon
    )
    result = _apply_parameter(node, result, "MUL", 1, value.axes)
    node.set_output(_apply_parameter(node, result, "ADD", 2, value.axes), value.axes)
    for index, tensor in ((1, mean), (2, inverse)):
        if node.has_output(index):
            node.set_output(tensor, value.axes, index)


def lower_rms_normalization(node: Node) -> None:
    """Divide by the root mean square over the axes from ``axis`` on."""
    value, calc = _require_float(node), Math(node)
    tensor = node.place(value, value.axes)
    square = _emit_mean(node, calc("MUL", tensor, tensor), _trailing_axes(node, value))
    result = emit_broadcast(
        node, "MUL", [tensor, calc("RSQRT", calc("ADD", square, float(node.attr("epsilon", 1e-5))))]
    )
    node.set_output(_apply_parameter(node, result, "MUL", 1, value.axes), value.axes)


def lower_lp_normalization(node: Node) -> None:
    """Divide by the L1 or L2 norm along one axis."""
    value, calc = _require_float(node), Math(node)
    at = value.axes.index(int(node.attr("axis", -1)) % len(value.shape))
    tensor, power = node.place(value, value.axes), int(node.attr("p", 2))
    if power not in (1, 2):
        raise node.refusal(f"p is {power}, not 1 or 2")
    size = calc("ABS", tensor) if power == 1 else calc("MUL", tensor, tensor)
    shape = [1 if i == at else length for i, length in enumerate(tensor.shape)]
    norm = node.emit("SUM", [size, node.ints([at])], shape, keep_dims=True)
    norm = norm if power == 1 else calc("SQRT", norm)
    # Only zeros have the norm 0; they stay zeros.
    node.set_output(emit_broadcast(node, "DIV", [tensor, calc("MAXIMUM", norm, TINY)]), value.axes)


def lower_mean_variance_normalization(node: Node) -> None:
    """(x - mean) / (deviation + 1e-9) over the named axes."""
    value, calc = _require_float(node), Math(node)
    axes = [int(axis) % len(value.shape) for axis in node.attr("axes") or (0, 2, 3)]
    at = [i for i, axis in enumerate(value.axes) if axis in axes]
    tensor = node.place(value, value.axes)
    centred = emit_broadcast(node, "SUB", [tensor, _emit_mean(node, tensor, at)])
    deviation = calc("SQRT", _emit_mean(node, calc("MUL", centred, centred), at))
    node.set_output(
        emit_broadcast(node, "DIV", [centred, calc("ADD", deviation, 1e-9)]), value.axes
    )


def lower_group_normalization(node: Node) -> None:
    """Standardise groups of channels, then scale and shift."""
    value = _require_float(node)
    batch, channels, *spatial = value.shape
    groups = int(node.attr("num_groups"))
    each = channels // groups
    split = reshape_value(node, value, (batch, groups, each, math.prod(spatial)))
    at = [i for i, axis in enumerate(split.axes) if axis > 1]
    epsilon = float(node.attr("epsilon", 1e-5))
    result = standardise(node, node.place(split, split.axes), at, epsilon)
    for index, code in ((1, "MUL"), (2, "ADD")):
        # Up to opset 20 a scale for each group, then one for each channel.
        parameter = node.value(index)
        wide = (1, groups, parameter.shape[0] // groups, 1)
        result = emit_broadcast(
            node, code, [result, node.place(reshape_value(node, parameter, wide), split.axes)]
        )
    normalised = PlacedValue(split.shape, value.dtype, result, split.axes)
    node.set_output_value(reshape_value(node, normalised, value.shape))
