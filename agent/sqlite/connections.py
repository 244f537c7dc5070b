"""Reading connections to one SQLite file; each is used by one thread at a time.

Not one connection per thread: threads come and go, and each would leave open files behind. The
connection used last is used next, so its pages are warm.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.sqlite.sqlite_file import open_for_reading

if TYPE_CHECKING:
    import sqlite3

Row = tuple[Any, ...]
MAX_IDLE = 16  # connections kept open
CLOSE_S = 5.0  # longest wait for queries that run


class ReadConnections:
    """Runs queries side by side. A query takes no lock: list.pop() and append() are atomic."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._idle: list[sqlite3.Cursor] = []
        self._closed = False
        self._changed = threading.Condition()
        self._count = 0  # open connections, idle or not

    def fetch(self, sql: str, args: Row) -> list[Row]:
        """All rows of a query; [] after close(); raises what sqlite3 raises."""
        try:
            cursor = self._idle.pop()
        except IndexError:
            opened = self._open()
            if opened is None:
                return []
            cursor = opened
        try:
            rows = cursor.execute(sql, args).fetchall()
        except BaseException:
            self._close_cursor(cursor)
            raise
        if len(self._idle) < MAX_IDLE:
            self._idle.append(cursor)
            if self._closed:
                self._close_idle()
        else:
            self._close_cursor(cursor)
        return rows

    def close(self) -> None:
        """Close all, after those in use: SQLite must not have a file open that is deleted."""
        self._closed = True
        self._close_idle()
        with self._changed:
            self._changed.wait_for(lambda: not self._count, timeout=CLOSE_S)

    def _open(self) -> sqlite3.Cursor | None:
        with self._changed:
            if self._closed:
                return None
            self._count += 1
        try:
            return open_for_reading(self._path).cursor()
        except BaseException:
            self._count_closed()
            raise

    def _close_idle(self) -> None:
        while self._idle:
            try:
                cursor = self._idle.pop()
            except IndexError:  # another thread was faster
                return
            self._close_cursor(cursor)

    def _close_cursor(self, cursor: sqlite3.Cursor) -> None:
        cursor.connection.close()
        self._count_closed()

    def _count_closed(self) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()
