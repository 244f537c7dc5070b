"""Which Backend answers for which name, and how it is replaced without a dropped request.

    enter(name) -> Serving       the current one, one request counted in
    reload() -> names            serve what active.json names now
    close(), wait_unloaded()     refuse new requests; answer what is in flight, unload everything

reload() and close() are called by one thread at a time, the others by any.
"""

from __future__ import annotations

import difflib
import logging
import threading

import msgspec

from agent.config import Config, Serve
from agent.packages.journal import Journal
from agent.packages.slots import Active, Slot, Slots
from agent.serving import memory
from agent.serving.backend import Backend, InstalledModel, OpenBackend
from agent.serving.counters import Counters
from agent.serving.timing import Stages
from edge_core.errors import EdgeError, Unavailable, UnknownModel
from edge_core.package.manifest import PackagedModel

log = logging.getLogger(__name__)
DRAIN_S = 60.0  # how long a replaced model may take to answer its last requests


class Serving(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One model that answers."""

    slot: Slot
    model: PackagedModel
    limits: Serve
    backend: Backend
    stages: Stages  # of its requests since it was loaded


class ModelTable:
    """The models of one data directory."""

    def __init__(
        self,
        config: Config,
        slots: Slots,
        journal: Journal,
        counters: Counters,
        open_backend: OpenBackend,
    ) -> None:
        self._config, self._slots, self._journal = config, slots, journal
        self._counters, self._open_backend = counters, open_backend
        self._serving: dict[str, Serving] = {}
        self._failures: dict[str, str] = {}
        self._closed = False
        self._drains: list[threading.Thread] = []
        self.swaps = 0

    @property
    def serving(self) -> dict[str, Serving]:
        """The models that answer now, by name; a copy."""
        return dict(self._serving)

    @property
    def failures(self) -> dict[str, str]:
        """Why models, or their newer versions, cannot be served; a copy."""
        return dict(self._failures)

    @property
    def is_closed(self) -> bool:
        """Does it refuse requests because the agent stops?"""
        return self._closed

    @property
    def is_ready(self) -> bool:
        """Does every installed model answer?"""
        serving = self.serving  # a failed update of a model that still answers does not matter
        return (
            not self._closed
            and not (set(self._failures) - serving.keys())
            and all(serving.backend.activity.alive for serving in serving.values())
        )

    def find(self, name: str) -> Serving:
        """The model that answers now; raises UnknownModel, Unavailable."""
        serving = self._serving.get(name)
        if serving is None:
            raise self._missing(name)
        return serving

    def enter(self, name: str) -> Serving:
        """The same, with one request counted in; raises Overloaded too."""
        while True:
            serving = self.find(name)
            if serving.backend.admission.enter():
                return serving

    def reload(self) -> tuple[str, ...]:
        """Serve what active.json names now; the names of the models that changed.

        The new model is loaded while the old one answers, then takes its place in one step. One
        that cannot be loaded leaves the old one serving, and is among the failures.
        """
        if self._closed:
            raise Unavailable("the agent is stopping")
        names = self._slots.names()
        changed = [name for name in names if self._renew(name)]
        for name in {*self._serving, *self._failures}.difference(names):  # removed
            self._failures.pop(name, None)
            if old := self._serving.pop(name, None):
                changed.append(name)
                self._retire(old)
        return tuple(changed)

    def close(self) -> None:
        """Refuse new requests, and begin to unload."""
        self._closed = True
        remaining = list(self._serving.values())
        self._serving.clear()
        for serving in remaining:
            self._retire(serving)

    def wait_unloaded(self) -> None:
        """Wait until what was replaced or closed has answered its requests and is unloaded."""
        for thread in self._drains:
            thread.join()

    def _missing(self, name: str) -> EdgeError:
        if self._closed:
            return Unavailable("the agent is stopping")
        if name in self._failures:
            return Unavailable(f"'{name}' cannot be served: {self._failures[name]}")
        known = tuple(self._serving)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"installed: {', '.join(known) or '-'}"
        return UnknownModel(f"no model '{name}'", hint=hint)

    def _renew(self, name: str) -> bool:
        """Serve what is current; False if it is served already, or cannot be."""
        self._counters.add_model(name)
        try:
            active, fresh = self._open_current(name)
        except EdgeError as error:
            log.error("event=load_failed model=%s why=%r", name, error.what)
            self._failures[name] = error.what
            return False
        old = self._serving.get(name)
        self._failures.pop(name, None)
        if fresh:
            self._serving[name] = fresh
            log.info("event=serving model=%s digest=%s", name, fresh.slot.digest)
        elif active.disabled or active.current is None:
            self._failures[name] = active.disabled or "no version of it is installed"
            self._serving.pop(name, None)
        else:
            return False
        if old:
            self.swaps += 1
            self._retire(old)
        return bool(fresh or old)

    def _open_current(self, name: str) -> tuple[Active, Serving | None]:
        """What is to be served, opened unless it is served already."""
        while True:
            active, old = self._slots.active(name), self._serving.get(name)
            slot = active.current
            if active.disabled or slot is None or (old and old.slot == slot):
                return active, None
            try:
                return active, self._open(slot)
            except EdgeError:
                # Two quick installations: the second one swept what was being loaded.
                if self._slots.active(name).current == slot:
                    raise

    def _open(self, slot: Slot) -> Serving:
        self._slots.check(slot)
        installed = InstalledModel(
            slot=slot,
            model=self._slots.model(slot),
            folder=self._slots.folder(slot),
            limits=self._config.limits_of(slot.name),
            cpu_share=self._config.install.cpu_share,
        )
        return Serving(
            slot=slot,
            model=installed.model,
            limits=installed.limits,
            backend=self._open_backend(installed, self._journal),
            stages=Stages(),
        )

    def _retire(self, old: Serving) -> None:
        """Close a replaced model when its last request has been answered."""

        def drain() -> None:
            if not old.backend.close(DRAIN_S):
                log.warning("event=drain_timed_out model=%s", old.slot.name)
            memory.give_back()

        self._drains = [thread for thread in self._drains if thread.is_alive()]
        thread = threading.Thread(target=drain, name="drain", daemon=True)
        self._drains.append(thread)
        thread.start()
