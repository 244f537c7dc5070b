"""Operators that read an image at coordinates computed at run time: GATHER and weights.

An image is a table with a row per pixel and a column per channel. Along each axis a coordinate
becomes taps, each a whole index and its weight; the taps of all axes are combined.
"""

# structure: mathematics: a, t, u and d are the symbols of the cubic convolution kernel

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node
from converters.tflite.ops.arithmetic import Math, cast
from converters.tflite.ops.broadcast import emit_broadcast
from converters.tflite.ops.movement import slice_tensor
from converters.tflite.ops.products import emit_fully_connected
from converters.tflite.values import channels_last

Tap = tuple[Tensor, Tensor | None]  # a whole number as float, and its weight; None: 1
CUBIC_A = -0.75
REACH = 3.0  # pixels
MAX_DET = 4


def place_pixels(node: Node, index: int) -> Tensor:
    """[pixels, channels] of an image input [N, C, spatial axes]."""
    shape = node.value(index).shape
    image = node.place_input(index, channels_last(len(shape)))
    return node.reshape(image, (shape[0] * math.prod(shape[2:]), shape[1]))


def read_taps(
    node: Node, table: Tensor, base: Tensor, sizes: Sequence[int], taps: Sequence[Tap]
) -> Tensor:
    """Rows of ``table`` at one tap per axis, times the weights: [*places, channels].

    ``base`` [*places] is the row at which each image starts, ``sizes`` are the spatial sizes.
    """
    calc, row, weight = Math(node), base, None
    for i, (size, (at, count)) in enumerate(zip(sizes, taps, strict=True)):
        inside = cast(node, calc("MINIMUM", calc("MAXIMUM", at, 0.0), float(size - 1)), np.int32)
        step = math.prod(sizes[i + 1 :])
        row = emit_broadcast(node, "ADD", [row, calc("MUL", inside, step) if step != 1 else inside])
        if count is not None:
            weight = count if weight is None else emit_broadcast(node, "MUL", [weight, count])
    places, channels = math.prod(row.shape), table.shape[1]
    rows = node.emit("GATHER", [table, node.reshape(row, (places,))], (places, channels), axis=0)
    if weight is not None:
        if weight.shape != row.shape:
            weight = emit_broadcast(
                node, "MUL", [weight, node.const(np.ones((1,) * len(row.shape)))]
            )
        rows = emit_broadcast(node, "MUL", [rows, node.reshape(weight, (places, 1))])
    return node.reshape(rows, (*row.shape, channels))


def sum_taps(
    node: Node, table: Tensor, base: Tensor, sizes: Sequence[int], axes: Sequence[Sequence[Tap]]
) -> Tensor:
    """The sum of read_taps() over every combination of the axes' taps: [*places, channels]."""
    result: Tensor | None = None
    for taps in itertools.product(*axes):
        part = read_taps(node, table, base, sizes, taps)
        result = part if result is None else emit_broadcast(node, "ADD", [result, part])
    assert result is not None
    return result


def _nearest_tap(node: Node, places: Tensor) -> list[Tap]:
    return [(Math(node)("ROUND", places), None)]


def linear_taps(node: Node, tensor: Tensor) -> list[Tap]:
    """The two pixels around each place, [places] or any other shape, with linear weights."""
    calc = Math(node)
    low = calc("FLOOR", tensor)
    high_part = calc("SUB", tensor, low)
    return [(low, calc("SUB", 1.0, high_part)), (calc("ADD", low, 1.0), high_part)]


def _cubic_taps(node: Node, tensor: Tensor) -> list[Tap]:
    calc, a = Math(node), CUBIC_A
    low = calc("FLOOR", tensor)
    t = calc("SUB", tensor, low)

    def near(d: Tensor) -> Tensor:  # ((a + 2) d - (a + 3)) d d + 1
        inner = calc("SUB", calc("MUL", d, a + 2), a + 3)
        return calc("ADD", calc("MUL", calc("MUL", inner, d), d), 1.0)

    def far(d: Tensor) -> Tensor:  # ((a d - 5 a) d + 8 a) d - 4 a
        inner = calc("ADD", calc("MUL", calc("SUB", calc("MUL", d, a), 5 * a), d), 8 * a)
        return calc("SUB", calc("MUL", inner, d), 4 * a)

    u = calc("SUB", 1.0, t)
    weights = far(calc("ADD", t, 1.0)), near(t), near(u), far(calc("ADD", u, 1.0))
    return [(calc("ADD", low, float(i - 1)), weight) for i, weight in enumerate(weights)]


def zero_outside(node: Node, taps: Sequence[Tap], size: int) -> list[Tap]:
    """The taps with weight 0 where they lie outside 0..size - 1."""
    calc, kept = Math(node), list[Tap]()
    for at, weight in taps:
        inside = calc(
            "LOGICAL_AND",
            calc("GREATER_EQUAL", at, 0.0, dtype=np.bool_),
            calc("LESS_EQUAL", at, float(size - 1), dtype=np.bool_),
        )
        counts = cast(node, inside, np.float32)
        kept.append((at, counts if weight is None else calc("MUL", weight, counts)))
    return kept


