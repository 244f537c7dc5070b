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

MAX_BATCH_RANK = 4  # of the BATCH_MATMUL that XNNPACK supports


def emit_fully_connected(
    node: Node, tensor: Tensor, weights: Array, bias: Array | None = None
) -> Tensor:
    """``tensor`` [..., in] times ``weights`` [out, in], plus ``bias`` [out]: [..., out]."""
    outputs = len(weights)
    bias_tensor = (
        None if bias is None else node.const(np.broadcast_to(bias.reshape(-1), (outputs,)))
    )
    flat = node.reshape(tensor, (math.prod(tensor.shape[:-1]), tensor.shape[-1]))
    shape = (flat.shape[0], outputs)
    result = node.emit(
        "FULLY_CONNECTED", [flat, node.const(weights), bias_tensor], shape, keep_num_dims=False
    )
    return node.reshape(result, (*tensor.shape[:-1], outputs))


def lower_matmul(node: Node) -> None:
    """FULLY_CONNECTED with a constant matrix, BATCH_MATMUL elsewhere."""
    left, right = node.value(0), node.value(1)
    if left.dtype != np.float32:
        raise node.refusal(f"{left.dtype} products are not in TFLite")
    if right.array is not None and right.array.ndim == 2 and left.array is None:
        node.set_output(emit_fully_connected(node, node.place_input(0), right.array.T))
        return
    if len(left.shape) == 1 or len(right.shape) == 1:
        _multiply_vectors(node, left, right)
        return
    node.set_output(multiply_batches(node, left, right))


def _multiply_vectors(node: Node, left: PlacedValue, right: PlacedValue) -> None:
    left_tensor, right_tensor = node.place_input(0), node.place_input(1)
    if len(left.shape) == 1:
        left_tensor = node.reshape(left_tensor, (1, *left.shape))
    if len(right.shape) == 1:
        right_tensor = node.reshape(right_tensor, (*right.shape, 1))
    result = multiply_batches(node, as_value(left_tensor), as_value(right_tensor))
    node.set_output(node.reshape(result, node.shape))


def as_value(tensor: Tensor) -> PlacedValue:
    """A tensor stored in the order of ONNX, as a value."""
    return PlacedValue(tensor.shape, tensor.dtype, tensor, identity(len(tensor.shape)))


def multiply_batches(node: Node, left: PlacedValue, right: PlacedValue) -> Tensor:
    """Matrix products [..., rows, inner] x [..., inner, columns] in the order of ONNX.

    A side whose last two axes are stored swapped is not moved.
    """
    left_tensor, adj_x = _place_for_product(node, left)
    right_tensor, adj_y = _place_for_product(node, right)
    if (
        left_tensor is right_tensor
    ):  # XNNPACK computes t @ t.T of t @ t when a TRANSPOSE made t (LiteRT 2.3.0)
        right_tensor = node.place(right, None if adj_y else _swap_last_axes(right))
        adj_y = not adj_y
    batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    shape = (*batch, left.shape[-2], right.shape[-1])
    if len(shape) <= MAX_BATCH_RANK:
        rank = len(shape)
        left_tensor, right_tensor = (
            node.reshape(tensor, (1,) * (rank - len(tensor.shape)) + tensor.shape)
            for tensor in (left_tensor, right_tensor)
        )
        return node.emit(
            "BATCH_MATMUL", [left_tensor, right_tensor], shape, adj_x=adj_x, adj_y=adj_y
        )
    sides = []
    for tensor in (left_tensor, right_tensor):
        wide = (*batch, *tensor.shape[-2:])
        tensor = node.reshape(tensor, (1,) * (len(wide) - len(tensor.shape)) + tensor.shape)
        if tensor.shape != wide:
            tensor = node.emit("BROADCAST_TO", [tensor, node.ints(wide)], wide)
        sides.append(node.reshape(tensor, (math.prod(batch), *wide[-2:])))
    result = node.emit(
        "BATCH_MATMUL", sides, (math.prod(batch), *shape[-2:]), adj_x=adj_x, adj_y=adj_y
    )
    return node.reshape(result, shape)


def _place_for_product(node: Node, value: PlacedValue) -> tuple[Tensor, bool]:
    swapped = _swap_last_axes(value)
    if value.array is None and value.axes[-2:] == swapped[-2:]:
        return node.place(value, swapped), True
    return node.place(value), False


def _swap_last_axes(value: PlacedValue) -> Axes:
    rank = len(value.shape)
    return (*range(rank - 2), rank - 1, rank - 2)


def lower_gemm(node: Node) -> None:
    """FULLY_CONNECTED with constant weights and bias, BATCH_MATMUL and ADD elsewhere."""
    alpha, beta = float(node.attr("alpha", 1.0)), float(node.attr("beta", 1.0))
    left, right = node.value(0), node.value(1)
    if left.dtype != np.float32:
        raise node.refusal(f"{left.dtype} products are not in TFLite")
    left = transpose_value(left, (1, 0)) if node.attr("transA", 0) else left
    right = transpose_value(right, (1, 0)) if node.attr("transB", 0) else right
    if right.array is None:
        result = multiply_batches(node, left, right)
        result = Math(node)("MUL", result, alpha) if alpha != 1.0 else result
        node.set_output(_add_bias(node, result, beta))
        return
    tensor, weights, addend = node.place(left), right.array.T * np.float32(alpha), node.array(2)
    if addend is not None and addend.shape in (
        (),
        (1,),
        (node.shape[1],),
        (1, 1),
        (1, node.shape[1]),
    ):
        node.set_output(emit_fully_connected(node, tensor, weights, addend * np.float32(beta)))
    else:
        node.set_output(_add_bias(node, emit_fully_connected(node, tensor, weights), beta))


def _add_bias(node: Node, result: Tensor, beta: float) -> Tensor:
    if not node.has_input(2):
        return result
    bias = node.place_input(2)
    bias = node.reshape(bias, (1,) * (2 - len(bias.shape)) + bias.shape)
    return emit_broadcast(
        node, "ADD", [result, Math(node)("MUL", bias, beta) if beta != 1.0 else bias]
    )
