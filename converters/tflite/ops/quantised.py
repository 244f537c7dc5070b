"""ONNX's quantised operators, in arithmetic that is exact to the last bit.

Products of 8-bit numbers are computed in float32: sums below 2**24 are exact, and longer ones are
split into parts that are added as int32.
"""

from __future__ import annotations

import math

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node
from converters.tflite.ops.arithmetic import Math, cast
from converters.tflite.ops.broadcast import emit_broadcast
from converters.tflite.ops.movement import reshape_value, slice_tensor
from converters.tflite.ops.products import as_value, emit_fully_connected, multiply_batches
from converters.tflite.values import Axes, PlacedValue, constant, identity
from edge_core.extras import need
from edge_core.tensors import Array

EXACT = 2**24  # float32 holds every integer below
STEP = 255  # the largest 8-bit number less its zero point
QUANTISED = (np.int8, np.uint8, np.int16)


def _place_parameter(node: Node, index: int, value: PlacedValue, order: Axes) -> Tensor:
    """A scale or zero point as float, shaped to broadcast with ``value`` in ``order``."""
    parameter, rank = node.value(index), len(value.shape)
    axis = int(node.attr("axis", 1)) % max(rank, 1)
    block = int(node.attr("block_size", 0))
    if block:
        at = np.arange(value.shape[axis]) // block
        shape = (*parameter.shape[:axis], len(at), *parameter.shape[axis + 1 :])
        if parameter.array is not None:
            parameter = constant(np.take(parameter.array, at, axis))
        else:
            parameter = PlacedValue(
                shape,
                parameter.dtype,
                node.emit("GATHER", [node.place(parameter), node.ints(at)], shape, axis=axis),
                identity(rank),
            )
    elif math.prod(parameter.shape) == 1:
        parameter = reshape_value(node, parameter, (1,) * rank)
    else:
        parameter = reshape_value(
            node, parameter, [parameter.shape[0] if other == axis else 1 for other in range(rank)]
        )
    return cast(node, node.place(parameter, order), np.float32)


def lower_quantize_linear(node: Node) -> None:
    """DIV, ROUND, ADD and a clamp in float32, then a CAST."""
    value = node.value(0)
    order = value.axes or identity(len(value.shape))
    tensor = cast(node, node.place(value, order), np.float32)
    result = emit_broadcast(node, "DIV", [tensor, _place_parameter(node, 1, value, order)])
    zero = _place_parameter(node, 2, value, order) if node.has_input(2) else None
    node.set_output(_round_to_type(node, result, zero, node.dtypes[0]), order)


def _round_to_type(
    node: Node, tensor: Tensor, zero: Tensor | None, dtype: np.dtype[np.generic]
) -> Tensor:
    """The nearest integers (halves to even) plus the zero point, clamped to the type."""
    if dtype not in QUANTISED:
        raise node.refusal(f"{dtype} is not lowered", "int8, uint8 and int16 are")
    calc, bounds = Math(node), np.iinfo(np.dtype(dtype).name)
    result = calc("ROUND", tensor)
    result = emit_broadcast(node, "ADD", [result, zero]) if zero is not None else result
    return cast(
        node, calc("MINIMUM", calc("MAXIMUM", result, float(bounds.min)), float(bounds.max)), dtype
    )


def lower_dequantize_linear(node: Node) -> None:
    """CAST, SUB and MUL in float32."""
    value = node.value(0)
    if node.dtypes[0] != np.float32:
        raise node.refusal(f"its result is {node.dtypes[0]}", "float32 is lowered")
    order = value.axes or identity(len(value.shape))
    tensor = cast(node, node.place(value, order), np.float32)
    if node.has_input(2) and (
        node.array(2) is None or node.require_constant(2, "its zero point").any()
    ):
        tensor = emit_broadcast(node, "SUB", [tensor, _place_parameter(node, 2, value, order)])
    node.set_output(
        emit_broadcast(node, "MUL", [tensor, _place_parameter(node, 1, value, order)]), order
    )


