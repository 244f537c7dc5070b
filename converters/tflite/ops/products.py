"""Matrix products: FULLY_CONNECTED where one side is a weight, BATCH_MATMUL elsewhere."""

from __future__ import annotations

import math

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node, op
from converters.tflite.ops.broadcast import emit
from converters.tflite.ops.elementwise import Math
from converters.tflite.ops.movement import transposed
from converters.tflite.values import Axes, Value, identity
from edge_core.tensors import Array

MAX_BATCH_RANK = 4  # of BATCH_MATMUL, that XNNPACK takes


def fully_connected(n: Node, x: Tensor, weights: Array, bias: Array | None = None) -> Tensor:
    """x [..., in] times weights [out, in], plus bias [out]: [..., out]."""
    outputs = len(weights)
    b = None if bias is None else n.const(np.broadcast_to(bias.reshape(-1), (outputs,)))
    flat = n.reshaped(x, (math.prod(x.shape[:-1]), x.shape[-1]))
    shape = (flat.shape[0], outputs)
    y = n.emit("FULLY_CONNECTED", [flat, n.const(weights), b], shape, keep_num_dims=False)
    return n.reshaped(y, (*x.shape[:-1], outputs))


@op("MatMul")
def _matmul(n: Node) -> None:
    a, b = n.value(0), n.value(1)
    if a.dtype != np.float32:
        raise n.refusal(f"{a.dtype} products are not in TFLite")
    if b.array is not None and b.array.ndim == 2 and a.array is None:
        n.give(fully_connected(n, n.stored(0), b.array.T))
        return
    if len(a.shape) == 1 or len(b.shape) == 1:
        _with_vectors(n, a, b)
        return
    n.give(batched(n, a, b))


def _with_vectors(n: Node, a: Value, b: Value) -> None:
    left, right = n.stored(0), n.stored(1)
    if len(a.shape) == 1:
        left = n.reshaped(left, (1, *a.shape))
    if len(b.shape) == 1:
        right = n.reshaped(right, (*b.shape, 1))
    y = batched(n, _as_value(left), _as_value(right))
    n.give(n.reshaped(y, n.shape))


def _as_value(t: Tensor) -> Value:
    return Value(t.shape, t.dtype, t, identity(len(t.shape)))


def batched(n: Node, a: Value, b: Value) -> Tensor:
    """Products of matrices in the last two axes; a swap of the two in memory costs nothing."""
    left, adj_x = _maybe_swapped(n, a)
    right, adj_y = _maybe_swapped(n, b)
    if left is right:  # XNNPACK computes t @ t.T of t @ t when a TRANSPOSE made t (LiteRT 2.3.0)
        right, adj_y = n.place(b, None if adj_y else _swapped(b)), not adj_y
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape = (*batch, a.shape[-2], b.shape[-1])
    if len(shape) <= MAX_BATCH_RANK:
        rank = len(shape)
        left, right = (n.reshaped(t, (1,) * (rank - len(t.shape)) + t.shape) for t in (left, right))
        return n.emit("BATCH_MATMUL", [left, right], shape, adj_x=adj_x, adj_y=adj_y)
    sides = []
    for t in (left, right):
        wide = (*batch, *t.shape[-2:])
        t = n.reshaped(t, (1,) * (len(wide) - len(t.shape)) + t.shape)
        if t.shape != wide:
            t = n.emit("BROADCAST_TO", [t, n.ints(wide)], wide)
        sides.append(n.reshaped(t, (math.prod(batch), *wide[-2:])))
    y = n.emit("BATCH_MATMUL", sides, (math.prod(batch), *shape[-2:]), adj_x=adj_x, adj_y=adj_y)
    return n.reshaped(y, shape)


def _maybe_swapped(n: Node, v: Value) -> tuple[Tensor, bool]:
    swapped = _swapped(v)
    if v.array is None and v.axes[-2:] == swapped[-2:]:
        return n.place(v, swapped), True
    return n.place(v), False


def _swapped(v: Value) -> Axes:
    rank = len(v.shape)
    return (*range(rank - 2), rank - 1, rank - 2)


@op("Gemm")
def _gemm(n: Node) -> None:
    alpha, beta = float(n.attr("alpha", 1.0)), float(n.attr("beta", 1.0))
    a, b = n.value(0), n.value(1)
    if a.dtype != np.float32:
        raise n.refusal(f"{a.dtype} products are not in TFLite")
    a = transposed(a, (1, 0)) if n.attr("transA", 0) else a
    b = transposed(b, (1, 0)) if n.attr("transB", 0) else b
    if b.array is None:
        y = batched(n, a, b)
        y = Math(n)("MUL", y, alpha) if alpha != 1.0 else y
        n.give(_plus(n, y, beta))
        return
    x, weights, c = n.place(a), b.array.T * np.float32(alpha), n.array(2)
    if c is not None and c.shape in ((), (1,), (n.shape[1],), (1, 1), (1, n.shape[1])):
        n.give(fully_connected(n, x, weights, c * np.float32(beta)))
    else:
        n.give(_plus(n, fully_connected(n, x, weights), beta))


def _plus(n: Node, y: Tensor, beta: float) -> Tensor:
    if not n.has(2):
        return y
    c = n.stored(2)
    c = n.reshaped(c, (1,) * (2 - len(c.shape)) + c.shape)
    return emit(n, "ADD", [y, Math(n)("MUL", c, beta) if beta != 1.0 else c])
