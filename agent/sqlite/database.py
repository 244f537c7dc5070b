"""One SQLite database: one writer thread, many readers, bounded in bytes, never in the way.

    write(sql, row)  -> queue (bounded) -> writer thread -> one transaction for many rows
    rows(sql, args)  <- a connection of its own for every query that runs at the moment

A database must not fail a request. So nothing here raises but the constructor: a disk that is
full, read-only or failing makes write() False and, if it cannot be read either, rows() empty;
health() says so, and the writer tries again now and then. What may happen when stands in
states.py; this module carries it out. A damaged file is replaced as the user's policy says.

A row is durable when flush() or call() has answered, not when write() has.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from agent.sqlite import sqlite_file
from agent.sqlite.connections import ReadConnections, Row
from agent.sqlite.damage import (
    DamagePolicy,
    damage_error,
    delete_file,
    describe_error,
    is_damage,
    is_job_failure,
    set_aside,
)
from agent.sqlite.sqlite_file import PAGE, Migration, SyncLevel
from agent.sqlite.states import ACCEPTING, DUE, FAILING, READABLE, Effect, Event, State, step
from agent.sqlite.write_queue import Write, WriteQueue
from edge_core.errors import EdgeError, InputError
from edge_core.files import storage_error

if TYPE_CHECKING:
    import sqlite3

log = logging.getLogger(__name__)

Result = TypeVar("Result")

MIN_BYTES = 4_000_000  # of the smallest file
HIGH_FILL = 0.9  # share of the tables' bound above which rows are evicted
RETRY_S, RETRY_MAX_S = 5.0, 300.0


class Database:
    """One file. Every method may be called from any thread.

    The file, its log and its index never take more than ``max_bytes`` together. ``evict`` deletes
    the least useful rows, few at a time, and returns how many; it is called inside the writer's
    transaction while the tables are fuller than HIGH_FILL. If it returns 0, the file fills up, and
    then takes no more rows. ``on_commit`` is called at the end of each transaction, the first time
    in start(), with the share of the bound that is in use (counters are saved there).

    Raises InputError if ``max_bytes`` is below MIN_BYTES.
    """

    def __init__(
        self,
        path: Path,
        migrations: tuple[Migration, ...],
        *,
        max_bytes: int,
        damage: DamagePolicy,
        sync: SyncLevel,
        evict: Callable[[sqlite3.Connection], int],
        on_commit: Callable[[sqlite3.Connection, float], None] = lambda db, fill: None,
        retry_s: float = RETRY_S,  # after a failure; doubles up to RETRY_MAX_S
    ) -> None:
        if max_bytes < MIN_BYTES:
            raise InputError(f"{path}: a bound of {max_bytes} bytes; it needs at least {MIN_BYTES}")
        self.path = path
        self.state = State.OPENING
        self.dropped = 0  # rows that the queue or the disk refused
        self.evicted = 0
        self.used_bytes = 0  # of the tables
        self.replacements = 0  # of a damaged file
        self._migrations, self._damage, self._sync = migrations, damage, sync
        # The log holds at most what makes it due, a group, its last row, and the pages of indexes
        # that a group and the evictions for it change (a page a row).
        self._log_bytes = group_bytes = min(1_000_000, max_bytes // 64)
        self._row_bytes = max_bytes // 40
        self._pages = (max_bytes - max_bytes // 16 - 2_000_000) // PAGE
        self._evict, self._on_commit, self._retry_s = evict, on_commit, retry_s
        self._lock = threading.Condition()  # guards the queue, the state and the effects
        self._queue = WriteQueue(group_bytes, self._lock, self._is_due)
        self._effects: deque[tuple[Effect, Exception | None]] = deque()
        self._problem = ""  # why the disk is not used now
        self._notice = ""  # what happened to the file
        # Closing removes the log, so a log at the start is the trace of a crash or a power cut.
        self._has_crashed = sqlite_file.file_bytes(path, "-wal") > 0
        self._writer: sqlite3.Connection | None = None
        self._readers = ReadConnections(path)
        self._thread = threading.Thread(target=self._run, name=f"db-{path.stem}", daemon=True)

    def start(self) -> None:
        """Open the file, or note why it cannot be opened; then write in the background."""
        self._attempt([])
        self._thread.start()

    @property
    def pending(self) -> dict[bytes, Row]:
        """Rows that wait for their commit, by write()'s key."""
        return self._queue.pending

    # Reading

    def rows(self, sql: str, args: Row = ()) -> list[Row]:
        """What the query finds in the committed state; [] if the disk fails."""
        if self.state not in READABLE:
            return []
        readers = self._readers
        try:
            return readers.fetch(sql, args)
        except sqlite_file.connection_errors() as error:
            if "locked" not in str(error) and readers is self._readers:  # not of a replaced file
                self._advance(Event.DAMAGE_FOUND if is_damage(error) else Event.READ_FAILED, error)
            return []

    def report_damage(self, why: str) -> None:
        """Have the file replaced: what is in it makes no sense."""
        self._advance(Event.DAMAGE_FOUND, damage_error(why))

    # Writing

    def write(self, sql: str, row: Row, *, size: int = 100, key: bytes = b"") -> bool:
        """Queue one statement; False if it is dropped (too large, queue full, disk failing).

        ``size`` is about what it takes, in bytes; with 0 its loss is not counted. Until its commit
        the row stands in ``pending`` under ``key``.
        """
        with self._lock:
            accepted = (
                size <= self._row_bytes
                and self.state in ACCEPTING
                and self._queue.put(Write(sql, row, size, key))
            )
            self.dropped += size > 0 and not accepted
        return accepted

    def call(
        self, job: Callable[[sqlite3.Connection], Result], *, wait_s: float = 10.0
    ) -> Result | None:
        """Run ``job`` in the writer's next transaction, after all that is queued; its result.

        None if the disk fails or it takes longer than ``wait_s``. What ``job`` itself raises comes
        out here, a violated constraint included; then only its own writes are rolled back.
        """
        answer: Future[Result] = Future()
        with self._lock:
            if self.state not in ACCEPTING:
                return None
            self._queue.put_job(Write("", (), 0, b"", job, answer))
        if not wait([answer], wait_s).done:
            return None
        try:
            return answer.result()
        except OSError:
            return None
        except sqlite_file.connection_errors() as error:
            if is_job_failure(error):
                raise
            return None

    def flush(self, *, wait_s: float = 10.0) -> bool:
        """Wait until all that was queued is committed; False if it is not."""
        return self.call(lambda db: True, wait_s=wait_s) is True

    def health(self) -> str:
        """What is wrong with the file, or was since the start; "" if nothing."""
        return self._problem or self._notice

    def disk_bytes(self) -> int:
        """Size of the file with its log and index now."""
        return sum(sqlite_file.file_bytes(self.path, suffix) for suffix in ("", "-wal", "-shm"))

    def close(self) -> None:
        """Commit what is queued and close the file; later calls find and store nothing."""
        self._advance(Event.CLOSE_ASKED)
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        else:  # never started
            self._carry_out_effects()

    # The states

    def _advance(self, event: Event, cause: Exception | None = None) -> None:
        """Take one step in the table; the writer's thread carries out what it asks for."""
        with self._lock:
            self.state, effects = step(self.state, event)
            self._effects.extend((effect, cause) for effect in effects)
            self._lock.notify_all()

    def _is_due(self) -> bool:
        return bool(self._effects) or self.state in DUE

    def _carry_out_effects(self) -> None:
        while self._effects:
            effect, cause = self._effects.popleft()
            match effect:
                case Effect.DISCONNECT:
                    self._disconnect()
                case Effect.DROP_QUEUE:
                    self._drop(self._queue.take_all(), cause)
                case Effect.REPLACE_FILE if self.state in (State.DAMAGED, State.CLOSING):
                    self._replace_file(cause)
                case Effect.REPORT_FAILURE:
                    self._report_failure(cause)
                case Effect.REPORT_RECOVERY:
                    self._report_recovery()
                case Effect.CLOSE_FILE:
                    self._readers.close()
                    self._disconnect()

    # The writer's thread

    def _run(self) -> None:
        delay_s = self._retry_s
        while self.state is not State.CLOSED:
            group = self._queue.take(delay_s if self.state in FAILING else None)
            if not self._attempt(group):
                delay_s = min(2 * delay_s, RETRY_MAX_S)
            elif group:  # opening a file does not prove that the disk takes rows again
                delay_s = self._retry_s
            self._finish_closing()

    def _finish_closing(self) -> None:
        with self._lock:
            if self.state is not State.CLOSING or len(self._queue) or self._effects:
                return
            self._advance(Event.DRAINED)
        self._carry_out_effects()

    def _attempt(self, group: list[Write]) -> bool:
        """Commit a group (or only look whether the disk works again); never raises."""
        if self._effects:  # of what another thread has found
            self._carry_out_effects()
            if self.state in FAILING:
                self._drop(group)
                return False
        if self.state is State.CLOSING and not group:
            return True
        try:
            self._connect_and_commit(group)
        except Exception as error:  # noqa: BLE001  a thread's root: a job's bug must not end the writing
            self._advance(Event.DAMAGE_FOUND if is_damage(error) else Event.DISK_FAILED, error)
            self._carry_out_effects()
            self._drop(group, error)
            return self.state not in FAILING
        self._carry_out_effects()
        return True

    def _connect_and_commit(self, group: list[Write]) -> None:
        """Raises what sqlite3, the disk or a job raises."""
        if self._writer is None:
            self._writer = self._open()
            self._commit(self._writer, group)
            self._advance(Event.OPENED)
            return
        if self.state is State.SETTLING:
            self._settle(self._writer)
            self._advance(Event.SETTLED)
        self._commit(self._writer, group)

    def _open(self) -> sqlite3.Connection:
        return sqlite_file.open_for_writing(self.path, self._migrations, self._sync)

    def _commit(self, db: sqlite3.Connection, group: list[Write]) -> None:
        answers: list[tuple[Any, Exception | None]] = []
        evicted = rejected = 0
        with sqlite_file.atomic(db):
            for write in group:
                if write.job is not None:
                    answers.append(sqlite_file.run_job(db, write.job))
                else:
                    answers.append((None, None))
                    rejected += self._is_rejected(db, write)
            while (fill := self._measure_fill(db)) > HIGH_FILL and (count := self._evict(db)):
                evicted += count
            self._on_commit(db, fill)
        self.evicted += evicted
        with self._lock:
            self.dropped += rejected
        self._queue.forget(group)
        if sqlite_file.file_bytes(self.path, "-wal") > self._log_bytes:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        for write, (result, failure) in zip(group, answers, strict=True):
            if write.answer is None:
                continue
            if failure is None:
                write.answer.set_result(result)
            else:
                write.answer.set_exception(failure)

    def _is_rejected(self, db: sqlite3.Connection, write: Write) -> bool:
        """Execute one statement; True if a constraint rejected its row, which undoes only that."""
        try:
            db.execute(write.sql, write.row)
        except Exception as error:
            if not is_job_failure(error):
                raise
            log.error("database=%s rejected a row: %s", self.path.name, describe_error(error))
            return write.size > 0
        return False

    def _measure_fill(self, db: sqlite3.Connection) -> float:
        page_count, free = (
            sqlite_file.read_pragma(db, name) for name in ("page_count", "freelist_count")
        )
        self.used_bytes = (page_count - free) * PAGE
        return (page_count - free) / self._pages

    def _settle(self, db: sqlite3.Connection) -> None:
        """What an opened file may need and nobody should wait for."""
        if self._has_crashed:
            sqlite_file.check_structure(db)
            self._has_crashed = False
        self._shrink(db)
        db.execute(f"PRAGMA max_page_count={self._pages}").fetchone()

    def _shrink(self, db: sqlite3.Connection) -> None:
        """Give back what is above the bound: it may have been lowered."""
        while (
            sqlite_file.read_pragma(db, "page_count") > self._pages and self.state is State.SETTLING
        ):
            evicted = 0
            with sqlite_file.atomic(db):
                while (
                    evicted < 1000
                    and self._measure_fill(db) > HIGH_FILL
                    and (count := self._evict(db))
                ):
                    evicted += count
            self.evicted += evicted
            free = sqlite_file.read_pragma(db, "freelist_count")
            db.executescript("PRAGMA incremental_vacuum(200)")  # execute() ends after one page
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not evicted and not free:
                return

    # Effects

    def _disconnect(self) -> None:
        db, self._writer = self._writer, None
        if db is not None:
            with suppress(*sqlite_file.connection_errors()):
                db.close()

    def _drop(self, writes: list[Write], cause: Exception | None = None) -> None:
        with self._lock:
            self.dropped += sum(write.size > 0 for write in writes)
        self._queue.forget(writes)
        for write in writes:
            if write.answer is not None:
                write.answer.set_exception(cause or OSError("the database is out of use"))

    def _replace_file(self, cause: Exception | None) -> None:
        """Begin a new file where the damaged one was."""
        self._readers.close()
        try:
            fate = self._remove_damaged()
            self._writer = self._open()
            self._commit(self._writer, [])
        except Exception as error:  # noqa: BLE001  as above
            self._advance(Event.DISK_FAILED, error)
            return
        finally:
            self._readers = ReadConnections(self.path)
        self._has_crashed = False
        self.replacements += 1
        why = describe_error(cause) if cause else "unknown"
        self._notice = f"{self.path} was damaged ({why}) and was {fate}"
        log.warning("database=%s was damaged and was %s: %s", self.path.name, fate, why)
        self._advance(Event.REPLACED)

    def _remove_damaged(self) -> str:
        """Get the damaged file out of the way; returns what became of it."""
        if self._damage == "recreate":
            delete_file(self.path)
            return "recreated"
        return f"set aside as {set_aside(self.path).name}; a new file was started"

    def _report_failure(self, cause: Exception | None) -> None:
        match cause:
            case EdgeError():
                why = cause.what
            case OSError():
                why = storage_error(cause, self.path).what
            case _:
                why = f"cannot write {self.path}: {describe_error(cause) if cause else 'unknown'}"
        problem = f"{why}; requests are answered without it"
        if problem != self._problem:
            log.warning("database=%s is not written: %s", self.path.name, why)
        self._problem = problem

    def _report_recovery(self) -> None:
        if self._problem:
            log.info("database=%s works again", self.path.name)
        self._problem = ""
