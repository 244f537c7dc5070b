"""NaN and infinity in large inputs, looked for while the inference runs.

An INT8 model turns NaN into some integer and answers with confidence, so inputs are checked. A
picture's tensor is in no processor cache any more when the next request comes: reading it again
took 2 % of an INT8 EfficientNet-Lite0. Another core does it while the runtime works.
"""

from __future__ import annotations

import queue
import threading

import numpy as np

from edge_core.errors import InputError
from edge_core.tensors import Feeds

LARGE = 128 * 1024  # bytes; smaller inputs are checked at once


class NanCheck:
    """One check, made by another thread."""

    __slots__ = ("_busy", "_feeds", "_problem")

    def __init__(self, feeds: Feeds) -> None:
        self._feeds, self._problem = feeds, ""
        self._busy = threading.Lock()
        self._busy.acquire()

    def run(self) -> None:
        """Called once, by the checking thread."""
        try:
            self._problem = find_problem(self._feeds)
        finally:
            self._busy.release()

    def result(self) -> str:
        """The input that is not finite and what it contains, or ""; waits."""
        with self._busy:
            return self._problem


class NanChecker:
    """The thread that checks large inputs."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[NanCheck | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="nan-check", daemon=True)
        self._thread.start()

    def start(self, feeds: Feeds, where: str) -> NanCheck | None:
        """Check small inputs now, raising InputError, and large ones meanwhile."""
        if sum(array.nbytes for array in feeds.values() if array.dtype.kind == "f") > LARGE:
            check = NanCheck(feeds)
            self._queue.put(check)
            return check
        if problem := find_problem(feeds):
            raise refusal(problem, where)
        return None

    def close(self) -> None:
        """End the thread after what is queued."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while check := self._queue.get():
            check.run()


def find_problem(feeds: Feeds) -> str:
    """ "'x' contains NaN", or ""."""
    for name, array in feeds.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return f"input '{name}' contains {'NaN' if np.isnan(array).any() else 'infinity'}"
    return ""


def refusal(problem: str, where: str) -> InputError:
    """The error for what find_problem() returned."""
    return InputError(f"{where}: {problem}")
