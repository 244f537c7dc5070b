"""Pooling, over N, spatial axes, C."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from converters.tflite.graph import Shape, Tensor
from converters.tflite.node import Node, op
from converters.tflite.ops.broadcast import emit
from converters.tflite.ops.elementwise import Math
from converters.tflite.ops.movement import padded, picked
from converters.tflite.ops.scatter import max_pool
from converters.tflite.ops.window import VALID, Window, as_row, fitted, window
from converters.tflite.values import channels_last, stored_shape
from edge_core.tensors import Array

LOWEST = float(np.finfo(np.float32).min)
NEVER_NEGATIVE = ("RELU", "RELU6", "LOGISTIC", "SOFTMAX", "ABS", "EXP", "SQRT")


@op("MaxPool", "AveragePool", "LpPool")
def _pool(n: Node) -> None:
    v = n.value(0)
    w = window(n, n.attr("kernel_shape"), v.shape[2:])
    n.shapes = [_begun(shape, w, v.shape) for shape in n.shapes]
    if n.op == "MaxPool" and (n.wants(1) or v.dtype != np.float32):
        max_pool(n, list(w.around))
        return
    if v.dtype != np.float32:
        raise n.refusal(f"{v.dtype} pooling is not lowered")
    last = channels_last(len(v.shape))
    x, out = n.stored(0, last), stored_shape(n.shape, last)
    beyond = _beyond(w, x.shape[1:-1], out[1:-1])
    whole = msgspec.structs.replace(
        w, around=tuple((a, b + e) for (a, b), e in zip(w.around, beyond, strict=True))
    )
    if n.op == "MaxPool":
        fill = 0.0 if _never_negative(n, x) else LOWEST  # PAD is faster than PADV2
        n.give(_windows(n, x, whole, out, "MAXIMUM", fill), last)
    elif n.op == "AveragePool":
        y = _windows(n, x, whole, out, "ADD", 0.0)
        counts = _counts(w, x.shape[1:-1], beyond, bool(n.attr("count_include_pad", 0)))
        factor = math.prod(w.kernel) / counts
        n.give(
            emit(n, "MUL", [y, n.const(factor[None, ..., None])]) if (factor != 1).any() else y,
            last,
        )
    else:
        p = float(n.attr("p", 2))
        y = _windows(n, _power(n, x, p), whole, out, "ADD", 0.0)
        n.give(_root(n, Math(n)("MUL", y, float(math.prod(w.kernel))), p), last)


def _begun(out: Shape, w: Window, size: Shape) -> Shape:
    """The output's shape without the windows of ceil_mode that start in the padding behind.

    Opset 22 says so and runtimes always did; ONNX's shape inference counts them up to opset 21.
    """
    spatial = zip(out[2:], w.strides, w.around, size[2:], strict=True)
    return (*out[:2], *(o - ((o - 1) * s >= a + d) for o, s, (a, _), d in spatial))


def _power(n: Node, x: Tensor, p: float) -> Tensor:
    m = Math(n)
    return m("MUL", x, x) if p == 2 else m("POW", m("ABS", x), p)


def _root(n: Node, x: Tensor, p: float) -> Tensor:
    m = Math(n)
    return m("SQRT", x) if p == 2 else m("POW", x, 1 / p)


def _beyond(w: Window, size: Sequence[int], out: Sequence[int]) -> list[int]:
    """What ceil_mode reads past the padding."""
    return [
        max((o - 1) * s + e - d - a - b, 0)
        for o, s, e, d, (a, b) in zip(out, w.strides, w.extent, size, w.around, strict=True)
    ]


def _never_negative(n: Node, x: Tensor) -> bool:
    maker = next((op for op in reversed(n.graph.ops) if x in op.outputs), None)
    return maker is not None and maker.code in NEVER_NEGATIVE


def _windows(n: Node, x: Tensor, w: Window, out: Sequence[int], join: str, fill: float) -> Tensor:
    """The maximum of each window (join MAXIMUM), or its mean with padding counted (join ADD)."""
    if len(w.kernel) > 2 or w.dilated:
        return _axis_by_axis(n, x, w, out, join, fill)
    row = len(w.kernel) == 1
    image, w = (as_row(n, x), w.of_image()) if row else (x, w)
    if join == "ADD":  # SAME leaves padding out of the mean, so the zeros must really be there
        image, padding = padded(n, image, [(0, 0), *w.around, (0, 0)]), VALID
    else:
        image, padding = fitted(n, image, w, fill)
    y = n.emit(
        "MAX_POOL_2D" if join == "MAXIMUM" else "AVERAGE_POOL_2D", [image],
        (out[0], 1, *out[1:]) if row else out, padding=padding,
        filter_height=w.kernel[0], filter_width=w.kernel[1],
        stride_h=w.strides[0], stride_w=w.strides[1],
    )  # fmt: skip
    return n.reshaped(y, out)


def _axis_by_axis(
    n: Node, x: Tensor, w: Window, out: Sequence[int], join: str, fill: float
) -> Tensor:
    """Pooling is separable; each axis joins as many slices as its kernel is long."""
    x = padded(n, x, [(0, 0), *w.around, (0, 0)], fill=fill)
    for axis, (k, s, d) in enumerate(zip(w.kernel, w.strides, w.dilations, strict=True), start=1):
        parts = []
        for i in range(k):
            spans = [range(size) for size in x.shape]
            spans[axis] = range(i * d, i * d + (out[axis] - 1) * s + 1, s)
            parts.append(picked(n, x, spans))
        x = parts[0]
        for part in parts[1:]:
            x = emit(n, join, [x, part])
        x = Math(n)("MUL", x, 1 / k) if join == "ADD" else x
    return x


def _counts(w: Window, size: Sequence[int], beyond: Sequence[int], include: bool) -> Array:
    """How many elements each window's mean is over."""
    total: Array = np.ones(())
    for i, (a, b) in enumerate(w.around):
        real = np.zeros(a + size[i] + b + beyond[i])
        real[slice(0, a + size[i] + b) if include else slice(a, a + size[i])] = 1
        seen = np.lib.stride_tricks.sliding_window_view(real, w.extent[i])
        total = total[..., None] * seen[:: w.strides[i], :: w.dilations[i]].sum(1)
    return total


@op("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _global_pool(n: Node) -> None:
    rank = len(n.shape)
    last = channels_last(rank)
    x, at = n.stored(0, last), n.ints(range(1, rank - 1))
    shape = stored_shape(n.shape, last)
    if n.op == "GlobalLpPool":
        p = float(n.attr("p", 2))
        total = n.emit("SUM", [_power(n, x, p), at], shape, keep_dims=True)
        n.give(_root(n, total, p), last)
        return
    code = "MEAN" if n.op == "GlobalAveragePool" else "REDUCE_MAX"
    n.give(n.emit(code, [x, at], shape, keep_dims=True), last)
