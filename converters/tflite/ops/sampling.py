"""Operators that read an image at places computed at run time: GATHER and weights.

An image is a table of rows, one for each pixel, with a column for each channel. Along each axis a
place becomes taps: a whole index and what it counts; the taps of all axes are multiplied out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node, op
from converters.tflite.ops.arithmetic import Math, cast
from converters.tflite.ops.broadcast import emit
from converters.tflite.ops.movement import sliced
from converters.tflite.ops.products import fully_connected
from converters.tflite.values import channels_last

Tap = tuple[Tensor, Tensor | None]  # a whole number as float, and its weight; None: 1
CUBIC_A = -0.75
REACH = 3.0  # pixels
MAX_DET = 4


def pixels(n: Node, index: int) -> Tensor:
    """[pixels, channels] of an image input."""
    shape = n.value(index).shape
    image = n.stored(index, channels_last(len(shape)))
    return n.reshaped(image, (shape[0] * math.prod(shape[2:]), shape[1]))


def read(n: Node, table: Tensor, base: Tensor, sizes: Sequence[int], taps: Sequence[Tap]) -> Tensor:
    """Rows of ``table`` at one tap per axis, times the weights: [*places, channels]."""
    m, row, weight = Math(n), base, None
    for i, (size, (at, count)) in enumerate(zip(sizes, taps, strict=True)):
        inside = cast(n, m("MINIMUM", m("MAXIMUM", at, 0.0), float(size - 1)), np.int32)
        step = math.prod(sizes[i + 1 :])
        row = emit(n, "ADD", [row, m("MUL", inside, step) if step != 1 else inside])
        if count is not None:
            weight = count if weight is None else emit(n, "MUL", [weight, count])
    places, channels = math.prod(row.shape), table.shape[1]
    rows = n.emit("GATHER", [table, n.reshaped(row, (places,))], (places, channels), axis=0)
    if weight is not None:
        if weight.shape != row.shape:
            weight = emit(n, "MUL", [weight, n.const(np.ones((1,) * len(row.shape)))])
        rows = emit(n, "MUL", [rows, n.reshaped(weight, (places, 1))])
    return n.reshaped(rows, (*row.shape, channels))


def total(
    n: Node, table: Tensor, base: Tensor, sizes: Sequence[int], axes: Sequence[Sequence[Tap]]
) -> Tensor:
    """The sum over every combination of the axes' taps."""
    result: Tensor | None = None
    for taps in itertools.product(*axes):
        part = read(n, table, base, sizes, taps)
        result = part if result is None else emit(n, "ADD", [result, part])
    assert result is not None
    return result


def linear_taps(n: Node, x: Tensor) -> list[Tap]:
    """The two neighbours of ``x``."""
    m = Math(n)
    low = m("FLOOR", x)
    high_part = m("SUB", x, low)
    return [(low, m("SUB", 1.0, high_part)), (m("ADD", low, 1.0), high_part)]


def _cubic_taps(n: Node, x: Tensor) -> list[Tap]:
    m, a = Math(n), CUBIC_A
    low = m("FLOOR", x)
    t = m("SUB", x, low)

    def near(d: Tensor) -> Tensor:  # ((a + 2) d - (a + 3)) d d + 1
        inner = m("SUB", m("MUL", d, a + 2), a + 3)
        return m("ADD", m("MUL", m("MUL", inner, d), d), 1.0)

    def far(d: Tensor) -> Tensor:  # ((a d - 5 a) d + 8 a) d - 4 a
        inner = m("ADD", m("MUL", m("SUB", m("MUL", d, a), 5 * a), d), 8 * a)
        return m("SUB", m("MUL", inner, d), 4 * a)

    u = m("SUB", 1.0, t)
    weights = far(m("ADD", t, 1.0)), near(t), near(u), far(m("ADD", u, 1.0))
    return [(m("ADD", low, float(i - 1)), w) for i, w in enumerate(weights)]


def zeros_outside(n: Node, taps: Sequence[Tap], size: int) -> list[Tap]:
    """Taps outside the image count nothing."""
    m, found = Math(n), list[Tap]()
    for at, weight in taps:
        inside = m(
            "LOGICAL_AND",
            m("GREATER_EQUAL", at, 0.0, dtype=np.bool_),
            m("LESS_EQUAL", at, float(size - 1), dtype=np.bool_),
        )
        counts = cast(n, inside, np.float32)
        found.append((at, counts if weight is None else m("MUL", weight, counts)))
    return found


