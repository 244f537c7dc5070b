"""Operators that bring values to a mean of 0, a deviation of 1 or a norm of 1."""

from __future__ import annotations

import math

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node, op
from converters.tflite.ops.broadcast import emit, widened
from converters.tflite.ops.elementwise import Math
from converters.tflite.ops.movement import reshaped
from converters.tflite.values import Axes, Value

TINY = float(np.finfo(np.float32).tiny)


def standardised(n: Node, x: Tensor, at: list[int], epsilon: float) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) over the axes ``at`` of the tensor."""
    return standardised_with(n, x, at, epsilon)[0]


def standardised_with(
    n: Node, x: Tensor, at: list[int], epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, with the mean and 1 / sqrt(variance + epsilon)."""
    m = Math(n)
    mean = _mean(n, x, at)
    centred = emit(n, "SUB", [x, mean])
    variance = _mean(n, m("MUL", centred, centred), at)
    inverse = m("RSQRT", m("ADD", variance, epsilon))
    return emit(n, "MUL", [centred, inverse]), mean, inverse


def _mean(n: Node, x: Tensor, at: list[int]) -> Tensor:
    shape = [1 if i in at else d for i, d in enumerate(x.shape)]
    return n.emit("MEAN", [x, n.ints(at)], shape, keep_dims=True)


def _float(n: Node) -> Value:
    v = n.value(0)
    if v.dtype != np.float32:
        raise n.refusal(f"{v.dtype} is not lowered")
    return v


def _applied(n: Node, y: Tensor, code: str, index: int, axes: Axes) -> Tensor:
    """``y`` with an input that broadcasts with its last axes, if that input is there."""
    if not n.has(index):
        return y
    wide = widened(n, n.value(index), len(axes))
    return emit(n, code, [y, n.place(wide, axes)])


def _from(n: Node, v: Value) -> list[int]:
    """Where the axes from the attribute ``axis`` on lie in memory."""
    first = int(n.attr("axis", -1)) % len(v.shape)
    return [i for i, a in enumerate(v.axes) if a >= first]


@op("LayerNormalization")
def _layer_norm(n: Node) -> None:
    v = _float(n)
    epsilon = float(n.attr("epsilon", 1e-5))
    y, mean, inverse = standardised_with(n, n.place(v, v.axes), _from(n, v), epsilon)
    y = _applied(n, y, "MUL", 1, v.axes)
    n.give(_applied(n, y, "ADD", 2, v.axes), v.axes)
    for i, tensor in ((1, mean), (2, inverse)):
        if n.wants(i):
            n.give(tensor, v.axes, i)


@op("RMSNormalization")
def _rms_norm(n: Node) -> None:
    v, m = _float(n), Math(n)
    x = n.place(v, v.axes)
    square = _mean(n, m("MUL", x, x), _from(n, v))
    y = emit(n, "MUL", [x, m("RSQRT", m("ADD", square, float(n.attr("epsilon", 1e-5))))])
    n.give(_applied(n, y, "MUL", 1, v.axes), v.axes)


@op("LpNormalization")
def _lp_norm(n: Node) -> None:
    v, m = _float(n), Math(n)
    at = v.axes.index(int(n.attr("axis", -1)) % len(v.shape))
    x, p = n.place(v, v.axes), int(n.attr("p", 2))
    if p not in (1, 2):
        raise n.refusal(f"p is {p}, not 1 or 2")
    size = m("ABS", x) if p == 1 else m("MUL", x, x)
    shape = [1 if i == at else d for i, d in enumerate(x.shape)]
    norm = n.emit("SUM", [size, n.ints([at])], shape, keep_dims=True)
    norm = norm if p == 1 else m("SQRT", norm)
    # Nothing but zeros has the norm 0, and stays zeros.
    n.give(emit(n, "DIV", [x, m("MAXIMUM", norm, TINY)]), v.axes)


@op("MeanVarianceNormalization")
def _mean_variance(n: Node) -> None:
    v, m = _float(n), Math(n)
    axes = [int(a) % len(v.shape) for a in n.attr("axes") or (0, 2, 3)]
    at = [i for i, a in enumerate(v.axes) if a in axes]
    x = n.place(v, v.axes)
    centred = emit(n, "SUB", [x, _mean(n, x, at)])
    deviation = m("SQRT", _mean(n, m("MUL", centred, centred), at))
    n.give(emit(n, "DIV", [centred, m("ADD", deviation, 1e-9)]), v.axes)


@op("GroupNormalization")
def _group_norm(n: Node) -> None:
    v = _float(n)
    batch, channels, *spatial = v.shape
    groups = int(n.attr("num_groups"))
    each = channels // groups
    split = reshaped(n, v, (batch, groups, each, math.prod(spatial)))
    at = [i for i, a in enumerate(split.axes) if a > 1]
    epsilon = float(n.attr("epsilon", 1e-5))
    y = standardised(n, n.place(split, split.axes), at, epsilon)
    for i, code in ((1, "MUL"), (2, "ADD")):
        # Up to opset 20 a scale for each group, then one for each channel.
        given = n.value(i)
        wide = (1, groups, given.shape[0] // groups, 1)
        y = emit(n, code, [y, n.place(reshaped(n, given, wide), split.axes)])
    made = Value(split.shape, v.dtype, y, split.axes)
    n.give_value(reshaped(n, made, v.shape))
