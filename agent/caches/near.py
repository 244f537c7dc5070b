"""The near-duplicate cache of one model, with a proven bound on its wrong answers.

    lookup(model, feeds) -> NearHit | None   its audit: compute it after all, then record_audit()
    add(model, feeds, outputs)               after a miss
    lookup_embedding(model, vector, text), add_embedding(...)   the same, with embeddings

A hit is an input whose distance to a stored one, divided by that answer's reach, is at most the
threshold that threshold_search.py proved and audit.py still trusts. Without a calibration of the
very model that asks, and after the audit has turned it off, the cache does nothing and costs
nothing.

Vectors are in memory; answers, and the audit's state, in an SQLite file (store.py). Nothing here
raises after the constructor.
"""

from __future__ import annotations

import hashlib
import logging
import random
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec
import numpy as np
import xxhash

from agent.caches import audit, calibration
from agent.caches.calibration import Calibration
from agent.caches.descriptors import Described, Index, describe, unit
from agent.caches.results import pack, unpack
from agent.caches.store import Store
from agent.caches.text_guard import text_signature
from edge_core.tensors import Array, Feeds

log = logging.getLogger(__name__)

MAX_ENTRIES = 4000  # vectors in memory
_FORMAT = 1  # of an entry
_SAVE = "INSERT OR REPLACE INTO meta VALUES ('near', ?)"
_LOAD = "SELECT value FROM meta WHERE name = 'near'"


class NearHit(msgspec.Struct, frozen=True):
    """A remembered answer to something near."""

    outputs: Feeds
    distance: float  # divided by the answer's reach
    audit: bool  # compute it after all and tell record_audit()
    item: Described


class NearCounters(msgspec.Struct, frozen=True, kw_only=True):
    """What happened since the calibration, and what the cache holds."""

    state: str  # "calibrated", "probation", "off"
    threshold: float
    hits: int
    misses: int
    audited: int  # hits that were computed after all ...
    wrong: int  # ... and were not what the model said
    alarms: int  # the threshold was tightened
    stale: int
    damaged: int
    evicted: int
    flushed: int
    dropped: int
    entries: int
    bytes: int


class _Entry(msgspec.Struct, frozen=True, array_like=True):
    tag: str
    reach: float
    vector: bytes
    outputs: bytes


class _SavedState(msgspec.Struct, frozen=True, kw_only=True):
    """What goes on after a restart."""

    audit: audit.AuditState
    hits: int = 0
    misses: int = 0
    evicted: int = 0


_encode = msgspec.msgpack.Encoder().encode
_decode_entry = msgspec.msgpack.Decoder(_Entry).decode
_decode_state = msgspec.msgpack.Decoder(_SavedState).decode


