"""Transforms along one axis: DFT and STFT as products with constant matrices, and CumProd."""

from __future__ import annotations

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node, op
from converters.tflite.ops.broadcast import emit
from converters.tflite.ops.movement import padded, reshaped, sliced, transposed
from converters.tflite.ops.products import fully_connected
from converters.tflite.values import Value, identity
from edge_core.tensors import Array

MAX_MATRIX = 16 * 1024 * 1024  # elements: 64 MiB of the file
VALID = 1  # schema.Padding
RUN_TIME = ("HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix")


def fourier(length: int, parts: int, points: int, *, inverse: bool, onesided: bool) -> Array:
    """The matrix [length * parts, bins * parts out] that transforms one axis, in float64.

    ``parts`` is 2 for complex values, whose real and imaginary parts lie next to each other. A
    one-sided inverse takes half a spectrum and gives real values.
    """
    rows = np.eye(length)
    basis = np.stack([rows, 1j * rows][:parts], 1).reshape(length * parts, length)
    if inverse and onesided:
        return np.fft.irfft(basis, points)
    out = (np.fft.ifft if inverse else np.fft.fft)(basis, points)
    if onesided:
        out = out[:, : points // 2 + 1]
    return np.stack([out.real, out.imag], -1).reshape(len(basis), -1)


def _bounded(n: Node, elements: int) -> None:
    if elements > MAX_MATRIX:
        raise n.refusal(
            f"its matrix would have {elements} elements, and {MAX_MATRIX} is the limit",
            "transform fewer points",
        )


@op("DFT")
def _dft(n: Node) -> None:
    v = n.value(0)
    if v.dtype != np.float32:
        raise n.refusal(f"{v.dtype} is not lowered")
    rank = len(v.shape)
    axis = int(n.attr("axis", 1))
    if n.scope.opsets.get("", 20) >= 20:
        axis = int(n.constant(2, "its axis").reshape(())) if n.has(2) else -2
    axis %= rank
    length, parts = v.shape[axis], v.shape[-1]
    inverse, onesided = bool(n.attr("inverse", 0)), bool(n.attr("onesided", 0))
    points = 2 * (length - 1) if inverse and onesided else length
    if n.has(1):
        points = int(n.constant(1, "its length").reshape(()))
    _bounded(n, length * parts * points * 2)
    matrix = fourier(length, parts, points, inverse=inverse, onesided=onesided)
    order = (*(a for a in range(rank - 1) if a != axis), axis, rank - 1)
    moved = transposed(v, order)
    others = moved.shape[:-2]
    flat = reshaped(n, moved, (*others, length * parts))
    made = fully_connected(n, n.place(flat), np.ascontiguousarray(matrix.T, np.float32))
    out_parts = 1 if inverse and onesided else 2
    shape = (*others, matrix.shape[1] // out_parts, out_parts)
    result = Value(shape, v.dtype, n.reshaped(made, shape), identity(rank))
    n.give_value(transposed(result, tuple(order.index(a) for a in range(rank))))


@op("STFT")
def _stft(n: Node) -> None:
    """A convolution: each filter is a row of the matrix, times the window."""
    v = n.value(0)
    if v.dtype != np.float32:
        raise n.refusal(f"{v.dtype} is not lowered")
    batch, length, parts = (*v.shape, 1)[:3]
    step = int(n.constant(1, "its step").reshape(()))
    window = n.constant(2, "its window") if n.has(2) else None
    size = length if window is None else len(window)
    if n.has(3):
        size = int(n.constant(3, "its frame length").reshape(()))
    _bounded(n, size * parts * size * 2)
    matrix = fourier(size, parts, size, inverse=False, onesided=bool(n.attr("onesided", 1)))
    filters = matrix.T.reshape(-1, 1, size, parts)
    if window is not None:
        filters = filters * window.reshape(1, 1, size, 1)
    x = n.reshaped(n.stored(0), (batch, 1, length, parts))
    frames = (length - size) // step + 1
    y = n.emit(
        "CONV_2D", [x, n.const(filters), n.const(np.zeros(len(filters)))],
        (batch, 1, frames, len(filters)), padding=VALID, stride_h=1, stride_w=step,
        dilation_h_factor=1, dilation_w_factor=1,
    )  # fmt: skip
    shape = (batch, frames, len(filters) // 2, 2)
    n.shapes = [shape]  # onnx 1.23 infers that of onesided=0 where the attribute is left out
    n.give(n.reshaped(y, shape))


@op("CumProd")
def _cumulative(n: Node) -> None:
    """Doubling: after k passes each element is the product of up to 2 ** k neighbours."""
    v = n.value(0)
    axis = int(n.constant(1, "its axis").reshape(())) % len(v.shape)
    at, x = v.axes.index(axis), n.place(v, v.axes)
    if n.attr("exclusive", 0):
        x = _shifted(n, x, at, 1)
    distance = 1
    while distance < x.shape[at]:
        x = emit(n, "MUL", [x, _shifted(n, x, at, distance)])
        distance *= 2
    n.give(x, v.axes)


def _shifted(n: Node, x: Tensor, at: int, distance: int) -> Tensor:
    """``x`` moved along an axis, with ones where nothing is left."""
    back = bool(n.attr("reverse", 0))
    around = [(0, 0)] * len(x.shape)
    around[at] = (0, distance) if back else (distance, 0)
    begin = [distance if i == at and back else 0 for i in range(len(x.shape))]
    size = [max(d - distance, 0) if i == at else d for i, d in enumerate(x.shape)]
    return padded(n, sliced(n, x, begin, size), around, fill=1)


@op(*RUN_TIME)
def _run_time(n: Node) -> None:
    # With constant inputs it is folded and never comes here.
    raise n.refusal("it depends on a size that is computed at run time")
