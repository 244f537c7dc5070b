"""Values under 16-byte keys in one SQLite file: bounded, ageing, counted. The exact caches use it.

    put -> seal -> queue -> entries        get <- read lately, else waiting for commit, else entries

A row's id is its place in the order of last use: new rows go to the end, the oldest ids are
evicted. A hit in the older half of a file that fills up moves its row to the end, with the next
commit; so most hits write nothing.

Every value carries its time and an XXH3 checksum seeded with its key. SQLite does not see a
changed byte inside a value or a wrong pointer in an index; the checksum does, and the row is
deleted. What was read lately is kept in memory, so that asking again touches no file.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import xxhash

from agent.sqlite.database import Database

if TYPE_CHECKING:
    import sqlite3

RECENT = 4_000_000  # bytes in memory, at most a sixteenth of the file
ASKED = 2000  # keys

_PUT = "INSERT OR REPLACE INTO entries (key, model, value) VALUES (?, ?, ?)"
_GET = "SELECT id, model, value FROM entries WHERE key = ?"
_MOVE = "UPDATE entries SET id = (SELECT max(id) FROM entries) + 1 WHERE id = ?"
_EVICT = "DELETE FROM entries WHERE id IN (SELECT id FROM entries ORDER BY id LIMIT ?)"
_FLUSH = "DELETE FROM entries WHERE id IN (SELECT id FROM entries WHERE model = ? LIMIT 500)"
_WALK = "SELECT id, key, value FROM entries WHERE model = ? AND id > ? ORDER BY id LIMIT 256"
_ENDS = "SELECT (SELECT min(id) FROM entries), (SELECT max(id) FROM entries)"
_TOO_MANY = 20  # unsound entries since the start (or the last new file) for a new file
_FILLING = 0.7  # share of the bound from which the order of use matters

_CHECK, _HEAD = 8, 16  # bytes of the checksum, and of all that stands before a value
_HALVES = struct.Struct("<QQ").unpack
_TIME = struct.Struct("<q").unpack_from
_NO_PLACE = sys.maxsize  # of a row that waits for its commit

_Row = tuple[int, int, bytes]  # place, model, sealed value
_NONE: _Row = (_NO_PLACE, -1, b"")
_DAMAGED: _Row = (_NO_PLACE, -2, b"")


class StoreCounters(msgspec.Struct, frozen=True, kw_only=True):
    """What happened since the file was made, and what it holds."""

    hits: int
    misses: int
    stale: int  # misses whose entry was older than the time to live
    damaged: int  # misses whose entry did not match its checksum
    evicted: int
    flushed: int  # removed because their model does not serve any more
    dropped: int  # not stored: too large, queue full, disk in trouble
    entries: int
    bytes: int  # in use inside the file


def _create_schema(db: sqlite3.Connection) -> None:
    db.execute(
        "CREATE TABLE entries ("
        " id INTEGER PRIMARY KEY,"  # order of last use
        " key BLOB NOT NULL UNIQUE,"
        " model INTEGER NOT NULL,"  # number()
        " value BLOB NOT NULL)"  # _seal()
    )
    db.execute("CREATE INDEX entries_model ON entries (model)")
    db.execute("CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID")


@lru_cache(256)
def model_number(model: str) -> int:
    """A model's digest as a small integer. Keys tell models apart; this only groups rows."""
    return xxhash.xxh3_64_intdigest(model.encode()) & 0x7FFFFFFF


