"""The agent in process: installed models, served, swapped without a dropped request.

    agent = Agent(config)
    answer = agent.infer("lite0", {"input": array})        # or EncodedImage(jpeg_bytes)
    agent.submit("lite0", inputs, done)                     # for servers: returns at once
    agent.reload()                                          # serve what was installed meanwhile
    agent.close()

cache -> prepare -> wait -> infer -> finish. The network is nowhere in it.
"""

from __future__ import annotations

import difflib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Literal

import msgspec
import numpy as np
from msgspec.structs import astuple

from agent.config import Config
from agent.packages import crashes
from agent.packages.journal import InFlight, Journal, Opened
from agent.packages.slots import Active, Slot, Slots
from agent.packages.tuning import allowed_threads
from agent.serving import memory
from agent.serving.caching import Caches
from agent.serving.loaded_model import CrashRecorder, EncodedImage, Inputs, LoadedModel, Pulse, load
from agent.serving.nan_check import NanChecker
from agent.serving.prepare_pool import PreparePool
from agent.serving.requests import Answer, InferenceRequest
from agent.serving.scheduler import Completion
from agent.serving.timing import Stage
from edge_core.errors import EdgeError, MeasureError, StorageError, Unavailable, UnknownModel
from edge_core.package.manifest import Manifest

log = logging.getLogger(__name__)
Done = Callable[[Answer | EdgeError], None]
JOURNAL = "journal"  # below the data directory
DRAIN_S = 60.0  # how long a replaced model may take to answer its last requests


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One installed model."""

    name: str
    state: Literal["ready", "failed"]
    why: str = ""  # it failed
    version: str = ""
    digest: str = ""
    previous: str = ""  # the digest that a rollback would serve
    slot: Slot | None = None
    manifest: Manifest | None = None
    requests: int = 0  # inside now
    inferences: int = 0  # since it was loaded, of one request or of a batch
    batches: int = 0
    stages: dict[str, Stage] = {}


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The agent as a whole."""

    ready: bool
    uptime_s: float
    models: tuple[ModelStatus, ...]
    caches: dict[str, dict[str, object]]  # counters and health
    swaps: int
    errors: dict[str, int]  # requests that got an error, by its name
    health: str = ""  # what else people should know


