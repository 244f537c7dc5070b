"""Finding the threshold of a near-duplicate cache from the user's data, with a proof.

    trials -> replay_cache() -> hits and wrong hits of every group at every threshold
           -> choose_threshold() -> the largest threshold that is proven, or why there is none

What is bounded. The wrong-reuse rate is the share of REUSES whose answer is not what the model
would have said: the stricter of the two rates in use (the other divides by all requests, and so
gets better when the cache does nothing).

Groups. Frames of one clip, or wordings of one question, are wrong together, so many trials of one
group prove little more than one of them. The unit of the proof is the group, and the bounded rate
is that of a random request of a random group: if it is reused, how likely is it wrong? Where groups
are equally long, that is the share of all reuses. Where every trial is a group of its own, the
proof is Clopper-Pearson's bound; otherwise a bet on each group as a whole (agent/caches/bounds.py),
which asks for about as many groups as one trial of each would, without throwing the others away.
Groups must be independent of each other; nobody can check that from the data, so the caller states
it by naming them.

The threshold. Many are tried on the same data; taking the best would spoil the confidence. Every
fifth group is set aside and decides where to begin; the other groups then test one threshold
after the other, from there upwards, until one fails, each at the full level (fixed-sequence testing
in "Learn then Test", Angelopoulos et al. 2021). Thresholds stand in a fixed grid. Then, whatever
the data, a threshold that is too large is accepted with a probability of at most 1 - confidence.

The replay is the cache itself: an input that finds no neighbour is added, one that does is not. Its
entries go on from group to group, as in use; the little that this makes groups depend on each other
is neglected.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence

import msgspec
import numpy as np

from agent.caches.bounds import (
    SINGLE,
    binomial_tail,
    count_required_trials,
    log_wealth,
    p_value,
    upper_bound,
)
from agent.caches.calibration import Calibration, ThresholdEvidence
from agent.caches.descriptors import Described, InputDescriptor
from agent.caches.rules import AnswerRule
from edge_core.errors import InputError
from edge_core.tensors import Array, Feeds

MAX_SAMPLES = 20_000
# Chord over reach. A float32 product tells chords below 0.001 from 0 no more.
GRID: tuple[float, ...] = tuple(float(t) for t in np.geomspace(0.002, 2.0, 61).round(6))
PILOT = 5  # every fifth group is set aside
STAKES = (0.9, 0.5, 0.2)  # shares that one group can lose; the groups set aside choose
MOST_TIMES = 1000.0  # the data that a refusal asks for at most


class CalibrationSample(msgspec.Struct, frozen=True):
    """One request: what the cache compares, and what the model says."""

    item: Described
    answer: Feeds
    group: Hashable = None  # clip, topic, speaker; None = a group of its own


class Replay(msgspec.Struct, frozen=True):
    """Counts by threshold (rows) and group (columns, in order of first appearance)."""

    hits: Array
    wrong: Array
    sizes: Array  # trials of each group


def calibrate_threshold(
    samples: Sequence[CalibrationSample],
    *,
    model: str,
    descriptor: InputDescriptor,
    rule: AnswerRule,
    epsilon: float,
    confidence: float = 0.95,
    text_guard: bool = False,
) -> Calibration:
    """The largest proven threshold for ``trials`` in their order; raises InputError."""
    if not 0 < epsilon <= 0.5 or not 0.5 <= confidence < 1:
        raise InputError(
            f"epsilon {epsilon} at confidence {confidence} cannot be proven",
            hint="epsilon above 0 and up to 0.5, confidence from 0.5 to below 1",
        )
    if not 0 < len(samples) <= MAX_SAMPLES:
        raise InputError(f"{len(samples)} samples; a calibration takes 1 to {MAX_SAMPLES}")
    counts = replay_cache(samples, rule)
    evidence, why = choose_threshold(counts, epsilon, confidence)
    return Calibration(
        model=model, descriptor=descriptor, rule=rule, text_guard=text_guard,
        epsilon=epsilon, confidence=confidence,
        threshold=evidence.threshold if evidence else 0.0, why=why, evidence=evidence,
        samples=len(samples), groups=len(counts.sizes),
    )  # fmt: skip


def replay_cache(
    samples: Sequence[CalibrationSample], rule: AnswerRule, grid: Sequence[float] = GRID
) -> Replay:
    """Run the cache over ``trials`` once for every threshold, all in one pass."""
    columns = _number_groups(samples)
    hits, wrong = (np.zeros((len(grid), max(columns) + 1), np.int64) for _ in range(2))
    by_tag: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        by_tag.setdefault(sample.item.tag, []).append(i)
    for members in by_tag.values():  # entries with different tags never meet
        reused = _replay_tag([samples[i] for i in members], rule, np.array(grid))
        for i, (hit, bad) in zip(members, reused, strict=True):
            hits[hit, columns[i]] += 1
            wrong[bad, columns[i]] += 1
    return Replay(hits, wrong, np.bincount(columns))


def _replay_tag(
    samples: list[CalibrationSample], rule: AnswerRule, limits: Array
) -> Iterator[tuple[Array, Array]]:
    """For each trial: at which thresholds it is a hit, and at which a wrong one."""
    vectors = np.stack([t.item.vector for t in samples])
    reach = np.array([rule.reach(t.answer) for t in samples])
    stored = np.zeros((len(samples), len(limits)), bool)  # is it in the cache of this threshold?
    every = np.arange(len(limits))
    for i, sample in enumerate(samples):
        hit = bad = np.zeros(len(limits), bool)
        if i:
            chords = np.sqrt(np.maximum(2 - 2 * (vectors[:i] @ vectors[i]), 0))
            order = np.argsort(chords, kind="stable")
            nearest = order[stored[order].argmax(axis=0)]
            hit = stored[nearest, every] & (chords[nearest] <= limits * reach[nearest])
            sources = np.unique(nearest[hit])
            other = [
                source for source in sources if rule.differ(samples[source].answer, sample.answer)
            ]
            bad = hit & np.isin(nearest, other)
        stored[i] = ~hit
        yield hit, bad


def choose_threshold(
    counts: Replay, epsilon: float, confidence: float, grid: Sequence[float] = GRID
) -> tuple[ThresholdEvidence | None, str]:
    """The largest proven threshold, or None and the reason."""
    alpha = 1 - confidence
    stakes = (SINGLE,) if counts.sizes.max() == 1 else STAKES
    pilot = np.arange(len(counts.sizes)) % PILOT == 0
    reused, wrong = counts.hits / counts.sizes, counts.wrong / counts.sizes
    begin, stake = _choose_start(reused[:, pilot], wrong[:, pilot], epsilon, alpha, stakes)
    reused, wrong = reused[:, ~pilot], wrong[:, ~pilot]
    proven = begin - 1
    for k in range(begin, len(grid)):
        if p_value(reused[k], wrong[k], epsilon, stake) > alpha:
            break
        proven = k
    if proven < begin:
        return None, _explain_refusal(reused[begin], wrong[begin], epsilon, alpha, stake)
    level_reused, level_wrong = reused[proven], wrong[proven]
    evidence = ThresholdEvidence(
        threshold=grid[proven],
        groups=int((level_reused > 0).sum()),
        hits=int(counts.hits[proven, ~pilot].sum()),
        wrong=int(counts.wrong[proven, ~pilot].sum()),
        rate=float(level_wrong.sum() / level_reused.sum()),
        upper=upper_bound(level_reused, level_wrong, confidence, stake),
    )
    return evidence, ""


def _choose_start(
    reused: Array, wrong: Array, epsilon: float, alpha: float, stakes: Sequence[float]
) -> tuple[int, float]:
    """Where the test begins and with which stake: what the groups set aside say of the others.

    The smallest threshold that should pass with one more group wrong; if there is none, the one
    that is likeliest to pass.
    """
    expected = []
    for level_reused, level_wrong in zip(reused, wrong, strict=True):
        spare = (
            level_reused[level_reused > 0].mean(keepdims=True)
            if level_reused.any()
            else np.zeros(1)
        )
        more = np.tile(level_reused, PILOT - 1), np.tile(level_wrong, PILOT - 1)
        careful = np.append(more[0], spare), np.append(more[1], spare)
        with_spare, stake = min(
            (p_value(*careful, epsilon, candidate), candidate) for candidate in stakes
        )
        expected.append((with_spare, p_value(*more, epsilon, stake), stake))
    for level, (with_spare, _, stake) in enumerate(expected):
        if with_spare <= alpha:
            return level, stake
    best = min(range(len(expected)), key=lambda level: expected[level][1])
    return best, expected[best][2]


def _explain_refusal(
    reused: Array, wrong: Array, epsilon: float, alpha: float, stake: float
) -> str:
    """Why not even the first threshold is proven, and how much data would do."""
    if not reused.any():
        reuses = count_required_trials(epsilon, 1 - alpha)
        return (
            f"no sample was near an earlier one; a wrong rate below {epsilon:.2%} takes "
            f"{reuses} reuses in different groups, none of them wrong"
        )
    rate, group_count = wrong.sum() / reused.sum(), int((reused > 0).sum())
    summary = f"{rate:.2%} of the reuses in {group_count} groups were wrong"
    if rate >= epsilon:
        return f"{summary}; the limit is {epsilon:.2%}"
    times = 1.0
    while times < MOST_TIMES and _repeat_p_value(reused, wrong, epsilon, stake, times) > alpha:
        times *= 1.05
    total = math.ceil(times * len(reused) * PILOT / (PILOT - 1))  # with those set aside
    return f"{summary}; to prove a rate below {epsilon:.2%} from that takes about {total} groups"


def _repeat_p_value(
    reused: Array, wrong: Array, epsilon: float, stake: float, times: float
) -> float:
    """p_value() of so many times the data."""
    if stake == SINGLE:
        return binomial_tail(round(times * wrong.sum()), int(times * reused.sum()), epsilon)
    return math.exp(-max(0.0, times * log_wealth(reused, wrong, epsilon, stake)))


def _number_groups(samples: Sequence[CalibrationSample]) -> list[int]:
    """The group's number for each trial, in order of first appearance."""
    numbers: dict[tuple[bool, Hashable], int] = {}
    return [
        numbers.setdefault((t.group is None, i if t.group is None else t.group), len(numbers))
        for i, t in enumerate(samples)
    ]
