"""Rescues: made only where a candidate failed on accuracy, with what they are held against."""

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


def candidate(name):
    return planner.resolve(converters.get(name).SPEC, DEVICE)


def plan(*names, out=()):
    verdicts = [*((n, "in") for n in names), *((n, "out") for n in out)]
    decisions = tuple(
        Decision(candidate=n, title=n, verdict=v, reason="as it is", rule="r") for n, v in verdicts
    )
    chosen = tuple(candidate(n) for n in names)
    return {
        DEVICE.name: Plan(
            model="m", profile=DEVICE.name, runtime="", decisions=decisions, chosen=chosen
        )
    }


def request(**more):
    return make_request("m.onnx", (DEVICE,), BuildOptions(**more))


def measured(name, drop=0.0, mb=1.0, error=""):
    values = {
        "accuracy_drop_points": Quantity("measured", drop, "points", "here"),
        "package_mb": Quantity("measured", mb, "MB", "here"),
    }
    return Measurement(candidate=name, values={} if error else values, error=error)


def verdicts(*measurements):
    return {DEVICE.name: judge.judge(DEVICE, measurements, metric="top1")}


def names(plans):
    return tuple(c.name for c in plans[DEVICE.name].chosen)


def trials(*made, failed=()):
    return tuple(
        CandidateTrial(
            candidate=candidate(name),
            measurement=measured(name, error="no" if name in failed else ""),
            artifact=None, env=None, original=Path("answers"), outputs=None,
        )
        for name in (*made, *failed)
    )  # fmt: skip


def test_what_a_rescue_rescues_exists_and_is_no_rescue_itself():
    rescued = {n: c.SPEC.rescues for n, c in converters.by_name().items() if c.SPEC.rescues}
    assert MIXED in rescued
    for of in rescued.values():
        assert all(not converters.get(name).SPEC.rescues for name in of)


def test_a_rescue_waits():
    assert names(fallbacks.without(plan(FP32, STATIC, MIXED), request())) == (FP32, STATIC)


@pytest.mark.parametrize("asked", [{"only": (MIXED, FP32)}, {"also": (MIXED,)}])
def test_a_rescue_that_was_asked_for_does_not_wait(asked):
    plans, wanted = plan(FP32, STATIC, MIXED), request(**asked)
    assert MIXED in names(fallbacks.without(plans, wanted))
    failed = verdicts(measured(FP32), measured(STATIC, drop=5))
    assert names(fallbacks.needed(plans, failed, wanted)) == ()


@pytest.mark.parametrize("rescued", [STATIC, PLAIN])
def test_a_failed_accuracy_gate_brings_the_rescue_and_what_is_timed_beside_it(rescued):
    plans = plan(FP16, FP32, rescued, MIXED)
    failed = verdicts(measured(FP16), measured(FP32), measured(rescued, drop=5))
    assert set(names(fallbacks.needed(plans, failed, request()))) == {FP32, rescued, MIXED}


def test_of_a_tflite_file_the_given_file_is_the_float_form():
    plans = plan(FP16, GIVEN, STATIC, MIXED)
    failed = verdicts(measured(GIVEN), measured(STATIC, drop=5))
    assert set(names(fallbacks.needed(plans, failed, request()))) == {GIVEN, STATIC, MIXED}


@pytest.mark.parametrize(
    "static",
    [
        measured(STATIC),
        measured(STATIC, error="crashed"),
        measured(STATIC, mb=1e6),  # no budget of bytes is an accuracy gate
    ],
)
def test_nothing_else_brings_a_rescue(static):
    plans = plan(FP32, STATIC, MIXED)
    assert names(fallbacks.needed(plans, verdicts(measured(FP32), static), request())) == ()


def test_another_candidates_failure_brings_no_rescue():
    plans = plan(FP32, FP16, STATIC, MIXED)
    failed = verdicts(measured(FP32), measured(FP16, drop=5), measured(STATIC))
    assert names(fallbacks.needed(plans, failed, request())) == ()


def test_a_rescue_that_the_plan_left_out_stays_out():
    plans = plan(FP32, STATIC, out=(MIXED,))
    failed = verdicts(measured(FP32), measured(STATIC, drop=5))
    assert names(fallbacks.needed(plans, failed, request())) == ()


def test_profiles_are_rescued_one_by_one():
    other = device_profiles.load("x86-64", ("budgets.accuracy_drop_points=10",))
    plans = {
        name: p for p in plan(FP32, STATIC, MIXED).values() for name in (DEVICE.name, "x86-64")
    }
    both = [measured(FP32), measured(STATIC, drop=5)]
    found = fallbacks.needed(
        plans, {p.name: judge.judge(p, both, metric="top1") for p in (DEVICE, other)}, request()
    )
    assert {n: MIXED in {c.name for c in p.chosen} for n, p in found.items()} == {
        DEVICE.name: True,
        "x86-64": False,
    }


def test_the_second_trial_adds_only_what_is_new():
    first, second = trials(FP32, STATIC), trials(FP32, STATIC, MIXED)
    both = fallbacks.join(first, second)
    assert [t.candidate.name for t in both] == [FP32, STATIC, MIXED]
    assert all(mine is his for mine, his in zip(both, first, strict=False))


def test_the_plan_tells_that_a_rescue_was_not_needed_and_nothing_else_changes():
    before = plan(FP32, STATIC, MIXED, out=(PLAIN,))
    after = fallbacks.explain(before, {DEVICE.name: trials(FP32, STATIC)})[DEVICE.name]
    told = {d.candidate: d for d in after.decisions}
    assert told[MIXED].verdict == "out"
    assert told[MIXED].reason == f"not needed: {STATIC} or {PLAIN} did not fail an accuracy gate"
    others = [d for d in before[DEVICE.name].decisions if d.candidate != MIXED]
    assert [d for d in after.decisions if d.candidate != MIXED] == others


def test_a_rescue_that_was_tried_stays_in_even_when_it_failed():
    after = fallbacks.explain(
        plan(FP32, STATIC, MIXED), {DEVICE.name: trials(FP32, STATIC, failed=(MIXED,))}
    )
    assert MIXED in names(after)
