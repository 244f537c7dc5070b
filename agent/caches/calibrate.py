"""Finding the threshold of a near-duplicate cache from the user's data, with a proof.

    trials -> replay() -> hits and wrong hits of every group at every threshold
           -> choose() -> the largest threshold that is proven, or why there is none

What is bounded. The wrong-reuse rate is the share of REUSES whose answer is not what the model
would have said: the stricter of the two rates in use (the other divides by all requests, and so
gets better when the cache does nothing).

Groups. Frames of one clip, or wordings of one question, are wrong together, so trials inside a
group prove little more than one of them. The unit of the proof is the group: its outcome is the
share of its reuses that were wrong, and the bounded rate is that of a random reuse of a random
group. Where every trial is a group of its own, the proof is Clopper-Pearson's bound; otherwise the
Hoeffding-Bentkus bound over the shares (agent/caches/bounds.py). Groups must be independent of
each other; nobody can check that from the data, so the caller states it by naming them.

The threshold. Many are tried on the same data; taking the best would spoil the confidence. Every
fifth group is set aside and decides where to begin; the other groups then test one threshold
after the other, from there upwards, until one fails, each at the full level (fixed-sequence testing
in "Learn then Test", Angelopoulos et al. 2021). Thresholds stand in a fixed grid. Then, whatever
the data, a threshold that is too large is accepted with a probability of at most 1 - confidence.

The replay is the cache itself: an input that finds no neighbour is added, one that does is not.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence

import msgspec
import numpy as np

from agent.caches.bounds import needed, p_value, upper_bound
from agent.caches.descriptors import Described, Descriptor
from agent.caches.rules import Rule
from edge_core.errors import InputError
from edge_core.tensors import Array, Feeds

FORMAT = 1
MAX_TRIALS = 20_000
# Chord over reach. A float32 product tells chords below 0.001 from 0 no more.
GRID: tuple[float, ...] = tuple(float(t) for t in np.geomspace(0.002, 2.0, 61).round(6))
PILOT = 5  # every fifth group is set aside
MAX_GROUPS = 1_000_000  # what a refusal asks for at most


class Trial(msgspec.Struct, frozen=True):
    """One request: what the cache compares, and what the model says."""

    item: Described
    answer: Feeds
    group: Hashable = None  # clip, topic, speaker; None = a group of its own


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """What the test groups showed at one threshold."""

    threshold: float
    groups: int  # with at least one reuse
    hits: int
    wrong: int
    share: float  # mean over groups of the share of wrong reuses
    upper: float  # one-sided bound of that mean


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What a near-duplicate cache may do for one model, and why."""

    format: int = FORMAT
    model: str  # digest of the package, or the application's name for its model
    descriptor: Descriptor
    rule: Rule
    guard: bool = False  # texts must agree in agent.caches.guard.signature()
    epsilon: float
    confidence: float
    threshold: float = 0.0  # distance / reach; 0.0 = the cache stays off
    why: str = ""  # it is off
    trials: int = 0
    groups: int = 0
    level: Level | None = None  # of the threshold


class Replay(msgspec.Struct, frozen=True):
    """Counts by threshold (rows) and group (columns, in order of first appearance)."""

    hits: Array
    wrong: Array
    sizes: Array  # trials of each group


def calibrate(
    trials: Sequence[Trial],
    *,
    model: str,
    descriptor: Descriptor,
    rule: Rule,
    epsilon: float,
    confidence: float = 0.95,
    guard: bool = False,
) -> Calibration:
    """The largest proven threshold for ``trials`` in their order; raises InputError."""
    if not 0 < epsilon <= 0.5 or not 0.5 <= confidence < 1:
        raise InputError(
            f"epsilon {epsilon} at confidence {confidence} cannot be proven",
            hint="epsilon above 0 and up to 0.5, confidence from 0.5 to below 1",
        )
    if not 0 < len(trials) <= MAX_TRIALS:
        raise InputError(f"{len(trials)} samples; a calibration takes 1 to {MAX_TRIALS}")
    counts = replay(trials, rule)
    level, why = choose(counts, epsilon, confidence)
    return Calibration(
        model=model, descriptor=descriptor, rule=rule, guard=guard,
        epsilon=epsilon, confidence=confidence,
        threshold=level.threshold if level else 0.0, why=why, level=level,
        trials=len(trials), groups=len(counts.sizes),
    )  # fmt: skip


def replay(trials: Sequence[Trial], rule: Rule, grid: Sequence[float] = GRID) -> Replay:
    """Run the cache over ``trials`` once for every threshold, all in one pass."""
    columns = _columns(trials)
    hits, wrong = (np.zeros((len(grid), max(columns) + 1), np.int64) for _ in range(2))
    by_tag: dict[str, list[int]] = {}
    for i, trial in enumerate(trials):
        by_tag.setdefault(trial.item.tag, []).append(i)
    for members in by_tag.values():  # entries with different tags never meet
        reused = _reuses([trials[i] for i in members], rule, np.array(grid))
        for i, (hit, bad) in zip(members, reused, strict=True):
            hits[hit, columns[i]] += 1
            wrong[bad, columns[i]] += 1
    return Replay(hits, wrong, np.bincount(columns))


