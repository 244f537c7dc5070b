"""The agent in process: answers, refusals, hot swap, batches, caches."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import PIL.Image
import pytest

from agent import Agent, Answer, EncodedImage
from agent.caches.calibrate_model import calibrate_model
from agent.caches.calibration import write_calibration
from agent.caches.rules import Rule
from agent.config import Config, Serve
from agent.packages.install import install
from agent.packages.slots import Slots
from agent.serving.caching import calibration_file
from edge_core.errors import (
    DeadlineExceeded,
    EdgeError,
    InputError,
    Overloaded,
    Unavailable,
    UnknownModel,
)
from edge_core.package.preprocess import ImageRecipe
from edge_core.runtimes import onnxruntime

X = {"x": np.array([[0.5, -1.0, 2.0, 0.25]], np.float32)}


def direct(config: Config, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the installed model file says by itself."""
    slots = Slots(config.root)
    slot = slots.active("dense").current
    assert slot
    path = slots.folder(slot) / slots.model(slot).entry
    return onnxruntime.open(path, threads=1, options={}).run(feeds)


class Told:
    """Collects what submit() answers."""

    def __init__(self) -> None:
        self.got: list[Answer | EdgeError] = []
        self._arrived = threading.Semaphore(0)

    def __call__(self, answer: Answer | EdgeError) -> None:
        self.got.append(answer)
        self._arrived.release()

    def wait(self, n: int) -> list[Answer | EdgeError]:
        for _ in range(n):
            assert self._arrived.acquire(timeout=30)
        return self.got


def test_an_installed_model_answers_as_its_file_does(installed):
    with Agent(installed) as agent:
        answer = agent.infer("dense", X, top=2)
        (status,) = agent.models()
    np.testing.assert_array_equal(answer.outputs["y"], direct(installed, X)["y"])
    assert [s.label for s in answer.top] == [
        ("left", "ahead", "right")[i] for i in np.argsort(-answer.outputs["y"][0])[:2]
    ]
    assert (answer.model, answer.version, answer.cached) == ("dense", "1.0.0", "")
    assert answer.digest == status.digest
    assert status.state == "ready"
    assert status.stages["infer"].n == 1
    assert 0 < status.stages["infer"].p50_ms <= status.stages["total"].p50_ms


def test_submit_answers_on_another_thread(installed):
    told = Told()
    with Agent(installed) as agent:
        for _ in range(20):
            agent.submit("dense", X, told)
        answers = told.wait(20)
    for a in answers:
        assert isinstance(a, Answer)
        np.testing.assert_array_equal(a.outputs["y"], direct(installed, X)["y"])


