"""One request on its way: exact cache, prepare, near-duplicate cache, infer, finish.

It is passed from thread to thread and never in two of them at once.
"""

from __future__ import annotations

import time
from typing import Literal

import msgspec
import numpy as np

from agent.caches.near import NearHit
from agent.serving.backend import Completion, EncodedImage, Inputs
from agent.serving.caching import Caches
from agent.serving.model_table import Serving
from agent.serving.nan_check import NanCheck, NanChecker, refusal
from edge_core.package.run import Scored, top_scores
from edge_core.tensors import Feeds

CacheName = Literal["", "exact", "near"]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a model answered. ``outputs`` are reals; ``top`` is there if it was asked for."""

    model: str
    version: str
    digest: str  # of the package that answered
    outputs: Feeds
    top: tuple[Scored, ...] = ()
    cached: CacheName = ""
    ms: float = 0.0  # from the call to the answer


class Options(msgspec.Struct, frozen=True):
    """What a caller may say about one request."""

    deadline_ms: float | None = None  # None: the model's
    top: int = 0  # best classes
    cache: bool = True


class InferenceRequest:
    """One request on the model that was current when it came."""

    __slots__ = (
        "_audit", "_cache", "_caches", "_inputs", "_key", "_nan_check", "_nan_checker",
        "_prepared", "_top", "deadline", "feeds", "serving", "start",
    )  # fmt: skip

    def __init__(
        self,
        caches: Caches,
        nan_checker: NanChecker,
        serving: Serving,
        inputs: Inputs,
        options: Options,
        start: int,
    ) -> None:
        self._caches, self._nan_checker, self._inputs = caches, nan_checker, inputs
        self._nan_check: NanCheck | None = None
        self._top, self._prepared = options.top, start
        self._cache = options.cache and serving.limits.cache
        self._key = b""
        self._audit: NearHit | None = None
        self.serving, self.start = serving, start
        self.deadline = start + int((options.deadline_ms or serving.limits.deadline_ms) * 1e6)
        self.feeds: Feeds = {}

    @property
    def is_slow(self) -> bool:
        """Does look_up() take longer than checking arrays does?"""
        return self._cache or isinstance(self._inputs, EncodedImage)

    def copy_inputs(self) -> None:
        """Keep arrays of its own: the caller's may change."""
        if not isinstance(self._inputs, EncodedImage):
            self._inputs = {name: np.array(array) for name, array in self._inputs.items()}

    def look_up(self) -> Answer | None:
        """The remembered answer, or None with ``feeds`` ready; raises InputError."""
        name, digest = self.serving.slot.name, self.serving.slot.model_id
        if self._cache:
            raw = self._inputs.data if isinstance(self._inputs, EncodedImage) else self._inputs
            self._key = self._caches.key(digest, raw)
            outputs = self._caches.exact(digest, self._key)
            if outputs is not None:
                return self._to_answer(outputs, "exact")
        self.feeds = self.serving.backend.prepare(self._inputs)
        if not isinstance(self._inputs, EncodedImage):  # what a recipe makes is finite
            self._nan_check = self._nan_checker.start(self.feeds, name)
        self._prepared = time.perf_counter_ns()
        if self._cache:
            near = self._caches.near(name, digest, self.feeds)
            if near is not None and not near.audit:
                return self._to_answer(near.outputs, "near")
            self._audit = near
        return None

    def complete(self, completion: Completion) -> Answer:
        """The answer of an inference; remembers it and times its stages. Raises EdgeErrors."""
        if completion.error:
            raise completion.error
        serving = self.serving
        if self._nan_check and (problem := self._nan_check.result()):
            raise refusal(problem, serving.slot.name)
        outputs = serving.backend.finish(completion.outputs)
        answer = self._to_answer(outputs, "")
        if self._cache:
            name, digest = serving.slot.name, serving.slot.model_id
            self._caches.put(name, digest, self._key, self.feeds, outputs, self._audit)
        end = time.perf_counter_ns()
        serving.stages.add(
            self._prepared - self.start,
            completion.started - completion.queued,
            completion.ended - completion.started,
            end - completion.ended,
            end - self.start,
        )
        return answer

    def _to_answer(self, outputs: Feeds, cached: CacheName) -> Answer:
        model = self.serving.model
        has_scores = self._top and model.class_scores
        return Answer(
            model=model.name,
            version=model.version,
            digest=self.serving.slot.digest,
            outputs=outputs,
            top=top_scores(outputs, model.labels, self._top) if has_scores else (),
            cached=cached,
            ms=(time.perf_counter_ns() - self.start) / 1e6,
        )
