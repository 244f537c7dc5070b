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
    x: float
    y: float
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


def plot(points: Sequence[Point]) -> Plot | None:
    """Place the points; None when there are fewer than two, which show no trade-off."""
    if len(points) < 2:
        return None
    x_ticks = _ticks(max(p.x for p in points))
    y_ticks = _ticks(max(p.y for p in points))

    def px(x: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * x / x_ticks[-1], 1)

    def py(y: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * y / y_ticks[-1], 1)

    worst = max(LEAST_SPAN, *(p.loss or 0.0 for p in points))
    downwards = sorted(points, key=lambda p: (-p.y, p.x, p.number))
    spots = [(px(p.x), py(p.y)) for p in downwards]
    marks = [
        Mark(p, x, y, label_y, colour(p.loss, worst))
        for p, (x, y), label_y in zip(downwards, spots, _labels(spots), strict=True)
    ]
    front = sorted((m for m in marks if m.point.front), key=lambda m: m.x)
    return Plot(
        marks=tuple(marks),
        front=" ".join(f"{m.x},{m.y}" for m in front),
        x_ticks=tuple(Tick(px(t), f"{t:g}") for t in x_ticks),
        y_ticks=tuple(Tick(py(t), f"{t:g}") for t in y_ticks),
        worst=worst,
    )


def colour(loss: float | None, worst: float) -> str:
    """From teal (no loss) to magenta (``worst``); grey when the loss is not known."""
    if loss is None:
        return "#808080"
    at = min(max(loss / worst, 0.0), 1.0) * (len(RAMP) - 1)
    i = min(int(at), len(RAMP) - 2)
    mixed = (round(a + (b - a) * (at - i)) for a, b in zip(RAMP[i], RAMP[i + 1], strict=True))
    return "#" + "".join(f"{c:02x}" for c in mixed)


def _labels(spots: Sequence[tuple[float, float]]) -> list[float]:
    """Where each label goes, for spots from top to bottom: apart from its neighbours', in view."""
    near = [
        [j for j in range(i) if abs(spots[i][0] - spots[j][0]) < 2 * LABEL]
        for i in range(len(spots))
    ]
    ys = [y for _, y in spots]
    for i in range(len(ys)):  # push down
        ys[i] = max([ys[i], *(ys[j] + LABEL for j in near[i])])
    for i in reversed(range(len(ys))):  # and up again, where that went below the axis
        ys[i] = min(ys[i], BOTTOM)
        for j in near[i]:
            ys[j] = min(ys[j], ys[i] - LABEL)
    return ys


def _ticks(top: float) -> list[float]:
    """Zero to the first round number that is not below ``top``, in 4 to 10 steps."""
    step = 10.0 ** math.floor(math.log10(top)) if top > 0 else 1.0
    for share in (1.0, 0.5, 0.2):
        if top / (step * share) >= 4 or share == 0.2:
            step *= share
            break
    count = max(1, math.ceil(top / step - 1e-9))
    return [float(f"{i * step:.6g}") for i in range(count + 1)]
