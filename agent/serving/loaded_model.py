"""The Backend in this process: a model's sessions, and the queue in front of them."""

from __future__ import annotations

from agent.config import Serve
from agent.packages.journal import Journal
from agent.packages.slots import Slot
from agent.packages.tuning import limit_threads
from agent.serving.admission import Admission
from agent.serving.backend import (
    Activity,
    Completion,
    EncodedImage,
    Inputs,
    InstalledModel,
    OnCompletion,
)
from agent.serving.batches import BatchPolicy
from agent.serving.scheduler import Run, Scheduler
from edge_core.errors import EdgeError, InputError, PackageError
from edge_core.package.manifest import PackagedModel
from edge_core.package.preprocess import to_tensor
from edge_core.runtimes import registry as runtimes
from edge_core.tensors import Feeds, check_feeds, dequantise


class CrashRecorder:
    """Writes every load and inference to the journal: a crash is then attributed to its model."""

    def __init__(self, journal: Journal, name: str, digest: str) -> None:
        self._journal, self._number = journal, journal.add(name, digest)

    def __enter__(self) -> None:
        self._journal.enter(self._number)

    def __exit__(self, *raised: object) -> None:
        self._journal.leave(self._number)

    def watch(self, run: Run) -> Run:
        """The same run, recorded."""
        enter, leave, number = self._journal.enter, self._journal.leave, self._number

        def run_recorded(feeds: Feeds) -> Feeds:
            enter(number)
            try:
                return run(feeds)
            finally:
                leave(number)

        return run_recorded

    def close(self) -> None:
        """The model was unloaded."""
        self._journal.remove(self._number)


class LoadedModel:
    """A model whose sessions are open. Made by load_model()."""

    def __init__(
        self, model: PackagedModel, limits: Serve, policy: BatchPolicy, runs: list[Run],
        recorder: CrashRecorder,
    ) -> None:  # fmt: skip
        self._model, self._recorder = model, recorder
        self._max_pixels = int(limits.max_image_mpixels * 1e6)
        self._batched = policy.max_size > 1
        self._scheduler = Scheduler(runs, queue=limits.queue, policy=policy, name=model.name)
        self.admission = Admission(model.name, limits.queue + limits.instances * policy.max_size)

    @property
    def activity(self) -> Activity:
        """What its sessions are doing."""
        scheduler = self._scheduler
        return Activity(
            alive=scheduler.alive,
            idle=scheduler.idle,
            inferences=scheduler.inferences,
            batches=scheduler.batches,
        )

    def prepare(self, inputs: Inputs) -> Feeds:
        """Feeds that the sessions take; raises InputError for others. NaN is not looked for."""
        model = self._model
        if isinstance(inputs, EncodedImage):
            if model.preprocess is None or len(model.inputs) != 1:
                raise InputError(
                    f"{model.name} has no preprocessing recipe for images",
                    hint=f"give tensors: {', '.join(i.name for i in model.inputs)}",
                )
            tensor = to_tensor(inputs.data, model.preprocess, max_pixels=self._max_pixels)
            inputs = {model.inputs[0].name: tensor}
        feeds = check_feeds(inputs, model.inputs, model.name, finite=False)
        if self._batched and len({len(array) for array in feeds.values()}) != 1:
            raise InputError(f"{model.name}: the inputs have different numbers of rows")
        return feeds

    def call(self, feeds: Feeds, deadline: int) -> Completion:
        """Run on this thread when a session is free, else wait for one."""
        return self._scheduler.call(feeds, deadline)

    def post(self, feeds: Feeds, deadline: int, on_done: OnCompletion) -> None:
        """Queue; ``on_done`` is called on another thread."""
        self._scheduler.post(feeds, deadline, on_done)

    def finish(self, outputs: Feeds) -> Feeds:
        """The outputs as reals, in the manifest's order."""
        return {spec.name: dequantise(outputs[spec.name], spec) for spec in self._model.outputs}

    def close(self, timeout_s: float) -> bool:
        """Let its requests end, then unload; False if some had to be answered Unavailable."""
        is_drained = self.admission.drain(timeout_s)
        self._scheduler.close()
        self._recorder.close()
        return is_drained


def load_model(installed: InstalledModel, journal: Journal) -> LoadedModel:
    """Open the sessions of an installed package.

    Raises MeasureError if the runtime refuses it, MissingExtra without the runtime, PackageError
    if the model's inputs are not those of the manifest.
    """
    slot, model, limits = installed.slot, installed.model, installed.limits
    share = max(1, limit_threads(installed.cpu_share) // limits.instances)
    threads = min(limits.threads or slot.tuning.threads, share)
    recorder = CrashRecorder(journal, slot.name, slot.digest)
    runs: list[Run] = []
    try:
        adapter = runtimes.get(model.runtime.name)
        with recorder:
            for _ in range(limits.instances):
                session = adapter.open(
                    installed.folder / model.entry,
                    threads=threads,
                    options=model.runtime.options,
                )
                names = [spec.name for spec in session.inputs]
                if names != [spec.name for spec in model.inputs]:
                    raise PackageError(
                        f"the model's inputs are {names}; the manifest says otherwise"
                    )
                runs.append(recorder.watch(session.run))
    except EdgeError:
        recorder.close()
        raise
    return LoadedModel(model, limits, batch_policy(limits, slot), runs, recorder)


def batch_policy(limits: Serve, slot: Slot) -> BatchPolicy:
    """Batches as configured, where the installation measured that they pay."""
    measured = slot.tuning.batching
    if not (limits.batching and measured.pays):
        return BatchPolicy()
    max_size = min(limits.max_batch_size, measured.max_batch_size)  # more rows were no faster
    return BatchPolicy(
        max_size=max_size,
        min_size=min(limits.min_batch_size, max_size),
        max_wait_ns=int(limits.max_wait_ms * 1e6),
    )