def _subtract_zero_point(node: Node, index: int, zero: int, axis: int) -> PlacedValue:
    """An 8-bit input as float, less its zero point, which may be one per element of ``axis``."""
    value, rank = node.value(index), len(node.value(index).shape)
    zero_value = (
        node.value(zero) if node.has_input(zero) else constant(np.zeros((1,) * rank, np.float32))
    )
    if math.prod(zero_value.shape) == 1:
        zero_value = reshape_value(node, zero_value, (1,) * rank)
    elif len(zero_value.shape) == 1:
        zero_value = reshape_value(
            node,
            zero_value,
            [zero_value.shape[0] if other == axis % rank else 1 for other in range(rank)],
        )
    if value.array is not None and zero_value.array is not None:
        return constant(value.array.astype(np.float32) - zero_value.array.astype(np.float32))
    order = value.axes or identity(rank)
    tensor = cast(node, node.place(value, order), np.float32)
    if zero_value.array is None or zero_value.array.any():
        tensor = emit_broadcast(
            node, "SUB", [tensor, cast(node, node.place(zero_value, order), np.float32)]
        )
    return PlacedValue(value.shape, np.dtype(np.float32), tensor, order)


def _count_exact_parts(weights: Array, axis: int, summed: tuple[int, ...]) -> int:
    """How many parts ``axis`` must be split into so that sums over ``summed`` are exact."""
    parts = 1
    while parts < weights.shape[axis] and any(
        _is_inexact(part, summed) for part in np.array_split(weights, parts, axis)
    ):
        parts += 1
    return parts


def _is_inexact(weights: Array, summed: tuple[int, ...]) -> bool:
    """Whether sums of these weights times 8-bit numbers can exceed what float32 holds exactly."""
    return bool(np.abs(weights).sum(axis=summed).max(initial=0) * STEP >= EXACT)


