"""Which waiting requests run together, and when. Pure: counts and ages in, a decision out.

A batch starts when a session is free and ``min_size`` rows wait, or the oldest has waited
``max_wait_ns``. With the default ``min_size`` of 1 nothing ever waits for more: requests that
came while the session was busy form the next batch.
"""

from __future__ import annotations

import msgspec

from edge_core.errors import InputError
from edge_core.tensors import Feeds

Shape = tuple[tuple[str, str, tuple[int, ...]], ...]


class BatchPolicy(msgspec.Struct, frozen=True):
    """Of one model. ``max_size`` 1 means that requests run one by one."""

    max_size: int = 1  # rows
    min_size: int = 1  # rows
    max_wait_ns: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.min_size <= self.max_size:
            raise InputError(
                f"batches of {self.min_size} to {self.max_size} rows cannot be made",
                hint="min_batch_size is at least 1 and at most max_batch_size",
            )


def count_in_batch(rows: list[int], policy: BatchPolicy) -> int:
    """How many of the waiting requests, in order, fit into one batch; at least one.

    ``rows`` are the rows of consecutive requests that may run together.
    """
    total = 0
    for n, size in enumerate(rows):
        total += size
        if total > policy.max_size and n:
            return n
    return len(rows)


def start_delay(waiting: int, oldest_ns: int, policy: BatchPolicy) -> int:
    """Nanoseconds until the batch of ``waiting`` rows should start; 0: now."""
    if waiting >= policy.min_size:
        return 0
    return max(0, policy.max_wait_ns - oldest_ns)


def row_shapes(feeds: Feeds) -> Shape:
    """What two requests must have in common to run together: all but the number of rows."""
    return tuple((name, array.dtype.str, array.shape[1:]) for name, array in feeds.items())
