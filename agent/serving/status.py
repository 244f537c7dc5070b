"""What the agent reports about itself and its models: values for people and programs."""

from __future__ import annotations

from typing import Literal

import msgspec

from agent.packages.slots import Slot, Slots
from agent.serving.counters import Counters, ModelCounts
from agent.serving.model_table import ModelTable, Serving
from agent.serving.timing import Stage
from edge_core.errors import EdgeError
from edge_core.package.manifest import PackagedModel


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One installed model."""

    name: str
    state: Literal["ready", "failed"]
    why: str = ""  # it, or a newer version, failed
    version: str = ""
    digest: str = ""
    previous: str = ""  # the digest that a rollback would serve
    slot: Slot | None = None
    packaged_model: PackagedModel | None = None
    requests: int = 0  # in flight
    counts: ModelCounts = msgspec.field(default_factory=ModelCounts)  # since the agent started
    inferences: int = 0  # since it was loaded, of one request or of a batch
    batches: int = 0
    stages: dict[str, Stage] = {}  # since it was loaded


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The agent as a whole."""

    ready: bool
    uptime_s: float
    models: tuple[ModelStatus, ...]
    caches: dict[str, dict[str, object]]  # counters and health
    swaps: int
    errors: dict[str, int]  # requests that got an error, by its name
    health: str = ""  # what else people should know


class StatusReader:
    """Reads the status of models from where it is."""

    def __init__(self, table: ModelTable, slots: Slots, counters: Counters) -> None:
        self._table, self._slots, self._counters = table, slots, counters

    def read_models(self) -> tuple[ModelStatus, ...]:
        """Every installed model, by name."""
        names = {*self._table.serving, *self._table.failures}
        return tuple(self.read_model(name) for name in sorted(names))

    def read_model(self, name: str) -> ModelStatus:
        """One installed model; raises UnknownModel."""
        why = self._table.failures.get(name, "")
        serving = self._table.serving.get(name)
        counts = self._counters.read_model(name)
        if serving is None and why:
            return ModelStatus(name=name, state="failed", why=why, counts=counts)
        return self._describe(serving or self._table.find(name), why, counts)

    def _describe(self, serving: Serving, why: str, counts: ModelCounts) -> ModelStatus:
        activity = serving.backend.activity
        return ModelStatus(
            name=serving.slot.name,
            state="ready",
            why=why,  # a newer version that could not be loaded
            version=serving.model.version,
            digest=serving.slot.digest,
            previous=self._previous_digest(serving.slot.name),
            slot=serving.slot,
            packaged_model=serving.model,
            requests=serving.backend.admission.in_flight,
            counts=counts,
            inferences=activity.inferences,
            batches=activity.batches,
            stages=serving.stages.read(),
        )

    def _previous_digest(self, name: str) -> str:
        try:
            previous = self._slots.active(name).previous
        except EdgeError:  # its file was damaged or removed: a model that is loaded goes on
            return ""
        return previous.digest if previous else ""