@pytest.mark.parametrize(
    ("name", "feeds", "error", "text"),
    [
        ("dence", X, UnknownModel, "did you mean 'dense'"),
        ("dense", {"z": X["x"]}, InputError, "no input 'z'"),
        ("dense", {"x": np.zeros((1, 5), np.float32)}, InputError, "shape 1x5"),
        ("dense", {"x": np.full((1, 4), np.nan, np.float32)}, InputError, "contains NaN"),
        ("dense", EncodedImage(b"no picture"), InputError, "no preprocessing recipe"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_its_reason(installed, name, feeds, error, text):
    with Agent(installed) as agent:
        with pytest.raises(error, match=text):
            agent.infer(name, feeds)
        told = Told()
        try:  # submit() may refuse at once or answer with the error
            agent.submit(name, feeds, told)
        except EdgeError as e:
            refusal: object = e
        else:
            (refusal,) = told.wait(1)
        assert isinstance(refusal, error)
        assert agent.infer("dense", X).outputs  # and it goes on serving


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_a_large_input_is_looked_through_while_the_model_runs(config, make_package, bad):
    install(config, make_package(width=50_000))
    x = {"x": np.ones((1, 50_000), np.float32)}
    with Agent(config) as agent:
        assert agent.infer("dense", x).outputs
        x["x"][0, 49_999] = bad
        with pytest.raises(InputError, match=r"dense: input 'x' contains (NaN|infinity)"):
            agent.infer("dense", x)
        told = Told()
        agent.submit("dense", x, told)
        assert isinstance(told.wait(1)[0], InputError)
        assert agent.status().errors == {"InputError": 2}


def test_a_hot_swap_takes_effect_for_new_requests_only(installed, make_package):
    with Agent(installed) as agent:
        old = agent.infer("dense", X)
        assert agent.reload() == ()
        install(installed, make_package(version="2.0.0", seed=2))
        assert agent.infer("dense", X).version == "1.0.0"
        assert agent.reload() == ("dense",)
        new = agent.infer("dense", X)
        assert (new.version, new.digest != old.digest) == ("2.0.0", True)
        assert agent.model("dense").previous == old.digest
        Slots(installed.root).rollback("dense", refuse=False)
        assert agent.reload() == ("dense",)
        np.testing.assert_array_equal(agent.infer("dense", X).outputs["y"], old.outputs["y"])


def test_requests_inside_finish_on_the_model_they_started_with(installed, make_package):
    """Twelve requests queue, then the model is swapped: each answer is its digest's own."""
    says = {}
    told = Told()
    with Agent(installed) as agent:
        says[agent.infer("dense", X).digest] = agent.infer("dense", X).outputs["y"]
        install(installed, make_package(version="2.0.0", seed=2))
        for _ in range(12):
            agent.submit("dense", X, told)
        agent.reload()
        after = Told()
        for _ in range(12):
            agent.submit("dense", X, after)
        answers = [*told.wait(12), *after.wait(12)]
        last = agent.infer("dense", X)
        says[last.digest] = last.outputs["y"]
    assert len(says) == 2
    for a in answers:
        assert isinstance(a, Answer)
        np.testing.assert_array_equal(a.outputs["y"], says[a.digest])
    assert [a.digest for a in answers[12:]] == [last.digest] * 12


def test_a_version_that_cannot_be_loaded_leaves_the_old_one_serving(installed, make_package):
    with Agent(installed) as agent:
        before = agent.infer("dense", X)
        install(installed, make_package(version="2.0.0", seed=2))
        slots = Slots(installed.root)
        slot = slots.active("dense").current
        assert slot
        file = slots.folder(slot) / "model.onnx"
        file.chmod(0o600)
        file.write_bytes(b"\0" * file.stat().st_size)
        assert agent.reload() == ()
        assert agent.infer("dense", X).digest == before.digest
        status = agent.model("dense")
        assert status.state == "ready"
        assert status.why
        assert agent.ready()


def test_the_agent_starts_with_a_model_that_is_broken_and_says_why(installed, make_package):
    slots = Slots(installed.root)
    slot = slots.active("dense").current
    assert slot
    file = slots.folder(slot) / "model.onnx"
    file.chmod(0o600)
    file.write_bytes(b"\0" * file.stat().st_size)
    install(installed, make_package(name="other", seed=3))
    with Agent(installed) as agent:
        assert not agent.ready()
        assert [(m.name, m.state) for m in agent.models()] == [
            ("dense", "failed"), ("other", "ready"),
        ]  # fmt: skip
        with pytest.raises(Unavailable, match="cannot be served"):
            agent.infer("dense", X)
        assert agent.infer("other", X).outputs


def test_a_model_that_was_removed_is_forgotten_and_one_that_is_disabled_is_told_once(
    installed, make_package
):
    install(installed, make_package(name="other", seed=3))
    slots = Slots(installed.root)
    with Agent(installed) as agent:
        slots.disable("dense", "it crashed")
        assert agent.reload() == ("dense",)
        assert agent.reload() == ()
        assert (agent.ready(), agent.model("dense").why) == (False, "it crashed")
        (installed.root / "models" / "dense" / "active.json").unlink()
        assert agent.reload() == ()
        assert agent.ready()
        with pytest.raises(UnknownModel):
            agent.infer("dense", X)


def test_one_models_load_does_not_take_anothers_place(config, make_package):
    """Limits are a model's own: a full queue here, an answer there."""
    tight = msgspec.structs.replace(config, models={"a": Serve(queue=1)})
    install(tight, make_package(name="a"))
    install(tight, make_package(name="b"))
    told, refused = Told(), 0
    with Agent(tight) as agent:
        for _ in range(200):
            try:
                agent.submit("a", X, told)
            except EdgeError:
                refused += 1
        assert agent.infer("b", X).outputs
        told.wait(200 - refused)
        assert agent.status().errors == {"Overloaded": refused}
    assert refused


def test_a_model_whose_batches_pay_runs_waiting_requests_together(config, make_package):
    """Forced here: whether they pay is the installation's to measure."""
    path = make_package(rows="batch", width=64)
    slots = Slots(config.root)
    slot = install(config, path).slot
    batching = msgspec.structs.replace(slot.tuning.batching, can=True, pays=True, max_batch_size=8)
    tuning = msgspec.structs.replace(slot.tuning, batching=batching)
    slots.switch(msgspec.structs.replace(slot, tuning=tuning))
    rng = np.random.default_rng(5)
    many = [{"x": rng.normal(size=(1 + i % 3, 64)).astype(np.float32)} for i in range(300)]
    got: dict[int, Answer | EdgeError] = {}
    told = Told()
    config = msgspec.structs.replace(config, serve=Serve(queue=1000))
    with Agent(config) as agent:
        for i, feeds in enumerate(many):
            agent.submit("dense", feeds, lambda a, i=i: (got.update({i: a}), told(a)))
        told.wait(len(many))
        assert agent.model("dense").batches > 0
    for i, feeds in enumerate(many):
        answer = got[i]
        assert isinstance(answer, Answer)
        np.testing.assert_allclose(
            answer.outputs["y"], direct(config, feeds)["y"], rtol=1e-5, atol=1e-6
        )


def test_closing_answers_what_is_inside_and_refuses_what_comes(installed):
    told = Told()
    agent = Agent(installed)
    for _ in range(30):
        agent.submit("dense", X, told)
    agent.close()
    assert all(isinstance(a, Answer) for a in told.wait(30))
    with pytest.raises(Unavailable, match="stopping"):
        agent.infer("dense", X)
    assert not agent.ready()


def test_closing_twice_is_closing_once(installed):
    with Agent(installed) as agent:
        agent.close()
    with pytest.raises(Unavailable, match="stopping"):
        agent.reload()


def test_an_array_may_be_used_again_as_soon_as_submit_returns(installed):
    told = Told()
    x = {"x": X["x"].copy()}
    with Agent(installed) as agent:
        for _ in range(40):
            x["x"][:] = X["x"]
            agent.submit("dense", x, told)
            x["x"][:] = 0
        answers = told.wait(40)
    expected = direct(installed, X)["y"]
    for a in answers:
        assert isinstance(a, Answer)
        np.testing.assert_array_equal(a.outputs["y"], expected)


def test_a_picture_that_waits_beyond_its_deadline_is_not_decoded(config, make_package):
    """Sixty large pictures at once: most are refused at once, or told in time that it is late."""
    recipe = ImageRecipe(height=2, width=2, color="L", layout="NHWC", scale=1 / 255)
    path = make_package(width=4, preprocess=recipe)
    install(config, path)
    picture = io.BytesIO()
    PIL.Image.fromarray(np.zeros((3500, 3500), np.uint8)).save(picture, "PNG")
    told, refused = Told(), 0
    with Agent(config) as agent:
        with pytest.raises(InputError):  # the recipe's tensor is no row of four: it was decoded
            agent.infer("dense", EncodedImage(picture.getvalue()))
        start = time.monotonic()
        for _ in range(60):
            try:
                agent.submit("dense", EncodedImage(picture.getvalue()), told, deadline_ms=100)
            except Overloaded:
                refused += 1
        answers = told.wait(60 - refused)
        took = time.monotonic() - start
        alone = time.monotonic()
        with pytest.raises(InputError):
            agent.infer("dense", EncodedImage(picture.getvalue()))
        alone = time.monotonic() - alone
    late = sum(isinstance(a, DeadlineExceeded) for a in answers)
    assert late + refused > 30
    assert took < 60 * alone


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded(config, make_package):
    config = msgspec.structs.replace(config, serve=Serve(max_image_mpixels=0.01))
    install(
        config, make_package(preprocess=ImageRecipe(height=2, width=2, color="L", layout="NHWC"))
    )
    picture = io.BytesIO()
    PIL.Image.fromarray(np.zeros((101, 100), np.uint8)).save(picture, "PNG")
    with Agent(config) as agent, pytest.raises(InputError, match="at most 10000 are decoded"):
        agent.infer("dense", EncodedImage(picture.getvalue()))


def test_an_agent_without_a_model_is_ready_and_empty(config):
    with Agent(config) as agent:
        assert agent.ready()
        assert agent.models() == ()
        with pytest.raises(UnknownModel):
            agent.infer("dense", X)


def test_a_repeated_request_is_answered_from_the_cache_until_the_model_changes(
    config, make_package
):
    config = msgspec.structs.replace(config, serve=Serve(cache=True))
    install(config, make_package())
    with Agent(config) as agent:
        first = agent.infer("dense", X, top=1)
        again = wait_for_hit(agent)
        assert again.cached == "exact"
        np.testing.assert_array_equal(again.outputs["y"], first.outputs["y"])
        assert agent.infer("dense", X, top=1).top == first.top
        assert agent.infer("dense", X, cache=False).cached == ""
        assert agent.model("dense").stages["infer"].n >= 2
    with Agent(config) as agent:  # it is still there after a restart
        assert agent.infer("dense", X).cached == "exact"
        install(config, make_package(version="2.0.0", seed=2))
        agent.reload()
        other = agent.infer("dense", X)
        assert (other.version, other.cached) == ("2.0.0", "")
        assert not np.array_equal(other.outputs["y"], first.outputs["y"])


def wait_for_hit(agent: Agent) -> Answer:
    """Answers are written behind the request's back."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        answer = agent.infer("dense", X)
        if answer.cached:
            return answer
        time.sleep(0.02)
    raise AssertionError("never remembered")


def test_a_calibrated_model_answers_near_duplicates_until_it_changes(config, make_package):
    """Requests come around forty centres; the calibration has seen others like them."""
    config = msgspec.structs.replace(config, serve=Serve(cache=True))
    slot = install(config, make_package(width=16)).slot
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(40, 16))

    def like(i: int) -> dict[str, np.ndarray]:
        x = centres[i % 40] + 0.002 * rng.normal(size=16)
        return {"x": x[None].astype(np.float32)}

    with Agent(config) as agent:
        manifest = agent.model("dense").manifest
        assert manifest
        found = calibrate_model(
            lambda feeds: agent.infer("dense", feeds, cache=False).outputs,
            ((like(i), None) for i in range(1200)),
            model=slot.model_id, inputs=manifest.inputs, rule=Rule(), epsilon=0.05,
        )  # fmt: skip
        assert found.threshold > 0, found.why
        assert agent.infer("dense", like(0)).cached == ""
        path = calibration_file(config.root, "dense")
        path.parent.mkdir(mode=0o700)
        write_calibration(path, found)
        assert agent.reload() == ()  # nothing was installed, and the calibration is taken up
        for i in range(40):
            agent.infer("dense", like(i))
        answers = [(x := like(i), agent.infer("dense", x)) for i in range(200)]
        reused = [(x, a) for x, a in answers if a.cached == "near"]
        assert len(reused) > 100
        wrong = sum(
            agent.infer("dense", x, cache=False).outputs["y"].argmax() != a.outputs["y"].argmax()
            for x, a in reused
        )
        assert wrong <= 0.05 * len(reused)
        assert agent.status().caches["near dense"]["hits"] >= len(reused)
        install(config, make_package(version="2.0.0", seed=2, width=16))
        agent.reload()
        assert agent.infer("dense", like(0)).cached == ""
        assert "another version" in str(agent.status().caches["near dense"]["health"])


def test_nothing_is_written_where_other_users_can_read_it(installed):
    with Agent(installed) as agent:
        agent.infer("dense", X)
        root = Path(installed.data_dir)
        for path in (root, *root.rglob("*")):
            assert path.stat().st_mode & 0o077 == 0, path
