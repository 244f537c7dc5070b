"""What answers the requests of one installed model: the seam behind Agent.infer and submit.

    prepare(inputs) -> Feeds                 what a client sent, checked and in the model's types
    call(feeds, deadline) -> Completion      on the caller's thread, or waiting for a session
    post(feeds, deadline, on_done)           returns at once; on_done is called on another thread
    finish(completion.outputs) -> Feeds      as reals, in the manifest's order

A model that is loaded in this process (loaded_model.py) is a Backend. So may be the head of a split
model with its tail in the cloud, a cascade from a small model to a large one, or another machine.
Around every Backend the request flow does the same: caches, NaN check, deadlines, counts, stages.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from agent.config import Serve
from agent.packages.journal import Journal
from agent.packages.slots import Slot
from agent.serving.admission import Admission
from edge_core.errors import EdgeError
from edge_core.package.manifest import PackagedModel
from edge_core.tensors import Feeds


class EncodedImage(msgspec.Struct, frozen=True):
    """An encoded picture; the package's recipe turns it into the input tensor."""

    data: bytes


Inputs = Feeds | EncodedImage


class Activity(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend is doing. A watchdog compares two of them."""

    alive: bool  # its threads run
    idle: bool  # a session is free
    inferences: int  # finished so far, of one request or of a batch
    batches: int = 0  # ... of which held more than one request


class Completion:
    """One inference: its outputs or its error, and its times in ns of perf_counter."""

    __slots__ = ("ended", "error", "outputs", "queued", "started")

    def __init__(self, queued: int) -> None:
        self.queued = self.started = self.ended = queued
        self.outputs: Feeds = {}
        self.error: EdgeError | None = None


OnCompletion = Callable[[Completion], None]


class Backend(Protocol):
    """Answers requests of one model. Every method may be called from any thread.

    The contract, which tests/agent/serving/test_backend.py checks for each implementation:
    a request that was posted is answered exactly once, whatever happens; errors are EdgeErrors;
    deadlines are in ns of time.perf_counter and are kept while a request waits.
    """

    @property
    def admission(self) -> Admission:
        """The requests on it: each enters before prepare() and leaves after its answer."""

    @property
    def activity(self) -> Activity:
        """What it is doing; cheap."""

    def prepare(self, inputs: Inputs) -> Feeds:
        """The tensors that call() and post() take; NaN is not looked for. Raises InputError."""

    def call(self, feeds: Feeds, deadline: int) -> Completion:
        """Run and wait. Raises Overloaded, DeadlineExceeded, Unavailable, MeasureError."""

    def post(self, feeds: Feeds, deadline: int, on_done: OnCompletion) -> None:
        """Run elsewhere: raises Overloaded, DeadlineExceeded or Unavailable at once, or calls
        ``on_done`` once, on another thread, with outputs or an error.
        """

    def finish(self, outputs: Feeds) -> Feeds:
        """The outputs of a completion as reals, in the order of the manifest."""

    def close(self, timeout_s: float) -> bool:
        """Let its requests end, then give everything back; False if some had to be cut off."""


class InstalledModel(msgspec.Struct, frozen=True, kw_only=True):
    """What a Backend is opened from: one installed package, and the limits set for it."""

    slot: Slot
    model: PackagedModel
    folder: Path  # the package's files
    limits: Serve
    cpu_share: float  # of the cores, that one model may use


OpenBackend = Callable[[InstalledModel, Journal], Backend]
