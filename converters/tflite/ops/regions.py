"""RoiAlign and DeformConv: interpolated samples of an image, pooled or convolved."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node
from converters.tflite.ops.arithmetic import Math, cast
from converters.tflite.ops.broadcast import emit_broadcast
from converters.tflite.ops.movement import slice_tensor
from converters.tflite.ops.products import emit_fully_connected
from converters.tflite.ops.sampling import (
    Tap,
    linear_taps,
    place_pixels,
    read_taps,
    sum_taps,
    zero_outside,
)
from converters.tflite.values import PlacedValue, channels_last
from edge_core.tensors import Array


def lower_roi_align(node: Node) -> None:
    """Linear samples of every bin, then their mean or maximum."""
    image, rois, calc = node.value(0), node.value(1), Math(node)
    ratio = int(node.attr("sampling_ratio", 0))
    mode = node.attr("mode", "avg")
    if ratio <= 0:
        raise node.refusal(
            "sampling_ratio 0 makes the number of samples depend on the regions",
            "export it with sampling_ratio 2",
        )
    old = node.scope.opsets.get("", 16) < 16
    default = "output_half_pixel" if old else "half_pixel"
    half = node.attr("coordinate_transformation_mode", default) == "half_pixel"
    count, sizes = rois.shape[0], image.shape[2:]
    out = (int(node.attr("output_height", 1)), int(node.attr("output_width", 1)))
    box = calc("MUL", node.place(rois), float(node.attr("spatial_scale", 1.0)))
    box = calc("SUB", box, 0.5) if half else box
    axes = [_roi_taps(node, box, axis, (sizes[axis], out[axis], ratio), half) for axis in (0, 1)]
    start = calc("MUL", cast(node, node.place_input(2), np.int32), math.prod(sizes))
    start = node.reshape(start, (count, 1, 1))
    grid = node.const(np.zeros((1, out[0] * ratio, out[1] * ratio)), np.int32)
    base = emit_broadcast(node, "ADD", [start, grid])
    table = place_pixels(node, 0)
    if mode == "avg":
        samples = sum_taps(node, table, base, sizes, axes)
    else:
        parts = [read_taps(node, table, base, sizes, taps) for taps in itertools.product(*axes)]
        samples = parts[0]
        for part in parts[1:]:
            samples = emit_broadcast(node, "MAXIMUM", [samples, part])
    code = "MEAN" if mode == "avg" else "REDUCE_MAX"
    node.set_output(_pool_bins(node, samples, code, out, ratio), channels_last(4))


def _roi_taps(
    node: Node, box: Tensor, axis: int, size: tuple[int, int, int], half: bool
) -> list[Tap]:
    """The taps of all samples along the height (axis 0) or the width (1).

    ``box`` is [regions, 4] with x1, y1, x2, y2 in pixels; ``size`` the pixels of the image, the
    bins, and the samples per bin. The taps are [regions, samples, 1] or [regions, 1, samples].
    """
    calc, count, (pixels, bins, ratio) = Math(node), box.shape[0], size
    start, end = (
        slice_tensor(node, box, [0, column], [count, 1]) for column in (1 - axis, 3 - axis)
    )
    length = calc("SUB", end, start)
    length = length if half else calc("MAXIMUM", length, 1.0)
    steps = (np.arange(bins * ratio) + 0.5) / (ratio * bins)  # of the length
    places = emit_broadcast(node, "MUL", [length, node.const(steps[None])])
    places = emit_broadcast(node, "ADD", [places, start])
    inside = calc(
        "LOGICAL_AND",
        calc("GREATER_EQUAL", places, -1.0, dtype=np.bool_),
        calc("LESS_EQUAL", places, float(pixels), dtype=np.bool_),
    )
    counts = cast(node, inside, np.float32)
    places = calc("MINIMUM", calc("MAXIMUM", places, 0.0), pixels - 1.0)
    shape = (count, bins * ratio, 1) if axis == 0 else (count, 1, bins * ratio)
    return [
        (node.reshape(at, shape), node.reshape(calc("MUL", weight, counts), shape))
        for at, weight in linear_taps(node, places)
        if weight is not None
    ]


def _pool_bins(node: Node, samples: Tensor, code: str, out: tuple[int, int], ratio: int) -> Tensor:
    """[regions, samples, samples, channels] reduced to [regions, *out, channels], axis by axis."""
    count, channels = samples.shape[0], samples.shape[-1]
    for rows, rest in (
        (count * out[0], out[1] * ratio * channels),
        (count * math.prod(out), channels),
    ):
        samples = node.reshape(samples, (rows, ratio, rest))
        samples = node.emit(code, [samples, node.ints([1])], (rows, rest), keep_dims=False)
    return node.reshape(samples, (count, *out, channels))


def lower_deform_conv(node: Node) -> None:
    """Linear samples at shifted places, masked, then a product with the weights."""
    image, weight_value = node.value(0), node.value(1)
    if len(image.shape) != 4:
        raise node.refusal(f"it is lowered for images, not for {len(image.shape) - 2} axes")
    groups, parts = int(node.attr("group", 1)), int(node.attr("offset_group", 1))
    kernel, last = weight_value.shape[2:], channels_last(4)
    (batch, channels), taps, sizes = image.shape[:2], math.prod(kernel), image.shape[2:]
    offset = node.place_input(2, last)
    mask = node.place_input(4, last) if node.has_input(4) else None
    fixed = _kernel_places(node, kernel)
    table, each = place_pixels(node, 0), channels // parts
    shape, samples = (batch, *node.shape[2:], taps), []
    start = np.arange(batch) * math.prod(sizes)
    base = np.broadcast_to(start[:, None, None, None], shape)
    for group in range(parts):
        axes = []
        for i, size in enumerate(sizes):
            at = node.ints((group * taps + k) * 2 + i for k in range(taps))
            moved = node.emit("GATHER", [offset, at], shape, axis=3)
            places = emit_broadcast(node, "ADD", [moved, node.const(fixed[i])])
            axes.append(zero_outside(node, linear_taps(node, places), size))
        own = slice_tensor(node, table, [0, group * each], [table.shape[0], each])
        read = sum_taps(node, own, node.const(base, np.int32), sizes, axes)
        read = node.reshape(read, (math.prod(shape), each))
        if mask is not None:
            part = slice_tensor(node, mask, [0, 0, 0, group * taps], shape)
            part = node.reshape(part, (math.prod(shape), 1))
            read = emit_broadcast(node, "MUL", [read, part])
        samples.append(read)
    result = samples[0]
    if parts > 1:
        result = node.emit("CONCATENATION", samples, (math.prod(shape), channels), axis=1)
    result = node.reshape(result, (math.prod(shape[:-1]), taps, channels))
    node.set_output(_contract(node, result, weight_value, groups), last)


def _kernel_places(node: Node, kernel: Sequence[int]) -> list[Array]:
    """Where each tap of the kernel lies without an offset: [1, height, width, taps], per axis."""
    strides, dilations = node.attr("strides") or [1, 1], node.attr("dilations") or [1, 1]
    pads, out = node.attr("pads") or [0] * 4, node.shape[2:]
    cells = np.indices((*out, *kernel)).reshape(4, 1, *out, math.prod(kernel))
    return [
        cells[axis] * strides[axis] + cells[2 + axis] * dilations[axis] - pads[axis]
        for axis in (0, 1)
    ]


def _contract(node: Node, tensor: Tensor, weight_value: PlacedValue, groups: int) -> Tensor:
    """Samples [places, taps, channels] times the weights, plus the bias."""
    rows, taps, channels = tensor.shape
    each, outs, parts = channels // groups, weight_value.shape[0] // groups, []
    flat = node.reshape(
        node.place(weight_value, (0, 2, 3, 1)), (weight_value.shape[0], taps * each)
    )
    for group in range(groups):
        part = slice_tensor(node, tensor, [0, 0, group * each], [rows, taps, each])
        part = node.reshape(part, (rows, taps * each))
        if flat.data is not None:
            parts.append(
                emit_fully_connected(node, part, flat.data[group * outs : (group + 1) * outs])
            )
            continue
        own = slice_tensor(node, flat, [group * outs, 0], [outs, taps * each])
        options = {"adj_x": False, "adj_y": True}
        parts.append(node.emit("BATCH_MATMUL", [part, own], (rows, outs), **options))
    result = parts[0]
    if groups > 1:
        result = node.emit("CONCATENATION", parts, (rows, weight_value.shape[0]), axis=1)
    if node.has_input(3):
        result = emit_broadcast(
            node, "ADD", [result, node.reshape(node.place_input(3), (1, weight_value.shape[0]))]
        )
    return node.reshape(result, (node.shape[0], *node.shape[2:], weight_value.shape[0]))
