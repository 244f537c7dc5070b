"""How long a request will wait for its turn, from how long the last ones took."""

from __future__ import annotations

from edge_core.errors import Overloaded

SMOOTHING = 0.2  # weight of the newest duration


class WaitEstimate:
    """A smoothed duration. Used under the lock of the queue that it is about."""

    __slots__ = ("_expected_ns", "_hint")

    def __init__(self, hint: str = "") -> None:
        self._expected_ns = 0.0
        self._hint = hint  # of the refusal

    def add(self, took_ns: int) -> None:
        """Take one more duration into account."""
        expected_ns = self._expected_ns or took_ns
        self._expected_ns = expected_ns + SMOOTHING * (took_ns - expected_ns)

    def check_deadline(self, now: int, rounds: int, deadline: int) -> None:
        """Raise Overloaded if ``deadline`` would pass during ``rounds`` durations from ``now``.

        Both times in ns of perf_counter.
        """
        wait_ns = rounds * self._expected_ns
        if now + wait_ns > deadline:
            raise Overloaded(
                f"the deadline would pass before its turn in about {wait_ns / 1e6:.0f} ms",
                hint=self._hint,
            )
