"""Matrix products: FULLY_CONNECTED where one side is a weight, BATCH_MATMUL elsewhere."""

from __future__ import annotations

import math

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node
from converters.tflite.ops.broadcast import emit_broadcast
from converters.tflite.ops.elementwise import Math
from converters.tflite.ops.movement import transpose_value
from converters.tflite.values import Axes, PlacedValue, identity
from edge_core.tensors import Array

MAX_BATCH_RANK = 4  # of BATCH_MATMUL, that XNNPACK takes


def emit_fully_connected(
    node: Node, x: Tensor, weights: Array, bias: Array | None = None
) -> Tensor:
    """x [..., in] times weights [out, in], plus bias [out]: [..., out]."""
    outputs = len(weights)
    b = None if bias is None else node.const(np.broadcast_to(bias.reshape(-1), (outputs,)))
    flat = node.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))
    shape = (flat.shape[0], outputs)
    y = node.emit("FULLY_CONNECTED", [flat, node.const(weights), b], shape, keep_num_dims=False)
    return node.reshape(y, (*x.shape[:-1], outputs))


def lower_matmul(node: Node) -> None:
    a, b = node.value(0), node.value(1)
    if a.dtype != np.float32:
        raise node.refusal(f"{a.dtype} products are not in TFLite")
    if b.array is not None and b.array.ndim == 2 and a.array is None:
        node.set_output(emit_fully_connected(node, node.place_input(0), b.array.T))
        return
    if len(a.shape) == 1 or len(b.shape) == 1:
        _multiply_vectors(node, a, b)
        return
    node.set_output(multiply_batches(node, a, b))


def _multiply_vectors(node: Node, a: PlacedValue, b: PlacedValue) -> None:
    left, right = node.place_input(0), node.place_input(1)
    if len(a.shape) == 1:
        left = node.reshape(left, (1, *a.shape))
    if len(b.shape) == 1:
        right = node.reshape(right, (*b.shape, 1))
    y = multiply_batches(node, _as_value(left), _as_value(right))
    node.set_output(node.reshape(y, node.shape))


def _as_value(t: Tensor) -> PlacedValue:
    return PlacedValue(t.shape, t.dtype, t, identity(len(t.shape)))


def multiply_batches(node: Node, a: PlacedValue, b: PlacedValue) -> Tensor:
    """Products of matrices in the last two axes; a swap of the two in memory costs nothing."""
    left, adj_x = _place_for_product(node, a)
    right, adj_y = _place_for_product(node, b)
    if left is right:  # XNNPACK computes t @ t.T of t @ t when a TRANSPOSE made t (LiteRT 2.3.0)
        right, adj_y = node.place(b, None if adj_y else _swap_last_axes(b)), not adj_y
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape = (*batch, a.shape[-2], b.shape[-1])
    if len(shape) <= MAX_BATCH_RANK:
        rank = len(shape)
        left, right = (
            node.reshape(t, (1,) * (rank - len(t.shape)) + t.shape) for t in (left, right)
        )
        return node.emit("BATCH_MATMUL", [left, right], shape, adj_x=adj_x, adj_y=adj_y)
    sides = []
    for t in (left, right):
        wide = (*batch, *t.shape[-2:])
        t = node.reshape(t, (1,) * (len(wide) - len(t.shape)) + t.shape)
        if t.shape != wide:
            t = node.emit("BROADCAST_TO", [t, node.ints(wide)], wide)
        sides.append(node.reshape(t, (math.prod(batch), *wide[-2:])))
    y = node.emit("BATCH_MATMUL", sides, (math.prod(batch), *shape[-2:]), adj_x=adj_x, adj_y=adj_y)
    return node.reshape(y, shape)


def _place_for_product(node: Node, v: PlacedValue) -> tuple[Tensor, bool]:
    swapped = _swap_last_axes(v)
    if v.array is None and v.axes[-2:] == swapped[-2:]:
        return node.place(v, swapped), True
    return node.place(v), False


def _swap_last_axes(v: PlacedValue) -> Axes:
    rank = len(v.shape)
    return (*range(rank - 2), rank - 1, rank - 2)


def lower_gemm(node: Node) -> None:
    alpha, beta = float(node.attr("alpha", 1.0)), float(node.attr("beta", 1.0))
    a, b = node.value(0), node.value(1)
    if a.dtype != np.float32:
        raise node.refusal(f"{a.dtype} products are not in TFLite")
    a = transpose_value(a, (1, 0)) if node.attr("transA", 0) else a
    b = transpose_value(b, (1, 0)) if node.attr("transB", 0) else b
    if b.array is None:
        y = multiply_batches(node, a, b)
        y = Math(node)("MUL", y, alpha) if alpha != 1.0 else y
        node.set_output(_add_bias(node, y, beta))
        return
    x, weights, c = node.place(a), b.array.T * np.float32(alpha), node.array(2)
    if c is not None and c.shape in ((), (1,), (node.shape[1],), (1, 1), (1, node.shape[1])):
        node.set_output(emit_fully_connected(node, x, weights, c * np.float32(beta)))
    else:
        node.set_output(_add_bias(node, emit_fully_connected(node, x, weights), beta))


def _add_bias(node: Node, y: Tensor, beta: float) -> Tensor:
    if not node.has_input(2):
        return y
    c = node.place_input(2)
    c = node.reshape(c, (1,) * (2 - len(c.shape)) + c.shape)
    return emit_broadcast(node, "ADD", [y, Math(node)("MUL", c, beta) if beta != 1.0 else c])
