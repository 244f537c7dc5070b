"""ONNX's quantised operators, in arithmetic that gives what ONNX defines to the last bit.

Products of 8-bit numbers are float products: a sum below 2**24 is exact in float32, longer ones are
cut into parts that are added as int32.
"""

from __future__ import annotations

import math

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node
from converters.tflite.ops.arithmetic import Math, cast
from converters.tflite.ops.broadcast import emit_broadcast
from converters.tflite.ops.movement import reshape_value, slice_tensor
from converters.tflite.ops.products import emit_fully_connected, multiply_batches
from converters.tflite.values import Axes, PlacedValue, constant, identity
from edge_core.extras import need
from edge_core.tensors import Array

EXACT = 2**24  # float32 has every integer below
STEP = 255  # the largest 8-bit number less its zero point
QUANTISED = (np.int8, np.uint8, np.int16)


def _place_parameter(node: Node, index: int, x: PlacedValue, order: Axes) -> Tensor:
    """A scale or zero point as float, ready to meet ``x`` in ``order``."""
    p, rank = node.value(index), len(x.shape)
    axis = int(node.attr("axis", 1)) % max(rank, 1)
    block = int(node.attr("block_size", 0))
    if block:
        at = np.arange(x.shape[axis]) // block
        shape = (*p.shape[:axis], len(at), *p.shape[axis + 1 :])
        if p.array is not None:
            p = constant(np.take(p.array, at, axis))
        else:
            p = PlacedValue(
                shape,
                p.dtype,
                node.emit("GATHER", [node.place(p), node.ints(at)], shape, axis=axis),
                identity(rank),
            )
    elif math.prod(p.shape) == 1:
        p = reshape_value(node, p, (1,) * rank)
    else:
        p = reshape_value(node, p, [p.shape[0] if a == axis else 1 for a in range(rank)])
    return cast(node, node.place(p, order), np.float32)


def lower_quantize_linear(node: Node) -> None:
    v = node.value(0)
    order = v.axes or identity(len(v.shape))
    x = cast(node, node.place(v, order), np.float32)
    y = emit_broadcast(node, "DIV", [x, _place_parameter(node, 1, v, order)])
    zero = _place_parameter(node, 2, v, order) if node.has_input(2) else None
    node.set_output(_round_to_type(node, y, zero, node.dtypes[0]), order)


def _round_to_type(
    node: Node, x: Tensor, zero: Tensor | None, dtype: np.dtype[np.generic]
) -> Tensor:
    """The nearest integers (halves to even) plus the zero point, within the range of the type."""
    if dtype not in QUANTISED:
        raise node.refusal(f"numbers of {dtype} are not lowered", "int8, uint8 and int16 are")
    calc, bounds = Math(node), np.iinfo(np.dtype(dtype).name)
    y = calc("ROUND", x)
    y = emit_broadcast(node, "ADD", [y, zero]) if zero is not None else y
    return cast(
        node, calc("MINIMUM", calc("MAXIMUM", y, float(bounds.min)), float(bounds.max)), dtype
    )


def lower_dequantize_linear(node: Node) -> None:
    v = node.value(0)
    if node.dtypes[0] != np.float32:
        raise node.refusal(f"its result is {node.dtypes[0]}", "float32 is lowered")
    order = v.axes or identity(len(v.shape))
    x = cast(node, node.place(v, order), np.float32)
    if node.has_input(2) and (
        node.array(2) is None or node.require_constant(2, "its zero point").any()
    ):
        x = emit_broadcast(node, "SUB", [x, _place_parameter(node, 2, v, order)])
    node.set_output(emit_broadcast(node, "MUL", [x, _place_parameter(node, 1, v, order)]), order)


def _subtract_zero_point(node: Node, index: int, zero: int, axis: int) -> PlacedValue:
    """An 8-bit input as float, less its zero point, which may be one per element of ``axis``."""
    v, rank = node.value(index), len(node.value(index).shape)
    p = node.value(zero) if node.has_input(zero) else constant(np.zeros((1,) * rank, np.float32))
    if math.prod(p.shape) == 1:
        p = reshape_value(node, p, (1,) * rank)
    elif len(p.shape) == 1:
        p = reshape_value(node, p, [p.shape[0] if a == axis % rank else 1 for a in range(rank)])
    if v.array is not None and p.array is not None:
        return constant(v.array.astype(np.float32) - p.array.astype(np.float32))
    order = v.axes or identity(rank)
    x = cast(node, node.place(v, order), np.float32)
    if p.array is None or p.array.any():
        x = emit_broadcast(node, "SUB", [x, cast(node, node.place(p, order), np.float32)])
    return PlacedValue(v.shape, np.dtype(np.float32), x, order)


def _count_exact_parts(weights: Array, axis: int, summed: tuple[int, ...]) -> int:
    """Into how many parts ``axis`` must be cut for sums over the axes ``summed`` to be exact."""
    parts = 1
    while parts < weights.shape[axis] and any(
        _is_inexact(p, summed) for p in np.array_split(weights, parts, axis)
    ):
        parts += 1
    return parts


def _is_inexact(weights: Array, summed: tuple[int, ...]) -> bool:
    """Can a sum of these weights times 8-bit numbers be beyond what float32 has exactly?"""
    return bool(np.abs(weights).sum(axis=summed).max(initial=0) * STEP >= EXACT)


