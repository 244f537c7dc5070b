"""How many requests are on one model: a bound, and the drain before it is unloaded.

A request enters the model that is current when it arrives, and stays on it until it is answered.
"""

from __future__ import annotations

import threading

from edge_core.errors import Overloaded


class Admission:
    """Counts requests in and out."""

    def __init__(self, model: str, max_requests: int) -> None:
        self._model, self._max_requests = model, max_requests
        self._in_flight = 0
        self._closing = False
        self._lock = threading.Condition()

    @property
    def in_flight(self) -> int:
        """Requests that are on the model, running or not."""
        return self._in_flight

    def enter(self) -> bool:
        """Count one request in; False if the model is closing and another one is current.

        Raises Overloaded when as many are in flight as may be.
        """
        with self._lock:
            if self._closing:
                return False
            if self._in_flight >= self._max_requests:
                raise Overloaded(
                    f"{self._model}: {self._in_flight} requests are running or waiting",
                    hint="send fewer at once, or raise serve.queue",
                )
            self._in_flight += 1
            return True

    def leave(self) -> None:
        """Count one request out."""
        with self._lock:
            self._in_flight -= 1
            if self._closing and not self._in_flight:
                self._lock.notify_all()

    def drain(self, timeout_s: float) -> bool:
        """Let nobody else in and wait until all have left; False if some still have not."""
        with self._lock:
            self._closing = True
            return self._lock.wait_for(lambda: not self._in_flight, timeout_s)
