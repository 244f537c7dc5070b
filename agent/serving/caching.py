"""The caches that the agent looks into, opened where a model uses them.

    caches/results.db            exact answers of all models that have `cache = true`
    caches/near/NAME.json, .db   near duplicates of one model, once it is calibrated

They never fail a request: a cache that cannot be read or written is empty, and says so in status().
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agent.config import Config
from edge_core.errors import InputError
from edge_core.tensors import Feeds

if TYPE_CHECKING:
    from agent.caches.calibration import Calibration
    from agent.caches.near import NearCache, NearHit
    from agent.caches.results import ResultCache
    from agent.caches.store import Store

log = logging.getLogger(__name__)


def calibration_file(root: Path, name: str) -> Path:
    """What turns a model's near-duplicate cache on."""
    return root / "caches" / "near" / f"{name}.json"


class Caches:
    """Exact answers of all models in one file; near duplicates in one a model."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._max_bytes = int(config.cache.max_mb * 1e6)
        self._ttl_s = config.cache.ttl_hours * 3600
        wanted = config.serve.cache or any(m.cache for m in config.models.values())
        self._results = self._open() if wanted else None
        self._near: dict[str, NearCache] = {}
        self._why: dict[str, str] = {}  # no near-duplicate cache, although it is calibrated

    def key(self, digest: str, inputs: Feeds | bytes) -> bytes:
        """What the exact cache knows an input by."""
        return self._results.key(digest, inputs) if self._results else b""

    def exact(self, digest: str, key: bytes) -> Feeds | None:
        """The remembered outputs of the very same input."""
        return self._results.get(digest, key) if self._results else None

    def near(self, name: str, digest: str, feeds: Feeds) -> NearHit | None:
        """The remembered outputs of an input that is near enough, or None."""
        cache = self._near.get(name)
        return cache.lookup(digest, feeds) if cache else None

    def put(
        self,
        name: str,
        digest: str,
        key: bytes,
        feeds: Feeds,
        outputs: Feeds,
        audit: NearHit | None,
    ) -> None:
        """Remember outputs; ``audit`` is the near duplicate that was computed after all."""
        if self._results:
            self._results.put(digest, key, outputs)
        cache = self._near.get(name)
        if cache and audit is not None:
            cache.record_audit(digest, audit, outputs)
        elif cache:
            cache.add(digest, feeds, outputs)

    def use(self, digests: dict[str, str]) -> None:
        """Forget what other models said, and take up calibrations that are new.

        ``digests`` are the packages that serve now, by name.
        """
        if self._results:
            self._results.store.keep_only(tuple(digests.values()))
        self._why = {}
        for name, digest in digests.items():
            self._renew(name, digest)
        for name in self._near.keys() - digests.keys():
            self._drop(name)

    def status(self) -> dict[str, dict[str, object]]:
        """Counters and health of each cache, by "exact" or "near NAME"."""
        found: dict[str, dict[str, object]] = {}
        if self._results:
            found["exact"] = _told(self._results.store)
        for name, cache in dict(self._near).items():
            found[f"near {name}"] = _told(cache)
        for name, why in dict(self._why).items():
            found[f"near {name}"] = {"health": why}
        return found

    def close(self) -> None:
        """Write what waits, close the files."""
        for name in tuple(self._near):
            self._drop(name)
        if self._results:
            self._results.store.close()

    def _open(self) -> ResultCache:
        from agent.caches.results import ResultCache  # SQLite only where it is used

        path = self._config.root / "caches" / "results.db"
        return ResultCache(path, max_bytes=self._max_bytes, ttl_s=self._ttl_s)

    def _renew(self, name: str, digest: str) -> None:
        """Open the model's near-duplicate cache, or another one if it was calibrated anew."""
        calibrated = self._calibration(name, digest)
        old = self._near.get(name)
        if old and calibrated == old.calibration:
            return
        self._drop(name)
        if calibrated:
            from agent.caches.near import NearCache

            self._near[name] = NearCache(
                calibration_file(self._config.root, name).with_suffix(".db"),
                calibrated,
                max_bytes=self._max_bytes,
                ttl_s=self._ttl_s,
                audit_share=self._config.cache.audit_share,
            )

    def _calibration(self, name: str, digest: str) -> Calibration | None:
        path = calibration_file(self._config.root, name)
        if not (self._config.of(name).cache and path.exists()):
            return None
        from agent.caches.calibration import read_calibration

        try:
            found = read_calibration(path)
        except InputError as e:
            self._why[name] = e.what
            log.error("event=calibration_unfit model=%s why=%r", name, e.what)
            return None
        if found.model != digest:
            self._why[name] = "off: it was calibrated for another version; calibrate again"
            return None
        return found

    def _drop(self, name: str) -> None:
        if cache := self._near.pop(name, None):
            cache.close()


def _told(cache: Store | NearCache) -> dict[str, object]:
    return {"health": cache.health(), **msgspec.to_builtins(cache.counters())}
