"""Threads for work that must not block the caller of submit(): decoding pictures, cache lookups.

As bounded as the sessions' queue: what could not start before its deadline is refused at once, and
what starts too late is not done.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from agent.serving.wait_estimate import WaitEstimate
from edge_core.errors import DeadlineExceeded, EdgeError


class PreparePool:
    """A few threads."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="prepare")
        self._lock = threading.Lock()
        self._in_flight = 0
        self._estimate = WaitEstimate(
            "fewer requests at once, smaller pictures, or a later deadline"
        )

    def submit(self, deadline: int, work: Callable[[EdgeError | None], None]) -> None:
        """Call ``work`` on another thread, with an error if it has become too late.

        ``deadline`` in ns of perf_counter. Raises Overloaded if it would be too late.
        """
        now = time.perf_counter_ns()
        with self._lock:
            self._estimate.check_deadline(now, self._in_flight // self._threads, deadline)
            self._in_flight += 1
        self._pool.submit(self._run, deadline, work)

    def _run(self, deadline: int, work: Callable[[EdgeError | None], None]) -> None:
        started = time.perf_counter_ns()
        late = started > deadline
        try:
            work(DeadlineExceeded("the deadline passed before it was prepared") if late else None)
        finally:
            with self._lock:
                self._in_flight -= 1
                if not late:
                    self._estimate.add(time.perf_counter_ns() - started)

    def close(self) -> None:
        """Finish what is in flight."""
        self._pool.shutdown()
