"""A cache's SQLite file: opened, brought to the newest schema, checked, judged, shown.

Schema steps are plain functions on a plain sqlite3 connection, each recorded in the transaction
that runs it. A new file needs only CREATE statements, so a running agent does without sqlite-utils
(25 MB of memory). A step that has to rebuild a table wraps its connection in sqlite_utils.Database
for that one time, and inspect() uses it for people and tools.

WAL and NORMAL: after a crash of the process nothing that was committed is lost; after a power cut
the last moments may be missing, the file is whole. Damage inside a stored value is not seen by
SQLite: whoever stores values adds a checksum of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    # The standard library's sqlite3 is imported inside the functions that use it: the modules that
    # import this one are part of an idle agent, which may never open a database.
    import sqlite3

Migration = Callable[["sqlite3.Connection"], None]

PAGE = 4096  # bytes

# What a disk does, in SQLite's words (sqlite3 in Python 3.10 gives no error codes).
_DISK = (
    "database or disk is full", "attempt to write a readonly", "unable to open", "disk i/o error",
    "is locked", "access permission denied", "interrupted",
)  # fmt: skip


class Table(msgspec.Struct, frozen=True):
    """One table of a cache file, for people."""

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


def damaged(e: Exception) -> bool:
    """Is the file at fault, and not the disk or a bug of ours?

    The statements are constant, so even "no such column" tells of a damaged schema.
    """
    import sqlite3

    if isinstance(e, sqlite3.OperationalError):
        return not any(words in str(e).lower() for words in _DISK)
    bugs = (sqlite3.ProgrammingError, sqlite3.NotSupportedError)
    return isinstance(e, sqlite3.DatabaseError | UnicodeError) and not isinstance(e, bugs)


def damage(why: str) -> Exception:
    """An error that says that the file is at fault."""
    import sqlite3

    return sqlite3.DatabaseError(why)


def told(e: Exception) -> str:
    """What an error says, as one short printable line: it may quote a damaged file."""
    said = str(e) or type(e).__name__  # Python 3.10 says nothing where it cannot decode
    return "".join(c if c.isprintable() else "?" for c in said)[:200]


def open_for_writing(path: Path, migrations: tuple[Migration, ...]) -> sqlite3.Connection:
    """The one writing connection to a file of the newest schema; sqlite3.Error or OSError."""
    import sqlite3

    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # SQLite would make it readable for all; -wal and -shm take over the mode of the file.
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(fd, 0o600)
    finally:
        os.close(fd)
    db = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA auto_vacuum=INCREMENTAL")  # has an effect in a new file only
        db.execute("PRAGMA journal_mode=WAL").fetchone()
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute("PRAGMA wal_autocheckpoint=0").fetchone()  # the writer does it
        db.execute("PRAGMA cache_size=-1000")  # KiB
        db.execute("PRAGMA cell_size_check=1")  # sees more kinds of damage
        _migrate(db, migrations)
    except BaseException as e:
        db.close()
        if "readonly" in str(e):  # the disk is not: the file was opened for writing above
            raise sqlite3.DatabaseError("its header says that it is read-only") from e
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


def check(db: sqlite3.Connection) -> None:
    """Read the whole file; raises sqlite3.DatabaseError if its structure is broken."""
    import sqlite3

    found = db.execute("PRAGMA quick_check(1)").fetchone()
    if found != ("ok",):
        raise sqlite3.DatabaseError(str(found[0] if found else "quick_check says nothing"))


def erase(path: Path) -> None:
    """Delete the file and what SQLite keeps beside it; raises OSError."""
    for end in ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{end}").unlink(missing_ok=True)


def size(path: Path, end: str = "") -> int:
    """Bytes of the file, of its log ("-wal") or index ("-shm"); 0 if there is none."""
    try:
        return Path(f"{path}{end}").stat().st_size
    except OSError:
        return 0


def pragma(db: sqlite3.Connection, name: str) -> int:
    """The value of a numeric PRAGMA."""
    (value,) = db.execute(f"PRAGMA {name}").fetchone()
    return int(value)


def inspect(path: Path) -> tuple[Table, ...]:
    """The tables of a cache file; for commands, not for the running agent (loads sqlite-utils)."""
    import sqlite3

    import sqlite_utils

    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        tables = sqlite_utils.Database(db).tables
        return tuple(Table(t.name, tuple(t.columns_dict), t.count, t.schema) for t in tables)
    finally:
        db.close()


def _migrate(db: sqlite3.Connection, migrations: tuple[Migration, ...]) -> None:
    import sqlite3

    have = pragma(db, "user_version")
    if not 0 <= have <= len(migrations):
        raise sqlite3.DatabaseError(f"schema {have} is unknown to this version")
    for number, step in enumerate(migrations[have:], have + 1):
        with atomic(db):
            step(db)
            db.execute(f"PRAGMA user_version={number}")
