"""Work that must not hold up the caller of submit(): decoding pictures, looking into caches.

As bounded as the sessions' queue: what could not begin before its deadline is refused at once, and
what begins too late is not done.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from edge_core.errors import DeadlineExceeded, EdgeError, Overloaded

SMOOTHING = 0.2  # weight of the newest task in the expected duration


class PreparePool:
    """A few threads."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="beside")
        self._lock = threading.Lock()
        self._inside = 0
        self._expected_ns = 0.0

    def submit(self, deadline: int, work: Callable[[EdgeError | None], None]) -> None:
        """Call ``work`` on another thread, with an error instead of time if it is too late.

        ``deadline`` in ns of perf_counter. Raises Overloaded if it would be too late.
        """
        now = time.perf_counter_ns()
        with self._lock:
            wait = self._inside // self._threads * self._expected_ns
            if now + wait > deadline:
                raise Overloaded(
                    f"the deadline would pass before its turn in about {wait / 1e6:.0f} ms",
                    hint="fewer requests at once, smaller pictures, or a later deadline",
                )
            self._inside += 1
        self._pool.submit(self._run, deadline, work)

    def _run(self, deadline: int, work: Callable[[EdgeError | None], None]) -> None:
        began = time.perf_counter_ns()
        late = began > deadline
        try:
            work(DeadlineExceeded("the deadline passed before it was prepared") if late else None)
        finally:
            with self._lock:
                self._inside -= 1
                if not late:
                    took = time.perf_counter_ns() - began
                    was = self._expected_ns or took
                    self._expected_ns = was + SMOOTHING * (took - was)

    def close(self) -> None:
        """Finish what is inside."""
        self._pool.shutdown()
