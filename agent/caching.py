"""The caches that the agent looks into, opened where a model uses them.

They never fail a request: a cache that cannot be read or written is empty, and says so in status().
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.config import Config
from edge_core.tensors import Feeds

if TYPE_CHECKING:
    from agent.caches.near import Near, NearCache
    from agent.caches.results import ResultCache


class Caches:
    """Exact answers of all models in one file; near duplicates in one a model."""

    def __init__(self, config: Config) -> None:
        self._config, self._folder = config, config.root / "caches"
        wanted = config.serve.cache or any(m.cache for m in config.models.values())
        self._results = self._open() if wanted else None
        self._near: dict[str, NearCache] = {}

    def _open(self) -> ResultCache:
        from agent.caches.results import ResultCache  # SQLite only where it is used

        limits = self._config.cache
        return ResultCache(
            self._folder / "results.db",
            max_bytes=int(limits.max_mb * 1e6),
            ttl_s=limits.ttl_hours * 3600,
        )

    def key(self, digest: str, inputs: Feeds | bytes) -> bytes:
        """What the exact cache knows an input by."""
        return self._results.key(digest, inputs) if self._results else b""

    def exact(self, digest: str, key: bytes) -> Feeds | None:
        """The remembered outputs of the very same input."""
        return self._results.get(digest, key) if self._results else None

    def near(self, name: str, digest: str, feeds: Feeds) -> Near | None:
        """The remembered outputs of an input that is near enough, or None."""
        cache = self._near.get(name)
        return cache.lookup(digest, feeds) if cache else None

    def put(
        self, name: str, digest: str, key: bytes, feeds: Feeds, outputs: Feeds, audit: Near | None
    ) -> None:
        """Remember outputs; ``audit`` is the near duplicate that was computed after all."""
        if self._results:
            self._results.put(digest, key, outputs)
        cache = self._near.get(name)
        if cache and audit is not None:
            cache.audited(digest, audit, outputs)
        elif cache:
            cache.add(digest, feeds, outputs)

    def keep(self, digests: dict[str, str]) -> None:
        """Forget what other models said; ``digests`` are those that serve now, by name."""
        if self._results:
            self._results.keep(digests.values())

    def status(self) -> dict[str, object]:
        """Counters and health of each open cache."""
        found: dict[str, object] = {}
        if self._results:
            found["exact"] = {"health": self._results.health(), **_told(self._results.counters())}
        return found

    def close(self) -> None:
        """Write what waits, close the files."""
        if self._results:
            self._results.close()


def _told(counters: object) -> dict[str, object]:
    import msgspec

    built: dict[str, object] = msgspec.to_builtins(counters)
    return built
