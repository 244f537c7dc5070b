"""Reading connections to one SQLite file; each is used by one thread at a time.

Not one connection per thread: threads come and go, and each would leave open files behind. The
connection used last is used next, so its pages are warm.
"""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

from agent.caches.file import open_for_reading

Row = tuple[Any, ...]
IDLE = 16  # connections kept open


class Readers:
    """Runs queries side by side."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Condition()
        self._idle: list[sqlite3.Connection] = []
        self._busy = 0
        self._closed = False

    def fetch(self, sql: str, args: Row) -> list[Row]:
        """All rows of a query; [] after close(); raises sqlite3.Error."""
        with self._lock:
            if self._closed:
                return []
            db = self._idle.pop() if self._idle else None
            self._busy += 1
        try:
            if db is None:
                db = open_for_reading(self._path)
            rows = db.execute(sql, args).fetchall()
        except BaseException:
            self._give_back(None)
            if db is not None:
                db.close()
            raise
        self._give_back(db)
        return rows

    def close(self) -> None:
        """Close all, after those in use: SQLite must not have a file open that is deleted."""
        with self._lock:
            self._closed = True
            self._lock.wait_for(lambda: not self._busy, timeout=5)
            for db in self._idle:
                db.close()
            self._idle.clear()

    def _give_back(self, db: sqlite3.Connection | None) -> None:
        with self._lock:
            self._busy -= 1
            if db is not None and len(self._idle) < IDLE:
                self._idle.append(db)
                db = None
            if self._closed:
                self._lock.notify_all()
        if db is not None:
            db.close()
