"""Fallbacks: made only where a candidate failed on accuracy, with what they are compared with."""

from pathlib import Path

import pytest

import device_profiles
from converters import registry as converters
from edge_sdk.build import fallbacks, judge, planner
from edge_sdk.build.request import BuildOptions, make_request
from edge_sdk.build.stages import Decision, Measurement, Plan, Quantity
from edge_sdk.build.trials import CandidateTrial

MIXED, STATIC, PLAIN = (f"tflite-int8-static{form}" for form in ("-mixed", "", "-plain"))
FP32, FP16, GIVEN = "tflite-fp32", "tflite-fp16", "tflite-given"
DEVICE = device_profiles.load("raspberry-pi-4b", ("budgets.accuracy_drop_points=1",))


def make_candidate(name):
    return planner.resolve(converters.get(name).SPEC, DEVICE)


def make_plans(*names, out=()):
    verdicts = [*((name, "in") for name in names), *((name, "out") for name in out)]
    decisions = tuple(
        Decision(candidate=name, title=name, verdict=verdict, reason="as it is", rule="r")
        for name, verdict in verdicts
    )
    chosen = tuple(make_candidate(name) for name in names)
    return {
        DEVICE.name: Plan(
            model="m", profile=DEVICE.name, runtime="", decisions=decisions, chosen=chosen
        )
    }


def ask(**options):
    return make_request("m.onnx", (DEVICE,), BuildOptions(**options))


def make_measurement(name, drop=0.0, mb=1.0, error=""):
    values = {
        "accuracy_drop_points": Quantity("measured", drop, "points", "here"),
        "package_mb": Quantity("measured", mb, "MB", "here"),
    }
    return Measurement(candidate=name, values={} if error else values, error=error)


def judge_all(*measurements):
    return {DEVICE.name: judge.judge(DEVICE, measurements, metric="top1")}


def names(plans):
    return tuple(candidate.name for candidate in plans[DEVICE.name].chosen)


def make_trials(*passed, failed=()):
    return tuple(
        CandidateTrial(
            candidate=make_candidate(name),
            measurement=make_measurement(name, error="no" if name in failed else ""),
            artifact=None, env=None, original=Path("answers"), outputs=None,
        )
        for name in (*passed, *failed)
    )  # fmt: skip


def test_what_a_fallback_is_for_exists_and_is_no_fallback_itself():
    specs = [converter.SPEC for converter in converters.by_name().values()]
    fallback_for = {spec.name: spec.fallback_for for spec in specs if spec.fallback_for}
    assert MIXED in fallback_for
    for primaries in fallback_for.values():
        assert all(not converters.get(name).SPEC.fallback_for for name in primaries)


def test_a_fallback_waits():
    assert names(fallbacks.drop_fallbacks(make_plans(FP32, STATIC, MIXED), ask())) == (FP32, STATIC)


@pytest.mark.parametrize("asked", [{"only": (MIXED, FP32)}, {"also": (MIXED,)}])
def test_a_fallback_that_was_asked_for_does_not_wait(asked):
    plans, options = make_plans(FP32, STATIC, MIXED), ask(**asked)
    assert MIXED in names(fallbacks.drop_fallbacks(plans, options))
    failed = judge_all(make_measurement(FP32), make_measurement(STATIC, drop=5))
    assert names(fallbacks.select_fallbacks(plans, failed, options)) == ()


@pytest.mark.parametrize("primary", [STATIC, PLAIN])
def test_a_failed_accuracy_gate_brings_the_fallback_and_what_is_timed_beside_it(primary):
    plans = make_plans(FP16, FP32, primary, MIXED)
    failed = judge_all(
        make_measurement(FP16), make_measurement(FP32), make_measurement(primary, drop=5)
    )
    assert set(names(fallbacks.select_fallbacks(plans, failed, ask()))) == {FP32, primary, MIXED}


def test_of_a_tflite_file_the_given_file_is_the_float_form():
    plans = make_plans(FP16, GIVEN, STATIC, MIXED)
    failed = judge_all(make_measurement(GIVEN), make_measurement(STATIC, drop=5))
    assert set(names(fallbacks.select_fallbacks(plans, failed, ask()))) == {GIVEN, STATIC, MIXED}


@pytest.mark.parametrize(
    "static",
    [
        make_measurement(STATIC),
        make_measurement(STATIC, error="crashed"),
        make_measurement(STATIC, mb=1e6),  # no budget of bytes is an accuracy gate
    ],
)
def test_nothing_else_brings_a_fallback(static):
    plans = make_plans(FP32, STATIC, MIXED)
    assert (
        names(fallbacks.select_fallbacks(plans, judge_all(make_measurement(FP32), static), ask()))
        == ()
    )


def test_another_candidates_failure_brings_no_fallback():
    plans = make_plans(FP32, FP16, STATIC, MIXED)
    failed = judge_all(
        make_measurement(FP32), make_measurement(FP16, drop=5), make_measurement(STATIC)
    )
    assert names(fallbacks.select_fallbacks(plans, failed, ask())) == ()


def test_a_fallback_that_the_plan_left_out_stays_out():
    plans = make_plans(FP32, STATIC, out=(MIXED,))
    failed = judge_all(make_measurement(FP32), make_measurement(STATIC, drop=5))
    assert names(fallbacks.select_fallbacks(plans, failed, ask())) == ()


def test_profiles_get_fallbacks_one_by_one():
    other = device_profiles.load("x86-64", ("budgets.accuracy_drop_points=10",))
    plans = {
        name: one
        for one in make_plans(FP32, STATIC, MIXED).values()
        for name in (DEVICE.name, "x86-64")
    }
    both = [make_measurement(FP32), make_measurement(STATIC, drop=5)]
    selected = fallbacks.select_fallbacks(
        plans, {one.name: judge.judge(one, both, metric="top1") for one in (DEVICE, other)}, ask()
    )
    assert {
        name: MIXED in {candidate.name for candidate in one.chosen}
        for name, one in selected.items()
    } == {
        DEVICE.name: True,
        "x86-64": False,
    }


def test_the_second_trial_adds_only_what_is_new():
    first, second = make_trials(FP32, STATIC), make_trials(FP32, STATIC, MIXED)
    both = fallbacks.join_trials(first, second)
    assert [trial.candidate.name for trial in both] == [FP32, STATIC, MIXED]
    assert all(joined is old for joined, old in zip(both, first, strict=False))


def test_the_plan_says_that_a_fallback_was_not_needed_and_nothing_else_changes():
    before = make_plans(FP32, STATIC, MIXED, out=(PLAIN,))
    after = fallbacks.explain_unneeded(before, {DEVICE.name: make_trials(FP32, STATIC)})[
        DEVICE.name
    ]
    decisions = {decision.candidate: decision for decision in after.decisions}
    assert decisions[MIXED].verdict == "out"
    assert (
        decisions[MIXED].reason == f"not needed: {STATIC} or {PLAIN} did not fail an accuracy gate"
    )
    others = [one for one in before[DEVICE.name].decisions if one.candidate != MIXED]
    assert [one for one in after.decisions if one.candidate != MIXED] == others


def test_a_fallback_that_was_tried_stays_in_even_when_it_failed():
    after = fallbacks.explain_unneeded(
        make_plans(FP32, STATIC, MIXED), {DEVICE.name: make_trials(FP32, STATIC, failed=(MIXED,))}
    )
    assert MIXED in names(after)
