"""Convolution and its transpose, over N, spatial axes, C."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node
from converters.tflite.ops.broadcast import emit_broadcast
from converters.tflite.ops.movement import pad_tensor, slice_tensor
from converters.tflite.ops.window import VALID, Window, fit_padding, read_window, to_image_row
from converters.tflite.values import channels_last, memory_shape
from edge_core.tensors import Array


def lower_conv(node: Node) -> None:
    """CONV_2D, DEPTHWISE_CONV_2D or CONV_3D; a 1-D convolution is one of an image of one row."""
    image, weights = node.value(0), node.value(1)
    rank = len(image.shape) - 2
    if image.dtype != np.float32 or rank > 3:
        raise node.refusal(f"TFLite has no {rank}-D convolution of {image.dtype}")
    window = read_window(node, weights.shape[2:], image.shape[2:])
    bias = node.place_input(2) if node.has_input(2) else node.const(np.zeros(weights.shape[0]))
    last = channels_last(rank + 2)
    result = _emit_conv_3d(node, window, bias) if rank == 3 else _emit_conv_2d(node, window, bias)
    node.set_output(node.reshape(result, memory_shape(node.shape, last)), last)


def _emit_conv_2d(node: Node, window: Window, bias: Tensor) -> Tensor:
    value, weights = node.value(0), node.value(1)
    rank, groups, channels = len(value.shape) - 2, int(node.attr("group", 1)), value.shape[1]
    depthwise = groups == channels > 1
    spatial = range(2, rank + 2)
    kernel = node.place(weights, (1, *spatial, 0) if depthwise else (0, *spatial, 1))
    image = node.place_input(0, channels_last(rank + 2))
    if rank == 1:
        image = to_image_row(node, image)
        kernel = to_image_row(node, kernel)
        window = window.to_image()
    image, padding = fit_padding(node, image, window)
    shape = (node.shape[0], *((1,) if rank == 1 else ()), *node.shape[2:], node.shape[1])
    options = {
        "padding": padding, "stride_h": window.strides[0], "stride_w": window.strides[1],
        "dilation_h_factor": window.dilations[0], "dilation_w_factor": window.dilations[1],
    }  # fmt: skip
    if depthwise:
        options["depth_multiplier"] = weights.shape[0] // channels
    code = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
    return node.emit(code, [image, kernel, bias], shape, **options)


def _emit_conv_3d(node: Node, window: Window, bias: Tensor) -> Tensor:
    if int(node.attr("group", 1)) != 1:
        raise node.refusal("TFLite has no grouped 3-D convolution")
    last = channels_last(5)
    image, padding = fit_padding(node, node.place_input(0, last), window)
    options: dict[str, int] = {}
    for axis, stride, dilation in zip("dhw", window.strides, window.dilations, strict=True):
        options |= {f"stride_{axis}": stride, f"dilation_{axis}_factor": dilation}
    inputs = [image, node.place_input(1, (2, 3, 4, 1, 0)), bias]
    return node.emit("CONV_3D", inputs, memory_shape(node.shape, last), padding=padding, **options)


def lower_conv_transpose(node: Node) -> None:
    """TRANSPOSE_CONV without padding, whose result is then cropped."""
    image, weights = node.value(0), node.require_constant(1, "its weight")
    rank = len(image.shape) - 2
    if image.dtype != np.float32 or rank > 2:
        raise node.refusal(f"TFLite has no {rank}-D transposed convolution of {image.dtype}")
    bias = (
        node.require_constant(2, "its bias")
        if node.has_input(2)
        else np.zeros(node.shape[1], np.float32)
    )
    ones = [1] * rank
    strides = node.attr("strides") or ones
    weights = _spread_kernel(weights, node.attr("dilations") or ones)
    last = channels_last(rank + 2)
    tensor, size = node.place_input(0, last), node.shape[2:]
    if rank == 1:
        tensor, weights = to_image_row(node, tensor), weights[:, :, None]
        strides, size = [1, *strides], (1, *size)
    result = _crop(node, _emit_transpose_conv(node, tensor, weights, strides), size)
    if bias.any():
        result = emit_broadcast(node, "ADD", [result, node.const(bias.reshape(1, 1, 1, -1))])
    node.set_output(node.reshape(result, memory_shape(node.shape, last)), last)


def _emit_transpose_conv(
    node: Node, image: Tensor, weights: Array, strides: Sequence[int]
) -> Tensor:
    """The full result before cropping, [N, height, width, C].

    ``image`` is [N, height, width, C], ``weights`` [inputs, outputs, height, width].
    """
    groups = int(node.attr("group", 1))
    each = image.shape[-1] // groups
    sizes = zip(image.shape[1:-1], strides, weights.shape[2:], strict=True)
    full = [(size - 1) * stride + length for size, stride, length in sizes]
    shape = (image.shape[0], *full, weights.shape[1])
    options = {"padding": VALID, "stride_h": strides[0], "stride_w": strides[1]}
    parts = []
    for group in range(groups):
        part = slice_tensor(node, image, (0, 0, 0, group * each), (*image.shape[:-1], each))
        kernel = node.const(weights[group * each : (group + 1) * each].transpose(1, 2, 3, 0))
        inputs = [node.ints(shape), kernel, part]
        parts.append(node.emit("TRANSPOSE_CONV", inputs, shape, np.float32, **options))
    if groups == 1:
        return parts[0]
    return node.emit("CONCATENATION", parts, (*shape[:-1], shape[-1] * groups), axis=3)


def _spread_kernel(weights: Array, dilations: Sequence[int]) -> Array:
    """A dilated kernel as a dense one with zeros between its elements."""
    kernel = [
        (length - 1) * dilation + 1
        for length, dilation in zip(weights.shape[2:], dilations, strict=True)
    ]
    spread = np.zeros((*weights.shape[:2], *kernel), weights.dtype)
    spread[(slice(None), slice(None), *(slice(None, None, dilation) for dilation in dilations))] = (
        weights
    )
    return spread


def _crop(node: Node, tensor: Tensor, sizes: Sequence[int]) -> Tensor:
    """The full result cropped by the node's pads; output_padding adds zeros at the end."""
    full, how = tensor.shape[1:-1], node.attr("auto_pad", "NOTSET")
    pads, extra = node.attr("pads"), node.attr("output_padding") or []
    front = [0] * (2 - len(node.shape[2:]))  # the height of an image of one row
    begin = [0, 0]
    if how in ("SAME_UPPER", "SAME_LOWER") or node.attr("output_shape"):
        more = front + (list(extra) or [0] * len(node.shape[2:]))
        total = [
            max(whole + added - new, 0) for whole, added, new in zip(full, more, sizes, strict=True)
        ]
        begin = [
            surplus // 2 if how == "SAME_UPPER" else surplus - surplus // 2 for surplus in total
        ]
    elif pads:
        begin = front + list(pads[: len(pads) // 2])
    around = [
        (-before, new + before - whole)
        for before, new, whole in zip(begin, sizes, full, strict=True)
    ]
    return pad_tensor(node, tensor, [(0, 0), *around, (0, 0)])
