"""Arithmetic on tensors of one rank and order, and between the number types that TFLite has."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node
from converters.tflite.ops.broadcast import emit_broadcast
from edge_core.extras import need

BYTES = (np.int8, np.uint8)
QUOTIENT_STEPS = 4  # each leaves 2**-23 of the error: from 2**63 to below one


class Math:
    """Arithmetic on tensors of one shape and order; plain numbers are constants of their type."""

    def __init__(self, node: Node) -> None:
        self._n = node

    def __call__(
        self, code: str, *operands: Tensor | float, dtype: Any = None, **options: Any
    ) -> Tensor:
        like = next(tensor for tensor in operands if isinstance(tensor, Tensor))
        tensors = [
            tensor
            if isinstance(tensor, Tensor)
            else self._n.const(np.full((1,) * len(like.shape), tensor), like.dtype)
            for tensor in operands
        ]
        return emit_broadcast(self._n, code, tensors, dtype, **options)

    def clamp(self, tensor: Tensor, low: float, high: float) -> Tensor:
        """Values clamped to the bounds; an infinite bound is none."""
        whole = {(0.0, math.inf): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}
        if tensor.dtype == np.float32 and (low, high) in whole:
            return self(whole[low, high], tensor)
        if tensor.dtype == np.float32 and low == 0.0:
            return self("MINIMUM", self("RELU", tensor), high)
        if low != -math.inf:
            tensor = self("MAXIMUM", tensor, low)
        return self("MINIMUM", tensor, high) if high != math.inf else tensor


def cast(node: Node, tensor: Tensor, dtype: Any) -> Tensor:
    """``tensor`` in another type; raises ConvertError if TFLite has no such cast."""
    dtype = np.dtype(dtype)
    if tensor.dtype == dtype:
        return tensor
    if tensor.data is not None:
        return node.graph.constant(tensor.data.astype(dtype))
    kinds = {np.dtype(name): number for name, number in _tensor_types().items()}
    if dtype not in kinds or tensor.dtype not in kinds:
        raise node.refusal(f"no cast from {tensor.dtype} to {dtype}")
    if dtype == np.bool_ and tensor.dtype != np.bool_:
        (tensor,), _ = widen_bytes(node, [tensor])
        return Math(node)("NOT_EQUAL", tensor, 0, dtype=np.bool_)
    return node.emit(
        "CAST",
        [tensor],
        tensor.shape,
        dtype,
        in_data_type=kinds[tensor.dtype],
        out_data_type=kinds[dtype],
    )


def _tensor_types() -> dict[str, int]:
    kinds = need("ai_edge_litert.schema_py_generated", "tflite").TensorType
    names = (
        "float32",
        "float16",
        "float64",
        "int8",
        "uint8",
        "int16",
        "uint16",
        "int32",
        "uint32",
        "int64",
        "uint64",
        "bool",
    )
    return {name: getattr(kinds, name.upper()) for name in names}


def widen_bytes(
    node: Node, tensors: Sequence[Tensor]
) -> tuple[list[Tensor], Callable[[Tensor], Tensor]]:
    """8-bit integers as int32, and the function that casts back (it wraps around).

    TFLite's own 8-bit operators are quantised arithmetic. Other types stay as they are.
    """
    kind = tensors[0].dtype
    if kind not in BYTES:
        return [*tensors], lambda result: result
    return [cast(node, tensor, np.int32) for tensor in tensors], lambda result: cast(
        node, result, kind
    )


def divide_exactly(node: Node, dividend: Tensor, divisor: Tensor) -> Tensor:
    """The quotient of int64 numbers that divide without remainder.

    TFLite has no int64 DIV: float32 approximates, and each step divides what remains.
    """
    calc, total, rest = Math(node), None, dividend
    for _ in range(QUOTIENT_STEPS):
        part = calc("DIV", *(cast(node, operand, np.float32) for operand in (rest, divisor)))
        whole = cast(node, calc("ROUND", part), np.int64)
        total = whole if total is None else calc("ADD", total, whole)
        rest = calc("SUB", dividend, calc("MUL", total, divisor))
    assert total is not None
    return total


def compute_remainder(node: Node, dividend: Tensor, divisor: Tensor) -> Tensor:
    """The remainder of integers, with the sign of the dividend (FLOOR_MOD has the divisor's)."""
    calc = Math(node)
    rest = calc("FLOOR_MOD", dividend, divisor)
    below = [calc("LESS", tensor, 0, dtype=np.bool_) for tensor in (dividend, divisor)]
    other = calc(
        "LOGICAL_AND",
        calc("NOT_EQUAL", *below, dtype=np.bool_),
        calc("NOT_EQUAL", rest, 0, dtype=np.bool_),
    )
    return calc("SELECT_V2", other, calc("SUB", rest, divisor), rest, dtype=rest.dtype)


def divide(node: Node, dividend: Tensor, divisor: Tensor) -> Tensor:
    """The quotient as ONNX defines it: integers are truncated towards zero."""
    if dividend.dtype != np.int64:
        return emit_broadcast(node, "DIV", [dividend, divisor])
    return divide_exactly(
        node, Math(node)("SUB", dividend, compute_remainder(node, dividend, divisor)), divisor
    )


def apply_to_integers(node: Node, code: str, tensor: Tensor) -> Tensor:
    """A unary operator, by its TFLite name, on integers of any width."""
    (tensor,), back = widen_bytes(node, [tensor])
    calc = Math(node)
    if code == "RELU":
        return back(calc("MAXIMUM", tensor, 0))
    if code == "ABS" and tensor.dtype == np.int64:
        return calc("MAXIMUM", tensor, calc("NEG", tensor))
    if code == "SIGN":
        return back(cast(node, calc("SIGN", cast(node, tensor, np.float32)), tensor.dtype))
    return back(calc(code, tensor))
