"""Wall time of a build, by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Wall time by stage; nested stages count for the inner one only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]
        self._running: list[tuple[str, float]] = []  # name and start of each open stage

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to ``name``."""
        start = time.perf_counter()
        self._inner.append(0.0)
        self._running.append((name, start))
        try:
            yield
        finally:
            self._running.pop()
            spent = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent - self._inner.pop()
            self._inner[-1] += spent

    def read(self) -> dict[str, float]:
        """Seconds by stage so far, those of the stages that are still open included."""
        now, nested = time.perf_counter(), 0.0
        seconds = dict(self.seconds)
        for (name, start), inner in zip(
            reversed(self._running), reversed(self._inner), strict=False
        ):
            seconds[name] = seconds.get(name, 0.0) + now - start - inner - nested
            nested = now - start
        return seconds
