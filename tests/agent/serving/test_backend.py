"""Contract: what every Backend promises, the loaded model and others alike.

The others here are real ones: a cascade of two loaded models, and one that asks another agent over
HTTP. Each is served through the same Agent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
import tritonclient.http as triton

from agent import Agent, Answer
from agent.config import Config, Http
from agent.http.server import Server
from agent.packages.install import install
from agent.packages.journal import Journal
from agent.packages.slots import Slots
from agent.serving.admission import Admission
from agent.serving.backend import (
    Activity,
    Backend,
    Completion,
    Inputs,
    InstalledModel,
    OnCompletion,
    OpenBackend,
)
from agent.serving.loaded_model import LoadedModel, load_model
from edge_core.errors import (
    DeadlineExceeded,
    EdgeError,
    InputError,
    MeasureError,
    Overloaded,
    Unavailable,
)
from edge_core.tensors import Feeds
from tests.agent.serving.test_agent import CollectedAnswers, direct

SECOND = 1_000_000_000
SURE = 0.6  # the score from which the first model of the cascade is believed
FEEDS = [{"x": np.random.default_rng(i).normal(size=(1, 4)).astype(np.float32)} for i in range(20)]


class Cascade:
    """Asks a second loaded model where the first one is not sure."""

    def __init__(self, first: LoadedModel, second: LoadedModel) -> None:
        self._first, self._second = first, second
        self.admission = first.admission

    @property
    def activity(self) -> Activity:
        first, second = self._first.activity, self._second.activity
        return Activity(
            alive=first.alive and second.alive,
            idle=first.idle or second.idle,
            inferences=first.inferences + second.inferences,
        )

    def prepare(self, inputs: Inputs) -> Feeds:
        return self._first.prepare(inputs)

    def call(self, feeds: Feeds, deadline: int) -> Completion:
        completion = self._first.call(feeds, deadline)
        return completion if is_sure(completion) else self._second.call(feeds, deadline)

    def post(self, feeds: Feeds, deadline: int, on_done: OnCompletion) -> None:
        def go_on(completion: Completion) -> None:
            if completion.error or is_sure(completion):
                on_done(completion)
                return
            try:
                self._second.post(feeds, deadline, on_done)
            except EdgeError as error:
                completion.error = error
                on_done(completion)

        self._first.post(feeds, deadline, go_on)

    def finish(self, outputs: Feeds) -> Feeds:
        return self._first.finish(outputs)

    def close(self, timeout_s: float) -> bool:
        is_drained = self._first.close(timeout_s)
        return self._second.close(timeout_s) and is_drained


def is_sure(completion: Completion) -> bool:
    return completion.outputs["y"].max() >= SURE


class Remote:
    """Asks another agent over HTTP."""

    def __init__(self, address: str, installed_config: InstalledModel) -> None:
        self._installed, self._address = installed_config, address.removeprefix("http://")
        self._pool = ThreadPoolExecutor(2)
        self._closed = False
        self._count = 0
        self.admission = Admission(installed_config.slot.name, installed_config.limits.queue + 2)

    @property
    def activity(self) -> Activity:
        return Activity(alive=not self._closed, idle=True, inferences=self._count)

    def prepare(self, inputs: Inputs) -> Feeds:
        if not isinstance(inputs, dict):
            raise InputError("tensors only")
        unknown = inputs.keys() - {spec.name for spec in self._installed.model.inputs}
        if unknown:
            raise InputError(f"the model has no input '{unknown.pop()}'")
        return inputs

    def call(self, feeds: Feeds, deadline: int) -> Completion:
        completion = self._ask(feeds, deadline)
        if completion.error:
            raise completion.error
        return completion

    def post(self, feeds: Feeds, deadline: int, on_done: OnCompletion) -> None:
        if self._closed:
            raise Unavailable("it is closed")
        self._pool.submit(lambda: on_done(self._ask(feeds, deadline)))

    def finish(self, outputs: Feeds) -> Feeds:
        return outputs

    def close(self, timeout_s: float) -> bool:
        is_drained = self.admission.drain(timeout_s)
        self._closed = True
        self._pool.shutdown()
        return is_drained

    def _ask(self, feeds: Feeds, deadline: int) -> Completion:
        completion = Completion(time.perf_counter_ns())
        if self._closed:
            completion.error = Unavailable("it is closed")
        elif completion.queued > deadline:
            completion.error = DeadlineExceeded("the deadline passed before it was sent")
        else:
            self._exchange(feeds, completion)
        completion.ended = time.perf_counter_ns()
        return completion

    def _exchange(self, feeds: Feeds, completion: Completion) -> None:
        inputs = [triton.InferInput(name, array.shape, "FP32") for name, array in feeds.items()]
        for tensor, array in zip(inputs, feeds.values(), strict=True):
            tensor.set_data_from_numpy(array)
        try:
            with triton.InferenceServerClient(self._address) as client:
                reply = client.infer(self._installed.slot.name, inputs)
        except triton.InferenceServerException as error:
            completion.error = MeasureError(f"the other agent refused: {error.message()}")
            return
        completion.outputs = {
            spec.name: reply.as_numpy(spec.name) for spec in self._installed.model.outputs
        }
        self._count += 1


class Setting(NamedTuple):
    """An installed model, what opens its Backend, and what it must answer."""

    config: Config
    open_backend: OpenBackend
    expect: Callable[[Feeds], Feeds]


def set_up_loaded(config: Config, make_package, folder: Path, stack: ExitStack) -> Setting:
    install(config, make_package())
    return Setting(config, load_model, lambda feeds: direct(config, feeds))


def set_up_cascade(config: Config, make_package, folder: Path, stack: ExitStack) -> Setting:
    """The second model is another installation's, in the same process."""
    other = msgspec.structs.replace(config, data_dir=str(folder / "second"))
    second = install(other, make_package(seed=2))
    install(config, make_package())

    def open_cascade(installed_config: InstalledModel, journal: Journal) -> Backend:
        replaced = msgspec.structs.replace(
            installed_config,
            slot=second.slot,
            folder=Slots(other.root).folder(second.slot),
        )
        return Cascade(load_model(installed_config, journal), load_model(replaced, journal))

    def expect(feeds: Feeds) -> Feeds:
        outputs = direct(config, feeds)
        return outputs if outputs["y"].max() >= SURE else direct(other, feeds)

    return Setting(config, open_cascade, expect)


