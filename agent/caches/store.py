"""Values under 16-byte keys in one SQLite file: bounded, ageing, counted. The exact caches use it.

    put -> checksum -> queue -> entries       get <- what waits for its commit, else entries

A row's id is its place in the order of last use: new rows go to the end, the oldest ids are
evicted. A hit in the older half of a file that fills up moves its row to the end, with the next
commit; so most hits write nothing.

Every value carries an XXH3 checksum seeded with its key and time. SQLite does not see a changed
byte inside a value or a wrong pointer in an index; the checksum does, and the row is deleted.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from pathlib import Path

import msgspec
import xxhash

from agent.caches.database import Database

_CHECK = 8  # bytes
_PUT = "INSERT OR REPLACE INTO entries (key, model, made, value) VALUES (?, ?, ?, ?)"
_GET = "SELECT id, model, made, value FROM entries WHERE key = ?"
_MOVE = "UPDATE entries SET id = (SELECT max(id) FROM entries) + 1 WHERE id = ?"
_EVICT = "DELETE FROM entries WHERE id IN (SELECT id FROM entries ORDER BY id LIMIT ?)"
_FLUSH = "DELETE FROM entries WHERE id IN (SELECT id FROM entries WHERE model = ? LIMIT 500)"
_WALK = "SELECT id, key, made, value FROM entries WHERE model = ? AND id > ? ORDER BY id LIMIT 256"
_ENDS = "SELECT (SELECT min(id) FROM entries), (SELECT max(id) FROM entries)"
_TOO_MANY = 20  # unsound entries since the start (or the last new file) for a new file
_FILLING = 0.7  # share of the bound from which the order of use matters


class Counters(msgspec.Struct, frozen=True, kw_only=True):
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


def _schema(db: sqlite3.Connection) -> None:
    db.execute(
        "CREATE TABLE entries ("
        " id INTEGER PRIMARY KEY,"  # order of last use
        " key BLOB NOT NULL UNIQUE,"
        " model INTEGER NOT NULL,"  # number()
        " made INTEGER NOT NULL,"  # ms since 1970
        " value BLOB NOT NULL)"  # checksum, then the value
    )
    db.execute("CREATE INDEX entries_model ON entries (model)")
    db.execute("CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID")


@lru_cache(256)
def number(model: str) -> int:
    """A model's digest as a small integer. Keys tell models apart; this only groups rows."""
    return xxhash.xxh3_64_intdigest(model.encode()) & 0x7FFFFFFF