def _multiply_integers(node: Node, a: PlacedValue, b: PlacedValue) -> Tensor:
    """The matrix product of whole numbers, as int32."""
    x, y = node.place(a), node.place(b)
    x = node.reshape(x, (1, *x.shape)) if len(x.shape) == 1 else x
    y = node.reshape(y, (*y.shape, 1)) if len(y.shape) == 1 else y
    k, total, start = x.shape[-1], None, 0
    weights = y.data if y.data is not None and len(y.shape) == 2 and x.data is None else None
    count = (
        -(-k * STEP * STEP // EXACT) if y.data is None else _count_exact_parts(y.data, -2, (-2,))
    )
    for size in (len(p) for p in np.array_split(np.arange(k), count)):
        left = slice_tensor(node, x, [*[0] * (len(x.shape) - 1), start], [*x.shape[:-1], size])
        if weights is not None:
            part = emit_fully_connected(node, left, weights[start : start + size].T)
        else:
            right = slice_tensor(
                node, y, [*[0] * (len(y.shape) - 2), start, 0], [*y.shape[:-2], size, y.shape[-1]]
            )
            part = multiply_batches(
                node,
                *(PlacedValue(t.shape, t.dtype, t, identity(len(t.shape))) for t in (left, right)),
            )
        whole = cast(node, part, np.int32)
        total = whole if total is None else emit_broadcast(node, "ADD", [total, whole])
        start += size
    assert total is not None
    return node.reshape(total, node.shape)


def lower_matmul_integer(node: Node) -> None:
    node.set_output(
        _multiply_integers(
            node, _subtract_zero_point(node, 0, 2, -2), _subtract_zero_point(node, 1, 3, -1)
        )
    )


def lower_qlinear_matmul(node: Node) -> None:
    total = cast(
        node,
        _multiply_integers(
            node, _subtract_zero_point(node, 0, 2, -2), _subtract_zero_point(node, 3, 5, -1)
        ),
        np.float32,
    )
    a, b, y = (node.require_constant(i, "a scale").astype(np.float32) for i in (1, 4, 6))
    a = a[:, None] if a.ndim == 1 and a.size > 1 else a
    _set_scaled_output(node, total, a * b / y, None, 7)


def _set_scaled_output(
    node: Node, total: Tensor, scale: Array, order: Axes | None, zero: int
) -> None:
    """Give sums, scaled, as 8-bit numbers."""
    rank, start = len(total.shape), node.require_constant(zero, "its zero point").reshape(-1)
    if start.size > 1:
        raise node.refusal("more than one zero point of the result is not lowered")
    one = (1,) * rank
    factor = scale.reshape(one if scale.size == 1 else one[scale.ndim :] + scale.shape)
    x = emit_broadcast(node, "MUL", [total, node.const(factor)])
    node.set_output(_round_to_type(node, x, node.const(start.reshape(one)), node.dtypes[0]), order)


def _convolve_integers(node: Node, x: PlacedValue, w: PlacedValue) -> PlacedValue:
    """The convolution of whole numbers, as int32."""
    if w.array is None:
        raise node.refusal("its weight is computed at run time")
    summed = tuple(range(1, w.array.ndim))
    parts = _count_exact_parts(w.array, 1, summed)
    pieces = np.array_split(w.array, parts, 1)
    if any(_is_inexact(p, summed) for p in pieces) or (
        parts > 1 and int(node.attr("group", 1)) > 1
    ):
        raise node.refusal("its sums are too long to be exact in float32")
    helper = need("onnx.helper", "onnx")
    given = {
        k: v
        for k, v in node.attributes.items()
        if k in ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    }
    conv = helper.make_node("Conv", ["x", "w"], ["y"], **given)
    total: PlacedValue | None = None
    start = 0
    for weights in pieces:
        size = weights.shape[1]
        if parts == 1:
            part = x
        else:
            tensor = node.place(x)
            shape = (x.shape[0], size, *x.shape[2:])
            cut = slice_tensor(node, tensor, [0, start, *[0] * (len(shape) - 2)], shape)
            part = PlacedValue(shape, x.dtype, cut, identity(len(shape)))
        inner = node.scope.make_inner({"x": part, "w": constant(np.ascontiguousarray(weights))})
        inner.lower_nodes([conv])
        y = inner.values["y"]
        whole = cast(node, node.place(y, y.axes), np.int32)
        if total is not None:
            whole = emit_broadcast(node, "ADD", [node.place(total, y.axes), whole])
        total = PlacedValue(y.shape, np.dtype(np.int32), whole, y.axes)
        start += size
    assert total is not None
    return total


def lower_conv_integer(node: Node) -> None:
    node.set_output_value(
        _convolve_integers(
            node, _subtract_zero_point(node, 0, 2, 1), _subtract_zero_point(node, 1, 3, 0)
        )
    )


def lower_qlinear_conv(node: Node) -> None:
    total = _convolve_integers(
        node, _subtract_zero_point(node, 0, 2, 1), _subtract_zero_point(node, 3, 5, 0)
    )
    order, x = total.axes, node.place(total, total.axes)
    ends = [-1 if a == 1 else 1 for a in order]
    if node.has_input(8):
        x = emit_broadcast(
            node,
            "ADD",
            [x, node.const(node.require_constant(8, "its bias").reshape(ends), np.int32)],
        )
    a, w, y = (node.require_constant(i, "a scale").astype(np.float32) for i in (1, 4, 6))
    scale = (a * w / y).reshape(-1)
    scale = scale if scale.size == 1 else scale.reshape(ends)
    _set_scaled_output(node, cast(node, x, np.float32), scale, order, 7)
