"""One request on its way: exact cache, prepare, near-duplicate cache, infer, finish.

It is passed from thread to thread and never in two of them at once.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

import msgspec

from agent.serving.caching import Caches
from agent.serving.loaded_model import EncodedImage, Inputs, LoadedModel
from agent.serving.nan_check import NanCheck, NanChecker, refusal
from agent.serving.scheduler import Completion
from edge_core.package.run import Scored
from edge_core.tensors import Feeds

if TYPE_CHECKING:
    from agent.caches.near import NearHit


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a model said. ``outputs`` are reals; ``top`` is there if it was asked for."""

    model: str
    version: str
    digest: str  # of the package that answered
    outputs: Feeds
    top: tuple[Scored, ...] = ()
    cached: Literal["", "exact", "near"] = ""
    ms: float = 0.0  # from the call to the answer


class InferenceRequest:
    """One request on one loaded model."""

    __slots__ = (
        "_audit", "_cache", "_caches", "_check", "_checker", "_inputs", "_key", "_live",
        "_prepared", "_start", "_top", "feeds",
    )  # fmt: skip

    def __init__(
        self,
        caches: Caches,
        checker: NanChecker,
        live: LoadedModel,
        inputs: Inputs,
        top: int,
        cache: bool,
        start: int,
    ) -> None:
        self._caches, self._checker, self._live, self._inputs = caches, checker, live, inputs
        self._check: NanCheck | None = None
        self._top, self._start, self._prepared = top, start, start
        self._cache = cache and live.limits.cache
        self._key = b""
        self._audit: NearHit | None = None
        self.feeds: Feeds = {}

    @property
    def slow(self) -> bool:
        """Does look() take longer than checking arrays does?"""
        return self._cache or isinstance(self._inputs, EncodedImage)

    def look(self) -> Answer | None:
        """The remembered answer, or None with ``feeds`` ready; raises InputError."""
        live, digest = self._live, self._live.slot.digest
        if self._cache:
            raw = self._inputs.data if isinstance(self._inputs, EncodedImage) else self._inputs
            self._key = self._caches.key(digest, raw)
            found = self._caches.exact(digest, self._key)
            if found is not None:
                return self._answer(found, "exact")
        self.feeds = live.prepare(self._inputs)
        if not isinstance(self._inputs, EncodedImage):  # what a recipe makes is finite
            self._check = self._checker.begin(self.feeds, live.manifest.name)
        self._prepared = time.perf_counter_ns()
        if self._cache:
            near = self._caches.near(live.manifest.name, digest, self.feeds)
            if near is not None and not near.audit:
                return self._answer(near.outputs, "near")
            self._audit = near
        return None

    def answer(self, ran: Completion) -> Answer:
        """The answer of an inference; remembers it and counts its stages. Raises InputError."""
        if self._check and (found := self._check.result()):
            raise refusal(found, self._live.manifest.name)
        outputs = self._live.finish(ran.outputs)
        answer = self._answer(outputs, "")
        if self._cache:
            name, digest = self._live.manifest.name, self._live.slot.digest
            self._caches.put(name, digest, self._key, self.feeds, outputs, self._audit)
        end = time.perf_counter_ns()
        self._live.stages.add(
            self._prepared - self._start,
            ran.began - ran.queued,
            ran.ended - ran.began,
            end - ran.ended,
            end - self._start,
        )
        return answer

    def _answer(self, outputs: Feeds, cached: Literal["", "exact", "near"]) -> Answer:
        manifest = self._live.manifest
        return Answer(
            model=manifest.name,
            version=manifest.version,
            digest=self._live.slot.digest,
            outputs=outputs,
            top=self._live.top(outputs, self._top),
            cached=cached,
            ms=(time.perf_counter_ns() - self._start) / 1e6,
        )
