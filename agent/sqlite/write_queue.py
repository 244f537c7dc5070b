"""Statements that wait for the writer's thread: bounded, and taken in groups.

put(write) -> queue -> take(timeout) -> a group for one transaction
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import msgspec

from agent.sqlite.connections import Row

if TYPE_CHECKING:
    import sqlite3

GROUP_ROWS = 100
GROUP_S = 0.2  # longest wait of a row for its commit
QUEUE_BYTES = 4_000_000
QUEUE_ROWS = 2000


class Write(msgspec.Struct, frozen=True):
    """One statement, or one job with the place for its answer."""

    sql: str
    row: Row
    size: int  # bytes, about; 0: its loss is not counted
    key: bytes = b""
    job: Callable[[sqlite3.Connection], Any] | None = None
    answer: Future[Any] | None = None


class WriteQueue:
    """Filled by any thread, emptied by one.

    ``lock`` guards it, and may guard more. ``is_due`` says that the emptying thread has something
    else to do, so take() must not wait; whoever makes it true notifies ``lock``.
    """

    def __init__(
        self, group_bytes: int, lock: threading.Condition, is_due: Callable[[], bool]
    ) -> None:
        self.pending: dict[bytes, Row] = {}  # rows that wait for their commit, by their key
        self._group_bytes = group_bytes
        self._lock, self._is_due = lock, is_due
        self._writes: deque[Write] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._writes)

    def put(self, write: Write) -> bool:
        """Queue one statement; False if the queue is full."""
        with self._lock:
            if len(self._writes) >= QUEUE_ROWS or self._bytes + write.size > QUEUE_BYTES:
                return False
            self._append(write)
        return True

    def put_job(self, write: Write) -> None:
        """Queue one job, however full the queue is: somebody waits for it."""
        with self._lock:
            self._append(write)
            self._lock.notify()

    def take(self, timeout_s: float | None) -> list[Write]:
        """Wait for statements, and return a group; [] if something else is due, or in the end."""
        with self._lock:
            self._lock.wait_for(lambda: self._writes or self._is_due(), timeout_s)
            self._lock.wait_for(self._is_group_complete, GROUP_S)
            group: list[Write] = []
            size = 0
            while self._writes and len(group) < GROUP_ROWS and size < self._group_bytes:
                group.append(self._writes.popleft())
                size += group[-1].size
            self._bytes -= size
            return group

    def take_all(self) -> list[Write]:
        """Empty the queue."""
        with self._lock:
            writes = list(self._writes)
            self._writes.clear()
            self._bytes = 0
            return writes

    def forget(self, writes: Iterable[Write]) -> None:
        """Statements that were committed or dropped are not pending any more."""
        with self._lock:
            for write in writes:
                if write.key and self.pending.get(write.key) is write.row:
                    del self.pending[write.key]

    def _append(self, write: Write) -> None:
        self._writes.append(write)
        self._bytes += write.size
        if write.key:
            self.pending[write.key] = write.row
        if len(self._writes) in (1, GROUP_ROWS) or self._bytes >= self._group_bytes:
            self._lock.notify()

    def _is_group_complete(self) -> bool:
        return (
            not self._writes
            or self._is_due()
            or len(self._writes) >= GROUP_ROWS
            or self._bytes >= self._group_bytes
            or self._writes[-1].job is not None
        )
