"""How many requests were answered, and how: the one source of these counts.

The request flow counts each request once, whether a program in this process or the HTTP server
asked; the server adds what it refuses before the flow sees it. The agent's status, the HTTP
statistics and the log read them here.

A request only appends to a deque, which takes no lock; the sums are made for many at once.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import Counter, deque

import msgspec

BATCH = 64  # requests that are summed up together


class ModelCounts(msgspec.Struct):
    """Requests of one model since the agent started."""

    success: int = 0
    success_ns: int = 0  # from the call to the answer
    fail: int = 0
    fail_ns: int = 0
    cached: int = 0  # of the successes
    cached_ns: int = 0
    last_ms: int = 0  # when an inference was last answered; since 1970


class Counters:
    """Counts by model, and errors by name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: dict[str, ModelCounts] = {}
        self._errors: Counter[str] = Counter()
        # (model, duration, time of day, cached, name of the error)
        self._pending: deque[tuple[str, int, int, bool, str]] = deque()

    def add_model(self, name: str) -> None:
        """Keep counts for a model. Names that clients make up are counted in the total only."""
        with self._lock:
            self._models.setdefault(name, ModelCounts())

    def count_answer(self, model: str, took_ns: int, *, cached: bool) -> None:
        """One request was answered."""
        self._append((model, took_ns, time.time_ns(), cached, ""))

    def count_error(self, model: str, took_ns: int, error: BaseException) -> None:
        """One request was refused, or failed."""
        self._append((model, took_ns, 0, False, type(error).__name__))

    def read_model(self, name: str) -> ModelCounts:
        """A copy of one model's counts."""
        with self._lock:
            self._sum_up()
            return copy.copy(self._models.get(name, ModelCounts()))

    def read_total(self) -> ModelCounts:
        """The counts of all models together."""
        with self._lock:
            self._sum_up()
            total = ModelCounts()
            for counts in self._models.values():
                for field in ModelCounts.__struct_fields__:
                    combine = max if field == "last_ms" else int.__add__
                    setattr(total, field, combine(getattr(total, field), getattr(counts, field)))
            return total

    def read_errors(self) -> dict[str, int]:
        """Requests that got an error, by its name; those for unknown models too."""
        with self._lock:
            self._sum_up()
            return dict(self._errors)

    def _append(self, event: tuple[str, int, int, bool, str]) -> None:
        self._pending.append(event)
        if len(self._pending) >= BATCH:
            with self._lock:
                self._sum_up()

    def _sum_up(self) -> None:
        while self._pending:
            model, took_ns, at_ns, cached, error = self._pending.popleft()
            counts = self._models.get(model) or ModelCounts()
            if error:
                self._errors[error] += 1
                counts.fail += 1
                counts.fail_ns += took_ns
                continue
            counts.success += 1
            counts.success_ns += took_ns
            if cached:
                counts.cached += 1
                counts.cached_ns += took_ns
            else:
                counts.last_ms = max(counts.last_ms, at_ns // 1_000_000)
