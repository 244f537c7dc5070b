"""Geometry of the report's plot: latency against size, accuracy as colour. Pure.

Both axes start at zero, so that distances are honest. Pixels; y grows downwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

WIDTH, HEIGHT = 460.0, 310.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 420.0, 12.0, 258.0  # edges of the axes
LABEL = 15.0  # height of a label
# Teal to amber to magenta: told apart with any colour vision, visible on white and on black.
RAMP = ((15, 157, 138), (214, 152, 0), (194, 49, 122))
LEAST_SPAN = 1.0  # points of loss; a smaller spread is drawn as small


class Point(msgspec.Struct, frozen=True):
    """One candidate as numbers."""

    number: int  # its row in the table
    name: str
    size_mb: float
    latency_ms: float
    loss: float | None  # points
    fits: bool
    front: bool  # is it on the Pareto front?


class Mark(msgspec.Struct, frozen=True):
    """One candidate as pixels."""

    point: Point
    x: float
    y: float
    label_y: float  # labels that would cover each other are moved apart
    colour: str


class Tick(msgspec.Struct, frozen=True):
    at: float
    text: str


class Plot(msgspec.Struct, frozen=True):
    """Everything that the template draws."""

    marks: tuple[Mark, ...]
    front: str  # points of the polyline through the Pareto front
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    worst: float  # loss at the magenta end, in points
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = RIGHT
    top: float = TOP
    bottom: float = BOTTOM


def plot_points(points: Sequence[Point]) -> Plot | None:
    """Place the points; None when there are fewer than two, which show no trade-off."""
    if len(points) < 2:
        return None
    sizes = _ticks(max(point.size_mb for point in points))
    latencies = _ticks(max(point.latency_ms for point in points))

    def to_x(size_mb: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * size_mb / sizes[-1], 1)

    def to_y(latency_ms: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * latency_ms / latencies[-1], 1)

    worst = max(LEAST_SPAN, *(point.loss or 0.0 for point in points))
    downwards = sorted(points, key=lambda point: (-point.latency_ms, point.size_mb, point.number))
    spots = [(to_x(point.size_mb), to_y(point.latency_ms)) for point in downwards]
    marks = [
        Mark(point, *spot, label_y, mix_colour(point.loss, worst))
        for point, spot, label_y in zip(downwards, spots, _place_labels(spots), strict=True)
    ]
    front = sorted((mark for mark in marks if mark.point.front), key=lambda mark: mark.x)
    return Plot(
        marks=tuple(marks),
        front=" ".join(f"{mark.x},{mark.y}" for mark in front),
        x_ticks=tuple(Tick(to_x(size), f"{size:g}") for size in sizes),
        y_ticks=tuple(Tick(to_y(latency), f"{latency:g}") for latency in latencies),
        worst=worst,
    )


def mix_colour(loss: float | None, worst: float) -> str:
    """From teal (no loss) to magenta (``worst``); grey when the loss is not known."""
    if loss is None:
        return "#808080"
    at = min(max(loss / worst, 0.0), 1.0) * (len(RAMP) - 1)
    index = min(int(at), len(RAMP) - 2)
    ends = zip(RAMP[index], RAMP[index + 1], strict=True)
    mixed = (round(start + (end - start) * (at - index)) for start, end in ends)
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def _place_labels(spots: Sequence[tuple[float, float]]) -> list[float]:
    """The y of each label, for spots from top to bottom: apart from its neighbours', in view."""
    neighbours = [
        [j for j in range(i) if abs(spots[i][0] - spots[j][0]) < 2 * LABEL]
        for i in range(len(spots))
    ]
    label_ys = [y for _, y in spots]
    for i in range(len(label_ys)):  # push down
        label_ys[i] = max([label_ys[i], *(label_ys[j] + LABEL for j in neighbours[i])])
    for i in reversed(range(len(label_ys))):  # and up again, where that went below the axis
        label_ys[i] = min(label_ys[i], BOTTOM)
        for j in neighbours[i]:
            label_ys[j] = min(label_ys[j], label_ys[i] - LABEL)
    return label_ys


def _ticks(largest: float) -> list[float]:
    """Zero to the first round number that is not below ``largest``, in 4 to 10 steps."""
    step = 10.0 ** math.floor(math.log10(largest)) if largest > 0 else 1.0
    for share in (1.0, 0.5, 0.2):
        if largest / (step * share) >= 4 or share == 0.2:
            step *= share
            break
    count = max(1, math.ceil(largest / step - 1e-9))
    return [float(f"{i * step:.6g}") for i in range(count + 1)]
