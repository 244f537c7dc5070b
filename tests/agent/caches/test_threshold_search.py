"""The threshold that calibration gives is proven: too large a one is rare, whatever the data."""

from __future__ import annotations

import math
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.caches.bounds import binomial_tail, count_required_trials
from agent.caches.calibrate_model import calibrate_model, choose_descriptor, read_clips
from agent.caches.calibration import ThresholdEvidence, read_calibration, write_calibration
from agent.caches.descriptors import Described, Index, InputDescriptor, describe, unit
from agent.caches.rules import AnswerRule, lead
from agent.caches.threshold_search import (
    GRID,
    Calibration,
    CalibrationSample,
    Replay,
    calibrate_threshold,
    choose_threshold,
    replay_cache,
)
from edge_core.errors import InputError
from edge_core.runtimes import onnxruntime
from edge_core.tensors import Array, Feeds, TensorSpec
from examples import data
from tests import packages

MODEL = "sha256:" + "a" * 64
EMBEDDING = InputDescriptor(kind="vector")
EXACT = AnswerRule(kind="exact")


def answer(name: object) -> Feeds:
    return {"answer": np.array(str(name))}


def make_sample(
    numbers: Array, name: object, group: object = None, tag: str = ""
) -> CalibrationSample:
    unit_vector = unit(numbers)
    assert unit_vector is not None
    return CalibrationSample(Described(unit_vector, tag), answer(name), group)  # type: ignore[arg-type]  # hashable


# The replay is the cache


