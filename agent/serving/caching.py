"""The caches that the agent consults, opened only where a model uses them.

    caches/results.db            exact answers of all models that have `cache = true`
    caches/near/NAME.json, .db   near duplicates of one model, once it is calibrated

They never fail a request: a cache that cannot be read or written is empty, and status() says so.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from agent.caches.calibration import Calibration, read_calibration
from agent.caches.near import NearCache, NearHit
from agent.caches.results import ResultCache
from agent.caches.store import Store
from agent.config import Config
from edge_core.errors import InputError
from edge_core.tensors import Feeds

log = logging.getLogger(__name__)


def calibration_file(root: Path, name: str) -> Path:
    """The file that turns a model's near-duplicate cache on."""
    return root / "caches" / "near" / f"{name}.json"


def cache_files(root: Path) -> dict[str, Path]:
    """The caches' files that exist, by the names that Caches.status() uses."""
    folder = root / "caches"
    exact = {"exact": folder / "results.db"}
    near = {f"near {path.stem}": path for path in sorted((folder / "near").glob("*.db"))}
    return {name: path for name, path in {**exact, **near}.items() if path.exists()}


class Caches:
    """Exact answers of all models in one file; near duplicates in one a model."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._max_bytes = int(config.cache.max_mb * 1e6)
        self._ttl_s = config.cache.ttl_hours * 3600
        is_used = config.serve.cache or any(limits.cache for limits in config.models.values())
        self._results = self._open_results() if is_used else None
        self._near: dict[str, NearCache] = {}
        self._problems: dict[str, str] = {}  # no near-duplicate cache, although it is calibrated

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
        """Forget the answers of other models, and load calibrations that are new.

        ``digests`` are the packages that serve now, by name.
        """
        if self._results:
            self._results.store.keep_only(tuple(digests.values()))
        self._problems = {}
        for name, digest in digests.items():
            self._renew(name, digest)
        for name in self._near.keys() - digests.keys():
            self._drop(name)

    def status(self) -> dict[str, dict[str, object]]:
        """Counters and health of each cache, by "exact" or "near NAME"."""
        status: dict[str, dict[str, object]] = {}
        if self._results:
            status["exact"] = _describe(self._results.store)
        for name, cache in dict(self._near).items():
            status[f"near {name}"] = _describe(cache)
        for name, problem in dict(self._problems).items():
            status[f"near {name}"] = {"health": problem}
        return status

    def close(self) -> None:
        """Write what is pending, close the files."""
        for name in tuple(self._near):
            self._drop(name)
        if self._results:
            self._results.store.close()

    def _open_results(self) -> ResultCache:
        path = self._config.root / "caches" / "results.db"
        return ResultCache(path, max_bytes=self._max_bytes, ttl_s=self._ttl_s)

    def _renew(self, name: str, digest: str) -> None:
        """Open the model's near-duplicate cache, or another one if it was calibrated again."""
        calibrated = self._read_calibration(name, digest)
        old = self._near.get(name)
        if old and calibrated == old.calibration:
            return
        self._drop(name)
        if calibrated:
            self._near[name] = NearCache(
                calibration_file(self._config.root, name).with_suffix(".db"),
                calibrated,
                max_bytes=self._max_bytes,
                ttl_s=self._ttl_s,
                audit_share=self._config.cache.audit_share,
            )

    def _read_calibration(self, name: str, digest: str) -> Calibration | None:
        path = calibration_file(self._config.root, name)
        if not (self._config.limits_of(name).cache and path.exists()):
            return None
        try:
            calibrated = read_calibration(path)
        except InputError as error:
            self._problems[name] = error.what
            log.error("event=calibration_unfit model=%s why=%r", name, error.what)
            return None
        if calibrated.model != digest:
            self._problems[name] = "off: it was calibrated for another version; calibrate again"
            return None
        return calibrated

    def _drop(self, name: str) -> None:
        if cache := self._near.pop(name, None):
            cache.close()


def _describe(cache: Store | NearCache) -> dict[str, object]:
    return {"health": cache.health(), **msgspec.to_builtins(cache.counters())}
