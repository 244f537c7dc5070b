"""ONNX's quantised operators, in arithmetic that gives what ONNX defines to the last bit.

Products of 8-bit numbers are float products: a sum below 2**24 is exact in float32, longer ones are
cut into parts that are added as int32.
"""

from __future__ import annotations

import math

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node, op
from converters.tflite.ops.arithmetic import Math, cast
from converters.tflite.ops.broadcast import emit
from converters.tflite.ops.movement import reshaped, sliced
from converters.tflite.ops.products import batched, fully_connected
from converters.tflite.values import Axes, Value, constant, identity
from edge_core.extras import need
from edge_core.tensors import Array

EXACT = 2**24  # float32 has every integer below
STEP = 255  # the largest 8-bit number less its zero point
QUANTISED = (np.int8, np.uint8, np.int16)


def _parameter(n: Node, index: int, x: Value, order: Axes) -> Tensor:
    """A scale or zero point as float, ready to meet ``x`` in ``order``."""
    p, rank = n.value(index), len(x.shape)
    axis = int(n.attr("axis", 1)) % max(rank, 1)
    block = int(n.attr("block_size", 0))
    if block:
        at = np.arange(x.shape[axis]) // block
        shape = (*p.shape[:axis], len(at), *p.shape[axis + 1 :])
        if p.array is not None:
            p = constant(np.take(p.array, at, axis))
        else:
            p = Value(
                shape,
                p.dtype,
                n.emit("GATHER", [n.place(p), n.ints(at)], shape, axis=axis),
                identity(rank),
            )
    elif math.prod(p.shape) == 1:
        p = reshaped(n, p, (1,) * rank)
    else:
        p = reshaped(n, p, [p.shape[0] if a == axis else 1 for a in range(rank)])
    return cast(n, n.place(p, order), np.float32)


@op("QuantizeLinear")
def _quantize(n: Node) -> None:
    v = n.value(0)
    order = v.axes or identity(len(v.shape))
    x = cast(n, n.place(v, order), np.float32)
    y = emit(n, "DIV", [x, _parameter(n, 1, v, order)])
    zero = _parameter(n, 2, v, order) if n.has(2) else None
    n.give(_rounded(n, y, zero, n.dtypes[0]), order)


def _rounded(n: Node, x: Tensor, zero: Tensor | None, dtype: np.dtype[np.generic]) -> Tensor:
    """The nearest integers (halves to even) plus the zero point, within the range of the type."""
    if dtype not in QUANTISED:
        raise n.refusal(f"numbers of {dtype} are not lowered", "int8, uint8 and int16 are")
    m, bounds = Math(n), np.iinfo(np.dtype(dtype).name)
    y = m("ROUND", x)
    y = emit(n, "ADD", [y, zero]) if zero is not None else y
    return cast(n, m("MINIMUM", m("MAXIMUM", y, float(bounds.min)), float(bounds.max)), dtype)


@op("DequantizeLinear")
def _dequantize(n: Node) -> None:
    v = n.value(0)
    if n.dtypes[0] != np.float32:
        raise n.refusal(f"its result is {n.dtypes[0]}", "float32 is lowered")
    order = v.axes or identity(len(v.shape))
    x = cast(n, n.place(v, order), np.float32)
    if n.has(2) and (n.array(2) is None or n.constant(2, "its zero point").any()):
        x = emit(n, "SUB", [x, _parameter(n, 2, v, order)])
    n.give(emit(n, "MUL", [x, _parameter(n, 1, v, order)]), order)


def _centred(n: Node, index: int, zero: int, axis: int) -> Value:
    """An 8-bit input as float, less its zero point, which may be one per element of ``axis``."""
    v, rank = n.value(index), len(n.value(index).shape)
    p = n.value(zero) if n.has(zero) else constant(np.zeros((1,) * rank, np.float32))
    if math.prod(p.shape) == 1:
        p = reshaped(n, p, (1,) * rank)
    elif len(p.shape) == 1:
        p = reshaped(n, p, [p.shape[0] if a == axis % rank else 1 for a in range(rank)])
    if v.array is not None and p.array is not None:
        return constant(v.array.astype(np.float32) - p.array.astype(np.float32))
    order = v.axes or identity(rank)
    x = cast(n, n.place(v, order), np.float32)
    if p.array is None or p.array.any():
        x = emit(n, "SUB", [x, cast(n, n.place(p, order), np.float32)])
    return Value(v.shape, np.dtype(np.float32), x, order)


def _parts(weights: Array, axis: int, summed: tuple[int, ...]) -> int:
    """Into how many parts ``axis`` must be cut for sums over the axes ``summed`` to be exact."""
    parts = 1
    while parts < weights.shape[axis] and any(
        _inexact(p, summed) for p in np.array_split(weights, parts, axis)
    ):
        parts += 1
    return parts


def _inexact(weights: Array, summed: tuple[int, ...]) -> bool:
    """Can a sum of these weights times 8-bit numbers be beyond what float32 has exactly?"""
    return bool(np.abs(weights).sum(axis=summed).max(initial=0) * STEP >= EXACT)