class Store:
    """The file and its counters. Nothing here raises; see ``agent.sqlite.database``."""

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        ttl_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.secret = int.from_bytes(os.urandom(8), "little")  # until the file says otherwise
        self._ttl_ms = ttl_s * 1000
        self._clock = clock
        self._lock = threading.Lock()
        self._count = dict.fromkeys(("hits", "misses", "stale", "damaged", "flushed"), 0)
        self._before = {"evicted": 0, "dropped": 0}  # in earlier runs
        self._unsound = 0
        self._loaded = False
        self._middle = 0  # a hit below this id moves its row
        self._kept: frozenset[int] | None = None
        self._recent: dict[bytes, _Row] = {}
        self._recent_bytes, self._recent_bound = 0, min(RECENT, max_bytes // 16)
        self._asked: set[bytes] = set()
        self.database = Database(
            path,
            (_create_schema,),
            max_bytes=max_bytes,
            damage="recreate",
            sync="NORMAL",
            evict=self._evict,
            on_commit=self._save_counters,
        )
        self.database.start()

    def get(self, model: str, key: bytes) -> memoryview | None:
        """The value stored under ``key``, or None; counted, and noted as its last use."""
        known = self._recent.get(key)
        row = known or self._read(key)
        why = self._miss_reason(row, model)
        with self._lock:
            if why:
                self._count_miss(key, why)
                return None
            self._count["hits"] += 1
            place, _, value = row
            if place < self._middle:
                self._move(key, place)
            elif known is None and place != _NO_PLACE:
                self._remember(key, row)
        return memoryview(value)[_HEAD:]

    def peek(self, model: str, key: bytes) -> memoryview | None:
        """The same without a trace."""
        row = self._recent.get(key) or self._read(key)
        return None if self._miss_reason(row, model) else memoryview(row[2])[_HEAD:]

    def put(self, model: str, key: bytes, value: bytes) -> None:
        """Store ``value`` soon; at once for get()."""
        owner = model_number(model)
        if self._kept is not None and owner not in self._kept:
            return  # a request that ends after its model was replaced
        sealed = _seal(key, int(self._clock() * 1000), value)
        self.database.write(_PUT, (key, owner, sealed), size=len(sealed) + 100, key=key)
        if key in self._recent:
            with self._lock:
                self._forget(key)

    def refuse(self) -> None:
        """Count a value that cannot be stored."""
        with self._lock:
            self._before["dropped"] += 1

    def keep_only(self, models: Collection[str]) -> int:
        """Remove every other model's entries, now and in future; how many were removed."""
        kept = self._kept = frozenset(map(model_number, models))
        self.database.flush()
        with self._lock:
            for key in [k for k, (_, owner, _) in self._recent.items() if owner not in kept]:
                self._forget(key)
        flushed, after = 0, -1
        while rows := self.database.rows(
            "SELECT min(model) FROM entries WHERE model > ?", (after,)
        ):
            ((after,),) = rows
            if after is None:
                break
            while after not in kept and (removed := self.database.call(_flusher(after))):
                flushed += removed
        with self._lock:
            self._count["flushed"] += flushed
        return flushed

    def walk(self, model: str, after: int = 0) -> Iterator[tuple[int, bytes, memoryview]]:
        """Place, key and value of a model's sound entries whose place is above ``after``.

        New and moved entries always get the highest place.
        """
        while rows := self.database.rows(_WALK, (model_number(model), after)):
            for after, key, value in rows:
                if isinstance(key, bytes) and _is_intact(key, value):
                    yield after, key, memoryview(value)[_HEAD:]

    def loss_count(self) -> int:
        """Grows by one for each entry that is gone, and by much when all are."""
        db = self.database
        return (
            db.evicted + self._count["flushed"] + self._count["damaged"] + (db.replacements << 32)
        )

    def counters(self) -> StoreCounters:
        """Totals over all runs, and the present size (counts rows: not for every request)."""
        rows = self.database.rows("SELECT count(*) FROM entries")
        with self._lock:
            count = {**self._count, **self._totals()}
        return StoreCounters(
            **count,
            entries=rows[0][0] if rows else 0,
            bytes=self.database.used_bytes if rows else 0,
        )

    def health(self) -> str:
        """What is wrong, "" if nothing."""
        return self.database.health()

    def flush(self) -> bool:
        """Wait until all that was put is on disk; False if it is not."""
        return self.database.flush()

    def close(self) -> None:
        """Write what waits and the counters; close the file."""
        self.database.flush()
        self.database.close()

    def _read(self, key: bytes) -> _Row:
        """The row that waits for its commit or stands in the file; _NONE, or _DAMAGED."""
        waiting = self.database.pending.get(key)
        if waiting is not None:
            return _NO_PLACE, waiting[1], waiting[2]
        for place, owner, value in self.database.rows(_GET, (key,)):
            if isinstance(place, int) and _is_intact(key, value):  # a damaged file holds anything
                return place, owner, value
            return _DAMAGED
        return _NONE

    def _miss_reason(self, row: _Row, model: str) -> str:
        """Why a row is no hit: the counter that it belongs to; "" if it is one."""
        if row[1] != model_number(model):
            return "damaged" if row is _DAMAGED else "misses"
        # A device without a battery-backed clock jumps; a far future is as unknown as a far past.
        age = self._clock() * 1000 - _TIME(row[2], _CHECK)[0]
        return "" if -self._ttl_ms <= age <= self._ttl_ms else "stale"

    # Under the lock

    def _count_miss(self, key: bytes, why: str) -> None:
        self._count["misses"] += 1
        if why == "misses":
            return
        self._count[why] += 1
        self._forget(key)
        if why == "damaged":
            self.database.write("DELETE FROM entries WHERE key = ?", (key,), size=0)
            self._unsound += 1
            if self._unsound == _TOO_MANY:
                self._unsound = 0
                self.database.report_damage(f"{_TOO_MANY} entries do not match their checksums")

    def _remember(self, key: bytes, row: _Row) -> None:
        """Keep a row in memory if its key was asked for lately."""
        if key not in self._asked:  # one look-up is no habit, and filling memory takes time
            if len(self._asked) == ASKED:
                self._asked.clear()
            self._asked.add(key)
        elif len(row[2]) <= self._recent_bound // 16:
            self._recent[key] = row
            self._recent_bytes += len(row[2])
            while self._recent_bytes > self._recent_bound:
                self._forget(next(iter(self._recent)))

    def _forget(self, key: bytes) -> None:
        row = self._recent.pop(key, None)
        if row is not None:
            self._recent_bytes -= len(row[2])

    def _move(self, key: bytes, place: int) -> None:
        self._forget(key)  # its place changes
        mark = b"move %d" % place
        if mark not in self.database.pending:
            self.database.write(_MOVE, (place,), size=0, key=mark)

    def _totals(self) -> dict[str, int]:
        now = {"evicted": self.database.evicted, "dropped": self.database.dropped}
        return {name: count + now[name] for name, count in self._before.items()}

    # In the writer's transaction

    def _evict(self, db: sqlite3.Connection) -> int:
        low, high = _ends(db)
        few = min(max((high - low) // 50, 1), 32)  # entries may be large
        return db.execute(_EVICT, (few,)).rowcount

    def _save_counters(self, db: sqlite3.Connection, fill: float) -> None:
        self._middle = sum(_ends(db)) // 2 if fill > _FILLING else 0
        if not self._loaded:
            self._load(db)
        with self._lock:
            counts = {**self._count, **self._totals()}
        secret = self.secret.to_bytes(8, "little")
        db.executemany(
            "INSERT OR REPLACE INTO meta VALUES (?, ?)", [*counts.items(), ("secret", secret)]
        )

    def _load(self, db: sqlite3.Connection) -> None:
        """Take over the secret and the counters of earlier runs."""
        saved = dict(db.execute("SELECT name, value FROM meta").fetchall())
        secret = saved.get("secret")
        if isinstance(secret, bytes) and len(secret) == 8:
            self.secret = int.from_bytes(secret, "little")
        with self._lock:
            for counts in (self._count, self._before):
                for name in counts:
                    count = saved.get(name)
                    counts[name] += count if isinstance(count, int) else 0
        self._loaded = True


def _ends(db: sqlite3.Connection) -> tuple[int, int]:
    """The lowest and the highest place; 0 and 0 without entries."""
    low, high = db.execute(_ENDS).fetchone()
    return (low, high) if isinstance(low, int) and isinstance(high, int) else (0, 0)


def _flusher(model: int) -> Callable[[sqlite3.Connection], int]:
    return lambda db: db.execute(_FLUSH, (model,)).rowcount


def _seal(key: bytes, made: int, value: bytes) -> bytes:
    """Checksum (8 bytes), time in ms since 1970 (8 bytes), value."""
    timed = struct.pack("<q", made) + value
    return _checksum(key, timed) + timed


def _checksum(key: bytes, timed: bytes | memoryview) -> bytes:
    low, high = _HALVES(key)
    return xxhash.xxh3_64_digest(timed, low ^ high)


def _is_intact(key: bytes, sealed: object) -> bool:
    if not isinstance(sealed, bytes) or len(sealed) < _HEAD:
        return False
    return _checksum(key, memoryview(sealed)[_CHECK:]) == sealed[:_CHECK]
