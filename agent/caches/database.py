"""A cache's SQLite file: one writer thread, many readers, bounded in bytes, never in the way.

    write(sql, row)  -> queue (bounded) -> writer thread -> one transaction for many rows
    rows(sql, args)  <- a connection of its own for every reader that runs at the moment

A cache must not fail a request. So nothing here raises after the constructor: a disk that is
full, read-only or failing makes rows() empty and write() False, health() says it, and the writer
tries again now and then. A damaged file is deleted and begun anew (a cache holds nothing that
cannot be computed again, and a copy set aside would take the room twice).

WAL and NORMAL: after a crash of the process nothing that was committed is lost; after a power cut
the last moments may be missing, the file is whole. Damage inside a stored value is not seen by
SQLite: whoever stores values adds a checksum of its own.

Schema steps are plain functions on a plain sqlite3 connection, recorded in the transaction that
runs them. A new file needs only CREATE statements, so a running agent does without sqlite-utils
(25 MB of memory); a step that has to rebuild a table wraps its connection in sqlite_utils.Database
for that one time, and inspect() uses it for people and tools.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

log = logging.getLogger(__name__)

T = TypeVar("T")
Row = tuple[Any, ...]
Migration = Callable[[sqlite3.Connection], None]

PAGE = 4096  # bytes
HIGH = 0.9  # share of the file's bound above which rows are evicted
GROUP_ROWS = 100
GROUP_S = 0.2  # longest wait of a row for its commit
WAL_LIMIT = 1_000_000  # bytes; a longer log is written back after the commit
QUEUE_BYTES = 4_000_000
QUEUE_ROWS = 2000
SLACK = 4_000_000  # bytes that log and index may take besides max_bytes
RETRY_S, RETRY_MAX_S = 5.0, 300.0
READERS = 16  # idle connections kept

class Database:
    """One cache file. Every method may be called from any thread.

    ``evict`` deletes the least useful rows, few at a time, and returns how many; it is called
    inside the writer's transaction while the file is fuller than HIGH. ``noted`` is called at the
    end of each transaction with the share of the bound that is in use (counters are saved there).
    """

    def __init__(
        self,
        path: Path,
        migrations: tuple[Migration, ...],
        *,
        max_bytes: int,
        evict: Callable[[sqlite3.Connection], int],
        noted: Callable[[sqlite3.Connection, float], None] = lambda db, fill: None,
    ) -> None:
        self.path = path
        self.max_row = max(PAGE, max_bytes // 32)  # bytes; a group and a row fit below 1 - HIGH
        self.pending: dict[bytes, Row] = {}  # rows that wait for their commit, by write()'s key
        self.dropped = 0  # rows that the queue or the disk refused
        self.evicted = 0
        self.used = 0  # bytes in use inside the file
        self.renewed = 0  # times that a damaged file was begun anew
        self._migrations = migrations
        self._pages = max(64, max_bytes // PAGE)
        self._group_bytes = max(PAGE, min(1_000_000, max_bytes // 32))
        self._evict, self._noted = evict, noted
        self._queue: deque[_Item] = deque()
        self._queued = 0  # bytes
        self._wake = threading.Condition()
        self._closing = False
        self._trouble = ""  # why the disk is not used now
        self._notice = ""  # what happened to the file
        self._suspect: Exception | None = None  # a reader's error, for the writer to deal with
        self._readable = False
        self._check_due: bool | None = None  # None: the file was not opened yet
        self._writer: sqlite3.Connection | None = None
        self._readers = _Readers(path)
        self._attempt([])
        self._thread = threading.Thread(target=self._run, name=f"cache-{path.stem}", daemon=True)
        self._thread.start()

    # Reading

    def rows(self, sql: str, args: Row = ()) -> list[Row]:
        """What the query finds in the committed state; [] if the disk fails."""
        if not self._readable:
            return []
        try:
            return self._readers.fetch(sql, args)
        except sqlite3.Error as e:
            if "locked" not in str(e):
                with self._wake:
                    self._readable, self._suspect = False, e
                    self._wake.notify()
            return []

    # Writing

    def write(self, sql: str, row: Row, *, size: int = 100, key: bytes = b"") -> bool:
        """Queue one statement; False if it is dropped (too large, queue full, disk in trouble).

        ``size`` is about what it takes, in bytes; with 0 its loss is not counted. Until its commit
        the row stands in ``pending`` under ``key``.
        """
        with self._wake:
            full = len(self._queue) >= QUEUE_ROWS or self._queued + size > QUEUE_BYTES
            if size > self.max_row or full or self._trouble or self._closing:
                self.dropped += size > 0
                return False
            self._queue.append(_Item(sql, row, size, key))
            self._queued += size
            if key:
                self.pending[key] = row
            if len(self._queue) in (1, GROUP_ROWS) or self._queued >= self._group_bytes:
                self._wake.notify()
        return True

    def call(self, job: Callable[[sqlite3.Connection], T], *, wait_s: float = 10.0) -> T | None:
        """Run ``job`` in the writer's next transaction, after all that is queued; its result.

        None if the disk fails or it takes longer than ``wait_s``. What ``job`` itself raises comes
        out here, and its group is dropped.
        """
        answer: Future[T] = Future()
        with self._wake:
            if self._trouble or self._closing:
                return None
            self._queue.append(_Item("", (), 0, b"", job, answer))
            self._wake.notify()
        if not wait([answer], wait_s).done:
            return None
        try:
            return answer.result()
        except (sqlite3.Error, OSError):
            return None

    def flush(self, *, wait_s: float = 10.0) -> bool:
        """Wait until all that was queued is committed; False if it is not."""
        return self.call(lambda db: True, wait_s=wait_s) is True

    def health(self) -> str:
        """What is wrong with the file, or was since the start; "" if nothing."""
        return self._trouble or self._notice

    def disk_bytes(self) -> int:
        """Size of the file with its log and index now."""
        return sum(_size(self.path, end) for end in ("", "-wal", "-shm"))

    def close(self) -> None:
        """Commit what is queued and close the file; later calls find and store nothing."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout=10)

    # The writer's thread

    def _run(self) -> None:
        delay = RETRY_S
        while True:
            batch = self._take(delay if self._trouble else None)
            if batch is None:
                break
            ok = self._attempt(batch)
            delay = RETRY_S if ok and batch else delay if ok else min(2 * delay, RETRY_MAX_S)
        self._readers.close()
        self._drop_writer()

    def _take(self, timeout: float | None) -> list[_Item] | None:
        """The next group; [] when there is something else to do; None at the end."""
        with self._wake:
            if not (self._queue or self._closing or self._suspect or self._check_due):
                self._wake.wait(timeout)
            if self._closing and not self._queue:
                return None
            until = time.monotonic() + GROUP_S
            while self._queue and not self._full_group():
                left = until - time.monotonic()
                if left <= 0 or not self._wake.wait(left):
                    break
            group: list[_Item] = []
            size = 0
            while self._queue and len(group) < GROUP_ROWS and size < self._group_bytes:
                group.append(self._queue.popleft())
                size += group[-1].size
            self._queued -= size
            return group

    def _full_group(self) -> bool:
        return (
            self._closing
            or len(self._queue) >= GROUP_ROWS
            or self._queued >= self._group_bytes
            or self._queue[-1].job is not None
        )

    def _attempt(self, batch: list[_Item]) -> bool:
        """Commit a group (or only look whether the disk works again); never raises."""
        error: Exception | None
        error, self._suspect = self._suspect, None
        try:
            if error is not None:
                raise error
            if self._writer is None:
                self._writer = self._open()
            elif self._check_due:
                self._check(self._writer)
            answers = self._commit(self._writer, batch)
        except Exception as e:  # noqa: BLE001  a thread's root: a job's bug must not end the writing
            self._gone(batch, e)
            self._drop_writer()
            return self._begin_anew(e) if damaged(e) else self._in_trouble(e)
        self._landed(batch, answers)
        self._readable = True
        if self._trouble:
            log.info("cache=%s works again", self.path.name)
            self._trouble = ""
        return True

    def _commit(self, db: sqlite3.Connection, batch: list[_Item]) -> list[Any]:
        answers = []
        evicted = 0
        with atomic(db):
            for item in batch:
                if item.job is not None:
                    answers.append(item.job(db))
                else:
                    answers.append(None)
                    db.execute(item.sql, item.row)
            while (fill := self._fill(db)) > HIGH and (n := self._evict(db)):
                evicted += n
            self._noted(db, fill)
        self.evicted += evicted
        if _size(self.path, "-wal") > WAL_LIMIT:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return answers

    def _fill(self, db: sqlite3.Connection) -> float:
        used = _pragma(db, "page_count") - _pragma(db, "freelist_count")
        self.used = used * PAGE
        return used / self._pages

    def _landed(self, batch: list[_Item], answers: list[Any]) -> None:
        self._forget(batch)
        for item, answer in zip(batch, answers, strict=True):
            if item.answer is not None:
                item.answer.set_result(answer)

    def _gone(self, batch: list[_Item], e: Exception) -> None:
        """The group, and all that waits behind it, is lost."""
        with self._wake:
            batch = batch + list(self._queue)
            self._queue.clear()
            self._queued = 0
            self.dropped += sum(item.size > 0 for item in batch)
        self._forget(batch)
        for item in batch:
            if item.answer is not None:
                item.answer.set_exception(e)

    def _forget(self, batch: list[_Item]) -> None:
        with self._wake:
            for item in batch:
                if item.key and self.pending.get(item.key) is item.row:
                    del self.pending[item.key]

    def _in_trouble(self, e: Exception) -> bool:
        if not self._trouble:
            log.warning("cache=%s is off: %s", self.path.name, e)
        self._trouble = f"{self.path}: {e}; requests are answered without it"
        return False

    # Opening

    def _shrink(self, db: sqlite3.Connection) -> None:
        """Give back what is above the bound: it may have been lowered."""
        while _pragma(db, "page_count") > self._pages:
            with atomic(db):
                evicted = self._evict(db) if self._fill(db) > HIGH else 0
            self.evicted += evicted
            free = _pragma(db, "freelist_count")
            db.execute(f"PRAGMA incremental_vacuum({min(free, 256)})").fetchall()
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not evicted and not free:
                return

    def _begin_anew(self, e: Exception) -> bool:
        """Replace a damaged file by an empty one."""
        self._readable = False
        self._readers.close()  # SQLite must not have a file open that is deleted
        try:
            for end in ("", "-wal", "-shm", "-journal"):
                Path(f"{self.path}{end}").unlink(missing_ok=True)
            self._writer = self._open()
            self._commit(self._writer, [])
        except Exception as again:  # noqa: BLE001  as above
            self._drop_writer()
            return self._in_trouble(again)
        finally:
            self._readers = _Readers(self.path)
        self._trouble, self._readable = "", True
        self.renewed += 1
        self._notice = f"{self.path} was damaged ({e}) and was begun anew"
        log.warning("cache=%s was damaged and was begun anew: %s", self.path.name, e)
        return True

    def _drop_writer(self) -> None:
        db, self._writer = self._writer, None
        if db is not None:
            with suppress(sqlite3.Error):
                db.close()


class _Item(msgspec.Struct, frozen=True):
    """One statement, or one job with the place for its answer."""

    sql: str
    row: Row
    size: int
    key: bytes
    job: Callable[[sqlite3.Connection], Any] | None = None
    answer: Future[Any] | None = None
