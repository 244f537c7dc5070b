"""One loaded model: its sessions, its queue, and how many requests are on it.

A request enters the model that is current when it comes and stays on it to its end; a model that
was replaced closes when the last of its requests has left.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from agent.config import Serve
from agent.packages.journal import Journal
from agent.packages.slots import Slot
from agent.packages.tuning import allowed_threads
from agent.serving.batches import Policy
from agent.serving.scheduler import Completion, Run, Scheduler
from agent.serving.timing import Stages
from edge_core.errors import EdgeError, InputError, Overloaded, PackageError
from edge_core.package.manifest import Manifest
from edge_core.package.preprocess import to_tensor
from edge_core.package.run import Scored, top_scores
from edge_core.runtimes import registry as runtimes
from edge_core.tensors import Feeds, check_feeds, dequantise


class EncodedImage(msgspec.Struct, frozen=True):
    """An encoded picture; the package's recipe makes the input tensor of it."""

    data: bytes


Inputs = Feeds | EncodedImage


class Pulse(msgspec.Struct, frozen=True, kw_only=True):
    """Does a model get on? A watchdog compares two of them."""

    alive: bool  # its threads run
    idle: bool  # a session is free
    inferences: int  # so far


class CrashRecorder:
    """Told of every load and inference, so that a crash can be laid at this model's door."""

    def __init__(self, journal: Journal, name: str, digest: str) -> None:
        self._journal, self._i = journal, journal.add(name, digest)

    def __enter__(self) -> None:
        self._journal.enter(self._i)

    def __exit__(self, *raised: object) -> None:
        self._journal.leave(self._i)

    def watch(self, run: Run) -> Run:
        """The same run, watched."""
        enter, leave, i = self._journal.enter, self._journal.leave, self._i

        def watched(feeds: Feeds) -> Feeds:
            enter(i)
            try:
                return run(feeds)
            finally:
                leave(i)

        return watched

    def close(self) -> None:
        """The model was unloaded."""
        self._journal.remove(self._i)


class LoadedModel:
    """A model that can answer. Made by load()."""

    def __init__(
        self, slot: Slot, manifest: Manifest, limits: Serve, runs: list[Run], guard: CrashRecorder
    ) -> None:
        self._guard = guard
        self.slot, self.manifest, self.limits = slot, manifest, limits
        self.policy = policy(limits, slot)
        self.stages = Stages()
        self._scheduler = Scheduler(
            runs, queue=limits.queue, policy=self.policy, name=manifest.name
        )
        self._most = limits.queue + limits.instances * self.policy.max_size
        self._inside = 0
        self._closing = False
        self._lock = threading.Condition()

    @property
    def inferences(self) -> int:
        """Inferences so far, of one request or of a batch."""
        return self._scheduler.inferences

    @property
    def batches(self) -> int:
        """Inferences so far that held more than one request."""
        return self._scheduler.batches

    @property
    def inside(self) -> int:
        """Requests that are on the model, running or not."""
        return self._inside

    @property
    def pulse(self) -> Pulse:
        """Signs of life."""
        scheduler = self._scheduler
        return Pulse(alive=scheduler.alive, idle=scheduler.idle, inferences=scheduler.inferences)

    @property
    def alive(self) -> bool:
        """Are its threads running?"""
        return self._scheduler.alive

    def enter(self) -> bool:
        """Count one request in; False if the model is closing and another one is current.

        Raises Overloaded when as many are inside as may be.
        """
        with self._lock:
            if self._closing:
                return False
            if self._inside >= self._most:
                raise Overloaded(
                    f"{self.manifest.name}: {self._inside} requests are running or waiting",
                    hint="send fewer at once, or raise serve.queue",
                )
            self._inside += 1
            return True

    def leave(self) -> None:
        """Count one request out."""
        with self._lock:
            self._inside -= 1
            if self._closing and not self._inside:
                self._lock.notify_all()

    def prepare(self, inputs: Inputs) -> Feeds:
        """Feeds that the sessions take, NaN and infinity aside; raises InputError for others."""
        inputs_of = self.manifest.inputs
        if isinstance(inputs, EncodedImage):
            if self.manifest.preprocess is None or len(inputs_of) != 1:
                raise InputError(
                    f"{self.manifest.name} has no preprocessing recipe for images",
                    hint=f"give tensors: {', '.join(i.name for i in inputs_of)}",
                )
            most = int(self.limits.max_image_mpixels * 1e6)
            tensor = to_tensor(inputs.data, self.manifest.preprocess, max_pixels=most)
            inputs = {inputs_of[0].name: tensor}
        feeds = check_feeds(inputs, inputs_of, self.manifest.name, finite=False)
        if self.policy.max_size > 1 and len({len(a) for a in feeds.values()}) != 1:
            raise InputError(f"{self.manifest.name}: the inputs have different numbers of rows")
        return feeds

    def call(self, feeds: Feeds, deadline: int) -> Completion:
        """Run on this thread when a session is free, else wait for one."""
        return self._scheduler.call(feeds, deadline)

    def post(self, feeds: Feeds, deadline: int, done: Callable[[Completion], None]) -> None:
        """Queue; ``done`` is called on another thread."""
        self._scheduler.post(feeds, deadline, done)

    def finish(self, outputs: Feeds) -> Feeds:
        """The outputs as reals, in the manifest's order."""
        return {s.name: dequantise(outputs[s.name], s) for s in self.manifest.outputs}

    def top(self, outputs: Feeds, count: int) -> tuple[Scored, ...]:
        """The best classes, if the model scores classes."""
        if not count or not self.manifest.class_scores:
            return ()
        return top_scores(outputs, self.manifest.labels, count)

    def close(self, timeout_s: float) -> bool:
        """Let its requests end, then unload; False if some had to be answered Unavailable."""
        with self._lock:
            self._closing = True
            clean = self._lock.wait_for(lambda: not self._inside, timeout_s)
        self._scheduler.close()
        self._guard.close()
        return clean


def load(
    folder: Path,
    slot: Slot,
    manifest: Manifest,
    limits: Serve,
    cpu_share: float,
    guard: CrashRecorder,
) -> LoadedModel:
    """Open the sessions of an installed package.

    Raises MeasureError if the runtime refuses it, MissingExtra without the runtime, PackageError
    if the model's inputs are not those of the manifest.
    """
    share = max(1, allowed_threads(cpu_share) // limits.instances)
    threads = min(limits.threads or slot.tuning.threads, share)
    path, options = folder / manifest.file, manifest.runtime.options
    runs: list[Run] = []
    try:
        adapter = runtimes.get(manifest.runtime.name)
        with guard:
            for _ in range(limits.instances):
                session = adapter.open(path, threads=threads, options=options)
                found = [s.name for s in session.inputs]
                if found != [s.name for s in manifest.inputs]:
                    raise PackageError(
                        f"the model's inputs are {found}; the manifest says otherwise"
                    )
                runs.append(guard.watch(session.run))
    except EdgeError:
        guard.close()
        raise
    return LoadedModel(slot, manifest, limits, runs, guard)


def policy(limits: Serve, slot: Slot) -> Policy:
    """Batches as configured, where the installation measured that they pay."""
    measured = slot.tuning.batching
    if not (limits.batching and measured.pays):
        return Policy()
    most = min(limits.max_batch_size, measured.max_batch_size)  # more rows were no faster
    return Policy(
        max_size=most,
        min_size=min(limits.min_batch_size, most),
        max_wait_ns=int(limits.max_wait_ms * 1e6),
    )
