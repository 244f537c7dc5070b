"""Where a request's time goes: one histogram for each stage, cheap enough to be always on.

Buckets are a sixteenth of an octave wide, so a percentile is within 3.2 % of the true one, whatever
its size (the idea of HdrHistogram); recording is integer arithmetic, about 0.2 us a stage.
"""

from __future__ import annotations

import threading
from collections import deque

import msgspec

STAGES = ("prepare", "wait", "infer", "finish", "total")
TOGETHER = 64  # requests
_SUB = 4  # bits: 16 buckets an octave
_BUCKETS = (64 - _SUB) << _SUB


class Stage(msgspec.Struct, frozen=True):
    """One stage of one model since it was loaded; milliseconds."""

    n: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float


class Histogram:
    """Counts of durations in nanoseconds. Not safe for two threads at once."""

    __slots__ = ("_counts", "_max", "_n", "_sum")

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self._n = self._sum = self._max = 0

    def add(self, ns: int) -> None:
        """Count one duration; negative ones count as 0."""
        if ns < 16:
            ns = max(ns, 0)
            at = ns
        else:
            shift = ns.bit_length() - _SUB - 1
            at = (shift << _SUB) + (ns >> shift)
        self._counts[at if at < _BUCKETS else -1] += 1
        self._n += 1
        self._sum += ns
        if ns > self._max:
            self._max = ns

    def quantile(self, share: float) -> float:
        """The duration in ns that ``share`` of the counted ones do not exceed; 0.0 if none."""
        rank, seen = share * self._n, 0
        for at, count in enumerate(self._counts):
            seen += count
            if count and seen >= rank:
                return min(_middle(at), float(self._max))
        return 0.0

    def stage(self) -> Stage:
        """What is shown to people."""
        mean = self._sum / self._n if self._n else 0.0
        p50, p90, p99 = (self.quantile(share) / 1e6 for share in (0.5, 0.9, 0.99))
        return Stage(self._n, mean / 1e6, p50, p90, p99, self._max / 1e6)


class Stages:
    """The stages of one model's requests, recorded together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._histograms = tuple(Histogram() for _ in STAGES)
        self._pending: deque[tuple[int, ...]] = (
            deque()
        )  # not yet counted: that is done for many at once

    def add(self, *ns: int) -> None:
        """One request's durations, in the order of STAGES."""
        self._pending.append(ns)
        if len(self._pending) >= TOGETHER:
            with self._lock:
                self._count()

    def read(self) -> dict[str, Stage]:
        """Every stage's percentiles."""
        with self._lock:
            self._count()
            return {
                name: histogram.stage()
                for name, histogram in zip(STAGES, self._histograms, strict=True)
            }

    def _count(self) -> None:
        while self._pending:
            ns = self._pending.popleft()
            for histogram, duration in zip(self._histograms, ns, strict=True):
                histogram.add(duration)


def _middle(bucket: int) -> float:
    """The middle of a bucket in ns."""
    if bucket < 16:
        return float(bucket)
    shift = (bucket >> _SUB) - 1
    low = (bucket - (shift << _SUB)) << shift
    return low + ((1 << shift) - 1) / 2