def set_up_remote(config: Config, make_package, folder: Path, stack: ExitStack) -> Setting:
    other = msgspec.structs.replace(config, data_dir=str(folder / "other"))
    install(other, make_package())
    install(config, make_package())
    server = stack.enter_context(
        Server(stack.enter_context(Agent(other)), Http(port=0)),
    )
    address = server.start()
    return Setting(
        config, lambda model, _: Remote(address, model), lambda feeds: direct(other, feeds)
    )


@pytest.fixture(
    params=[set_up_loaded, set_up_cascade, set_up_remote], ids=["loaded", "cascade", "remote"]
)
def setting(request, config, make_package, tmp_path) -> Iterator[Setting]:
    with ExitStack() as stack:
        yield request.param(config, make_package, tmp_path, stack)


@pytest.fixture
def backend(setting: Setting) -> Iterator[Backend]:
    """The Backend that an Agent has opened; the Agent closes it."""
    opened: list[Backend] = []

    def open_and_keep(installed_config: InstalledModel, journal: Journal) -> Backend:
        opened.append(setting.open_backend(installed_config, journal))
        return opened[-1]

    with Agent(setting.config, open_backend=open_and_keep):
        yield opened[0]


def soon(seconds: float = 30) -> int:
    return time.perf_counter_ns() + int(seconds * SECOND)


def test_it_answers_on_the_callers_thread_and_on_others_alike(setting, backend):
    completions: list[Completion] = []
    for feeds in FEEDS:
        prepared = backend.prepare(feeds)
        completion = backend.call(prepared, soon())
        outputs = backend.finish(completion.outputs)
        np.testing.assert_allclose(outputs["y"], setting.expect(feeds)["y"], rtol=1e-6)
        assert completion.queued <= completion.started <= completion.ended
        backend.post(prepared, soon(), completions.append)
    end = time.monotonic() + 30
    while len(completions) < len(FEEDS) and time.monotonic() < end:
        time.sleep(0.01)
    assert [completion.error for completion in completions] == [None] * len(FEEDS)
    assert backend.activity.inferences >= 2 * len(FEEDS)
    assert backend.activity.alive


def test_inputs_that_it_does_not_have_are_refused(backend):
    with pytest.raises(InputError, match="no input 'z'"):
        backend.prepare({"z": FEEDS[0]["x"]})


def test_a_posted_request_whose_deadline_has_passed_is_told_once(backend):
    completions: list[Completion] = []
    refused = 0
    try:
        backend.post(backend.prepare(FEEDS[0]), soon(-1), completions.append)
    except (DeadlineExceeded, Overloaded):
        refused += 1
    end = time.monotonic() + 30
    while not (completions or refused) and time.monotonic() < end:
        time.sleep(0.01)
    assert len(completions) + refused == 1
    assert all(isinstance(completion.error, DeadlineExceeded) for completion in completions)


def test_it_drains_before_it_closes_and_then_refuses(backend):
    feeds = backend.prepare(FEEDS[0])
    assert backend.admission.enter()
    assert not backend.close(timeout_s=0.01)
    assert not backend.admission.enter()
    backend.admission.leave()
    with pytest.raises(Unavailable):
        backend.call(feeds, soon())
    with pytest.raises(Unavailable):
        backend.post(feeds, soon(), lambda completion: None)


def test_the_agent_serves_it_with_counts_stages_and_swaps(setting, make_package):
    answers = CollectedAnswers()
    with Agent(setting.config, open_backend=setting.open_backend) as agent:
        for feeds in FEEDS:
            agent.submit("dense", feeds, answers)
        for feeds in FEEDS:
            answer = agent.infer("dense", feeds, top=1)
            expected = setting.expect(feeds)["y"]
            np.testing.assert_allclose(answer.outputs["y"], expected, rtol=1e-6)
            assert answer.top[0].index == expected.argmax()
        assert all(isinstance(answer, Answer) for answer in answers.wait(len(FEEDS)))
        with pytest.raises(InputError, match="contains NaN"):
            agent.infer("dense", {"x": np.full((1, 4), np.nan, np.float32)})
        model = agent.model("dense")
        assert (model.requests, model.counts.success, model.counts.fail) == (0, 40, 1)
        assert model.stages["infer"].n == 40
        install(setting.config, make_package(version="2.0.0", seed=2))
        assert agent.reload() == ("dense",)
        assert agent.infer("dense", FEEDS[0]).version == "2.0.0"
        assert agent.status().swaps == 1