class Store:
    """The file and its counters. Nothing here raises; see ``agent.caches.database``."""

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
        self._db: Database | None = None
        self._db = Database(
            path, (_schema,), max_bytes=max_bytes, evict=self._evict, noted=self._note
        )

    @property
    def database(self) -> Database:
        """The file."""
        assert self._db is not None
        return self._db

    def get(self, model: str, key: bytes) -> memoryview | None:
        """The value stored under ``key``, or None; counted, and noted as its last use."""
        place, found, why = self._find(model, key)
        with self._lock:
            self._count["misses" if found is None else "hits"] += 1
            if why:
                self._count[why] += 1
            if why == "damaged":
                self._unsound += 1
        if self._unsound >= _TOO_MANY:
            self._unsound = 0
            self.database.distrust(f"{_TOO_MANY} entries do not match their checksums")
        if 0 < place < self._middle:
            self._move(place)
        return found

    def peek(self, model: str, key: bytes) -> memoryview | None:
        """The same without a trace."""
        return self._find(model, key)[1]

    def _find(self, model: str, key: bytes) -> tuple[int, memoryview | None, str]:
        """Place (0: none yet), value, and the counter of a miss that is more than a miss."""
        db = self.database
        waiting = db.pending.get(key)
        if waiting is not None:
            place = 0
            _, owner, made, value = waiting
        else:
            rows = db.rows(_GET, (key,))
            if not rows:
                return 0, None, ""
            ((place, owner, made, value),) = rows
        if owner != number(model):
            return 0, None, ""
        # In a damaged file a column may hold anything.
        if not isinstance(place, int) or not _sound(key, made, value):
            db.write("DELETE FROM entries WHERE key = ?", (key,), size=0)
            return 0, None, "damaged"
        # A device without a battery-backed clock jumps; a far future is as unknown as a far past.
        if abs(self._clock() * 1000 - made) > self._ttl_ms:
            return 0, None, "stale"
        return place, memoryview(value)[_CHECK:], ""

    def put(self, model: str, key: bytes, value: bytes) -> None:
        """Store ``value`` soon; at once for get()."""
        owner = number(model)
        if self._kept is not None and owner not in self._kept:
            return  # a request that ends after its model was replaced
        made = int(self._clock() * 1000)
        checked = _checksum(key, made, value) + value
        self.database.write(_PUT, (key, owner, made, checked), size=len(checked) + 100, key=key)

    def refuse(self) -> None:
        """Count a value that cannot be stored."""
        with self._lock:
            self._before["dropped"] += 1

    def keep(self, models: Collection[str]) -> int:
        """Remove every other model's entries, now and in future; how many were removed."""
        kept = self._kept = frozenset(map(number, models))
        self.database.flush()
        flushed, after = 0, -1
        while rows := self.database.rows(
            "SELECT min(model) FROM entries WHERE model > ?", (after,)
        ):
            ((after,),) = rows
            if after is None:
                break
            while after not in kept and (n := self.database.call(_flusher(after))):
                flushed += n
        with self._lock:
            self._count["flushed"] += flushed
        return flushed

    def walk(self, model: str, after: int = 0) -> Iterator[tuple[int, bytes, memoryview]]:
        """Place, key and value of a model's sound entries whose place is above ``after``.

        New and moved entries always get the highest place.
        """
        while rows := self.database.rows(_WALK, (number(model), after)):
            for after, key, made, value in rows:
                if isinstance(key, bytes) and _sound(key, made, value):
                    yield after, key, memoryview(value)[_CHECK:]

    def lost(self) -> int:
        """Grows by one for each entry that is gone, and by much when all are."""
        db = self.database
        return db.evicted + self._count["flushed"] + self._count["damaged"] + (db.renewed << 32)

    def counters(self) -> Counters:
        """Totals over all runs, and the present size (counts rows: not for every request)."""
        rows = self.database.rows("SELECT count(*) FROM entries")
        with self._lock:
            count = {**self._count, **self._totals()}
        return Counters(
            **count, entries=rows[0][0] if rows else 0, bytes=self.database.used if rows else 0
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

    def _move(self, place: int) -> None:
        key = b"move %d" % place
        if key not in self.database.pending:
            self.database.write(_MOVE, (place,), size=0, key=key)

    def _totals(self) -> dict[str, int]:
        now = {"evicted": self._db.evicted, "dropped": self._db.dropped} if self._db else {}
        return {name: n + now.get(name, 0) for name, n in self._before.items()}

    # In the writer's transaction

    def _evict(self, db: sqlite3.Connection) -> int:
        low, high = _ends(db)
        few = min(max((high - low) // 50, 1), 32)  # entries may be large
        return db.execute(_EVICT, (few,)).rowcount

    def _note(self, db: sqlite3.Connection, fill: float) -> None:
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
                    n = saved.get(name)
                    counts[name] += n if isinstance(n, int) else 0
        self._loaded = True


def _ends(db: sqlite3.Connection) -> tuple[int, int]:
    """The lowest and the highest place; 0 and 0 without entries."""
    low, high = db.execute(_ENDS).fetchone()
    return (low, high) if isinstance(low, int) and isinstance(high, int) else (0, 0)


def _flusher(model: int) -> Callable[[sqlite3.Connection], int]:
    return lambda db: db.execute(_FLUSH, (model,)).rowcount


def _checksum(key: bytes, made: int, value: bytes | memoryview) -> bytes:
    halves = int.from_bytes(key[:8], "little") ^ int.from_bytes(key[8:], "little")
    return xxhash.xxh3_64_digest(value, halves ^ (made & 0xFFFF_FFFF_FFFF_FFFF))


def _sound(key: bytes, made: object, value: object) -> bool:
    return (
        isinstance(made, int)
        and isinstance(value, bytes)
        and len(value) >= _CHECK
        and _checksum(key, made, memoryview(value)[_CHECK:]) == value[:_CHECK]
    )
