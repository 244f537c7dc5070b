"""Integer arithmetic that TFLite lacks, and ONNX's quantised operators in exact arithmetic.

TFLite's own 8-bit operators are quantised arithmetic, so 8-bit integers are computed as int32
(elementwise.computed). Products of 8-bit numbers are float products: a sum below 2**24 is exact in
float32, longer ones are cut into parts that are added as int32.
"""

from __future__ import annotations

import math

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.lower import Node, constant, op
from converters.tflite.ops.arithmetic import Math, cast, computed, quotient
from converters.tflite.ops.broadcast import aligned, emit
from converters.tflite.ops.movement import reshaped, sliced
from converters.tflite.ops.products import batched, fully_connected
from converters.tflite.values import Axes, Value, identity
from edge_core.extras import need
from edge_core.tensors import Array

EXACT = 2**24  # float32 has every integer below
STEP = 255  # the largest 8-bit number less its zero point
HALF, WORD = 2**16, 2**32
QUANTISED = (np.int8, np.uint8, np.int16)


@op("BitShift")
def _shift(n: Node) -> None:
    tensors, order = aligned(n, [n.value(0), n.value(1)])
    bits, signed = tensors[0].dtype.itemsize * 8, tensors[0].dtype.kind == "i"
    (x, by), back = computed(n, tensors)
    m, wide = Math(n), x.dtype
    # Counts that are no shift of this width look up one entry more.
    inside = m(
        "LOGICAL_AND",
        m("GREATER_EQUAL", by, 0, dtype=np.bool_),
        m("LESS", by, bits, dtype=np.bool_),
    )  # noqa: E501
    beyond = n.const(np.full((1,) * len(by.shape), bits), by.dtype)
    at = cast(n, emit(n, "SELECT_V2", [inside, by, beyond], by.dtype), np.int32)
    if n.attr("direction") == "LEFT":
        powers = [2**i for i in range(bits)] + [0]
        y = m("MUL", x, _looked_up(n, np.array(powers, object), at, wide))
    else:
        # Two steps, as 2**31 is no int32. What shifts everything out leaves the sign.
        steps = [*range(bits), bits - 1 if signed else bits]
        y = x
        for part in ([s // 2 for s in steps], [s - s // 2 for s in steps]):
            y = _floor_div(n, y, _looked_up(n, np.array([2**s for s in part], object), at, wide))
    n.give(back(y), order)


def _looked_up(n: Node, table: Array, at: Tensor, dtype: np.dtype[np.generic]) -> Tensor:
    """Entries of a table of whole numbers, which wrap around in ``dtype``."""
    size = 2 ** (8 * dtype.itemsize)
    signed = np.array([(int(v) + size // 2) % size - size // 2 for v in table], dtype)
    return n.emit("GATHER", [n.const(signed, dtype), at], at.shape, dtype, axis=0)


def _floor_div(n: Node, a: Tensor, b: Tensor) -> Tensor:
    if a.dtype != np.int64:
        return emit(n, "FLOOR_DIV", [a, b])
    return quotient(n, emit(n, "SUB", [a, emit(n, "FLOOR_MOD", [a, b])]), b)


@op("BitwiseAnd", "BitwiseOr", "BitwiseXor")
def _bitwise(n: Node) -> None:
    tensors, order = aligned(n, [n.value(0), n.value(1)])
    (a, b), back = computed(n, tensors)
    function = _both16 if tensors[0].dtype.itemsize < 4 else _both32
    n.give(back((_both64 if a.dtype == np.int64 else function)(n, a, b)), order)


def _both16(n: Node, a: Tensor, b: Tensor) -> Tensor:
    """Of int32 numbers of at most 17 bits: a + b is a XOR b and twice a AND b."""
    odd, m = emit(n, "BITWISE_XOR", [a, b]), Math(n)
    if n.op == "BitwiseXor":
        return odd
    common = m("DIV", m("SUB", m("ADD", a, b), odd), 2)
    return common if n.op == "BitwiseAnd" else m("ADD", common, odd)


def _both32(n: Node, a: Tensor, b: Tensor) -> Tensor:
    if n.op == "BitwiseXor":
        return emit(n, "BITWISE_XOR", [a, b])
    m = Math(n)
    low = _both16(n, *(m("FLOOR_MOD", t, HALF) for t in (a, b)))
    high = _both16(n, *(m("FLOOR_DIV", t, HALF) for t in (a, b)))
    return m("ADD", m("MUL", high, HALF), low)


def _both64(n: Node, a: Tensor, b: Tensor) -> Tensor:
    m, word = Math(n), n.const(np.full((1,) * len(a.shape), WORD), np.int64)
    lows = [m("FLOOR_MOD", t, word) for t in (a, b)]
    highs = [quotient(n, m("SUB", t, low), word) for t, low in zip((a, b), lows, strict=True)]
    parts = [
        cast(n, _both32(n, *(cast(n, t, np.int32) for t in pair)), np.int64)
        for pair in (lows, highs)
    ]  # noqa: E501
    return m("ADD", m("MUL", parts[1], word), m("FLOOR_MOD", parts[0], word))


@op("BitwiseNot")
def _not(n: Node) -> None:
    v = n.value(0)
    (x,), back = computed(n, [n.place(v, v.axes)])
    n.give(back(Math(n)("SUB", -1, x)), v.axes)


@op("BitCast")
def _bit_cast(n: Node) -> None:
    v, dtype = n.value(0), np.dtype(n.dtypes[0])
    x = n.place(v, v.axes)
    if v.dtype.itemsize != dtype.itemsize:
        raise n.refusal(f"{v.dtype} and {dtype} differ in size")
    if dtype.itemsize == 1:
        n.give(cast(n, cast(n, x, np.int32), dtype), v.axes)
        return
    n.give(n.emit("BITCAST", [x], x.shape, dtype), v.axes)


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
            )  # noqa: E501
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
    if n.has(2) and (n.array(2) is None or n.constant(2, "").any()):
        x = emit(n, "SUB", [x, _parameter(n, 2, v, order)])
    n.give(emit(n, "MUL", [x, _parameter(n, 1, v, order)]), order)


def _centred(n: Node, index: int, zero: int, axis: int) -> Value:
    """An 8-bit input as float, less its zero point, which may be one per element of ``axis``."""
    v = n.value(index)
    rank = len(v.shape)
    if v.array is not None and (not n.has(zero) or n.array(zero) is not None):
        z = n.constant(zero, "").astype(np.float32) if n.has(zero) else np.zeros(())
        if z.ndim == 1 and z.size > 1:
            z = z.reshape([-1 if a == axis % rank else 1 for a in range(rank)])
        return constant(
            (v.array - z.reshape((1,) * rank) if z.size == 1 else v.array - z).astype(np.float32)
        )  # noqa: E501
    order = v.axes or identity(rank)
    x = cast(n, n.place(v, order), np.float32)
    if n.has(zero):
        p = n.value(zero)
        if math.prod(p.shape) == 1:
            p = reshaped(n, p, (1,) * rank)
        elif len(p.shape) == 1:
            p = reshaped(n, p, [p.shape[0] if a == axis % rank else 1 for a in range(rank)])
        x = emit(n, "SUB", [x, cast(n, n.place(p, order), np.float32)])
    return Value(v.shape, np.dtype(np.float32), x, order)


def _parts(weights: Array | None, count: int, axis: int) -> int:
    """Into how many parts ``count`` terms along ``axis`` must go for exact sums."""
    if weights is None:
        return -(-count * STEP * STEP // EXACT)
    parts = 1
    while parts < count and any(
        np.abs(p).sum(axis=tuple(range(p.ndim))[axis]).max() * STEP >= EXACT
        for p in np.array_split(weights, parts, axis)
    ):
        parts += 1
    return parts


def _product(n: Node, a: Value, b: Value) -> Tensor:
    """The matrix product of whole numbers, as int32."""
    x, y = n.place(a), n.place(b)
    x = n.reshaped(x, (1, *x.shape)) if len(x.shape) == 1 else x
    y = n.reshaped(y, (*y.shape, 1)) if len(y.shape) == 1 else y
    k, total, start = x.shape[-1], None, 0
    weights = y.data if y.data is not None and len(y.shape) == 2 and x.data is None else None
    count = _parts(y.data, k, -2)
    for size in (len(p) for p in np.array_split(np.arange(k), count)):
        left = sliced(n, x, [*[0] * (len(x.shape) - 1), start], [*x.shape[:-1], size])
        if weights is not None:
            part = fully_connected(n, left, weights[start : start + size].T)
        else:
            right = sliced(
                n, y, [*[0] * (len(y.shape) - 2), start, 0], [*y.shape[:-2], size, y.shape[-1]]
            )  # noqa: E501
            part = batched(
                n, *(Value(t.shape, t.dtype, t, identity(len(t.shape))) for t in (left, right))
            )  # noqa: E501
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
    rank = len(total.shape)
    factor = (
        scale.reshape((1,) * (rank - scale.ndim) + scale.shape)
        if scale.ndim <= rank
        else scale.reshape((1,) * rank)
    )  # noqa: E501
    x = (
        emit(n, "MUL", [total, n.const(factor)])
        if rank
        else Math(n)("MUL", total, float(factor.reshape(())))
    )  # noqa: E501
    start = n.constant(zero, "its zero point").reshape(-1)
    if start.size > 1:
        raise n.refusal("more than one zero point of the result is not lowered")
    n.give(_rounded(n, x, n.const(start.reshape((1,) * rank)), n.dtypes[0]), order)


def _convolved(n: Node, x: Value, w: Value) -> Value:
    """The convolution of whole numbers, as int32."""
    if w.array is None:
        raise n.refusal("its weight is computed at run time")
    parts = _parts(w.array.reshape(len(w.array), w.array.shape[1], -1), w.array.shape[1], 1)
    if parts > 1 and int(n.attr("group", 1)) > 1:
        raise n.refusal("sums that are not exact in float32, of groups")
    helper = need("onnx.helper", "onnx")
    given = {
        k: v
        for k, v in n.attributes.items()
        if k in ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    }  # noqa: E501
    conv = helper.make_node("Conv", ["x", "w"], ["y"], **given)
    total: Value | None = None
    start = 0
    for weights in np.array_split(w.array, parts, 1):
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
    _scaled(
        n,
        cast(n, x, np.float32),
        scale.reshape(ends if scale.size > 1 else (1,) * len(ends)),
        order,
        7,
    )  # noqa: E501
