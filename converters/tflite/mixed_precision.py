"""Which layers a search leaves float: the decision, without the measuring. Pure.

Layers are tried in runs, because one float layer between integer ones saves little: what goes in
and out is rounded all the same. EfficientNet-Lite0 gains 0.1 dB by its second or its third layer
alone, 2.5 dB by the first eight together, which cost no time.

    1. each of RUNS runs of neighbours alone
    2. the best first, added to those taken: a half is kept instead where it gives most of the gain
    3. until the gain is reached, the allowance is spent, or nothing helps any more
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

RUNS = 8
LEAST_GAIN = 0.25  # dB; less is chance
MOST_OF = 0.8  # of a run's gain; a half that gives it is kept instead of the run

Run = tuple[int, ...]  # neighbouring layers
Measure = Callable[[frozenset[int]], float | None]  # dB with these float; None: stop searching


class LayerChoice(msgspec.Struct, frozen=True):
    """The layers left float, and the signal to noise in dB with none of them and with all."""

    layers: tuple[int, ...]
    before: float
    after: float
    tried: int


def choose_float_layers(costs: Sequence[float], gain: float, measure: Measure) -> LayerChoice:
    """Leave layers float until ``measure`` gives ``gain`` dB more than with none.

    ``costs`` is what each layer takes of the allowance, which is 1.
    """
    tried: dict[frozenset[int], float | None] = {}

    def decibels(layers: frozenset[int]) -> float | None:
        if layers not in tried:
            tried[layers] = measure(layers)
        return tried[layers]

    chosen: frozenset[int] = frozenset()
    before = decibels(chosen)
    assert before is not None  # a search measures what it starts from
    reached = before
    for run in _rank_runs(_make_runs(len(costs)), costs, before, decibels):
        added = _narrow_run(run, chosen, reached, decibels)
        now = decibels(chosen | added)
        if now is None:
            break
        spent = sum(costs[index] for index in sorted(chosen | added))
        if spent > 1 or now < reached + LEAST_GAIN:
            continue
        chosen, reached = chosen | added, now
        if reached >= before + gain:
            break
    return LayerChoice(tuple(sorted(chosen)), before, reached, len(tried))


def _make_runs(count: int) -> list[Run]:
    size = max(1, -(-count // RUNS))
    return [tuple(range(start, min(start + size, count))) for start in range(0, count, size)]


def _rank_runs(
    runs: Sequence[Run], costs: Sequence[float], before: float, decibels: Measure
) -> list[Run]:
    """Runs that help, the most decibels for its cost first."""
    helping = []
    for run in runs:
        measured = decibels(frozenset(run))
        if measured is None:
            break
        if measured > before:
            cost = max(sum(costs[index] for index in run), 1e-6)
            helping.append(((measured - before) / cost, run))
    return [run for _, run in sorted(helping, key=lambda pair: (-pair[0], pair[1]))]


def _narrow_run(
    run: Run, chosen: frozenset[int], reached: float, decibels: Measure
) -> frozenset[int]:
    """The run, or the smallest half of a half of it that keeps MOST_OF its gain at each step."""

    def gain(layers: Run) -> float:
        measured = decibels(chosen | set(layers))
        return 0.0 if measured is None else measured - reached

    kept, whole = run, gain(run)
    while len(kept) > 1 and whole > 0:
        middle = len(kept) // 2
        half = max((kept[:middle], kept[middle:]), key=gain)
        if gain(half) < MOST_OF * whole:
            break
        kept, whole = half, gain(half)
    return frozenset(kept)
