"""A cache's database: one writer thread, many readers, bounded in bytes, never in the way.

    write(sql, row)  -> queue (bounded) -> writer thread -> one transaction for many rows
    rows(sql, args)  <- a connection of its own for every query that runs at the moment

A cache must not fail a request. So nothing here raises but the constructor: a disk that is
full, read-only or failing makes write() False and, if it cannot be read either, rows() empty;
health() says it, and the writer tries again now and then. A damaged file is deleted and begun
anew (a cache holds nothing that cannot be computed again, and a copy set aside would take the
room twice).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from agent.sqlite import sqlite_file
from agent.sqlite.connections import Readers, Row
from agent.sqlite.sqlite_file import PAGE, Migration
from edge_core.errors import InputError
from edge_core.files import storage_error

if TYPE_CHECKING:
    import sqlite3

log = logging.getLogger(__name__)

T = TypeVar("T")

LEAST = 4_000_000  # bytes of the smallest file
HIGH = 0.9  # share of the tables' bound above which rows are evicted
GROUP_ROWS = 100
GROUP_S = 0.2  # longest wait of a row for its commit
QUEUE_BYTES = 4_000_000
QUEUE_ROWS = 2000
RETRY_S, RETRY_MAX_S = 5.0, 300.0


class Database:
    """One cache file. Every method may be called from any thread.

    The file, its log and its index never take more than ``max_bytes`` together. ``evict`` deletes
    the least useful rows, few at a time, and returns how many; it is called inside the writer's
    transaction while the tables are fuller than HIGH. ``noted`` is called at the end of each
    transaction, the first time in start(), with the share of the bound that is in use
    (counters are saved there). Raises InputError if ``max_bytes`` is below LEAST.
    """

    def __init__(
        self,
        path: Path,
        migrations: tuple[Migration, ...],
        *,
        max_bytes: int,
        evict: Callable[[sqlite3.Connection], int],
        noted: Callable[[sqlite3.Connection, float], None] = lambda db, fill: None,
        retry_s: float = RETRY_S,  # after a failure; doubles up to RETRY_MAX_S
    ) -> None:
        if max_bytes < LEAST:
            raise InputError(f"{path}: a cache of {max_bytes} bytes; it needs at least {LEAST}")
        self.path = path
        self.pending: dict[bytes, Row] = {}  # rows that wait for their commit, by write()'s key
        self.dropped = 0  # rows that the queue or the disk refused
        self.evicted = 0
        self.used = 0  # bytes of the tables
        self.renewed = 0  # times that a damaged file was begun anew
        self._migrations = migrations
        # The log holds at most what makes it due, a group, its last row, and the pages of indexes
        # that a group and the evictions for it change (a page a row).
        self._log_bytes = self._group_bytes = min(1_000_000, max_bytes // 64)
        self._row_bytes = max_bytes // 40
        self._pages = (max_bytes - max_bytes // 16 - 2_000_000) // PAGE
        self._evict, self._noted, self._retry_s = evict, noted, retry_s
        self._queue: deque[_Item] = deque()
        self._queued = 0  # bytes
        self._wake = threading.Condition()
        self._closing = False
        self._trouble = ""  # why the disk is not used now
        self._notice = ""  # what happened to the file
        self._suspect: Exception | None = None  # a reader's error, for the writer to deal with
        self._readable = False
        self._writer: sqlite3.Connection | None = None
        self._readers = Readers(path)
        # Closing removes the log, so a log at the start tells of a crash or a power cut.
        self._crashed = sqlite_file.size(path, "-wal") > 0
        self._tidy_due = False
        self._thread = threading.Thread(target=self._run, name=f"cache-{path.stem}", daemon=True)

    def start(self) -> None:
        """Open the file, or be in trouble; then write in the background."""
        self._attempt([])
        self._thread.start()

    # Reading

    def rows(self, sql: str, args: Row = ()) -> list[Row]:
        """What the query finds in the committed state; [] if the disk fails."""
        if not self._readable:
            return []
        try:
            return self._readers.fetch(sql, args)
        except sqlite_file.connection_errors() as e:
            if "locked" not in str(e):
                self._suspected(e)
            return []

    def distrust(self, why: str) -> None:
        """Begin the file anew: what stands in it makes no sense."""
        self._suspected(sqlite_file.damage(why))

    def _suspected(self, e: Exception) -> None:
        with self._wake:
            self._readable, self._suspect = False, e
            self._wake.notify()

    # Writing

    def write(self, sql: str, row: Row, *, size: int = 100, key: bytes = b"") -> bool:
        """Queue one statement; False if it is dropped (too large, queue full, disk in trouble).

        ``size`` is about what it takes, in bytes; with 0 its loss is not counted. Until its commit
        the row stands in ``pending`` under ``key``.
        """
        with self._wake:
            full = len(self._queue) >= QUEUE_ROWS or self._queued + size > QUEUE_BYTES
            if size > self._row_bytes or full or self._trouble or self._closing:
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
        except OSError:
            return None
        except sqlite_file.connection_errors():
            return None

    def flush(self, *, wait_s: float = 10.0) -> bool:
        """Wait until all that was queued is committed; False if it is not."""
        return self.call(lambda db: True, wait_s=wait_s) is True

    def health(self) -> str:
        """What is wrong with the file, or was since the start; "" if nothing."""
        return self._trouble or self._notice

    def disk_bytes(self) -> int:
        """Size of the file with its log and index now."""
        return sum(sqlite_file.size(self.path, end) for end in ("", "-wal", "-shm"))

    def close(self) -> None:
        """Commit what is queued and close the file; later calls find and store nothing."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout=10)

    # The writer's thread

    def _run(self) -> None:
        delay = self._retry_s
        while (batch := self._take(delay if self._trouble else None)) is not None:
            if not self._attempt(batch):
                delay = min(2 * delay, RETRY_MAX_S)
            elif batch:  # opening a file does not prove that the disk takes rows again
                delay = self._retry_s
        self._readers.close()
        self._drop_writer()

    def _take(self, timeout: float | None) -> list[_Item] | None:
        """The next group; [] when there is something else to do; None at the end."""
        with self._wake:
            if not (self._queue or self._closing or self._suspect or self._tidy_due):
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
                self._writer = sqlite_file.open_for_writing(self.path, self._migrations)
                self._tidy_due = True
            elif self._tidy_due:
                self._tidy(self._writer)
            answers = self._commit(self._writer, batch)
        except Exception as e:  # noqa: BLE001  a thread's root: a job's bug must not end the writing
            self._drop_writer()
            works = self._begin_anew(e) if sqlite_file.damaged(e) else self._in_trouble(e)
            self._gone(batch if works else batch + self._waiting(), e)
            return works
        self._landed(batch, answers)
        self._readable = True
        if self._trouble:
            log.info("cache=%s works again", self.path.name)
            self._trouble = ""
        return True

    def _commit(self, db: sqlite3.Connection, batch: list[_Item]) -> list[Any]:
        answers = []
        evicted = 0
        with sqlite_file.atomic(db):
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
        if sqlite_file.size(self.path, "-wal") > self._log_bytes:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return answers

    def _fill(self, db: sqlite3.Connection) -> float:
        used = sqlite_file.pragma(db, "page_count") - sqlite_file.pragma(db, "freelist_count")
        self.used = used * PAGE
        return used / self._pages

    def _landed(self, batch: list[_Item], answers: list[Any]) -> None:
        self._forget(batch)
        for item, answer in zip(batch, answers, strict=True):
            if item.answer is not None:
                item.answer.set_result(answer)

    def _waiting(self) -> list[_Item]:
        with self._wake:
            waiting = list(self._queue)
            self._queue.clear()
            self._queued = 0
        return waiting

    def _gone(self, items: list[_Item], e: Exception) -> None:
        with self._wake:
            self.dropped += sum(item.size > 0 for item in items)
        self._forget(items)
        for item in items:
            if item.answer is not None:
                item.answer.set_exception(e)

    def _forget(self, batch: list[_Item]) -> None:
        with self._wake:
            for item in batch:
                if item.key and self.pending.get(item.key) is item.row:
                    del self.pending[item.key]

    # Opening

    def _tidy(self, db: sqlite3.Connection) -> None:
        """What an opened file may need and nobody should wait for."""
        self._tidy_due = False
        if self._crashed:
            sqlite_file.check(db)
            self._crashed = False
        self._shrink(db)
        db.execute(f"PRAGMA max_page_count={self._pages}").fetchone()

    def _shrink(self, db: sqlite3.Connection) -> None:
        """Give back what is above the bound: it may have been lowered."""
        while sqlite_file.pragma(db, "page_count") > self._pages and not self._closing:
            evicted = 0
            with sqlite_file.atomic(db):
                while evicted < 1000 and self._fill(db) > HIGH and (n := self._evict(db)):
                    evicted += n
            self.evicted += evicted
            free = sqlite_file.pragma(db, "freelist_count")
            db.executescript("PRAGMA incremental_vacuum(200)")  # execute() ends after one page
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not evicted and not free:
                return

    def _begin_anew(self, e: Exception) -> bool:
        """Replace a damaged file by an empty one."""
        self._readable = False
        self._readers.close()
        try:
            sqlite_file.erase(self.path)
            self._writer = sqlite_file.open_for_writing(self.path, self._migrations)
            self._commit(self._writer, [])
        except Exception as again:  # noqa: BLE001  as above
            self._drop_writer()
            return self._in_trouble(again)
        finally:
            self._readers = Readers(self.path)
        self._trouble, self._readable, self._crashed = "", True, False
        self._tidy_due = True
        self.renewed += 1
        why = sqlite_file.told(e)
        self._notice = f"{self.path} was damaged ({why}) and was begun anew"
        log.warning("cache=%s was damaged and was begun anew: %s", self.path.name, why)
        return True

    def _in_trouble(self, e: Exception) -> bool:
        if isinstance(e, OSError):
            why = storage_error(e, self.path).what
        else:
            why = f"cannot write {self.path}: {sqlite_file.told(e)}"
        if not self._trouble:
            log.warning("cache=%s is not written: %s", self.path.name, why)
        self._trouble = f"{why}; requests are answered without it"
        return False

    def _drop_writer(self) -> None:
        db, self._writer = self._writer, None
        self._tidy_due = False
        if db is not None:
            with suppress(*sqlite_file.connection_errors()):
                db.close()


class _Item(msgspec.Struct, frozen=True):
    """One statement, or one job with the place for its answer."""

    sql: str
    row: Row
    size: int
    key: bytes
    job: Callable[[sqlite3.Connection], Any] | None = None
    answer: Future[Any] | None = None
