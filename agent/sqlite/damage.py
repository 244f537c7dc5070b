"""Damaged database files: told from a failing disk, then deleted or set aside.

recreate   delete the file: right for a cache, which holds nothing that cannot be computed again,
           and a copy set aside would take the room twice
keep       never delete: rename the file, its log with it, to NAME.damaged-1 and so on. After
           MAX_COPIES the database stays out of use until somebody has moved the copies away, so
           they take at most that many times its bound. SQLite opens a copy like any other file;
           ``sqlite3 COPY .recover`` salvages what can be read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from edge_core.errors import StorageError
from edge_core.files import fsync_dir

DamagePolicy = Literal["recreate", "keep"]

MAX_COPIES = 3
_SUFFIXES = ("-wal", "-journal", "-shm", "")  # the file itself is renamed last

# What a disk does, in SQLite's words (sqlite3 in Python 3.10 gives no error codes).
_DISK_FAILURES = (
    "database or disk is full", "attempt to write a readonly", "unable to open", "disk i/o error",
    "is locked", "access permission denied", "interrupted",
)  # fmt: skip


def is_damage(error: Exception) -> bool:
    """Is the file at fault, and not the disk or a bug of ours?

    The statements are constant, so even "no such column" is a sign of a damaged schema. A violated
    constraint is not: the row is at fault.
    """
    import sqlite3  # not needed by an agent that opens no database

    if isinstance(error, sqlite3.OperationalError):
        return not any(words in str(error).lower() for words in _DISK_FAILURES)
    bugs = (sqlite3.ProgrammingError, sqlite3.NotSupportedError, sqlite3.IntegrityError)
    return isinstance(error, sqlite3.DatabaseError | UnicodeError) and not isinstance(error, bugs)


def is_job_failure(error: Exception) -> bool:
    """Did a job fail by itself, on a file and a disk that are fine?"""
    import sqlite3

    if isinstance(error, sqlite3.IntegrityError):
        return True
    return not isinstance(error, sqlite3.Error | OSError | UnicodeError | MemoryError)


def damage_error(why: str) -> Exception:
    """An error that blames the file."""
    import sqlite3

    return sqlite3.DatabaseError(why)


def describe_error(error: Exception) -> str:
    """An error as one short printable line: it may quote a damaged file."""
    text = str(error) or type(error).__name__  # Python 3.10 says nothing where it cannot decode
    return "".join(char if char.isprintable() else "?" for char in text)[:200]


def delete_file(path: Path) -> None:
    """Delete a closed database and what SQLite keeps beside it; raises OSError."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Rename a closed database and its log to the first free NAME.damaged-N; returns that path.

    Raises StorageError if there are MAX_COPIES already, OSError if the disk refuses.
    """
    copy = _free_copy(path)
    # The log goes first: SQLite would delete one that it finds beside a new, empty file.
    for suffix in _SUFFIXES:
        part = Path(f"{path}{suffix}")
        if part.exists():
            part.rename(f"{copy}{suffix}")
    fsync_dir(path.parent)
    return copy


def _free_copy(path: Path) -> Path:
    for number in range(1, MAX_COPIES + 1):
        copy = path.with_name(f"{path.name}.damaged-{number}")
        if not any(Path(f"{copy}{suffix}").exists() for suffix in _SUFFIXES):
            return copy
    raise StorageError(
        f"{path} is damaged, and {MAX_COPIES} damaged copies of it are set aside already",
        hint=f"move {path.name}.damaged-* away; the database then starts again by itself",
    )