class Agent:
    """All installed models of one data directory."""

    def __init__(self, config: Config, journal: Opened | None = None) -> None:
        self._config = config
        self._slots = Slots(config.root)
        self._journal, inside = journal or Journal.open(config.root / JOURNAL)
        self._auto_rollback(inside)
        self._caches = Caches(config)
        self._checker = NanChecker()
        self._beside = PreparePool(allowed_threads(config.install.cpu_share) + 1)
        self._live: dict[str, LoadedModel] = {}
        self._failed: dict[str, str] = {}
        self._switching = threading.Lock()
        self._started = time.monotonic()
        self._swaps = 0
        self._errors: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._closed = False
        self._drains: list[threading.Thread] = []
        self.reload()

    def _auto_rollback(self, inside: tuple[InFlight, ...]) -> None:
        """If the last process died inside a model once too often, serve its previous version."""
        try:
            done = crashes.auto_rollback(self._slots, inside, self._config.crash, time.time())
        except StorageError as e:  # a disk that refuses is no reason not to serve
            log.error("event=crash_not_recorded why=%r", e.what)
            return
        if done:
            log.error("event=auto_rollback model=%s digest=%s why=%r serves=%s", *astuple(done))

    def infer(
        self,
        model: str,
        inputs: Inputs,
        *,
        deadline_ms: float | None = None,
        top: int = 0,
        cache: bool = True,
    ) -> Answer:
        """Answer one request on this thread.

        Raises UnknownModel, InputError for unfit inputs, Overloaded, Unavailable,
        DeadlineExceeded, and MeasureError when the runtime fails.
        """
        start = time.perf_counter_ns()
        try:
            live = self._enter(model)
            try:
                request = InferenceRequest(
                    self._caches, self._checker, live, inputs, top, cache, start
                )
                found = request.look()
                if found:
                    return found
                ran = live.call(request.feeds, self._deadline(live, start, deadline_ms))
                return request.answer(ran)
            finally:
                live.leave()
        except EdgeError as e:
            self._count(e)
            raise

    def submit(
        self,
        model: str,
        inputs: Inputs,
        done: Done,
        *,
        deadline_ms: float | None = None,
        top: int = 0,
        cache: bool = True,
        copy: bool = True,
    ) -> None:
        """Answer one request elsewhere: ``done`` is called once, on another thread.

        Without ``copy`` the arrays must not change until then. Raises at once what refuses the
        request: UnknownModel, InputError, Overloaded, Unavailable.
        """
        start = time.perf_counter_ns()
        try:
            live = self._enter(model)
            try:
                if copy and not isinstance(inputs, EncodedImage):
                    inputs = {name: np.array(a) for name, a in inputs.items()}
                request = InferenceRequest(
                    self._caches, self._checker, live, inputs, top, cache, start
                )
                deadline = self._deadline(live, start, deadline_ms)
                if request.slow:
                    work = partial(self._prepare_and_post, live, request, deadline, done)
                    self._beside.submit(deadline, work)
                else:
                    request.look()
                    self._post(live, request, deadline, done)
            except BaseException:
                live.leave()
                raise
        except EdgeError as e:
            self._count(e)
            raise

    def _prepare_and_post(
        self,
        live: LoadedModel,
        request: InferenceRequest,
        deadline: int,
        done: Done,
        late: EdgeError | None,
    ) -> None:
        found: Answer | EdgeError | None
        try:
            found = late or request.look()
            if not found:
                self._post(live, request, deadline, done)
        except EdgeError as e:
            found = e
        except Exception as e:  # a thread's root: the caller must hear of it
            log.exception("event=request_failed model=%s", live.manifest.name)
            found = MeasureError(f"the request could not be prepared: {e!r}")
        if found:
            live.leave()
            self._count(found)
            done(found)

    def _post(
        self, live: LoadedModel, request: InferenceRequest, deadline: int, done: Done
    ) -> None:
        def ended(ran: Completion) -> None:
            answer: Answer | EdgeError
            try:
                answer = ran.error or request.answer(ran)
            except EdgeError as e:
                answer = e
            except Exception as e:  # a lane's root: the caller must hear of it
                log.exception("event=request_failed model=%s", live.manifest.name)
                answer = MeasureError(f"the answer could not be made: {e!r}")
            live.leave()
            self._count(answer)
            done(answer)

        live.post(request.feeds, deadline, ended)

    def _enter(self, model: str) -> LoadedModel:
        while True:
            live = self._live.get(model)
            if live is None:
                raise self._missing(model)
            if live.enter():
                return live

    def _count(self, answer: Answer | EdgeError) -> None:
        if isinstance(answer, EdgeError):
            with self._counting:
                self._errors[type(answer).__name__] += 1

    def _missing(self, model: str) -> EdgeError:
        if self._closed:
            return Unavailable("the agent is stopping")
        if model in self._failed:
            return Unavailable(f"'{model}' cannot be served: {self._failed[model]}")
        known = tuple(self._live)
        close = difflib.get_close_matches(model, known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"installed: {', '.join(known) or '-'}"
        return UnknownModel(f"no model '{model}'", hint=hint)

    def _deadline(self, live: LoadedModel, start: int, deadline_ms: float | None) -> int:
        return start + int((deadline_ms or live.limits.deadline_ms) * 1e6)

    def ready(self) -> bool:
        """Does every installed model answer?"""
        serving = dict(self._live)  # a failed update of a model that still answers does not matter
        return (
            not self._closed
            and not (set(self._failed) - serving.keys())
            and all(m.alive for m in serving.values())
        )

    def pulses(self) -> dict[str, Pulse]:
        """Signs of life of each model that serves, for a watchdog; cheap."""
        return {name: live.pulse for name, live in dict(self._live).items()}

    def reload(self) -> tuple[str, ...]:
        """Serve what active.json names now; the names of the models that changed.

        The new model is loaded beside the old one, then takes its place in one step. One that
        cannot be loaded leaves the old one serving, and is told by status().
        """
        with self._switching:
            if self._closed:
                raise Unavailable("the agent is stopping")
            names = self._slots.names()
            changed = [name for name in names if self._renew(name)]
            for name in {*self._live, *self._failed}.difference(names):  # removed
                self._failed.pop(name, None)
                if old := self._live.pop(name, None):
                    changed.append(name)
                    self._retire(old)
            self._caches.use({name: m.slot.digest for name, m in self._live.items()})
            return tuple(changed)

    def _renew(self, name: str) -> bool:
        """Serve what is current; False if it is served already, or cannot be."""
        try:
            active, fresh = self._current(name)
        except EdgeError as e:
            log.error("event=load_failed model=%s why=%r", name, e.what)
            self._failed[name] = e.what
            return False
        old = self._live.get(name)
        self._failed.pop(name, None)
        if fresh:
            self._live[name] = fresh
            log.info("event=serving model=%s digest=%s", name, fresh.slot.digest)
        elif active.disabled or active.current is None:
            self._failed[name] = active.disabled or "no version of it is installed"
            self._live.pop(name, None)
        else:
            return False
        if old:
            self._swaps += 1
            self._retire(old)
        return bool(fresh or old)

    def _current(self, name: str) -> tuple[Active, LoadedModel | None]:
        """What is to be served, loaded unless it is served already."""
        while True:
            active, old = self._slots.active(name), self._live.get(name)
            slot = active.current
            if active.disabled or slot is None or (old and old.slot == slot):
                return active, None
            try:
                return active, self._load(slot)
            except EdgeError:
                # Two quick installations: the second one swept what was being loaded.
                if self._slots.active(name).current == slot:
                    raise

    def _load(self, slot: Slot) -> LoadedModel:
        self._slots.check(slot.name, slot.digest)
        folder = self._slots.folder(slot.name, slot.digest)
        manifest = self._slots.manifest(slot.name, slot.digest)
        limits = self._config.of(slot.name)
        guard = CrashRecorder(self._journal, slot.name, slot.digest)
        return load(folder, slot, manifest, limits, self._config.install.cpu_share, guard)

    def _retire(self, old: LoadedModel) -> None:
        """Close a replaced model when its last request has been answered."""

        def drain() -> None:
            if not old.close(DRAIN_S):
                log.warning("event=drain_timed_out model=%s", old.manifest.name)
            memory.give_back()

        self._drains = [t for t in self._drains if t.is_alive()]
        thread = threading.Thread(target=drain, name="drain", daemon=True)
        self._drains.append(thread)
        thread.start()

    def models(self) -> tuple[ModelStatus, ...]:
        """Every installed model."""
        return tuple(self.model(name) for name in sorted({*self._live, *self._failed}))

    def manifest(self, model: str) -> Manifest:
        """The manifest of the package that serves now; raises UnknownModel, Unavailable."""
        live = self._live.get(model)
        if live is None:
            raise self._missing(model)
        return live.manifest

    def model(self, name: str) -> ModelStatus:
        """One installed model; raises UnknownModel."""
        live, why = self._live.get(name), self._failed.get(name, "")
        if live is None:
            if why:
                return ModelStatus(name=name, state="failed", why=why)
            raise self._missing(name)
        return ModelStatus(
            name=name,
            state="ready",
            why=why,  # a newer version that could not be loaded
            version=live.manifest.version,
            digest=live.slot.digest,
            previous=self._previous(name),
            slot=live.slot,
            manifest=live.manifest,
            requests=live.inside,
            inferences=live.inferences,
            batches=live.batches,
            stages=live.stages.read(),
        )

    def _previous(self, name: str) -> str:
        try:
            previous = self._slots.active(name).previous
        except EdgeError:  # its file was damaged or removed: a model that is loaded goes on
            return ""
        return previous.digest if previous else ""

    def status(self) -> Status:
        """Everything that the agent knows of itself."""
        return Status(
            ready=self.ready(),
            uptime_s=time.monotonic() - self._started,
            models=self.models(),
            caches=self._caches.status(),
            swaps=self._swaps,
            errors=dict(self._errors),
            health=self._journal.health(),
        )

    def close(self) -> None:
        """Answer what is inside, then unload everything; may be called twice.

        New requests are refused.
        """
        with self._switching:
            if self._closed:
                return
            self._closed = True
            self._journal.stop()  # a kill from here on is no crash
            left = list(self._live.values())
            self._live.clear()
        for live in left:
            self._retire(live)
        for thread in self._drains:
            thread.join()
        self._beside.close()
        self._checker.close()
        self._caches.close()
        self._journal.close()

    def __enter__(self) -> Agent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()
