"""RoiAlign and DeformConv: interpolated samples of an image, pooled or convolved."""

from __future__ import annotations

import itertools
import math

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node
from converters.tflite.ops.arithmetic import Math, cast
from converters.tflite.ops.broadcast import emit_broadcast
from converters.tflite.ops.movement import slice_tensor
from converters.tflite.ops.products import emit_fully_connected
from converters.tflite.ops.sampling import (
    linear_taps,
    place_pixels,
    read_taps,
    sum_taps,
    zero_outside,
)
from converters.tflite.values import PlacedValue, channels_last


def lower_roi_align(node: Node) -> None:
    """Linear samples of every bin, then their mean or maximum."""
    image, rois, calc = node.value(0), node.value(1), Math(node)
    ratio = int(node.attr("sampling_ratio", 0))
    mode = node.attr("mode", "avg")
    count = rois.shape[0]
    if ratio <= 0:
        raise node.refusal(
            "sampling_ratio 0 makes the number of samples depend on the regions",
            "export it with sampling_ratio 2",
        )
    old = node.scope.opsets.get("", 16) < 16
    half = (
        node.attr("coordinate_transformation_mode", "output_half_pixel" if old else "half_pixel")
        == "half_pixel"
    )
    sizes = image.shape[2:]
    out = (int(node.attr("output_height", 1)), int(node.attr("output_width", 1)))
    box = calc("MUL", node.place(rois), float(node.attr("spatial_scale", 1.0)))
    box = calc("SUB", box, 0.5) if half else box
    axes = []
    for i, (size, bins) in enumerate(zip(sizes, out, strict=True)):
        start, end = (slice_tensor(node, box, [0, column], [count, 1]) for column in (1 - i, 3 - i))
        length = calc("SUB", end, start)
        length = length if half else calc("MAXIMUM", length, 1.0)
        steps = (np.arange(bins * ratio) + 0.5) / (ratio * bins)  # of the length
        places = emit_broadcast(
            node, "ADD", [emit_broadcast(node, "MUL", [length, node.const(steps[None])]), start]
        )
        inside = calc(
            "LOGICAL_AND",
            calc("GREATER_EQUAL", places, -1.0, dtype=np.bool_),
            calc("LESS_EQUAL", places, float(size), dtype=np.bool_),
        )
        counts = cast(node, inside, np.float32)
        places = calc("MINIMUM", calc("MAXIMUM", places, 0.0), size - 1.0)
        wide = (count, -1, 1) if i == 0 else (count, 1, -1)
        shape = tuple(bins * ratio if extent < 0 else extent for extent in wide)
        axes.append([
            (node.reshape(at, shape), node.reshape(calc("MUL", weight, counts), shape))
            for at, weight in linear_taps(node, places) if weight is not None
        ])  # fmt: skip
    base = calc("MUL", cast(node, node.place_input(2), np.int32), math.prod(sizes))
    base = emit_broadcast(
        node,
        "ADD",
        [
            node.reshape(base, (count, 1, 1)),
            node.const(np.zeros((1, out[0] * ratio, out[1] * ratio)), np.int32),
        ],
    )
    table = place_pixels(node, 0)
    if mode == "avg":
        result = sum_taps(node, table, base, sizes, axes)
    else:
        parts = [read_taps(node, table, base, sizes, taps) for taps in itertools.product(*axes)]
        result = parts[0]
        for part in parts[1:]:
            result = emit_broadcast(node, "MAXIMUM", [result, part])
    channels, code = image.shape[1], "MEAN" if mode == "avg" else "REDUCE_MAX"
    for rows, rest in (
        (count * out[0], out[1] * ratio * channels),
        (count * math.prod(out), channels),
    ):
        result = node.reshape(result, (rows, ratio, rest))
        result = node.emit(code, [result, node.ints([1])], (rows, rest), keep_dims=False)
    node.set_output(node.reshape(result, (count, *out, channels)), channels_last(4))


def lower_deform_conv(node: Node) -> None:
    """Linear samples at shifted places, masked, then a product with the weights."""
    image, weight_value = node.value(0), node.value(1)
    if len(image.shape) != 4:
        raise node.refusal(f"it is lowered for images, not for {len(image.shape) - 2} axes")
    groups, parts = int(node.attr("group", 1)), int(node.attr("offset_group", 1))
    strides, dilations = node.attr("strides") or [1, 1], node.attr("dilations") or [1, 1]
    pads = node.attr("pads") or [0] * 4
    out = node.shape[2:]
    kernel = weight_value.shape[2:]
    last = channels_last(4)
    (batch, channels), taps, sizes = image.shape[:2], math.prod(kernel), image.shape[2:]
    offset = node.place_input(2, last)
    mask = node.place_input(4, last) if node.has_input(4) else None
    # Where each tap of the kernel lies without an offset: [1, height, width, taps], per axis.
    cells = np.indices((*out, *kernel)).reshape(4, 1, *out, taps)
    fixed = [
        cells[axis] * strides[axis] + cells[2 + axis] * dilations[axis] - pads[axis]
        for axis in (0, 1)
    ]
    area, table, each = math.prod(sizes), place_pixels(node, 0), channels // parts
    base = np.broadcast_to((np.arange(batch) * area)[:, None, None, None], (batch, *out, taps))
    shape, samples = (batch, *out, taps), []
    for group in range(parts):
        axes = []
        for i, size in enumerate(sizes):
            at = node.ints((group * taps + k) * 2 + i for k in range(taps))
            places = emit_broadcast(
                node,
                "ADD",
                [node.emit("GATHER", [offset, at], shape, axis=3), node.const(fixed[i])],
            )
            axes.append(zero_outside(node, linear_taps(node, places), size))
        own = slice_tensor(node, table, [0, group * each], [table.shape[0], each])
        result = node.reshape(
            sum_taps(node, own, node.const(base, np.int32), sizes, axes), (math.prod(shape), each)
        )
        if mask is not None:
            part = slice_tensor(node, mask, [0, 0, 0, group * taps], shape)
            result = emit_broadcast(
                node, "MUL", [result, node.reshape(part, (math.prod(shape), 1))]
            )
        samples.append(result)
    result = (
        samples[0]
        if parts == 1
        else node.emit("CONCATENATION", samples, (samples[0].shape[0], channels), axis=1)
    )
    node.set_output(
        _contract(
            node,
            node.reshape(result, (batch * math.prod(out), taps, channels)),
            weight_value,
            groups,
        ),
        last,
    )


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