def lower_grid_sample(node: Node) -> None:
    """Taps along each axis, from coordinates of -1 to 1."""
    value, grid = node.value(0), node.value(1)
    sizes, corners = value.shape[2:], bool(node.attr("align_corners", 0))
    mode, padding = node.attr("mode", "linear"), node.attr("padding_mode", "zeros")
    functions: dict[str, Callable[[Node, Tensor], list[Tap]]] = {
        "nearest": _nearest_tap, "linear": linear_taps,
        "bilinear": linear_taps, "cubic": _cubic_taps, "bicubic": _cubic_taps,
    }  # fmt: skip
    if mode not in functions or padding not in ("zeros", "border", "reflection"):
        raise node.refusal(f"mode '{mode}' with padding '{padding}' is unknown")
    calc, rank = Math(node), len(sizes)
    where, count = node.place(grid), math.prod(grid.shape[:-1])
    where = node.reshape(where, (count, rank))
    axes = []
    for i, size in enumerate(sizes):
        # The first axis has the last coordinate.
        places = node.reshape(slice_tensor(node, where, [0, rank - 1 - i], [count, 1]), (count,))
        scale = (size - 1) / 2 if corners else size / 2
        places = calc("ADD", calc("MUL", places, scale), (size - 1) / 2)
        if mode == "nearest":
            places = calc("ROUND", places)
        low, high = (0.0, size - 1.0) if corners else (-0.5, size - 0.5)
        if padding == "reflection":
            places = _reflect(node, places, low, high)
        else:  # farther out than any tap reaches, all coordinates are equivalent
            places = calc("MINIMUM", calc("MAXIMUM", places, -REACH), size - 1 + REACH)
        taps = functions[mode](node, places)
        if padding == "zeros":
            taps = zero_outside(node, taps, size)
        elif padding == "reflection" and _cubic_taps is functions[mode]:
            taps = [(_reflect(node, at, low, high), weight) for at, weight in taps]
        axes.append(taps)
    base = np.repeat(np.arange(value.shape[0]) * math.prod(sizes), count // value.shape[0])
    result = sum_taps(node, place_pixels(node, 0), node.const(base, np.int32), sizes, axes)
    last = channels_last(len(node.shape))
    node.set_output(node.reshape(result, (value.shape[0], *grid.shape[1:-1], value.shape[1])), last)


def _reflect(node: Node, tensor: Tensor, low: float, high: float) -> Tensor:
    """Coordinates beyond a border, reflected back as by a mirror."""
    calc, span = Math(node), high - low
    if not span:
        return calc("MUL", tensor, 0.0)
    rest = calc("FLOOR_MOD", calc("ABS", calc("SUB", tensor, low)), 2 * span)
    return calc("ADD", calc("MINIMUM", rest, calc("SUB", 2 * span, rest)), low)


def lower_affine_grid(node: Node) -> None:
    """A product of theta with a constant table of coordinates."""
    size = [int(length) for length in node.require_constant(1, "size")]
    batch, spatial = size[0], size[2:]
    lines = [
        np.linspace(-1, 1, length)
        if node.attr("align_corners", 0)
        else (2 * np.arange(length) + 1) / length - 1
        for length in spatial
    ]
    points = np.meshgrid(*lines, indexing="ij")
    table = np.stack([*points[::-1], np.ones(spatial)], -1).reshape(-1, len(spatial) + 1)
    theta = node.reshape(node.place(node.value(0)), (batch * len(spatial), len(spatial) + 1))
    result = node.reshape(
        emit_fully_connected(node, theta, table), (batch, len(spatial), len(table))
    )
    result = node.emit(
        "TRANSPOSE", [result, node.ints([0, 2, 1])], (batch, len(table), len(spatial))
    )
    node.set_output(node.reshape(result, node.shape))


def lower_det(node: Node) -> None:
    """Expansion by minors, up to 4 x 4."""
    value, size = node.value(0), node.value(0).shape[-1]
    if size > MAX_DET:
        raise node.refusal(f"it is lowered up to {MAX_DET} x {MAX_DET}, not {size} x {size}")
    count = math.prod(value.shape[:-2])
    elements, calc = node.reshape(node.place(value), (count, size * size)), Math(node)

    def minor(row: int, columns: tuple[int, ...]) -> Tensor | None:
        result: Tensor | None = None
        for i, column in enumerate(columns):
            term = slice_tensor(node, elements, [0, row * size + column], [count, 1])
            below = minor(row + 1, columns[:i] + columns[i + 1 :])
            term = term if below is None else calc("MUL", term, below)
            result = term if result is None else calc("SUB" if i % 2 else "ADD", result, term)
        return result

    result = minor(0, tuple(range(size)))
    assert result is not None
    node.set_output(node.reshape(result, node.shape))