def _multiply_integers(node: Node, left: PlacedValue, right: PlacedValue) -> Tensor:
    """The matrix product of whole numbers, as int32 in the shape of the node's output."""
    left_tensor = _place_matrix(node, left, vector_axis=1)
    right_tensor = _place_matrix(node, right, vector_axis=0)
    depth, total, start = left_tensor.shape[-1], None, 0
    if right_tensor.data is None:
        count = -(-depth * STEP * STEP // EXACT)
    else:
        count = _count_exact_parts(right_tensor.data, -2, (-2,))
    for part in np.array_split(np.arange(depth), count):
        product = _multiply_slices(node, left_tensor, right_tensor, start, len(part))
        whole = cast(node, product, np.int32)
        total = whole if total is None else emit_broadcast(node, "ADD", [total, whole])
        start += len(part)
    assert total is not None
    return node.reshape(total, node.shape)


def _place_matrix(node: Node, value: PlacedValue, vector_axis: int) -> Tensor:
    """The tensor in the order of ONNX; a vector becomes the only row (1) or column (0)."""
    tensor = node.place(value)
    if len(tensor.shape) != 1:
        return tensor
    return node.reshape(tensor, (1, *tensor.shape) if vector_axis == 1 else (*tensor.shape, 1))


def _multiply_slices(node: Node, left: Tensor, right: Tensor, start: int, size: int) -> Tensor:
    """[..., rows, depth] x [..., depth, columns] over ``size`` elements of depth from ``start``."""
    left_begin = [*[0] * (len(left.shape) - 1), start]
    left_part = slice_tensor(node, left, left_begin, [*left.shape[:-1], size])
    if right.data is not None and len(right.shape) == 2 and left.data is None:
        return emit_fully_connected(node, left_part, right.data[start : start + size].T)
    right_begin = [*[0] * (len(right.shape) - 2), start, 0]
    right_size = [*right.shape[:-2], size, right.shape[-1]]
    right_part = slice_tensor(node, right, right_begin, right_size)
    return multiply_batches(node, as_value(left_part), as_value(right_part))


def lower_matmul_integer(node: Node) -> None:
    """The exact int32 product of 8-bit matrices less their zero points."""
    node.set_output(
        _multiply_integers(
            node, _subtract_zero_point(node, 0, 2, -2), _subtract_zero_point(node, 1, 3, -1)
        )
    )


def lower_qlinear_matmul(node: Node) -> None:
    """The exact product, scaled and rounded to 8 bits."""
    total = cast(
        node,
        _multiply_integers(
            node, _subtract_zero_point(node, 0, 2, -2), _subtract_zero_point(node, 3, 5, -1)
        ),
        np.float32,
    )
    left_scale, right_scale, result_scale = (
        node.require_constant(index, "a scale").astype(np.float32) for index in (1, 4, 6)
    )
    left_scale = left_scale[:, None] if left_scale.ndim == 1 and left_scale.size > 1 else left_scale
    _set_scaled_output(node, total, left_scale * right_scale / result_scale, None, 7)


def _set_scaled_output(
    node: Node, total: Tensor, scale: Array, order: Axes | None, zero: int
) -> None:
    """Set the output to the sums, scaled and rounded to 8 bits."""
    rank, start = len(total.shape), node.require_constant(zero, "its zero point").reshape(-1)
    if start.size > 1:
        raise node.refusal("more than one zero point of the result is not lowered")
    one = (1,) * rank
    factor = scale.reshape(one if scale.size == 1 else one[scale.ndim :] + scale.shape)
    tensor = emit_broadcast(node, "MUL", [total, node.const(factor)])
    node.set_output(
        _round_to_type(node, tensor, node.const(start.reshape(one)), node.dtypes[0]), order
    )


def _convolve_integers(node: Node, value: PlacedValue, weight_value: PlacedValue) -> PlacedValue:
    """The convolution of whole numbers, as int32."""
    if weight_value.array is None:
        raise node.refusal("its weight is computed at run time")
    summed = tuple(range(1, weight_value.array.ndim))
    parts = _count_exact_parts(weight_value.array, 1, summed)
    pieces = np.array_split(weight_value.array, parts, 1)
    if any(_is_inexact(piece, summed) for piece in pieces) or (
        parts > 1 and int(node.attr("group", 1)) > 1
    ):
        raise node.refusal("its sums are too long to be exact in float32")
    helper = need("onnx.helper", "onnx")
    conv_attributes = {
        name: attribute
        for name, attribute in node.attributes.items()
        if name in ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    }
    conv = helper.make_node("Conv", ["x", "w"], ["y"], **conv_attributes)
    total: PlacedValue | None = None
    start = 0
    for weights in pieces:
        size = weights.shape[1]
        if parts == 1:
            part = value
        else:
            tensor = node.place(value)
            shape = (value.shape[0], size, *value.shape[2:])
            cut = slice_tensor(node, tensor, [0, start, *[0] * (len(shape) - 2)], shape)
            part = PlacedValue(shape, value.dtype, cut, identity(len(shape)))
        inner = node.scope.make_inner({"x": part, "w": constant(np.ascontiguousarray(weights))})
        inner.lower_nodes([conv])
        result = inner.values["y"]
        whole = cast(node, node.place(result, result.axes), np.int32)
        if total is not None:
            whole = emit_broadcast(node, "ADD", [node.place(total, result.axes), whole])
        total = PlacedValue(result.shape, np.dtype(np.int32), whole, result.axes)
        start += size
    assert total is not None
    return total


def lower_conv_integer(node: Node) -> None:
    """The exact int32 convolution of 8-bit tensors less their zero points."""
    node.set_output_value(
        _convolve_integers(
            node, _subtract_zero_point(node, 0, 2, 1), _subtract_zero_point(node, 1, 3, 0)
        )
    )


def lower_qlinear_conv(node: Node) -> None:
    """The exact convolution, scaled and rounded to 8 bits."""
    total = _convolve_integers(
        node, _subtract_zero_point(node, 0, 2, 1), _subtract_zero_point(node, 3, 5, 0)
    )
    order, tensor = total.axes, node.place(total, total.axes)
    ends = [-1 if axis == 1 else 1 for axis in order]
    if node.has_input(8):
        tensor = emit_broadcast(
            node,
            "ADD",
            [tensor, node.const(node.require_constant(8, "its bias").reshape(ends), np.int32)],
        )
    input_scale, weight_scale, result_scale = (
        node.require_constant(index, "a scale").astype(np.float32) for index in (1, 4, 6)
    )
    scale = (input_scale * weight_scale / result_scale).reshape(-1)
    scale = scale if scale.size == 1 else scale.reshape(ends)
    _set_scaled_output(node, cast(node, tensor, np.float32), scale, order, 7)