def _reuses(trials: list[Trial], rule: Rule, limits: Array) -> Iterator[tuple[Array, Array]]:
    """For each trial: at which thresholds it is a hit, and at which a wrong one."""
    vectors = np.stack([t.item.vector for t in trials])
    reach = np.array([rule.reach(t.answer) for t in trials])
    stored = np.zeros((len(trials), len(limits)), bool)  # is it in the cache of this threshold?
    every = np.arange(len(limits))
    for i, trial in enumerate(trials):
        hit = bad = np.zeros(len(limits), bool)
        if i:
            chords = np.sqrt(np.maximum(2 - 2 * (vectors[:i] @ vectors[i]), 0))
            order = np.argsort(chords, kind="stable")
            nearest = order[stored[order].argmax(axis=0)]
            hit = stored[nearest, every] & (chords[nearest] <= limits * reach[nearest])
            sources = np.unique(nearest[hit])
            other = [s for s in sources if rule.differ(trials[s].answer, trial.answer)]
            bad = hit & np.isin(nearest, other)
        stored[i] = ~hit
        yield hit, bad


def choose(
    counts: Replay, epsilon: float, confidence: float, grid: Sequence[float] = GRID
) -> tuple[Level | None, str]:
    """The largest proven threshold, or None and the reason."""
    whole = bool(counts.sizes.max() == 1)
    alpha = 1 - confidence
    pilot = np.arange(len(counts.sizes)) % PILOT == 0
    shares, groups = _shares(counts, ~pilot)
    begin = _begin(*_shares(counts, pilot), epsilon, alpha, whole)
    proven = begin - 1
    for k in range(begin, len(grid)):
        if p_value(shares[k], int(groups[k]), epsilon, whole=whole) > alpha:
            break
        proven = k
    if proven < begin:
        n, tested = int(groups[begin]), int(sum(~pilot))
        return None, _refusal(float(shares[begin]), n, tested, epsilon, alpha, whole)
    n = int(groups[proven])
    level = Level(
        threshold=grid[proven],
        groups=n,
        hits=int(counts.hits[proven, ~pilot].sum()),
        wrong=int(counts.wrong[proven, ~pilot].sum()),
        share=float(shares[proven] / n),
        upper=upper_bound(shares[proven], n, confidence, whole=whole),
    )
    return level, ""


def _begin(shares: Array, groups: Array, epsilon: float, alpha: float, whole: bool) -> int:
    """Where the test begins: what the groups set aside say about the others.

    The smallest threshold that should pass with one error to spare; if none should, the likeliest.
    """
    more = PILOT - 1
    for spare in (1, 0):
        expected = [
            p_value(more * s + spare, more * int(n), epsilon, whole=whole)
            for s, n in zip(shares, groups, strict=True)
        ]
        if min(expected) <= alpha:
            return next(k for k, p in enumerate(expected) if p <= alpha)
    return expected.index(min(expected))


def _refusal(shares: float, n: int, tested: int, epsilon: float, alpha: float, whole: bool) -> str:
    """Why not even the first threshold is proven, and how much data would do."""
    goal = f"a wrong rate below {epsilon:.2%}"
    least = needed(epsilon, 1 - alpha)
    if n == 0:
        return (
            f"no sample was near an earlier one; {goal} takes reuses in {least} groups, none wrong"
        )
    share = shares / n
    if share >= epsilon:
        return f"{share:.2%} of the reuses in {n} groups were wrong; the limit is {epsilon:.2%}"
    while least < MAX_GROUPS and p_value(share * least, least, epsilon, whole=whole) > alpha:
        least = math.ceil(least * 1.1)
    total = math.ceil(PILOT / (PILOT - 1) * tested * least / n)  # with those set aside
    return (
        f"{share:.2%} of the reuses in {n} groups were wrong; to prove {goal} from that takes "
        f"{least} groups with a reuse, about {total} in all"
    )


def _shares(counts: Replay, chosen: Array) -> tuple[Array, Array]:
    """By threshold: the sum of the groups' shares of wrong reuses, and how many groups had any."""
    hits, wrong = counts.hits[:, chosen], counts.wrong[:, chosen]
    return (wrong / np.maximum(hits, 1)).sum(axis=1), (hits > 0).sum(axis=1)


def _columns(trials: Sequence[Trial]) -> list[int]:
    """The group's number for each trial, in order of first appearance."""
    numbers: dict[tuple[bool, Hashable], int] = {}
    return [
        numbers.setdefault((t.group is None, i if t.group is None else t.group), len(numbers))
        for i, t in enumerate(trials)
    ]