def one_cache(
    trials: list[CalibrationSample], rule: AnswerRule, threshold: float
) -> list[tuple[bool, bool]]:
    """Hit and wrong of every trial, by the cache's own index, one look-up after the other."""
    index, answers, samples_run = Index(len(trials)), {}, []
    for i, level in enumerate(trials):
        nearest = index.nearest(level.item)
        if nearest is not None and nearest[1] <= threshold * nearest[2]:
            samples_run.append((True, rule.differ(answers[nearest[0]], level.answer)))
            continue
        key = i.to_bytes(2, "big")
        index.add(key, level.item, rule.reach(level.answer))
        answers[key] = level.answer
        samples_run.append((False, False))
    return samples_run


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 40), tags=st.integers(1, 3))
def test_the_replay_counts_what_a_cache_at_each_threshold_does(seed, n, tags):
    rng = np.random.default_rng(seed)
    grid = (0.05, 0.2, 0.4, 0.8, 1.6)
    trials = []
    for i in range(n):
        scores = rng.random(3)
        vector = unit(rng.normal([2, 0, 0], 0.5, 3))
        assert vector is not None
        tag = "abc"[int(rng.integers(tags))]
        trials.append(
            CalibrationSample(Described(vector, tag), {"y": scores / scores.sum()}, int(i // 4))
        )
    counts = replay_cache(trials, AnswerRule(kind="top1"), grid)
    assert counts.sizes.tolist() == [len(range(i, min(i + 4, n))) for i in range(0, n, 4)]
    for row, threshold in enumerate(grid):
        samples_run = one_cache(trials, AnswerRule(kind="top1"), threshold)
        for group in range(len(counts.sizes)):
            part = samples_run[4 * group : 4 * group + 4]
            assert counts.hits[row, group] == sum(hit for hit, _ in part)
            assert counts.wrong[row, group] == sum(bad for _, bad in part)


# The proof


def draw_counts(rng: np.random.Generator, groups: int, size: int, rate: Array) -> Replay:
    """Groups whose hits have distances spread over the grid, wrong at ``rate`` by threshold.

    The trials of a group are wrong together: with more than one the group has one coin.
    """
    at = rng.integers(0, len(GRID), (groups, size))
    coin = rng.random((groups, 1)) if size > 1 else rng.random((groups, size))
    wrong = coin < rate[at]
    steps = np.arange(len(GRID))[:, None, None]
    return Replay(
        hits=(at <= steps).sum(axis=2),
        wrong=(wrong & (at <= steps)).sum(axis=2),
        sizes=np.full(groups, size),
    )


def find_proven(counts: Replay, epsilon: float) -> ThresholdEvidence | None:
    return choose_threshold(counts, epsilon, 0.95)[0]


@pytest.mark.parametrize("size", [1, 6])
@pytest.mark.parametrize("excess", [1.0, 1.3])
def test_a_rate_above_epsilon_is_accepted_in_at_most_five_percent_of_runs(size, excess):
    rng, epsilon, runs = np.random.default_rng(11), 0.1, 400
    flat = np.full(len(GRID), excess * epsilon)
    fooled = sum(
        find_proven(draw_counts(rng, 120, size, flat), epsilon) is not None for _ in range(runs)
    )
    assert fooled <= runs * 0.05 + 2 * math.sqrt(runs * 0.05 * 0.95)


def test_the_chosen_threshold_is_too_large_in_at_most_five_percent_of_runs():
    """The rate grows with the distance and crosses epsilon at a threshold in the middle."""
    rng, epsilon, runs = np.random.default_rng(12), 0.1, 300
    rate = np.linspace(0, 0.5, len(GRID)) ** 2
    true = np.cumsum(rate) / np.arange(1, len(GRID) + 1)  # of all hits up to a threshold
    limit = max(level for level, proven in zip(GRID, true, strict=True) if proven <= epsilon)
    results = [find_proven(draw_counts(rng, 400, 1, rate), epsilon) for _ in range(runs)]
    levels = [result.threshold for result in results if result is not None]
    assert len(levels) > 0.9 * runs  # it does find one
    assert np.median(levels) > limit / 2  # and no needlessly small one
    too_large = sum(level > limit for level in levels)
    assert too_large <= runs * 0.05 + 2 * math.sqrt(runs * 0.05 * 0.95)


def test_taking_the_best_of_all_thresholds_would_be_fooled_more_often():
    """What the order of the tests is for."""
    rng, epsilon, runs = np.random.default_rng(13), 0.1, 300
    naive = ours = 0
    for _ in range(runs):
        counts = draw_counts(rng, 300, 1, np.full(len(GRID), epsilon))
        sums = zip(counts.wrong.sum(axis=1), counts.hits.sum(axis=1), strict=True)
        naive += any(
            binomial_tail(int(wrong_count), int(total), epsilon) <= 0.05
            for wrong_count, total in sums
        )
        ours += find_proven(counts, epsilon) is not None
    assert naive > 0.08 * runs
    assert ours <= runs * 0.05 + 2 * math.sqrt(runs * 0.05 * 0.95)


def clean(groups: int) -> list[CalibrationSample]:
    """Pairs of the same direction and the same answer, each pair a group."""
    angles = np.linspace(0, 3, groups)
    return [
        make_sample(np.array([math.cos(first), math.sin(first)]), i, i)
        for i, first in enumerate(angles)
        for _ in "ab"
    ]


@pytest.mark.parametrize("grouped", [True, False])
def test_without_enough_data_it_stays_off_and_says_how_much_would_do(grouped):
    def calibrate(count: int) -> Calibration:
        trials = clean(count) if grouped else [level for level in clean(count) if level.group != 0]
        alone = [msgspec.structs.replace(level, group=None) for level in trials]
        return calibrate_threshold(
            trials if grouped else alone, model=MODEL, descriptor=EMBEDDING, rule=EXACT, epsilon=0.1
        )

    few = calibrate(15)
    assert few.threshold == 0
    assert few.evidence is None
    asked = int(re.findall(r"takes about (\d+) groups", few.why)[0])
    enough = calibrate(asked if grouped else math.ceil(asked / 2) + 1)
    assert enough.threshold > 0
    assert enough.why == ""
    assert enough.evidence is not None
    assert enough.evidence.upper <= 0.1
    if grouped:  # the groups that say where to begin prove nothing
        assert enough.evidence.groups == enough.groups - math.ceil(enough.groups / 5)
    assert count_required_trials(0.1) == 29
    assert asked > 29 * 5 / 4  # a fifth is set aside, and not every request is a reuse
    assert calibrate(int(asked * 0.35)).threshold == 0


def test_many_trials_of_few_groups_prove_nothing():
    """Frames of one clip say the same thing many times."""
    trials = [make_sample(np.array([1.0, i % 3]), i % 3, group=i % 3) for i in range(900)]
    calibration = calibrate_threshold(
        trials, model=MODEL, descriptor=EMBEDDING, rule=EXACT, epsilon=0.1
    )
    assert calibration.threshold == 0
    alone = [msgspec.structs.replace(level, group=None) for level in trials]
    assert calibrate_threshold(
        alone, model=MODEL, descriptor=EMBEDDING, rule=EXACT, epsilon=0.1
    ).threshold


def test_a_refusal_tells_wrong_answers_from_missing_neighbours():
    rng = np.random.default_rng(0)
    coin = [make_sample(np.array([1.0, 0.0]), rng.integers(2)) for _ in range(300)]
    calibration = calibrate_threshold(
        coin, model=MODEL, descriptor=EMBEDDING, rule=EXACT, epsilon=0.05
    )
    assert "of the reuses" in calibration.why
    assert "the limit is 5.00%" in calibration.why
    apart = [make_sample(np.eye(50)[i], i) for i in range(50)]
    calibration = calibrate_threshold(
        apart, model=MODEL, descriptor=EMBEDDING, rule=EXACT, epsilon=0.05
    )
    assert "no sample was near an earlier one" in calibration.why
    assert f"takes {count_required_trials(0.05)} reuses" in calibration.why


@pytest.mark.parametrize(
    ("epsilon", "confidence", "trials"),
    [(0.0, 0.95, 1), (0.6, 0.95, 1), (0.1, 1.0, 1), (0.1, 0.95, 0)],
)
def test_what_cannot_be_proven_is_refused(epsilon, confidence, trials):
    with pytest.raises(InputError):
        calibrate_threshold(
            clean(1)[:trials], model=MODEL, descriptor=EMBEDDING, rule=EXACT,
            epsilon=epsilon, confidence=confidence,
        )  # fmt: skip


# Rules


def test_answers_differ_as_the_rule_says():
    first, second = {"y": np.array([[0.1, 0.9]])}, {"y": np.array([[0.3, 0.7]])}
    third = {"y": np.array([[0.6, 0.4]])}
    assert not AnswerRule(kind="top1").differ(first, second)
    assert AnswerRule(kind="top1").differ(first, third)
    assert not AnswerRule(kind="tolerance", tolerance=0.21).differ(first, second)
    assert AnswerRule(kind="tolerance", tolerance=0.19).differ(first, second)
    assert AnswerRule(kind="tolerance", tolerance=9.0).differ(
        first, {"y": np.array([[np.nan, 0.0]])}
    )
    assert AnswerRule(kind="exact").differ(first, second)
    assert not EXACT.differ(answer("yes"), answer("yes"))
    assert EXACT.differ(answer("yes"), answer("no"))
    assert EXACT.differ(first, {**first, "z": np.zeros(1)})
    assert not AnswerRule(kind="exact", output="y").differ(first, {**first, "z": np.zeros(1)})
    assert AnswerRule(kind="top1", output="missing").differ(first, first)
    assert AnswerRule(kind="top1").differ({}, {})


def test_an_answer_that_won_by_a_hair_reaches_nowhere():
    assert lead(np.array([0.9, 0.1])) == pytest.approx(0.8)
    assert lead(np.array([0.5, 0.5])) == 0
    assert lead(np.log(np.array([[9.0, 1.0]]))) == pytest.approx(0.8)  # the same as logits
    assert lead(np.array([1.0])) == 0
    assert lead(np.array([])) == 0
    assert AnswerRule(kind="top1").reach({"y": np.array([0.9, 0.1])}) == pytest.approx(0.8)
    assert EXACT.reach(answer("x")) == 1


# Models and files


def test_the_input_that_is_compared_is_a_picture_or_a_short_tensor():
    picture = TensorSpec("x", "uint8", (1, 224, 224, 3), "NHWC")
    size = TensorSpec("size", "int64", (2,))
    assert choose_descriptor((picture, size)) == InputDescriptor(
        kind="image", input="x", layout="NHWC"
    )
    sound = TensorSpec("mel", "float32", (1, 147, 32))
    assert choose_descriptor((sound,)) == InputDescriptor(kind="vector", input="mel")
    tokens = TensorSpec("ids", "int64", (1, 64))
    unknown = TensorSpec("x", "float32", (1, 3, 224, 224))
    for inputs in ((tokens,), (unknown,), (sound, sound), (TensorSpec("x", "float32", ("n",)),)):
        with pytest.raises(InputError, match="no input is a picture"):
            choose_descriptor(inputs)


@pytest.fixture(scope="module")
def samples_run(digits: Path) -> list[tuple[Array, Feeds]]:
    """2400 real digits in random order, with what the real model says."""
    session = onnxruntime.open(digits, threads=1, options={})
    pixels = [image for image, _ in data.digits_eval()]
    order = np.random.default_rng(5).permutation(len(pixels))[:2400]
    return [(pixels[index], session.run({"input": pixels[index]})) for index in order]


def test_on_real_digits_the_promise_holds_for_digits_it_has_not_seen(samples_run):
    answers = {image.tobytes(): outputs for image, outputs in samples_run}
    spec = (TensorSpec("input", "float32", (1, 1, 28, 28), "NCHW"),)
    ran: list[Feeds] = []

    def run(feeds: Feeds) -> Feeds:
        ran.append(feeds)
        return answers[feeds["input"].tobytes()]

    known = [({"input": image}, None) for image, _ in samples_run[:1200]]
    thresholds = []
    for epsilon in (0.03, 0.05, 0.1, 0.2):
        calibration = calibrate_model(
            run, [*known, known[0]], model=MODEL, inputs=spec, rule=AnswerRule(), epsilon=epsilon
        )
        assert calibration.samples == 1200  # the repeated one is the exact cache's
        assert calibration.evidence is not None
        assert calibration.evidence.upper <= epsilon
        thresholds.append(calibration.threshold)
        later = calibration_trials(samples_run[1200:], calibration.descriptor)
        counts = replay_cache(later, AnswerRule(), (calibration.threshold,))
        assert counts.hits.sum() > 100
        assert counts.wrong.sum() / counts.hits.sum() < epsilon
    assert thresholds == sorted(thresholds)
    assert len(ran) == 4 * 1200


def calibration_trials(
    pairs: list[tuple[Array, Feeds]], descriptor: InputDescriptor
) -> list[CalibrationSample]:
    samples = []
    for image, outputs in pairs:
        item = describe(descriptor, {"input": image})
        assert item is not None
        samples.append(CalibrationSample(item, outputs))
    return samples


def test_a_folder_of_clips_is_read_in_order_with_its_groups(tmp_path):
    manifest, _ = packages.make_contents(tmp_path)
    model = manifest.model(manifest.variants[0])
    folder = tmp_path / "clips"
    for place, value in (("a/2.npy", 2), ("a/1.npy", 1), ("b/1.npy", 3), ("c.npy", 4)):
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.full((1, 4), value, np.float32))
    clips = [(float(feeds["x"][0, 0]), group) for feeds, group in read_clips(folder, model)]
    assert clips == [(1, "a"), (2, "a"), (3, "b"), (4, None)]
    (folder / "note.txt").write_text("no input")
    with pytest.raises(InputError, match=r"note\.txt"):
        list(read_clips(folder, model))
    with pytest.raises(InputError, match="is no folder"):
        list(read_clips(folder / "c.npy", model))


def test_the_file_comes_back_as_it_was_and_a_bad_one_is_refused(tmp_path):
    path = tmp_path / "near" / "model.json"
    calibration = calibrate_threshold(
        clean(80), model=MODEL, descriptor=EMBEDDING, rule=EXACT, epsilon=0.1
    )
    write_calibration(path, calibration)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_calibration(path) == calibration
    text = path.read_text()
    for bad in ("", "{}", text.replace('"format": 1', '"format": 2'), text[:-40], "\ud800"):
        path.write_bytes(bad.encode("utf-8", "surrogatepass"))
        with pytest.raises(InputError):
            read_calibration(path)
    with pytest.raises(InputError):
        read_calibration(tmp_path / "nothing.json")
