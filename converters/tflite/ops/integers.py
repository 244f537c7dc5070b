"""Operators on the bits of integers, with the arithmetic that TFLite has."""

from __future__ import annotations

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node, op
from converters.tflite.ops.arithmetic import Math, cast, computed, quotient
from converters.tflite.ops.broadcast import aligned, emit
from edge_core.tensors import Array

HALF, WORD = 2**16, 2**32


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
    )
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
    ]
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
