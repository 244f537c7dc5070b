"""Pooling, over N, spatial axes, C."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from converters.tflite.graph import Shape, Tensor
from converters.tflite.node import Node
from converters.tflite.ops.broadcast import emit_broadcast
from converters.tflite.ops.elementwise import Math
from converters.tflite.ops.movement import pad_tensor, pick_ranges
from converters.tflite.ops.scatter import lower_indexed_max_pool
from converters.tflite.ops.window import VALID, Window, fit_padding, read_window, to_image_row
from converters.tflite.values import channels_last, memory_shape
from edge_core.tensors import Array

LOWEST = float(np.finfo(np.float32).min)
NEVER_NEGATIVE = ("RELU", "RELU6", "LOGISTIC", "SOFTMAX", "ABS", "EXP", "SQRT")


def lower_pool(node: Node) -> None:
    v = node.value(0)
    w = read_window(node, node.attr("kernel_shape"), v.shape[2:])
    node.shapes = [_trim_ceil_windows(shape, w, v.shape) for shape in node.shapes]
    if node.op == "MaxPool" and (node.has_output(1) or v.dtype != np.float32):
        lower_indexed_max_pool(node, list(w.around))
        return
    if v.dtype != np.float32:
        raise node.refusal(f"{v.dtype} pooling is not lowered")
    last = channels_last(len(v.shape))
    x, out = node.place_input(0, last), memory_shape(node.shape, last)
    beyond = _ceil_overhang(w, x.shape[1:-1], out[1:-1])
    whole = msgspec.structs.replace(
        w, around=tuple((a, b + e) for (a, b), e in zip(w.around, beyond, strict=True))
    )
    if node.op == "MaxPool":
        fill = 0.0 if _is_never_negative(node, x) else LOWEST  # PAD is faster than PADV2
        node.set_output(_pool_windows(node, x, whole, out, "MAXIMUM", fill), last)
    elif node.op == "AveragePool":
        y = _pool_windows(node, x, whole, out, "ADD", 0.0)
        counts = _count_elements(w, x.shape[1:-1], beyond, bool(node.attr("count_include_pad", 0)))
        factor = math.prod(w.kernel) / counts
        node.set_output(
            emit_broadcast(node, "MUL", [y, node.const(factor[None, ..., None])])
            if (factor != 1).any()
            else y,
            last,
        )
    else:
        p = float(node.attr("p", 2))
        y = _pool_windows(node, _power(node, x, p), whole, out, "ADD", 0.0)
        node.set_output(_root(node, Math(node)("MUL", y, float(math.prod(w.kernel))), p), last)


def _trim_ceil_windows(out: Shape, w: Window, size: Shape) -> Shape:
    """The output's shape without the windows of ceil_mode that start in the padding behind.

    Opset 22 says so and runtimes always did; ONNX's shape inference counts them up to opset 21.
    """
    spatial = zip(out[2:], w.strides, w.around, size[2:], strict=True)
    return (*out[:2], *(o - ((o - 1) * s >= a + d) for o, s, (a, _), d in spatial))


def _power(node: Node, x: Tensor, p: float) -> Tensor:
    calc = Math(node)
    return calc("MUL", x, x) if p == 2 else calc("POW", calc("ABS", x), p)


def _root(node: Node, x: Tensor, p: float) -> Tensor:
    calc = Math(node)
    return calc("SQRT", x) if p == 2 else calc("POW", x, 1 / p)


def _ceil_overhang(w: Window, size: Sequence[int], out: Sequence[int]) -> list[int]:
    """What ceil_mode reads past the padding."""
    return [
        max((o - 1) * s + e - d - a - b, 0)
        for o, s, e, d, (a, b) in zip(out, w.strides, w.extent, size, w.around, strict=True)
    ]


def _is_never_negative(node: Node, x: Tensor) -> bool:
    maker = next((op for op in reversed(node.graph.ops) if x in op.outputs), None)
    return maker is not None and maker.code in NEVER_NEGATIVE


def _pool_windows(
    node: Node, x: Tensor, w: Window, out: Sequence[int], join: str, fill: float
) -> Tensor:
    """The maximum of each window (join MAXIMUM), or its mean with padding counted (join ADD)."""
    if len(w.kernel) > 2 or w.dilated:
        return _pool_axis_by_axis(node, x, w, out, join, fill)
    row = len(w.kernel) == 1
    image, w = (to_image_row(node, x), w.to_image()) if row else (x, w)
    if join == "ADD":  # SAME leaves padding out of the mean, so the zeros must really be there
        image, padding = pad_tensor(node, image, [(0, 0), *w.around, (0, 0)]), VALID
    else:
        image, padding = fit_padding(node, image, w, fill)
    y = node.emit(
        "MAX_POOL_2D" if join == "MAXIMUM" else "AVERAGE_POOL_2D", [image],
        (out[0], 1, *out[1:]) if row else out, padding=padding,
        filter_height=w.kernel[0], filter_width=w.kernel[1],
        stride_h=w.strides[0], stride_w=w.strides[1],
    )  # fmt: skip
    return node.reshape(y, out)


def _pool_axis_by_axis(
    node: Node, x: Tensor, w: Window, out: Sequence[int], join: str, fill: float
) -> Tensor:
    """Pooling is separable; each axis joins as many slices as its kernel is long."""
    x = pad_tensor(node, x, [(0, 0), *w.around, (0, 0)], fill=fill)
    for axis, (k, s, d) in enumerate(zip(w.kernel, w.strides, w.dilations, strict=True), start=1):
        parts = []
        for i in range(k):
            spans = [range(size) for size in x.shape]
            spans[axis] = range(i * d, i * d + (out[axis] - 1) * s + 1, s)
            parts.append(pick_ranges(node, x, spans))
        x = parts[0]
        for part in parts[1:]:
            x = emit_broadcast(node, join, [x, part])
        x = Math(node)("MUL", x, 1 / k) if join == "ADD" else x
    return x


def _count_elements(w: Window, size: Sequence[int], beyond: Sequence[int], include: bool) -> Array:
    """How many elements each window's mean is over."""
    total: Array = np.ones(())
    for i, (a, b) in enumerate(w.around):
        real = np.zeros(a + size[i] + b + beyond[i])
        real[slice(0, a + size[i] + b) if include else slice(a, a + size[i])] = 1
        seen = np.lib.stride_tricks.sliding_window_view(real, w.extent[i])
        total = total[..., None] * seen[:: w.strides[i], :: w.dilations[i]].sum(1)
    return total


def lower_global_pool(node: Node) -> None:
    rank = len(node.shape)
    last = channels_last(rank)
    x, at = node.place_input(0, last), node.ints(range(1, rank - 1))
    shape = memory_shape(node.shape, last)
    if node.op == "GlobalLpPool":
        p = float(node.attr("p", 2))
        total = node.emit("SUM", [_power(node, x, p), at], shape, keep_dims=True)
        node.set_output(_root(node, total, p), last)
        return
    code = "MEAN" if node.op == "GlobalAveragePool" else "REDUCE_MAX"
    node.set_output(node.emit(code, [x, at], shape, keep_dims=True), last)