def _product(n: Node, a: Value, b: Value) -> Tensor:
    """The matrix product of whole numbers, as int32."""
    x, y = n.place(a), n.place(b)
    x = n.reshaped(x, (1, *x.shape)) if len(x.shape) == 1 else x
    y = n.reshaped(y, (*y.shape, 1)) if len(y.shape) == 1 else y
    k, total, start = x.shape[-1], None, 0
    weights = y.data if y.data is not None and len(y.shape) == 2 and x.data is None else None
    count = -(-k * STEP * STEP // EXACT) if y.data is None else _parts(y.data, -2, (-2,))
    for size in (len(p) for p in np.array_split(np.arange(k), count)):
        left = sliced(n, x, [*[0] * (len(x.shape) - 1), start], [*x.shape[:-1], size])
        if weights is not None:
            part = fully_connected(n, left, weights[start : start + size].T)
        else:
            right = sliced(
                n, y, [*[0] * (len(y.shape) - 2), start, 0], [*y.shape[:-2], size, y.shape[-1]]
            )
            part = batched(
                n, *(Value(t.shape, t.dtype, t, identity(len(t.shape))) for t in (left, right))
            )
        whole = cast(n, part, np.int32)
        total = whole if total is None else emit(n, "ADD", [total, whole])
        start += size
    assert total is not None
    return n.reshaped(total, n.shape)


@op("MatMulInteger")
def _matmul_integer(n: Node) -> None:
    n.give(_product(n, _centred(n, 0, 2, -2), _centred(n, 1, 3, -1)))


@op("QLinearMatMul")
def _qlinear_matmul(n: Node) -> None:
    total = cast(n, _product(n, _centred(n, 0, 2, -2), _centred(n, 3, 5, -1)), np.float32)
    a, b, y = (n.constant(i, "a scale").astype(np.float32) for i in (1, 4, 6))
    a = a[:, None] if a.ndim == 1 and a.size > 1 else a
    _scaled(n, total, a * b / y, None, 7)


def _scaled(n: Node, total: Tensor, scale: Array, order: Axes | None, zero: int) -> None:
    """Give sums, scaled, as 8-bit numbers."""
    rank, start = len(total.shape), n.constant(zero, "its zero point").reshape(-1)
    if start.size > 1:
        raise n.refusal("more than one zero point of the result is not lowered")
    one = (1,) * rank
    factor = scale.reshape(one if scale.size == 1 else one[scale.ndim :] + scale.shape)
    x = emit(n, "MUL", [total, n.const(factor)])
    n.give(_rounded(n, x, n.const(start.reshape(one)), n.dtypes[0]), order)


def _convolved(n: Node, x: Value, w: Value) -> Value:
    """The convolution of whole numbers, as int32."""
    if w.array is None:
        raise n.refusal("its weight is computed at run time")
    summed = tuple(range(1, w.array.ndim))
    parts = _parts(w.array, 1, summed)
    pieces = np.array_split(w.array, parts, 1)
    if any(_inexact(p, summed) for p in pieces) or (parts > 1 and int(n.attr("group", 1)) > 1):
        raise n.refusal("its sums are too long to be exact in float32")
    helper = need("onnx.helper", "onnx")
    given = {
        k: v
        for k, v in n.attributes.items()
        if k in ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    }
    conv = helper.make_node("Conv", ["x", "w"], ["y"], **given)
    total: Value | None = None
    start = 0
    for weights in pieces:
        size = weights.shape[1]
        if parts == 1:
            part = x
        else:
            tensor = n.place(x)
            shape = (x.shape[0], size, *x.shape[2:])
            cut = sliced(n, tensor, [0, start, *[0] * (len(shape) - 2)], shape)
            part = Value(shape, x.dtype, cut, identity(len(shape)))
        inner = n.scope.inner({"x": part, "w": constant(np.ascontiguousarray(weights))})
        inner.run([conv])
        y = inner.values["y"]
        whole = cast(n, n.place(y, y.axes), np.int32)
        if total is not None:
            whole = emit(n, "ADD", [n.place(total, y.axes), whole])
        total = Value(y.shape, np.dtype(np.int32), whole, y.axes)
        start += size
    assert total is not None
    return total


@op("ConvInteger")
def _conv_integer(n: Node) -> None:
    n.give_value(_convolved(n, _centred(n, 0, 2, 1), _centred(n, 1, 3, 0)))


@op("QLinearConv")
def _qlinear_conv(n: Node) -> None:
    total = _convolved(n, _centred(n, 0, 2, 1), _centred(n, 3, 5, 0))
    order, x = total.axes, n.place(total, total.axes)
    ends = [-1 if a == 1 else 1 for a in order]
    if n.has(8):
        x = emit(n, "ADD", [x, n.const(n.constant(8, "its bias").reshape(ends), np.int32)])
    a, w, y = (n.constant(i, "a scale").astype(np.float32) for i in (1, 4, 6))
    scale = (a * w / y).reshape(-1)
    scale = scale if scale.size == 1 else scale.reshape(ends)
    _scaled(n, cast(n, x, np.float32), scale, order, 7)