@op("GridSample")
def _grid_sample(n: Node) -> None:
    v, grid = n.value(0), n.value(1)
    sizes, corners = v.shape[2:], bool(n.attr("align_corners", 0))
    mode, padding = n.attr("mode", "linear"), n.attr("padding_mode", "zeros")
    functions: dict[str, Callable[[Node, Tensor], list[Tap]]] = {
        "nearest": lambda n, x: [(Math(n)("ROUND", x), None)], "linear": linear_taps,
        "bilinear": linear_taps, "cubic": _cubic_taps, "bicubic": _cubic_taps,
    }  # fmt: skip
    if mode not in functions or padding not in ("zeros", "border", "reflection"):
        raise n.refusal(f"mode '{mode}' with padding '{padding}' is unknown")
    m, rank = Math(n), len(sizes)
    where, count = n.place(grid), math.prod(grid.shape[:-1])
    where = n.reshaped(where, (count, rank))
    axes = []
    for i, size in enumerate(sizes):
        # The last coordinate is that of the first axis.
        x = n.reshaped(sliced(n, where, [0, rank - 1 - i], [count, 1]), (count,))
        scale = (size - 1) / 2 if corners else size / 2
        x = m("ADD", m("MUL", x, scale), (size - 1) / 2)
        if mode == "nearest":
            x = m("ROUND", x)
        low, high = (0.0, size - 1.0) if corners else (-0.5, size - 0.5)
        if padding == "reflection":
            x = _reflected(n, x, low, high)
        else:  # farther out than any tap reaches, all places are the same
            x = m("MINIMUM", m("MAXIMUM", x, -REACH), size - 1 + REACH)
        taps = functions[mode](n, x)
        if padding == "zeros":
            taps = zeros_outside(n, taps, size)
        elif padding == "reflection" and _cubic_taps is functions[mode]:
            taps = [(_reflected(n, at, low, high), w) for at, w in taps]
        axes.append(taps)
    base = np.repeat(np.arange(v.shape[0]) * math.prod(sizes), count // v.shape[0])
    y = total(n, pixels(n, 0), n.const(base, np.int32), sizes, axes)
    last = channels_last(len(n.shape))
    n.give(n.reshaped(y, (v.shape[0], *grid.shape[1:-1], v.shape[1])), last)


def _reflected(n: Node, x: Tensor, low: float, high: float) -> Tensor:
    """Places beyond a border come back as from a mirror."""
    m, span = Math(n), high - low
    if not span:
        return m("MUL", x, 0.0)
    rest = m("FLOOR_MOD", m("ABS", m("SUB", x, low)), 2 * span)
    return m("ADD", m("MINIMUM", rest, m("SUB", 2 * span, rest)), low)


@op("AffineGrid")
def _affine_grid(n: Node) -> None:
    size = [int(d) for d in n.constant(1, "size")]
    batch, spatial = size[0], size[2:]
    lines = [
        np.linspace(-1, 1, d) if n.attr("align_corners", 0) else (2 * np.arange(d) + 1) / d - 1
        for d in spatial
    ]
    points = np.meshgrid(*lines, indexing="ij")
    table = np.stack([*points[::-1], np.ones(spatial)], -1).reshape(-1, len(spatial) + 1)
    theta = n.reshaped(n.place(n.value(0)), (batch * len(spatial), len(spatial) + 1))
    y = n.reshaped(fully_connected(n, theta, table), (batch, len(spatial), len(table)))
    y = n.emit("TRANSPOSE", [y, n.ints([0, 2, 1])], (batch, len(table), len(spatial)))
    n.give(n.reshaped(y, n.shape))


@op("Det")
def _det(n: Node) -> None:
    v, size = n.value(0), n.value(0).shape[-1]
    if size > MAX_DET:
        raise n.refusal(f"it is lowered up to {MAX_DET} x {MAX_DET}, not {size} x {size}")
    count = math.prod(v.shape[:-2])
    x, m = n.reshaped(n.place(v), (count, size * size)), Math(n)

    def minor(row: int, columns: tuple[int, ...]) -> Tensor | None:
        result: Tensor | None = None
        for i, c in enumerate(columns):
            term = sliced(n, x, [0, row * size + c], [count, 1])
            below = minor(row + 1, columns[:i] + columns[i + 1 :])
            term = term if below is None else m("MUL", term, below)
            result = term if result is None else m("SUB" if i % 2 else "ADD", result, term)
        return result

    y = minor(0, tuple(range(size)))
    assert y is not None
    n.give(n.reshaped(y, n.shape))
