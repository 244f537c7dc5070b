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
    """MUL or FLOOR_DIV by powers of two from a table."""
    tensors, order = align_operands(node, [node.value(0), node.value(1)])
    bits, signed = tensors[0].dtype.itemsize * 8, tensors[0].dtype.kind == "i"
    (tensor, counts), back = widen_bytes(node, tensors)
    calc, wide = Math(node), tensor.dtype
    # Counts that are no shift of this width look up one entry more.
    inside = calc(
        "LOGICAL_AND",
        calc("GREATER_EQUAL", counts, 0, dtype=np.bool_),
        calc("LESS", counts, bits, dtype=np.bool_),
    )
    beyond = node.const(np.full((1,) * len(counts.shape), bits), counts.dtype)
    at = cast(
        node, emit_broadcast(node, "SELECT_V2", [inside, counts, beyond], counts.dtype), np.int32
    )
    if node.attr("direction") == "LEFT":
        powers = [2**i for i in range(bits)] + [0]
        result = calc("MUL", tensor, _look_up(node, np.array(powers, object), at, wide))
    else:
        # Two steps, as 2**31 is no int32. What shifts everything out leaves the sign.
        steps = [*range(bits), bits - 1 if signed else bits]
        result = tensor
        for part in ([step // 2 for step in steps], [step - step // 2 for step in steps]):
            result = _floor_divide(
                node, result, _look_up(node, np.array([2**step for step in part], object), at, wide)
            )
    node.set_output(back(result), order)


def _look_up(node: Node, table: Array, at: Tensor, dtype: np.dtype[np.generic]) -> Tensor:
    """Entries of a table of whole numbers, which wrap around in ``dtype``."""
    size = 2 ** (8 * dtype.itemsize)
    signed = np.array([(int(entry) + size // 2) % size - size // 2 for entry in table], dtype)
    return node.emit("GATHER", [node.const(signed, dtype), at], at.shape, dtype, axis=0)


def _floor_divide(node: Node, left: Tensor, right: Tensor) -> Tensor:
    if left.dtype != np.int64:
        return emit_broadcast(node, "FLOOR_DIV", [left, right])
    return divide_exactly(
        node,
        emit_broadcast(node, "SUB", [left, emit_broadcast(node, "FLOOR_MOD", [left, right])]),
        right,
    )


def lower_bitwise(node: Node) -> None:
    """BITWISE_XOR, and arithmetic for AND and OR."""
    tensors, order = align_operands(node, [node.value(0), node.value(1)])
    (left, right), back = widen_bytes(node, tensors)
    function = _combine_16_bits if tensors[0].dtype.itemsize < 4 else _combine_32_bits
    node.set_output(
        back((_combine_64_bits if left.dtype == np.int64 else function)(node, left, right)), order
    )


def _combine_16_bits(node: Node, left: Tensor, right: Tensor) -> Tensor:
    """Of int32 numbers of at most 17 bits: a + b is a XOR b and twice a AND b."""
    odd, calc = emit_broadcast(node, "BITWISE_XOR", [left, right]), Math(node)
    if node.op == "BitwiseXor":
        return odd
    common = calc("DIV", calc("SUB", calc("ADD", left, right), odd), 2)
    return common if node.op == "BitwiseAnd" else calc("ADD", common, odd)


def _combine_32_bits(node: Node, left: Tensor, right: Tensor) -> Tensor:
    if node.op == "BitwiseXor":
        return emit_broadcast(node, "BITWISE_XOR", [left, right])
    calc = Math(node)
    low = _combine_16_bits(node, *(calc("FLOOR_MOD", tensor, HALF) for tensor in (left, right)))
    high = _combine_16_bits(node, *(calc("FLOOR_DIV", tensor, HALF) for tensor in (left, right)))
    return calc("ADD", calc("MUL", high, HALF), low)


def _combine_64_bits(node: Node, left: Tensor, right: Tensor) -> Tensor:
    calc, word = Math(node), node.const(np.full((1,) * len(left.shape), WORD), np.int64)
    lows = [calc("FLOOR_MOD", tensor, word) for tensor in (left, right)]
    highs = [
        divide_exactly(node, calc("SUB", tensor, low), word)
        for tensor, low in zip((left, right), lows, strict=True)
    ]
    parts = [
        cast(
            node,
            _combine_32_bits(node, *(cast(node, word_part, np.int32) for word_part in pair)),
            np.int64,
        )
        for pair in (lows, highs)
    ]
    return calc("ADD", calc("MUL", parts[1], word), calc("FLOOR_MOD", parts[0], word))


def lower_bitwise_not(node: Node) -> None:
    """-1 - x."""
    value = node.value(0)
    (tensor,), back = widen_bytes(node, [node.place(value, value.axes)])
    node.set_output(back(Math(node)("SUB", -1, tensor)), value.axes)


def lower_bit_cast(node: Node) -> None:
    """BITCAST between types of one size."""
    value, dtype = node.value(0), np.dtype(node.dtypes[0])
    tensor = node.place(value, value.axes)
    if value.dtype.itemsize != dtype.itemsize:
        raise node.refusal(f"{value.dtype} and {dtype} differ in size")
    if dtype.itemsize == 1:
        node.set_output(cast(node, cast(node, tensor, np.int32), dtype), value.axes)
        return
    node.set_output(node.emit("BITCAST", [tensor], tensor.shape, dtype), value.axes)
