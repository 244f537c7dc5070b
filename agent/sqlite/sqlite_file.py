"""One SQLite file: opened, brought to the newest schema, checked, measured, shown.

Schema steps are plain functions on a plain sqlite3 connection, each recorded in the transaction
that runs it. A new file needs only CREATE statements, so a running agent does without sqlite-utils
(25 MB of memory). A step that has to rebuild a table wraps its connection in sqlite_utils.Database
for that one time, and read_tables() uses it for people and tools.

The log is written ahead (WAL). After a crash of the process nothing that was committed is lost;
after a power cut the file is whole, and

    NORMAL   the last moments may be missing
    FULL     nothing that was committed is missing: each commit waits for the disk

Damage inside a stored value is not seen by SQLite: whoever stores values adds a checksum of its
own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import msgspec

from agent.sqlite.damage import damage_error, is_job_failure
from edge_core.files import fsync_dir

if TYPE_CHECKING:
    # The standard library's sqlite3 is imported inside the functions that use it: the modules that
    # import this one are part of an idle agent, which may never open a database.
    import sqlite3

Migration = Callable[["sqlite3.Connection"], None]
SyncLevel = Literal["NORMAL", "FULL"]
Result = TypeVar("Result")

PAGE = 4096  # bytes


class Table(msgspec.Struct, frozen=True):
    """One table of a database file, for people."""

    name: str
    columns: tuple[str, ...]
    rows: int
    schema: str


def connection_errors() -> tuple[type[Exception], ...]:
    """What a connection may raise, for ``except``."""
    import sqlite3

    # A damaged name inside an error message cannot even be decoded.
    return sqlite3.Error, UnicodeError, MemoryError


@contextmanager
def atomic(db: sqlite3.Connection) -> Iterator[None]:
    """All of the block's writes, or none."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with suppress(*connection_errors()):  # SQLite has rolled back by itself after some errors
            db.execute("ROLLBACK")
        raise


def run_job(
    db: sqlite3.Connection, job: Callable[[sqlite3.Connection], Result]
) -> tuple[Result | None, Exception | None]:
    """The job's result, or why it failed by itself: then what it wrote is rolled back, and the
    transaction goes on. What the file or the disk raises comes out."""
    db.execute("SAVEPOINT job")
    try:
        result, failure = job(db), None
    except Exception as error:
        if not is_job_failure(error):
            raise
        db.execute("ROLLBACK TO job")
        result, failure = None, error
    db.execute("RELEASE job")
    return result, failure


def open_for_writing(
    path: Path, migrations: tuple[Migration, ...], sync: SyncLevel
) -> sqlite3.Connection:
    """The one writing connection to a file of the newest schema; sqlite3.Error or OSError."""
    import sqlite3

    _create_private(path)
    db = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA auto_vacuum=INCREMENTAL")  # has an effect in a new file only
        db.execute("PRAGMA journal_mode=WAL").fetchone()
        db.execute(f"PRAGMA synchronous={sync}")
        db.execute("PRAGMA wal_autocheckpoint=0").fetchone()  # the writer does it
        db.execute("PRAGMA cache_size=-1000")  # KiB
        db.execute("PRAGMA cell_size_check=1")  # sees more kinds of damage
        _migrate(db, migrations)
        if sync == "FULL":
            fsync_dir(path.parent)  # the names of a new file and its log
    except BaseException as error:
        db.close()
        if "readonly" in str(error):  # the disk is not: the file was opened for writing above
            raise damage_error("its header says that it is read-only") from error
        raise
    return db


def open_for_reading(path: Path) -> sqlite3.Connection:
    """One more connection, which creates and changes nothing; raises sqlite3.Error.

    It reads with read(): mmap is faster, but a failing disk is an error of read() and a deadly
    signal in mapped memory.
    """
    import sqlite3

    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",  # WAL needs to write its index
        uri=True,
        timeout=0.05,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        db.execute("PRAGMA query_only=1")
        db.execute("PRAGMA cache_size=-250")  # KiB
        db.execute("PRAGMA cell_size_check=1")
    except BaseException:
        db.close()
        raise
    return db


def check_structure(db: sqlite3.Connection) -> None:
    """Read the whole file; raises sqlite3.DatabaseError if its structure is broken."""
    verdict = db.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != ("ok",):
        raise damage_error(str(verdict[0] if verdict else "quick_check says nothing"))


def file_bytes(path: Path, suffix: str = "") -> int:
    """Bytes of the file, of its log ("-wal") or index ("-shm"); 0 if there is none."""
    try:
        return Path(f"{path}{suffix}").stat().st_size
    except OSError:
        return 0


def read_pragma(db: sqlite3.Connection, name: str) -> int:
    """The value of a numeric PRAGMA."""
    (value,) = db.execute(f"PRAGMA {name}").fetchone()
    return int(value)


def read_tables(path: Path) -> tuple[Table, ...]:
    """The tables of a file; for commands, not for the running agent (loads sqlite-utils)."""
    import sqlite3

    import sqlite_utils

    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        return tuple(
            Table(table.name, tuple(table.columns_dict), table.count, table.schema)
            for table in sqlite_utils.Database(db).tables
        )
    finally:
        db.close()


def _create_private(path: Path) -> None:
    """Make sure that the file is there and for its owner only.

    SQLite would make it readable for all; -wal and -shm take over the mode of the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(fd, 0o600)
    finally:
        os.close(fd)


def _migrate(db: sqlite3.Connection, migrations: tuple[Migration, ...]) -> None:
    version = read_pragma(db, "user_version")
    if not 0 <= version <= len(migrations):
        raise damage_error(f"schema {version} is unknown to this version")
    for number, migration in enumerate(migrations[version:], version + 1):
        with atomic(db):
            migration(db)
            db.execute(f"PRAGMA user_version={number}")
