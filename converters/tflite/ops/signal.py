"""Transforms along one axis: DFT and STFT as products with constant matrices, and CumProd."""

from __future__ import annotations

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node
from converters.tflite.ops.broadcast import emit_broadcast
from converters.tflite.ops.movement import pad_tensor, reshape_value, slice_tensor, transpose_value
from converters.tflite.ops.products import emit_fully_connected
from converters.tflite.values import PlacedValue, identity
from edge_core.tensors import Array

MAX_MATRIX = 16 * 1024 * 1024  # elements: 64 MiB of the file
VALID = 1  # schema.Padding
RUN_TIME = ("HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix")


def fourier_matrix(length: int, parts: int, points: int, *, inverse: bool, onesided: bool) -> Array:
    """The matrix [length * parts, bins * parts out] that transforms one axis, in float64.

    ``parts`` is 2 for complex values, with real and imaginary part next to each other, else 1;
    ``points`` is the length of the transform. A one-sided inverse takes half a spectrum and gives
    real values.
    """
    rows = np.eye(length)
    basis = np.stack([rows, 1j * rows][:parts], 1).reshape(length * parts, length)
    if inverse and onesided:
        return np.fft.irfft(basis, points)
    out = (np.fft.ifft if inverse else np.fft.fft)(basis, points)
    if onesided:
        out = out[:, : points // 2 + 1]
    return np.stack([out.real, out.imag], -1).reshape(len(basis), -1)


def _check_matrix_size(node: Node, elements: int) -> None:
    if elements > MAX_MATRIX:
        raise node.refusal(
            f"its matrix would have {elements} elements, and {MAX_MATRIX} is the limit",
            "transform fewer points",
        )


def lower_dft(node: Node) -> None:
    """A product with a constant matrix along one axis."""
    value = node.value(0)
    if value.dtype != np.float32:
        raise node.refusal(f"{value.dtype} is not lowered")
    rank = len(value.shape)
    axis = int(node.attr("axis", 1))
    if node.scope.opsets.get("", 20) >= 20:
        axis = int(node.require_constant(2, "its axis").reshape(())) if node.has_input(2) else -2
    axis %= rank
    length, parts = value.shape[axis], value.shape[-1]
    inverse, onesided = bool(node.attr("inverse", 0)), bool(node.attr("onesided", 0))
    points = 2 * (length - 1) if inverse and onesided else length
    if node.has_input(1):
        points = int(node.require_constant(1, "its length").reshape(()))
    _check_matrix_size(node, length * parts * points * 2)
    matrix = fourier_matrix(length, parts, points, inverse=inverse, onesided=onesided)
    order = (*(other for other in range(rank - 1) if other != axis), axis, rank - 1)
    moved = transpose_value(value, order)
    others = moved.shape[:-2]
    flat = reshape_value(node, moved, (*others, length * parts))
    spectrum = emit_fully_connected(
        node, node.place(flat), np.ascontiguousarray(matrix.T, np.float32)
    )
    out_parts = 1 if inverse and onesided else 2
    shape = (*others, matrix.shape[1] // out_parts, out_parts)
    result = PlacedValue(shape, value.dtype, node.reshape(spectrum, shape), identity(rank))
    node.set_output_value(
        transpose_value(result, tuple(order.index(other) for other in range(rank)))
    )


def lower_stft(node: Node) -> None:
    """CONV_2D over the signal: each filter is a row of the matrix, times the window."""
    value = node.value(0)
    if value.dtype != np.float32:
        raise node.refusal(f"{value.dtype} is not lowered")
    batch, length, parts = (*value.shape, 1)[:3]
    step = int(node.require_constant(1, "its step").reshape(()))
    window = node.require_constant(2, "its window") if node.has_input(2) else None
    size = length if window is None else len(window)
    if node.has_input(3):
        size = int(node.require_constant(3, "its frame length").reshape(()))
    _check_matrix_size(node, size * parts * size * 2)
    matrix = fourier_matrix(
        size, parts, size, inverse=False, onesided=bool(node.attr("onesided", 1))
    )
    filters = matrix.T.reshape(-1, 1, size, parts)
    if window is not None:
        filters = filters * window.reshape(1, 1, size, 1)
    wave = node.reshape(node.place_input(0), (batch, 1, length, parts))
    frames = (length - size) // step + 1
    result = node.emit(
        "CONV_2D", [wave, node.const(filters), node.const(np.zeros(len(filters)))],
        (batch, 1, frames, len(filters)), padding=VALID, stride_h=1, stride_w=step,
        dilation_h_factor=1, dilation_w_factor=1,
    )  # fmt: skip
    shape = (batch, frames, len(filters) // 2, 2)
    node.shapes = [shape]  # onnx 1.23 infers that of onesided=0 where the attribute is left out
    node.set_output(node.reshape(result, shape))


def lower_cum_prod(node: Node) -> None:
    """By doubling: after k passes each element is the product of up to 2 ** k neighbours."""
    value = node.value(0)
    axis = int(node.require_constant(1, "its axis").reshape(())) % len(value.shape)
    at, tensor = value.axes.index(axis), node.place(value, value.axes)
    if node.attr("exclusive", 0):
        tensor = _shift(node, tensor, at, 1)
    distance = 1
    while distance < tensor.shape[at]:
        tensor = emit_broadcast(node, "MUL", [tensor, _shift(node, tensor, at, distance)])
        distance *= 2
    node.set_output(tensor, value.axes)


def _shift(node: Node, tensor: Tensor, at: int, distance: int) -> Tensor:
    """``tensor`` moved along the stored axis ``at``; ones fill the gap."""
    back = bool(node.attr("reverse", 0))
    around = [(0, 0)] * len(tensor.shape)
    around[at] = (0, distance) if back else (distance, 0)
    begin = [distance if i == at and back else 0 for i in range(len(tensor.shape))]
    size = [
        max(length - distance, 0) if i == at else length for i, length in enumerate(tensor.shape)
    ]
    return pad_tensor(node, slice_tensor(node, tensor, begin, size), around, fill=1)


def refuse_run_time_window(node: Node) -> None:
    """Refuse a window of a computed size; with constant inputs it is folded and never gets here."""
    raise node.refusal("it depends on a size that is computed at run time")
