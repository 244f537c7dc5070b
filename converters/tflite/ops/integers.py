"""Operators on the bits of integers, with the arithmetic that TFLite has."""

from __future__ import annotations

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node
from converters.tflite.ops.arithmetic import Math, cast, divide_exactly, widen_bytes
from converters.tflite.ops.broadcast import align_operands, emit_broadcast
from edge_core.tensors import Array

HALF, WORD = 2**16, 2**32


def lower_bit_shift(node: Node) -> None:
    tensors, order = align_operands(node, [node.value(0), node.value(1)])
    bits, signed = tensors[0].dtype.itemsize * 8, tensors[0].dtype.kind == "i"
    (x, by), back = widen_bytes(node, tensors)
    calc, wide = Math(node), x.dtype
    # Counts that are no shift of this width look up one entry more.
    inside = calc(
        "LOGICAL_AND",
        calc("GREATER_EQUAL", by, 0, dtype=np.bool_),
        calc("LESS", by, bits, dtype=np.bool_),
    )
    beyond = node.const(np.full((1,) * len(by.shape), bits), by.dtype)
    at = cast(node, emit_broadcast(node, "SELECT_V2", [inside, by, beyond], by.dtype), np.int32)
    if node.attr("direction") == "LEFT":
        powers = [2**i for i in range(bits)] + [0]
        y = calc("MUL", x, _look_up(node, np.array(powers, object), at, wide))
    else:
        # Two steps, as 2**31 is no int32. What shifts everything out leaves the sign.
        steps = [*range(bits), bits - 1 if signed else bits]
        y = x
        for part in ([s // 2 for s in steps], [s - s // 2 for s in steps]):
            y = _floor_divide(
                node, y, _look_up(node, np.array([2**s for s in part], object), at, wide)
            )
    node.set_output(back(y), order)


def _look_up(node: Node, table: Array, at: Tensor, dtype: np.dtype[np.generic]) -> Tensor:
    """Entries of a table of whole numbers, which wrap around in ``dtype``."""
    size = 2 ** (8 * dtype.itemsize)
    signed = np.array([(int(v) + size // 2) % size - size // 2 for v in table], dtype)
    return node.emit("GATHER", [node.const(signed, dtype), at], at.shape, dtype, axis=0)


def _floor_divide(node: Node, a: Tensor, b: Tensor) -> Tensor:
    if a.dtype != np.int64:
        return emit_broadcast(node, "FLOOR_DIV", [a, b])
    return divide_exactly(
        node, emit_broadcast(node, "SUB", [a, emit_broadcast(node, "FLOOR_MOD", [a, b])]), b
    )


def lower_bitwise(node: Node) -> None:
    tensors, order = align_operands(node, [node.value(0), node.value(1)])
    (a, b), back = widen_bytes(node, tensors)
    function = _combine_16_bits if tensors[0].dtype.itemsize < 4 else _combine_32_bits
    node.set_output(
        back((_combine_64_bits if a.dtype == np.int64 else function)(node, a, b)), order
    )


def _combine_16_bits(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """Of int32 numbers of at most 17 bits: a + b is a XOR b and twice a AND b."""
    odd, calc = emit_broadcast(node, "BITWISE_XOR", [a, b]), Math(node)
    if node.op == "BitwiseXor":
        return odd
    common = calc("DIV", calc("SUB", calc("ADD", a, b), odd), 2)
    return common if node.op == "BitwiseAnd" else calc("ADD", common, odd)


def _combine_32_bits(node: Node, a: Tensor, b: Tensor) -> Tensor:
    if node.op == "BitwiseXor":
        return emit_broadcast(node, "BITWISE_XOR", [a, b])
    calc = Math(node)
    low = _combine_16_bits(node, *(calc("FLOOR_MOD", t, HALF) for t in (a, b)))
    high = _combine_16_bits(node, *(calc("FLOOR_DIV", t, HALF) for t in (a, b)))
    return calc("ADD", calc("MUL", high, HALF), low)


def _combine_64_bits(node: Node, a: Tensor, b: Tensor) -> Tensor:
    calc, word = Math(node), node.const(np.full((1,) * len(a.shape), WORD), np.int64)
    lows = [calc("FLOOR_MOD", t, word) for t in (a, b)]
    highs = [
        divide_exactly(node, calc("SUB", t, low), word) for t, low in zip((a, b), lows, strict=True)
    ]
    parts = [
        cast(node, _combine_32_bits(node, *(cast(node, t, np.int32) for t in pair)), np.int64)
        for pair in (lows, highs)
    ]
    return calc("ADD", calc("MUL", parts[1], word), calc("FLOOR_MOD", parts[0], word))


def lower_bitwise_not(node: Node) -> None:
    v = node.value(0)
    (x,), back = widen_bytes(node, [node.place(v, v.axes)])
    node.set_output(back(Math(node)("SUB", -1, x)), v.axes)


def lower_bit_cast(node: Node) -> None:
    v, dtype = node.value(0), np.dtype(node.dtypes[0])
    x = node.place(v, v.axes)
    if v.dtype.itemsize != dtype.itemsize:
        raise node.refusal(f"{v.dtype} and {dtype} differ in size")
    if dtype.itemsize == 1:
        node.set_output(cast(node, cast(node, x, np.int32), dtype), v.axes)
        return
    node.set_output(node.emit("BITCAST", [x], x.shape, dtype), v.axes)