class NearCache:
    """Answers by nearness, for one model. Every method may be called from any thread."""

    def __init__(
        self,
        path: Path,
        calibrated: Calibration,
        *,
        max_bytes: int = 64_000_000,
        ttl_s: float = 7 * 86_400.0,
        max_entries: int = MAX_ENTRIES,
        audit_share: float = audit.SHARE,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.calibration, self._path, self._chance = calibrated, path, chance
        self._lock = threading.Lock()
        self._index = Index(max_entries)
        self.store = Store(path, max_bytes=max_bytes, ttl_s=ttl_s, clock=clock)
        self._space = _space(calibrated)
        kept = self._load(audit_share)
        self._audit, self._hits, self._misses = kept.audit, kept.hits, kept.misses
        self._evicted = kept.evicted
        self.store.keep_only((self._space,))
        for _, key, value in self.store.walk(self._space):
            entry = _decode_entry(value)
            vector = np.frombuffer(entry.vector, np.float32)
            self._index.add(key, Described(vector, entry.tag), entry.reach)

    def lookup(self, model: str, feeds: Feeds) -> NearHit | None:
        """The remembered answer to something near ``feeds``, or None."""
        if not self._serves(model):
            return None
        item = describe(self.calibration.descriptor, feeds)
        return self._lookup(item)

    def add(self, model: str, feeds: Feeds, outputs: Feeds) -> None:
        """Remember what the model said, unless a near answer stands for it already."""
        if self._serves(model) and (item := describe(self.calibration.descriptor, feeds)):
            self._add(item, outputs)

    def lookup_embedding(self, model: str, vector: Array, text: str = "") -> NearHit | None:
        """lookup() for an embedding; ``text`` is what it was made of, for the text guard."""
        if not self._serves(model):
            return None
        item = describe_embedding(vector, text, text_guard=self.calibration.text_guard)
        return self._lookup(item)

    def add_embedding(self, model: str, vector: Array, outputs: Feeds, text: str = "") -> None:
        """add() for an embedding; an answer that is a text is np.array("...")."""
        if self._serves(model):
            item = describe_embedding(vector, text, text_guard=self.calibration.text_guard)
            if item:
                self._add(item, outputs)

    def record_audit(self, model: str, near: NearHit, fresh: Feeds) -> None:
        """What the model said to a hit with ``audit``; may tighten the threshold or end hits."""
        if model != self.calibration.model:
            return
        wrong = self.calibration.rule.differ(near.outputs, fresh)
        with self._lock:
            before, self._audit = self._audit, audit.step(self._audit, near.distance, wrong)
            after = self._audit
        if after.alarms != before.alarms:
            log.warning(
                "cache=%s wrong answers above %s: threshold %s -> %s, %s",
                self._path.name, after.epsilon, before.threshold, after.threshold, after.state,
            )  # fmt: skip
        self._save()
        if wrong:
            self._remember(near.item, fresh)

    def keep_only(self, models: Collection[str]) -> int:
        """Forget everything unless the calibrated model still serves; how much was forgotten."""
        if self.calibration.model in models:
            return 0
        with self._lock:
            self._index = Index(self._index.limit)
        return self.store.keep_only(())

    def counters(self) -> NearCounters:
        """Totals since the calibration, and the present size."""
        store = self.store.counters()
        with self._lock:
            state, hits, misses = self._audit, self._hits, self._misses
            entries, evicted = len(self._index), self._evicted
        return NearCounters(
            state=state.state, threshold=state.threshold, hits=hits, misses=misses,
            audited=state.audited, wrong=state.wrong, alarms=state.alarms,
            stale=store.stale, damaged=store.damaged, evicted=evicted + store.evicted,
            flushed=store.flushed, dropped=store.dropped, entries=entries, bytes=store.bytes,
        )  # fmt: skip

    def health(self) -> str:
        """What is wrong, or why there are no hits; "" if nothing."""
        if trouble := self.store.health():
            return trouble
        if self._audit.state == "off":
            return (
                self.calibration.why or "off: too many audited answers were wrong; calibrate anew"
            )
        return ""

    def close(self) -> None:
        """Write what waits and the counters; close the file."""
        self._save()
        self.store.close()

    def _serves(self, model: str) -> bool:
        return model == self.calibration.model and self._audit.threshold > 0

    def _lookup(self, item: Described | None) -> NearHit | None:
        while True:
            with self._lock:
                nearest = self._near(item) if item else None
                self._misses += nearest is None
            if item is None or nearest is None:
                return None
            key, distance = nearest
            value = self.store.get(self._space, key)
            if value is not None:
                break
            with self._lock:  # stale, evicted or damaged
                self._index.remove(key)
        chance = self._chance()
        with self._lock:
            self._hits += 1
            self._index.touch(key)
            wanted = audit.should_audit(self._audit, chance)
        return NearHit(unpack(_decode_entry(value).outputs), distance, wanted, item)

    def _near(self, item: Described) -> tuple[bytes, float] | None:
        """Key and distance over reach of the nearest entry, if that is near enough."""
        nearest = self._index.nearest(item)
        if nearest is None:
            return None
        key, chord, reach = nearest
        if chord > self._audit.threshold * reach:
            return None
        return key, chord / reach if reach else 0.0

    def _add(self, item: Described, outputs: Feeds) -> None:
        with self._lock:
            if self._near(item) is not None:
                return  # two requests missed at the same time
        self._remember(item, outputs)

    def _remember(self, item: Described, outputs: Feeds) -> None:
        reach = self.calibration.rule.reach(outputs)
        vector = item.vector.tobytes()
        try:
            entry = _Entry(item.tag, reach, vector, pack(outputs))
        except TypeError:
            self.store.refuse()
            return
        key = xxhash.xxh3_128_digest(vector + item.tag.encode())
        self.store.put(self._space, key, _encode(entry))
        with self._lock:
            self._evicted += self._index.add(key, item, reach) is not None

    def _load(self, share: float) -> _SavedState:
        """The audit's state of this very calibration, or its beginning."""
        calibrated = self.calibration
        digest = hashlib.blake2b(calibration.to_bytes(calibrated), digest_size=16).hexdigest()
        for (value,) in self.store.database.rows(_LOAD):
            try:
                kept = _decode_state(value)
            except (msgspec.MsgspecError, TypeError):
                continue
            if kept.audit.calibration == digest:
                state = msgspec.structs.replace(kept.audit, share=share)
                return msgspec.structs.replace(kept, audit=state)
        return _SavedState(
            audit=audit.begin(
                calibrated.threshold, calibrated.epsilon, calibrated.confidence, share, digest
            )
        )

    def _save(self) -> None:
        with self._lock:
            kept = _SavedState(
                audit=self._audit, hits=self._hits, misses=self._misses, evicted=self._evicted
            )
            raw = _encode(kept)
            self.store.database.write(_SAVE, (raw,), size=len(raw))


def describe_embedding(vector: Array, text: str = "", *, text_guard: bool) -> Described | None:
    """An embedding as the cache sees it; None if it has no direction."""
    direction = unit(vector)
    if direction is None:
        return None
    return Described(direction, text_signature(text) if text_guard else "")


def _space(calibrated: Calibration) -> str:
    """Entries are good only for the same model, vectors and rule."""
    parts = msgspec.json.encode(
        (_FORMAT, calibrated.model, calibrated.descriptor, calibrated.rule, calibrated.text_guard),
        order="sorted",
    )
    return hashlib.blake2b(parts, digest_size=16).hexdigest()
