"""Convolution and its transpose, over N, spatial axes, C."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node, op
from converters.tflite.ops.broadcast import emit
from converters.tflite.ops.movement import padded, sliced
from converters.tflite.ops.window import VALID, Window, as_row, fitted, window
from converters.tflite.values import channels_last, stored_shape
from edge_core.tensors import Array


@op("Conv")
def _conv(n: Node) -> None:
    x, weights = n.value(0), n.value(1)
    rank = len(x.shape) - 2
    if x.dtype != np.float32 or rank > 3:
        raise n.refusal(f"TFLite has no {rank}-D convolution of {x.dtype}")
    w = window(n, weights.shape[2:], x.shape[2:])
    bias = n.stored(2) if n.has(2) else n.const(np.zeros(weights.shape[0]))
    last = channels_last(rank + 2)
    y = _conv_3d(n, w, bias) if rank == 3 else _conv_2d(n, w, bias)
    n.give(n.reshaped(y, stored_shape(n.shape, last)), last)


def _conv_2d(n: Node, w: Window, bias: Tensor) -> Tensor:
    x, weights = n.value(0), n.value(1)
    rank, groups, channels = len(x.shape) - 2, int(n.attr("group", 1)), x.shape[1]
    depthwise = groups == channels > 1
    spatial = range(2, rank + 2)
    kernel = n.place(weights, (1, *spatial, 0) if depthwise else (0, *spatial, 1))
    image = n.stored(0, channels_last(rank + 2))
    if rank == 1:
        image, kernel, w = as_row(n, image), as_row(n, kernel), w.of_image()
    image, padding = fitted(n, image, w)
    shape = (n.shape[0], *((1,) if rank == 1 else ()), *n.shape[2:], n.shape[1])
    options = {
        "padding": padding, "stride_h": w.strides[0], "stride_w": w.strides[1],
        "dilation_h_factor": w.dilations[0], "dilation_w_factor": w.dilations[1],
    }  # fmt: skip
    if depthwise:
        options["depth_multiplier"] = weights.shape[0] // channels
    code = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
    return n.emit(code, [image, kernel, bias], shape, **options)


def _conv_3d(n: Node, w: Window, bias: Tensor) -> Tensor:
    if int(n.attr("group", 1)) != 1:
        raise n.refusal("TFLite has no grouped 3-D convolution")
    last = channels_last(5)
    image, padding = fitted(n, n.stored(0, last), w)
    options: dict[str, int] = {}
    for axis, stride, dilation in zip("dhw", w.strides, w.dilations, strict=True):
        options |= {f"stride_{axis}": stride, f"dilation_{axis}_factor": dilation}
    inputs = [image, n.stored(1, (2, 3, 4, 1, 0)), bias]
    return n.emit("CONV_3D", inputs, stored_shape(n.shape, last), padding=padding, **options)


@op("ConvTranspose")
def _conv_transpose(n: Node) -> None:
    x, weights = n.value(0), n.constant(1, "its weight")
    rank = len(x.shape) - 2
    if x.dtype != np.float32 or rank > 2:
        raise n.refusal(f"TFLite has no {rank}-D transposed convolution of {x.dtype}")
    bias = n.constant(2, "its bias") if n.has(2) else np.zeros(n.shape[1], np.float32)
    ones = [1] * rank
    strides = n.attr("strides") or ones
    weights = _spread(weights, n.attr("dilations") or ones)
    last = channels_last(rank + 2)
    image, size = n.stored(0, last), n.shape[2:]
    if rank == 1:
        image, weights = as_row(n, image), weights[:, :, None]
        strides, size = [1, *strides], (1, *size)
    y = _cropped(n, _transposed(n, image, weights, strides), size)
    if bias.any():
        y = emit(n, "ADD", [y, n.const(bias.reshape(1, 1, 1, -1))])
    n.give(n.reshaped(y, stored_shape(n.shape, last)), last)


def _transposed(n: Node, image: Tensor, weights: Array, strides: Sequence[int]) -> Tensor:
    """The full result, before anything is cropped; weights are inputs x outputs x kernel."""
    groups = int(n.attr("group", 1))
    each = image.shape[-1] // groups
    sizes = zip(image.shape[1:-1], strides, weights.shape[2:], strict=True)
    full = [(d - 1) * s + k for d, s, k in sizes]
    shape = (image.shape[0], *full, weights.shape[1])
    options = {"padding": VALID, "stride_h": strides[0], "stride_w": strides[1]}
    parts = []
    for g in range(groups):
        part = sliced(n, image, (0, 0, 0, g * each), (*image.shape[:-1], each))
        kernel = n.const(weights[g * each : (g + 1) * each].transpose(1, 2, 3, 0))
        inputs = [n.ints(shape), kernel, part]
        parts.append(n.emit("TRANSPOSE_CONV", inputs, shape, np.float32, **options))
    if groups == 1:
        return parts[0]
    return n.emit("CONCATENATION", parts, (*shape[:-1], shape[-1] * groups), axis=3)


def _spread(w: Array, dilations: Sequence[int]) -> Array:
    """A dilated kernel as a plain one with zeros in it."""
    kernel = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    spread = np.zeros((*w.shape[:2], *kernel), w.dtype)
    spread[(slice(None), slice(None), *(slice(None, None, d) for d in dilations))] = w
    return spread


def _cropped(n: Node, y: Tensor, wanted: Sequence[int]) -> Tensor:
    """What the node's pads leave of the full result; output_padding adds zeros at the end."""
    full, how = y.shape[1:-1], n.attr("auto_pad", "NOTSET")
    given, extra = n.attr("pads"), n.attr("output_padding") or []
    front = [0] * (2 - len(n.shape[2:]))  # the axis that a row was given
    begin = [0, 0]
    if how in ("SAME_UPPER", "SAME_LOWER") or n.attr("output_shape"):
        more = front + (list(extra) or [0] * len(n.shape[2:]))
        total = [max(f + e - o, 0) for f, e, o in zip(full, more, wanted, strict=True)]
        begin = [t // 2 if how == "SAME_UPPER" else t - t // 2 for t in total]
    elif given:
        begin = front + list(given[: len(given) // 2])
    around = [(-b, o + b - f) for b, o, f in zip(begin, wanted, full, strict=True)]
    return padded(n, y, [(0, 0), *around, (0, 0)])
