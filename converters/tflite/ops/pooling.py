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
    """MAX_POOL_2D or AVERAGE_POOL_2D, or slices joined axis by axis."""
    value = node.value(0)
    window = read_window(node, node.attr("kernel_shape"), value.shape[2:])
    node.shapes = [_trim_ceil_windows(shape, window, value.shape) for shape in node.shapes]
    if node.op == "MaxPool" and (node.has_output(1) or value.dtype != np.float32):
        lower_indexed_max_pool(node, list(window.around))
        return
    if value.dtype != np.float32:
        raise node.refusal(f"{value.dtype} pooling is not lowered")
    last = channels_last(len(value.shape))
    tensor, out = node.place_input(0, last), memory_shape(node.shape, last)
    beyond = _ceil_overhang(window, tensor.shape[1:-1], out[1:-1])
    whole = msgspec.structs.replace(
        window,
        around=tuple(
            (before, after + overhang)
            for (before, after), overhang in zip(window.around, beyond, strict=True)
        ),
    )
    if node.op == "MaxPool":
        fill = 0.0 if _is_never_negative(node, tensor) else LOWEST  # PAD is faster than PADV2
        node.set_output(_pool_windows(node, tensor, whole, out, "MAXIMUM", fill), last)
    elif node.op == "AveragePool":
        result = _pool_windows(node, tensor, whole, out, "ADD", 0.0)
        counts = _count_elements(
            window, tensor.shape[1:-1], beyond, bool(node.attr("count_include_pad", 0))
        )
        factor = math.prod(window.kernel) / counts
        node.set_output(
            emit_broadcast(node, "MUL", [result, node.const(factor[None, ..., None])])
            if (factor != 1).any()
            else result,
            last,
        )
    else:
        power = float(node.attr("p", 2))
        result = _pool_windows(node, _power(node, tensor, power), whole, out, "ADD", 0.0)
        node.set_output(
            _root(node, Math(node)("MUL", result, float(math.prod(window.kernel))), power), last
        )


def _trim_ceil_windows(out: Shape, window: Window, size: Shape) -> Shape:
    """The output's shape without the windows of ceil_mode that start in the trailing padding.

    Opset 22 says so and runtimes always did; ONNX's shape inference counts them up to opset 21.
    """
    spatial = zip(out[2:], window.strides, window.around, size[2:], strict=True)
    return (
        *out[:2],
        *(
            count - ((count - 1) * stride >= before + length)
            for count, stride, (before, _), length in spatial
        ),
    )


def _power(node: Node, tensor: Tensor, power: float) -> Tensor:
    calc = Math(node)
    return calc("MUL", tensor, tensor) if power == 2 else calc("POW", calc("ABS", tensor), power)


def _root(node: Node, tensor: Tensor, power: float) -> Tensor:
    calc = Math(node)
    return calc("SQRT", tensor) if power == 2 else calc("POW", tensor, 1 / power)


def _ceil_overhang(window: Window, size: Sequence[int], out: Sequence[int]) -> list[int]:
    """Elements per axis that ceil_mode reads beyond the padding."""
    return [
        max((count - 1) * stride + extent - length - before - after, 0)
        for count, stride, extent, length, (before, after) in zip(
            out, window.strides, window.extent, size, window.around, strict=True
        )
    ]


def _is_never_negative(node: Node, tensor: Tensor) -> bool:
    maker = next((op for op in reversed(node.graph.ops) if tensor in op.outputs), None)
    return maker is not None and maker.code in NEVER_NEGATIVE


def _pool_windows(
    node: Node, tensor: Tensor, window: Window, out: Sequence[int], join: str, fill: float
) -> Tensor:
    """The maximum of each window (join MAXIMUM), or its mean with padding counted (join ADD)."""
    if len(window.kernel) > 2 or window.is_dilated:
        return _pool_axis_by_axis(node, tensor, window, out, join, fill)
    row = len(window.kernel) == 1
    image, window = (to_image_row(node, tensor), window.to_image()) if row else (tensor, window)
    if join == "ADD":  # SAME excludes padding from the mean, so the zeros must exist
        image, padding = pad_tensor(node, image, [(0, 0), *window.around, (0, 0)]), VALID
    else:
        image, padding = fit_padding(node, image, window, fill)
    result = node.emit(
        "MAX_POOL_2D" if join == "MAXIMUM" else "AVERAGE_POOL_2D", [image],
        (out[0], 1, *out[1:]) if row else out, padding=padding,
        filter_height=window.kernel[0], filter_width=window.kernel[1],
        stride_h=window.strides[0], stride_w=window.strides[1],
    )  # fmt: skip
    return node.reshape(result, out)


def _pool_axis_by_axis(
    node: Node, tensor: Tensor, window: Window, out: Sequence[int], join: str, fill: float
) -> Tensor:
    """Pooling is separable; each axis joins as many slices as its kernel is long."""
    tensor = pad_tensor(node, tensor, [(0, 0), *window.around, (0, 0)], fill=fill)
    for axis, (length, stride, dilation) in enumerate(
        zip(window.kernel, window.strides, window.dilations, strict=True), start=1
    ):
        parts = []
        for i in range(length):
            spans = [range(size) for size in tensor.shape]
            spans[axis] = range(i * dilation, i * dilation + (out[axis] - 1) * stride + 1, stride)
            parts.append(pick_ranges(node, tensor, spans))
        tensor = parts[0]
        for part in parts[1:]:
            tensor = emit_broadcast(node, join, [tensor, part])
        tensor = Math(node)("MUL", tensor, 1 / length) if join == "ADD" else tensor
    return tensor


def _count_elements(
    window: Window, size: Sequence[int], beyond: Sequence[int], include: bool
) -> Array:
    """How many elements each window averages, in the shape of the spatial output."""
    total: Array = np.ones(())
    for i, (before, after) in enumerate(window.around):
        real = np.zeros(before + size[i] + after + beyond[i])
        real[slice(0, before + size[i] + after) if include else slice(before, before + size[i])] = 1
        seen = np.lib.stride_tricks.sliding_window_view(real, window.extent[i])
        total = total[..., None] * seen[:: window.strides[i], :: window.dilations[i]].sum(1)
    return total


def lower_global_pool(node: Node) -> None:
    """MEAN, REDUCE_MAX or SUM over the spatial axes."""
    rank = len(node.shape)
    last = channels_last(rank)
    tensor, at = node.place_input(0, last), node.ints(range(1, rank - 1))
    shape = memory_shape(node.shape, last)
    if node.op == "GlobalLpPool":
        power = float(node.attr("p", 2))
        total = node.emit("SUM", [_power(node, tensor, power), at], shape, keep_dims=True)
        node.set_output(_root(node, total, power), last)
        return
    code = "MEAN" if node.op == "GlobalAveragePool" else "REDUCE_MAX"
    node.set_output(node.emit(code, [tensor, at], shape, keep_dims=True), last)
