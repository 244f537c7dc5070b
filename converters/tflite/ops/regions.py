"""RoiAlign and DeformConv: pixels read between pixels, and what is computed of them."""

from __future__ import annotations

import itertools
import math

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node, op
from converters.tflite.ops.arithmetic import Math, cast
from converters.tflite.ops.broadcast import emit
from converters.tflite.ops.movement import sliced
from converters.tflite.ops.products import fully_connected
from converters.tflite.ops.sampling import linear_taps, pixels, read, total, zeros_outside
from converters.tflite.values import Value, channels_last


@op("RoiAlign")
def _roi_align(n: Node) -> None:
    v, rois, m = n.value(0), n.value(1), Math(n)
    ratio, mode, count = int(n.attr("sampling_ratio", 0)), n.attr("mode", "avg"), rois.shape[0]
    if ratio <= 0:
        raise n.refusal(
            "sampling_ratio 0 makes the number of samples depend on the regions",
            "export it with sampling_ratio 2",
        )
    old = n.scope.opsets.get("", 16) < 16
    half = (
        n.attr("coordinate_transformation_mode", "output_half_pixel" if old else "half_pixel")
        == "half_pixel"
    )
    sizes, out = v.shape[2:], (int(n.attr("output_height", 1)), int(n.attr("output_width", 1)))
    box = m("MUL", n.place(rois), float(n.attr("spatial_scale", 1.0)))
    box = m("SUB", box, 0.5) if half else box
    axes = []
    for i, (size, bins) in enumerate(zip(sizes, out, strict=True)):
        start, end = (sliced(n, box, [0, c], [count, 1]) for c in (1 - i, 3 - i))
        length = m("SUB", end, start)
        length = length if half else m("MAXIMUM", length, 1.0)
        steps = (np.arange(bins * ratio) + 0.5) / (ratio * bins)  # of the length
        x = emit(n, "ADD", [emit(n, "MUL", [length, n.const(steps[None])]), start])
        inside = m(
            "LOGICAL_AND",
            m("GREATER_EQUAL", x, -1.0, dtype=np.bool_),
            m("LESS_EQUAL", x, float(size), dtype=np.bool_),
        )
        counts = cast(n, inside, np.float32)
        x = m("MINIMUM", m("MAXIMUM", x, 0.0), size - 1.0)
        wide = (count, -1, 1) if i == 0 else (count, 1, -1)
        shape = tuple(bins * ratio if d < 0 else d for d in wide)
        axes.append([
            (n.reshaped(at, shape), n.reshaped(m("MUL", w, counts), shape))
            for at, w in linear_taps(n, x) if w is not None
        ])  # fmt: skip
    base = m("MUL", cast(n, n.stored(2), np.int32), math.prod(sizes))
    base = emit(
        n,
        "ADD",
        [
            n.reshaped(base, (count, 1, 1)),
            n.const(np.zeros((1, out[0] * ratio, out[1] * ratio)), np.int32),
        ],
    )
    table = pixels(n, 0)
    if mode == "avg":
        y = total(n, table, base, sizes, axes)
    else:
        parts = [read(n, table, base, sizes, taps) for taps in itertools.product(*axes)]
        y = parts[0]
        for part in parts[1:]:
            y = emit(n, "MAXIMUM", [y, part])
    channels, code = v.shape[1], "MEAN" if mode == "avg" else "REDUCE_MAX"
    for rows, rest in (
        (count * out[0], out[1] * ratio * channels),
        (count * math.prod(out), channels),
    ):
        y = n.reshaped(y, (rows, ratio, rest))
        y = n.emit(code, [y, n.ints([1])], (rows, rest), keep_dims=False)
    n.give(n.reshaped(y, (count, *out, channels)), channels_last(4))


@op("DeformConv")
def _deform_conv(n: Node) -> None:
    v, w = n.value(0), n.value(1)
    if len(v.shape) != 4:
        raise n.refusal(f"it is lowered for images, not for {len(v.shape) - 2} axes")
    groups, parts = int(n.attr("group", 1)), int(n.attr("offset_group", 1))
    strides, dilations = n.attr("strides") or [1, 1], n.attr("dilations") or [1, 1]
    pads, out, kernel, last = n.attr("pads") or [0] * 4, n.shape[2:], w.shape[2:], channels_last(4)
    (batch, channels), taps, sizes = v.shape[:2], math.prod(kernel), v.shape[2:]
    offset = n.stored(2, last)
    mask = n.stored(4, last) if n.has(4) else None
    # Where each tap of the kernel lies without an offset: [1, height, width, taps], per axis.
    cells = np.indices((*out, *kernel)).reshape(4, 1, *out, taps)
    fixed = [cells[i] * strides[i] + cells[2 + i] * dilations[i] - pads[i] for i in (0, 1)]
    area, table, each = math.prod(sizes), pixels(n, 0), channels // parts
    base = np.broadcast_to((np.arange(batch) * area)[:, None, None, None], (batch, *out, taps))
    shape, samples = (batch, *out, taps), []
    for g in range(parts):
        axes = []
        for i, size in enumerate(sizes):
            at = n.ints((g * taps + k) * 2 + i for k in range(taps))
            x = emit(n, "ADD", [n.emit("GATHER", [offset, at], shape, axis=3), n.const(fixed[i])])
            axes.append(zeros_outside(n, linear_taps(n, x), size))
        own = sliced(n, table, [0, g * each], [table.shape[0], each])
        y = n.reshaped(
            total(n, own, n.const(base, np.int32), sizes, axes), (math.prod(shape), each)
        )
        if mask is not None:
            part = sliced(n, mask, [0, 0, 0, g * taps], shape)
            y = emit(n, "MUL", [y, n.reshaped(part, (math.prod(shape), 1))])
        samples.append(y)
    y = (
        samples[0]
        if parts == 1
        else n.emit("CONCATENATION", samples, (samples[0].shape[0], channels), axis=1)
    )
    n.give(_contracted(n, n.reshaped(y, (batch * math.prod(out), taps, channels)), w, groups), last)


def _contracted(n: Node, x: Tensor, w: Value, groups: int) -> Tensor:
    """Samples [places, taps, channels] times the weights, plus the bias."""
    rows, taps, channels = x.shape
    each, outs, found = channels // groups, w.shape[0] // groups, []
    flat = n.reshaped(n.place(w, (0, 2, 3, 1)), (w.shape[0], taps * each))
    for g in range(groups):
        part = sliced(n, x, [0, 0, g * each], [rows, taps, each])
        part = n.reshaped(part, (rows, taps * each))
        if flat.data is not None:
            found.append(fully_connected(n, part, flat.data[g * outs : (g + 1) * outs]))
            continue
        own = sliced(n, flat, [g * outs, 0], [outs, taps * each])
        options = {"adj_x": False, "adj_y": True}
        found.append(n.emit("BATCH_MATMUL", [part, own], (rows, outs), **options))
    y = found[0]
    if groups > 1:
        y = n.emit("CONCATENATION", found, (rows, w.shape[0]), axis=1)
    if n.has(3):
        y = emit(n, "ADD", [y, n.reshaped(n.stored(3), (1, w.shape[0]))])
    return n.reshaped(y, (n.shape[0], *n.shape[2:], w.shape[0]))
