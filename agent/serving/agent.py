"""The agent in process: installed models, served, swapped without a dropped request.

    agent = Agent(config)
    answer = agent.infer("lite0", {"input": array})        # or EncodedImage(jpeg_bytes)
    agent.submit("lite0", inputs, on_answer)                # for servers: returns at once
    agent.reload()                                          # serve what was installed meanwhile
    agent.close()

The parts: model_table.py holds what answers and swaps it, request_flow.py takes each request
through caches, inference and counts, status.py reports. The network is nowhere in it.
"""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType

from msgspec.structs import astuple

from agent.config import Config
from agent.packages import crashes
from agent.packages.journal import InFlight, Journal, Opened
from agent.packages.slots import Slots
from agent.packages.tuning import limit_threads
from agent.serving.backend import Activity, Inputs, OpenBackend
from agent.serving.caching import Caches
from agent.serving.counters import Counters
from agent.serving.loaded_model import load_model
from agent.serving.model_table import ModelTable
from agent.serving.request_flow import OnAnswer, RequestFlow
from agent.serving.requests import Answer, Options
from agent.serving.status import ModelStatus, Status, StatusReader
from edge_core.errors import StorageError
from edge_core.package.manifest import PackagedModel

log = logging.getLogger(__name__)
JOURNAL = "journal"  # below the data directory


class Agent:
    """All installed models of one data directory.

    ``open_backend`` opens what answers for an installed package: by default its model in this
    process. ``journal`` is one that the caller has opened already.
    """

    def __init__(
        self,
        config: Config,
        journal: Opened | None = None,
        *,
        open_backend: OpenBackend = load_model,
    ) -> None:
        slots = Slots(config.root)
        self._journal, in_flight = journal or Journal.open(config.root / JOURNAL)
        _auto_rollback(slots, in_flight, config)
        self.counters = Counters()
        self._caches = Caches(config)
        self._table = ModelTable(config, slots, self._journal, self.counters, open_backend)
        self._flow = RequestFlow(
            self._table,
            self._caches,
            self.counters,
            prepare_threads=limit_threads(config.install.cpu_share) + 1,
        )
        self._status = StatusReader(self._table, slots, self.counters)
        self._started = time.monotonic()
        self._switching = threading.Lock()
        self.reload()

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

        ``inputs`` are arrays by name, shaped and typed as the manifest's inputs (reals for
        quantized ones), or an EncodedImage. ``deadline_ms`` counts from this call; ``top`` asks
        for that many best classes; without ``cache`` nothing is remembered or looked up.

        Raises UnknownModel, InputError for unfit inputs, Overloaded, Unavailable,
        DeadlineExceeded, and MeasureError when the runtime fails.
        """
        return self._flow.infer(model, inputs, Options(deadline_ms, top, cache))

    def submit(
        self,
        model: str,
        inputs: Inputs,
        on_answer: OnAnswer,
        *,
        deadline_ms: float | None = None,
        top: int = 0,
        cache: bool = True,
        copy: bool = True,
    ) -> None:
        """Answer one request elsewhere: ``on_answer`` is called once, on another thread.

        The options are those of infer(). Without ``copy`` the arrays must not change until then.
        Raises at once what refuses the request: UnknownModel, InputError, Overloaded, Unavailable.
        """
        self._flow.submit(model, inputs, Options(deadline_ms, top, cache), on_answer, copy=copy)

    def reload(self) -> tuple[str, ...]:
        """Serve what active.json names now; the names of the models that changed.

        The new model is loaded while the old one answers, then takes its place in one step. One
        that cannot be loaded leaves the old one serving, and status() says why.
        """
        with self._switching:
            changed = self._table.reload()
            serving = self._table.serving
            self._caches.use({name: model.slot.model_id for name, model in serving.items()})
            return changed

    def ready(self) -> bool:
        """Does every installed model answer?"""
        return self._table.is_ready

    def activities(self) -> dict[str, Activity]:
        """What each model that serves is doing, for a watchdog; cheap."""
        return {name: model.backend.activity for name, model in self._table.serving.items()}

    def packaged_model(self, model: str) -> PackagedModel:
        """The manifest of the package that serves now; raises UnknownModel, Unavailable."""
        return self._table.find(model).model

    def models(self) -> tuple[ModelStatus, ...]:
        """Every installed model."""
        return self._status.read_models()

    def model(self, name: str) -> ModelStatus:
        """One installed model; raises UnknownModel."""
        return self._status.read_model(name)

    def status(self) -> Status:
        """Everything that the agent knows about itself."""
        return Status(
            ready=self.ready(),
            uptime_s=time.monotonic() - self._started,
            models=self.models(),
            caches=self._caches.status(),
            swaps=self._table.swaps,
            errors=self.counters.read_errors(),
            health=self._journal.health(),
        )

    def close(self) -> None:
        """Answer what is in flight, then unload everything; may be called twice.

        New requests are refused.
        """
        with self._switching:
            if self._table.is_closed:
                return
            self._journal.stop()  # a kill from here on is no crash
            self._table.close()
        self._table.wait_unloaded()
        self._flow.close()
        self._caches.close()
        self._journal.close()

    def __enter__(self) -> Agent:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


def _auto_rollback(slots: Slots, in_flight: tuple[InFlight, ...], config: Config) -> None:
    """If the last process died inside a model once too often, serve its previous version."""
    try:
        rollback = crashes.auto_rollback(slots, in_flight, config.crash, time.time())
    except StorageError as error:  # a disk that refuses is no reason not to serve
        log.error("event=crash_not_recorded why=%r", error.what)
        return
    if rollback:
        log.error("event=auto_rollback model=%s digest=%s why=%r serves=%s", *astuple(rollback))
