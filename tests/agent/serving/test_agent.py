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
from agent.caches.rules import AnswerRule
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

ROW = {"x": np.array([[0.5, -1.0, 2.0, 0.25]], np.float32)}


def direct(config: Config, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the installed model file says by itself."""
    slots = Slots(config.root)
    slot = slots.active("dense").current
    assert slot
    path = slots.folder(slot) / slots.model(slot).entry
    return onnxruntime.open(path, threads=1, options={}).run(feeds)


class CollectedAnswers:
    """Collects what submit() answers."""

    def __init__(self) -> None:
        self.got: list[Answer | EdgeError] = []
        self._arrived = threading.Semaphore(0)

    def __call__(self, answer: Answer | EdgeError) -> None:
        self.got.append(answer)
        self._arrived.release()

    def wait(self, count: int) -> list[Answer | EdgeError]:
        for _ in range(count):
            assert self._arrived.acquire(timeout=30)
        return self.got


def test_an_installed_model_answers_as_its_file_does(installed_config):
    with Agent(installed_config) as agent:
        answer = agent.infer("dense", ROW, top=2)
        (status,) = agent.models()
    np.testing.assert_array_equal(answer.outputs["y"], direct(installed_config, ROW)["y"])
    assert [entry.label for entry in answer.top] == [
        ("left", "ahead", "right")[index] for index in np.argsort(-answer.outputs["y"][0])[:2]
    ]
    assert (answer.model, answer.version, answer.cached) == ("dense", "1.0.0", "")
    assert answer.digest == status.digest
    assert status.state == "ready"
    assert status.requests == 0  # it has left its model
    assert status.stages["infer"].n == 1
    assert 0 < status.stages["infer"].p50_ms <= status.stages["total"].p50_ms


def test_submit_answers_on_another_thread(installed_config):
    collected = CollectedAnswers()
    with Agent(installed_config) as agent:
        for _ in range(20):
            agent.submit("dense", ROW, collected)
        answers = collected.wait(20)
    for answer in answers:
        assert isinstance(answer, Answer)
        np.testing.assert_array_equal(answer.outputs["y"], direct(installed_config, ROW)["y"])


@pytest.mark.parametrize(
    ("name", "feeds", "error", "text"),
    [
        ("dence", ROW, UnknownModel, "did you mean 'dense'"),
        ("dense", {"z": ROW["x"]}, InputError, "no input 'z'"),
        ("dense", {"x": np.zeros((1, 5), np.float32)}, InputError, "shape 1x5"),
        ("dense", {"x": np.full((1, 4), np.nan, np.float32)}, InputError, "contains NaN"),
        ("dense", EncodedImage(b"no picture"), InputError, "no preprocessing recipe"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_its_reason(
    installed_config, name, feeds, error, text
):
    with Agent(installed_config) as agent:
        with pytest.raises(error, match=text):
            agent.infer(name, feeds)
        collected = CollectedAnswers()
        try:  # submit() may refuse at once or answer with the error
            agent.submit(name, feeds, collected)
        except EdgeError as caught:
            refusal: object = caught
        else:
            (refusal,) = collected.wait(1)
        assert isinstance(refusal, error)
        assert agent.infer("dense", ROW).outputs  # and it goes on serving


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_a_large_input_is_looked_through_while_the_model_runs(config, make_package, bad):
    install(config, make_package(width=50_000))
    long_row = {"x": np.ones((1, 50_000), np.float32)}
    with Agent(config) as agent:
        assert agent.infer("dense", long_row).outputs
        long_row["x"][0, 49_999] = bad
        with pytest.raises(InputError, match=r"dense: input 'x' contains (NaN|infinity)"):
            agent.infer("dense", long_row)
        collected = CollectedAnswers()
        agent.submit("dense", long_row, collected)
        assert isinstance(collected.wait(1)[0], InputError)
        assert agent.status().errors == {"InputError": 2}


def test_a_hot_swap_takes_effect_for_new_requests_only(installed_config, make_package):
    with Agent(installed_config) as agent:
        old = agent.infer("dense", ROW)
        assert agent.reload() == ()
        install(installed_config, make_package(version="2.0.0", seed=2))
        assert agent.infer("dense", ROW).version == "1.0.0"
        assert agent.reload() == ("dense",)
        new = agent.infer("dense", ROW)
        assert (new.version, new.digest != old.digest) == ("2.0.0", True)
        assert agent.model("dense").previous == old.digest
        Slots(installed_config.root).rollback("dense", refuse=False)
        assert agent.reload() == ("dense",)
        np.testing.assert_array_equal(agent.infer("dense", ROW).outputs["y"], old.outputs["y"])


def test_requests_inside_finish_on_the_model_they_started_with(installed_config, make_package):
    """Twelve requests queue, then the model is swapped: each answer is its digest's own."""
    says = {}
    collected = CollectedAnswers()
    with Agent(installed_config) as agent:
        says[agent.infer("dense", ROW).digest] = agent.infer("dense", ROW).outputs["y"]
        install(installed_config, make_package(version="2.0.0", seed=2))
        for _ in range(12):
            agent.submit("dense", ROW, collected)
        agent.reload()
        after = CollectedAnswers()
        for _ in range(12):
            agent.submit("dense", ROW, after)
        answers = [*collected.wait(12), *after.wait(12)]
        last = agent.infer("dense", ROW)
        says[last.digest] = last.outputs["y"]
    assert len(says) == 2
    for answer in answers:
        assert isinstance(answer, Answer)
        np.testing.assert_array_equal(answer.outputs["y"], says[answer.digest])
    assert [answer.digest for answer in answers[12:]] == [last.digest] * 12


def test_a_version_that_cannot_be_loaded_leaves_the_old_one_serving(installed_config, make_package):
    with Agent(installed_config) as agent:
        before = agent.infer("dense", ROW)
        install(installed_config, make_package(version="2.0.0", seed=2))
        slots = Slots(installed_config.root)
        slot = slots.active("dense").current
        assert slot
        file = slots.folder(slot) / "model.onnx"
        file.chmod(0o600)
        file.write_bytes(b"\0" * file.stat().st_size)
        assert agent.reload() == ()
        assert agent.infer("dense", ROW).digest == before.digest
        status = agent.model("dense")
        assert status.state == "ready"
        assert status.why
        assert agent.ready()


def test_the_agent_starts_with_a_model_that_is_broken_and_says_why(installed_config, make_package):
    slots = Slots(installed_config.root)
    slot = slots.active("dense").current
    assert slot
    file = slots.folder(slot) / "model.onnx"
    file.chmod(0o600)
    file.write_bytes(b"\0" * file.stat().st_size)
    install(installed_config, make_package(name="other", seed=3))
    with Agent(installed_config) as agent:
        assert not agent.ready()
        assert [(model.name, model.state) for model in agent.models()] == [
            ("dense", "failed"), ("other", "ready"),
        ]  # fmt: skip
        with pytest.raises(Unavailable, match="cannot be served"):
            agent.infer("dense", ROW)
        assert agent.infer("other", ROW).outputs


def test_a_model_that_was_removed_is_forgotten_and_one_that_is_disabled_is_told_once(
    installed_config, make_package
):
    install(installed_config, make_package(name="other", seed=3))
    slots = Slots(installed_config.root)
    with Agent(installed_config) as agent:
        slots.disable("dense", "it crashed")
        assert agent.reload() == ("dense",)
        assert agent.reload() == ()
        assert (agent.ready(), agent.model("dense").why) == (False, "it crashed")
        (installed_config.root / "models" / "dense" / "active.json").unlink()
        assert agent.reload() == ()
        assert agent.ready()
        with pytest.raises(UnknownModel):
            agent.infer("dense", ROW)


def test_one_models_load_does_not_take_anothers_place(config, make_package):
    """Limits are a model's own: a full queue here, an answer there."""
    tight = msgspec.structs.replace(config, models={"a": Serve(queue=1)})
    install(tight, make_package(name="a"))
    install(tight, make_package(name="b"))
    collected, refused = CollectedAnswers(), 0
    with Agent(tight) as agent:
        for _ in range(200):
            try:
                agent.submit("a", ROW, collected)
            except EdgeError:
                refused += 1
        assert agent.infer("b", ROW).outputs
        collected.wait(200 - refused)
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
    many = [{"x": rng.normal(size=(1 + index % 3, 64)).astype(np.float32)} for index in range(300)]
    answers_by_index: dict[int, Answer | EdgeError] = {}
    collected = CollectedAnswers()
    config = msgspec.structs.replace(config, serve=Serve(queue=1000))
    with Agent(config) as agent:
        for index, feeds in enumerate(many):
            agent.submit(
                "dense",
                feeds,
                lambda reply, index=index: (
                    answers_by_index.update({index: reply}),
                    collected(reply),
                ),
            )
        collected.wait(len(many))
        assert agent.model("dense").batches > 0
    for index, feeds in enumerate(many):
        answer = answers_by_index[index]
        assert isinstance(answer, Answer)
        np.testing.assert_allclose(
            answer.outputs["y"], direct(config, feeds)["y"], rtol=1e-5, atol=1e-6
        )


def test_closing_answers_what_is_inside_and_refuses_what_comes(installed_config):
    collected = CollectedAnswers()
    agent = Agent(installed_config)
    for _ in range(30):
        agent.submit("dense", ROW, collected)
    agent.close()
    assert all(isinstance(answer, Answer) for answer in collected.wait(30))
    with pytest.raises(Unavailable, match="stopping"):
        agent.infer("dense", ROW)
    assert not agent.ready()


def test_closing_twice_is_closing_once(installed_config):
    with Agent(installed_config) as agent:
        agent.close()
    with pytest.raises(Unavailable, match="stopping"):
        agent.reload()


def test_an_array_may_be_used_again_as_soon_as_submit_returns(installed_config):
    collected = CollectedAnswers()
    feeds = {"x": ROW["x"].copy()}
    with Agent(installed_config) as agent:
        for _ in range(40):
            feeds["x"][:] = ROW["x"]
            agent.submit("dense", feeds, collected)
            feeds["x"][:] = 0
        answers = collected.wait(40)
    expected = direct(installed_config, ROW)["y"]
    for result in answers:
        assert isinstance(result, Answer)
        np.testing.assert_array_equal(result.outputs["y"], expected)


def test_a_picture_that_waits_beyond_its_deadline_is_not_decoded(config, make_package):
    """Sixty large pictures at once: most are refused at once, or told in time that it is late."""
    recipe = ImageRecipe(height=2, width=2, color="L", layout="NHWC", scale=1 / 255)
    path = make_package(width=4, preprocess=recipe)
    install(config, path)
    picture = io.BytesIO()
    PIL.Image.fromarray(np.zeros((3500, 3500), np.uint8)).save(picture, "PNG")
    collected, refused = CollectedAnswers(), 0
    with Agent(config) as agent:
        with pytest.raises(InputError):  # the recipe's tensor is no row of four: it was decoded
            agent.infer("dense", EncodedImage(picture.getvalue()))
        start = time.monotonic()
        for _ in range(60):
            try:
                agent.submit("dense", EncodedImage(picture.getvalue()), collected, deadline_ms=100)
            except Overloaded:
                refused += 1
        answers = collected.wait(60 - refused)
        took = time.monotonic() - start
        alone = time.monotonic()
        with pytest.raises(InputError):
            agent.infer("dense", EncodedImage(picture.getvalue()))
        alone = time.monotonic() - alone
    late = sum(isinstance(answer, DeadlineExceeded) for answer in answers)
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
            agent.infer("dense", ROW)


def test_a_repeated_request_is_answered_from_the_cache_until_the_model_changes(
    config, make_package
):
    config = msgspec.structs.replace(config, serve=Serve(cache=True))
    install(config, make_package())
    with Agent(config) as agent:
        first = agent.infer("dense", ROW, top=1)
        again = wait_for_hit(agent)
        assert again.cached == "exact"
        np.testing.assert_array_equal(again.outputs["y"], first.outputs["y"])
        assert agent.infer("dense", ROW, top=1).top == first.top
        assert agent.infer("dense", ROW, cache=False).cached == ""
        assert agent.model("dense").stages["infer"].n >= 2
    with Agent(config) as agent:  # it is still there after a restart
        assert agent.infer("dense", ROW).cached == "exact"
        install(config, make_package(version="2.0.0", seed=2))
        agent.reload()
        other = agent.infer("dense", ROW)
        assert (other.version, other.cached) == ("2.0.0", "")
        assert not np.array_equal(other.outputs["y"], first.outputs["y"])


def wait_for_hit(agent: Agent) -> Answer:
    """Answers are written behind the request's back."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        answer = agent.infer("dense", ROW)
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

    def like(index: int) -> dict[str, np.ndarray]:
        row = centres[index % 40] + 0.002 * rng.normal(size=16)
        return {"x": row[None].astype(np.float32)}

    with Agent(config) as agent:
        manifest = agent.model("dense").packaged_model
        assert manifest
        calibration = calibrate_model(
            lambda feeds: agent.infer("dense", feeds, cache=False).outputs,
            ((like(index), None) for index in range(1200)),
            model=slot.model_id, inputs=manifest.inputs, rule=AnswerRule(), epsilon=0.05,
        )  # fmt: skip
        assert calibration.threshold > 0, calibration.why
        assert agent.infer("dense", like(0)).cached == ""
        path = calibration_file(config.root, "dense")
        path.parent.mkdir(mode=0o700)
        write_calibration(path, calibration)
        assert agent.reload() == ()  # nothing was installed, and the calibration is taken up
        for index in range(40):
            agent.infer("dense", like(index))
        answers = [(row := like(index), agent.infer("dense", row)) for index in range(200)]
        reused = [(row, answer) for row, answer in answers if answer.cached == "near"]
        assert len(reused) > 100
        wrong = sum(
            agent.infer("dense", row, cache=False).outputs["y"].argmax()
            != answer.outputs["y"].argmax()
            for row, answer in reused
        )
        assert wrong <= 0.05 * len(reused)
        assert agent.status().caches["near dense"]["hits"] >= len(reused)
        install(config, make_package(version="2.0.0", seed=2, width=16))
        agent.reload()
        assert agent.infer("dense", like(0)).cached == ""
        assert "another version" in str(agent.status().caches["near dense"]["health"])


def test_nothing_is_written_where_other_users_can_read_it(installed_config):
    with Agent(installed_config) as agent:
        agent.infer("dense", ROW)
        root = Path(installed_config.data_dir)
        for path in (root, *root.rglob("*")):
            assert path.stat().st_mode & 0o077 == 0, path
