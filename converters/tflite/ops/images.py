"""Convolution, pooling and what else knows space: computed as N, spatial axes, C."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.lower import Node, op
from converters.tflite.ops.broadcast import emit, per_channel
from converters.tflite.ops.elementwise import Math
from converters.tflite.ops.movement import padded, picked
from converters.tflite.ops.normalising import standardised
from converters.tflite.ops.scatter import max_pool
from converters.tflite.values import channels_last, stored_shape
from edge_core.tensors import Array

SAME, VALID = 0, 1
LOWEST = float(np.finfo(np.float32).min)
Pairs = list[tuple[int, int]]


def pads(n: Node, size: Sequence[int], window: Sequence[int], strides: Sequence[int]) -> Pairs:
    """Elements before and after each spatial axis, as the node's pads or auto_pad say."""
    how = n.attr("auto_pad", "NOTSET")
    if how in ("SAME_UPPER", "SAME_LOWER"):
        pairs = _same(size, window, strides)
        return pairs if how == "SAME_UPPER" else [(b, a) for a, b in pairs]
    if how == "VALID":
        return [(0, 0)] * len(size)
    given = n.attr("pads") or [0] * 2 * len(size)
    return list(zip(given[: len(size)], given[len(size) :], strict=True))


def _same(size: Sequence[int], window: Sequence[int], strides: Sequence[int]) -> Pairs:
    """TFLite's SAME: as many outputs as strides fit, the odd element after."""
    total = [
        max((-(-d // s) - 1) * s + w - d, 0) for d, w, s in zip(size, window, strides, strict=True)
    ]
    return [(t // 2, t - t // 2) for t in total]


def _fitted(
    n: Node,
    x: Tensor,
    around: Pairs,
    window: Sequence[int],
    strides: Sequence[int],
    fill: float = 0.0,
) -> tuple[Tensor, int]:  # noqa: E501
    """The tensor, padded unless the operator's own padding is the same thing."""
    if not any(a or b for a, b in around):
        return x, VALID
    if around == _same(x.shape[1:-1], window, strides):
        return x, SAME
    return padded(n, x, [(0, 0), *around, (0, 0)], fill=fill), VALID


@op("Conv")
def _conv(n: Node) -> None:
    x, w = n.value(0), n.value(1)
    if x.dtype != np.float32:
        raise n.refusal(f"{x.dtype} convolutions are not in TFLite")
    rank = len(x.shape) - 2
    last = channels_last(rank + 2)
    kernel = w.shape[2:]
    strides = n.attr("strides") or [1] * rank
    dilations = n.attr("dilations") or [1] * rank
    window = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    around = pads(n, x.shape[2:], window, strides)
    groups, channels = int(n.attr("group", 1)), x.shape[1]
    bias = n.stored(2) if n.has(2) else n.const(np.zeros(w.shape[0]))
    tensor, out = n.stored(0, last), stored_shape(n.shape, last)
    if rank == 3:
        if groups != 1:
            raise n.refusal("TFLite has no grouped 3-D convolution")
        weights = n.place(w, (2, 3, 4, 1, 0))
        tensor, how = _fitted(n, tensor, around, window, strides)
        options = dict(zip(("stride_d", "stride_h", "stride_w"), strides, strict=True))
        options |= dict(
            zip(
                ("dilation_d_factor", "dilation_h_factor", "dilation_w_factor"),
                dilations,
                strict=True,
            )
        )  # noqa: E501
        n.give(n.emit("CONV_3D", [tensor, weights, bias], out, padding=how, **options), last)
        return
    if rank > 3:
        raise n.refusal(f"TFLite has no {rank}-D convolution")
    weights = n.place(
        w,
        (1, *range(2, rank + 2), 0)
        if w.shape[1] == 1 and groups == channels > 1
        else (0, *range(2, rank + 2), 1),
    )  # noqa: E501
    if rank == 1:
        tensor, weights = (
            _widen(n, tensor),
            n.reshaped(weights, (weights.shape[0], 1, *weights.shape[1:])),
        )  # noqa: E501
        window, strides, dilations, around = (
            [1, *window],
            [1, *strides],
            [1, *dilations],
            [(0, 0), *around],
        )  # noqa: E501
    tensor, how = _fitted(n, tensor, around, window, strides)
    wide = (out[0], 1, *out[1:]) if rank == 1 else out
    options = {
        "padding": how, "stride_h": strides[0], "stride_w": strides[1],
        "dilation_h_factor": dilations[0], "dilation_w_factor": dilations[1],
    }  # fmt: skip
    if w.shape[1] == 1 and groups == channels > 1:
        y = n.emit(
            "DEPTHWISE_CONV_2D",
            [tensor, weights, bias],
            wide,
            depth_multiplier=w.shape[0] // channels,
            **options,
        )  # noqa: E501
    else:
        y = n.emit("CONV_2D", [tensor, weights, bias], wide, **options)
    n.give(n.reshaped(y, out), last)


def _widen(n: Node, x: Tensor) -> Tensor:
    """[N, W, C] as an image of one row."""
    return n.reshaped(x, (x.shape[0], 1, *x.shape[1:]))


@op("ConvTranspose")
def _conv_transpose(n: Node) -> None:
    x, w = n.value(0), n.value(1)
    rank = len(x.shape) - 2
    if rank > 2:
        raise n.refusal(f"TFLite has no {rank}-D transposed convolution")
    groups, array = int(n.attr("group", 1)), n.constant(1, "its weight")
    last = channels_last(rank + 2)
    strides, dilations = n.attr("strides") or [1] * rank, n.attr("dilations") or [1] * rank
    array = _dilated(array, dilations)
    tensor, out = n.stored(0, last), stored_shape(n.shape, last)
    bias = n.constant(2, "its bias") if n.has(2) else np.zeros(n.shape[1], np.float32)
    if rank == 1:
        tensor, array = _widen(n, tensor), array[:, :, None]
        out, strides = (out[0], 1, *out[1:]), [1, *strides]
    each = x.shape[1] // groups
    full = [
        (d - 1) * s + k
        for d, s, k in zip(tensor.shape[1:-1], strides, array.shape[2:], strict=True)
    ]  # noqa: E501
    parts = []
    for g in range(groups):
        part = picked(
            n, tensor, [*(range(d) for d in tensor.shape[:-1]), range(g * each, (g + 1) * each)]
        )  # noqa: E501
        kernel = array[g * each : (g + 1) * each].transpose(1, 2, 3, 0)
        shape = (out[0], *full, kernel.shape[0])
        inputs = [n.ints(shape), n.const(kernel), part]
        parts.append(
            n.emit(
                "TRANSPOSE_CONV",
                inputs,
                shape,
                np.float32,
                padding=VALID,
                stride_h=strides[0],
                stride_w=strides[1],
            )
        )  # noqa: E501
    y = parts[0]
    if groups > 1:
        y = n.emit("CONCATENATION", parts, (out[0], *full, out[-1]), axis=3)
    y = _cropped(n, y, out[1:-1], rank)
    y = emit(n, "ADD", [y, n.const(bias.reshape(1, 1, 1, -1))]) if bias.any() else y
    n.give(n.reshaped(y, stored_shape(n.shape, last)), last)


def _dilated(w: Array, dilations: Sequence[int]) -> Array:
    if all(d == 1 for d in dilations):
        return w
    spread = np.zeros(
        (*w.shape[:2], *((k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True))),
        w.dtype,
    )  # noqa: E501
    spread[(slice(None), slice(None), *(slice(None, None, d) for d in dilations))] = w
    return spread


def _cropped(n: Node, y: Tensor, wanted: Sequence[int], rank: int) -> Tensor:
    """What the node's pads leave of the full result; output_padding adds zeros at the end."""
    full = y.shape[1:-1]
    how = n.attr("auto_pad", "NOTSET")
    given = n.attr("pads")
    begin = [0, 0]
    if how in ("SAME_UPPER", "SAME_LOWER") or n.attr("output_shape"):
        extra = n.attr("output_padding") or [0] * rank
        extra = [0] * (2 - rank) + list(extra)
        total = [f + e - o for f, e, o in zip(full, extra, wanted, strict=True)]
        begin = [(t - t // 2) if how == "SAME_LOWER" else t // 2 for t in total]
        if how == "NOTSET":
            begin = [t // 2 for t in total]
    elif given:
        begin = [0] * (2 - rank) + list(given[:rank])
    around = [(-b, o + b - f) for b, o, f in zip(begin, wanted, full, strict=True)]
    return padded(n, y, [(0, 0), *around, (0, 0)])


@op("MaxPool", "AveragePool", "LpPool")
def _pool(n: Node) -> None:
    v = n.value(0)
    rank = len(v.shape) - 2
    last = channels_last(rank + 2)
    kernel = n.attr("kernel_shape")
    strides, dilations = n.attr("strides") or [1] * rank, n.attr("dilations") or [1] * rank
    window = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    around = pads(n, v.shape[2:], window, strides)
    if n.op == "MaxPool" and (n.wants(1) or v.dtype != np.float32):
        max_pool(n, around)
        return
    x, out = n.stored(0, last), stored_shape(n.shape, last)
    if x.dtype != np.float32:
        raise n.refusal(f"{x.dtype} pooling is not lowered")
    # What ceil_mode reads beyond the padding.
    beyond = [
        max((o - 1) * s + w - d - a - b, 0)
        for o, s, w, d, (a, b) in zip(
            out[1:-1], strides, window, x.shape[1:-1], around, strict=True
        )
    ]
    m, p = Math(n), int(n.attr("p", 2))
    if n.op == "LpPool":
        x = m("MUL", x, x) if p == 2 else m("POW", m("ABS", x), float(p))
    padding = [(a, b + e) for (a, b), e in zip(around, beyond, strict=True)]
    average = n.op != "MaxPool"
    y = _windows(n, x, padding, kernel, strides, dilations, out, average)
    if n.op == "AveragePool":
        include = bool(n.attr("count_include_pad", 0))
        counts = _counts(x.shape[1:-1], around, beyond, kernel, strides, dilations, include)
        factor = math.prod(kernel) / counts
        if (factor != 1).any():
            y = emit(n, "MUL", [y, n.const(factor[None, ..., None])])
    elif n.op == "LpPool":
        y = m("MUL", y, float(math.prod(kernel)))
        y = m("SQRT", y) if p == 2 else m("POW", y, 1 / p)
    n.give(y, last)


def _windows(
    n: Node,
    x: Tensor,
    around: Pairs,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    out: Sequence[int],
    average: bool,
) -> Tensor:  # noqa: E501
    """The maximum of each window, or its mean with padding counted as zeros."""
    rank = len(kernel)
    fill = 0.0 if average else LOWEST
    if rank <= 2 and all(d == 1 for d in dilations):
        if rank == 1:
            x, kernel, strides, around = (
                _widen(n, x),
                [1, *kernel],
                [1, *strides],
                [(0, 0), *around],
            )
        # SAME leaves padding out of the mean, so the mean needs zeros that are really there.
        if average:
            x, how = padded(n, x, [(0, 0), *around, (0, 0)]), VALID
        else:
            x, how = _fitted(n, x, around, kernel, strides, fill)
        wide = out if rank == 2 else (out[0], 1, *out[1:])
        code = "AVERAGE_POOL_2D" if average else "MAX_POOL_2D"
        y = n.emit(
            code, [x], wide, padding=how, filter_height=kernel[0], filter_width=kernel[1],
            stride_h=strides[0], stride_w=strides[1],
        )  # fmt: skip
        return n.reshaped(y, out)
    x = padded(n, x, [(0, 0), *around, (0, 0)], fill=fill)
    # Separable: one axis after the other.
    for axis, (k, s, d, o) in enumerate(
        zip(kernel, strides, dilations, out[1:-1], strict=True), start=1
    ):  # noqa: E501
        result = None
        for i in range(k):
            spans = [range(size) for size in x.shape]
            spans[axis] = range(i * d, i * d + (o - 1) * s + 1, s)
            part = picked(n, x, spans)
            result = (
                part if result is None else emit(n, "ADD" if average else "MAXIMUM", [result, part])
            )  # noqa: E501
        assert result is not None
        x = Math(n)("MUL", result, 1 / k) if average else result
    return x


def _counts(
    size: Sequence[int],
    around: Pairs,
    beyond: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    include: bool,
) -> Array:  # noqa: E501
    """How many elements each window's mean is over."""
    per_axis = []
    for d, (a, b), e, k, s, dil in zip(
        size, around, beyond, kernel, strides, dilations, strict=True
    ):
        real = np.zeros(a + d + b + e)
        real[(0 if include else a) : (a + d + b if include else a + d)] = 1
        count = (len(real) - (k - 1) * dil - 1) // s + 1
        per_axis.append(
            np.array([real[i * s : i * s + (k - 1) * dil + 1 : dil].sum() for i in range(count)])
        )  # noqa: E501
    total = per_axis[0]
    for c in per_axis[1:]:
        total = total[..., None] * c
    return total


@op("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _global_pool(n: Node) -> None:
    v = n.value(0)
    rank = len(v.shape)
    last = channels_last(rank)
    x, at = n.stored(0, last), list(range(1, rank - 1))
    shape, m = stored_shape(n.shape, last), Math(n)
    if n.op == "GlobalLpPool":
        p = float(n.attr("p", 2))
        total = n.emit("SUM", [m("POW", m("ABS", x), p), n.ints(at)], shape, keep_dims=True)
        n.give(m("POW", total, 1 / p), last)
        return
    code = "MEAN" if n.op == "GlobalAveragePool" else "REDUCE_MAX"
    n.give(n.emit(code, [x, n.ints(at)], shape, keep_dims=True), last)


@op("BatchNormalization")
def _batch_norm(n: Node) -> None:
    if n.attr("training_mode", 0):
        raise n.refusal("training mode is not inference")
    scale, bias, mean, variance = (
        n.constant(i, "a statistic").astype(np.float64) for i in range(1, 5)
    )  # noqa: E501
    factor = scale / np.sqrt(variance + n.attr("epsilon", 1e-5))
    v = n.value(0)
    x = n.place(v, v.axes)
    y = emit(n, "MUL", [x, per_channel(n, v, factor)])
    n.give(emit(n, "ADD", [y, per_channel(n, v, bias - mean * factor)]), v.axes)


@op("InstanceNormalization")
def _instance_norm(n: Node) -> None:
    v = n.value(0)
    x = n.place(v, v.axes)
    at = [i for i, a in enumerate(v.axes) if a > 1]
    y = standardised(n, x, at, float(n.attr("epsilon", 1e-5)))
    y = emit(n, "MUL", [y, per_channel(n, v, n.constant(1, "scale"))])
    n.give(emit(n, "ADD", [y, per_channel(n, v, n.constant(2, "bias"))]), v.axes)


@op("LRN")
def _lrn(n: Node) -> None:
    size, alpha = int(n.attr("size")), float(n.attr("alpha", 1e-4))
    v, m = n.value(0), Math(n)
    last = channels_last(len(v.shape))
    x = n.stored(0, last)
    squares = padded(
        n, m("MUL", x, x), [*[(0, 0)] * (len(x.shape) - 1), ((size - 1) // 2, size // 2)]
    )  # noqa: E501
    total = None
    for i in range(size):
        spans = [*(range(d) for d in x.shape[:-1]), range(i, i + x.shape[-1])]
        part = picked(n, squares, spans)
        total = part if total is None else emit(n, "ADD", [total, part])
    assert total is not None
    base = m("ADD", m("MUL", total, alpha / size), float(n.attr("bias", 1.0)))
    n.give(m("DIV", x, m("POW", base, float(n.attr("beta", 0.75)))), last)
