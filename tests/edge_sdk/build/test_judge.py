"""Gates, winners and relaxations: decisions on values, without running anything."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import device_profiles
from edge_sdk.build import judge
from edge_sdk.build.stages import Measurement, Quantity


def as_measured(value, unit="ms"):
    return Quantity("measured", value, unit, "here")


def as_predicted(value, low, high, unit="ms"):
    return Quantity("predicted", value, unit, "device", low, high)


def make_candidate(name, *, ms=10.0, mb=5.0, peak=100.0, drop=0.0, error=""):
    if error:
        return Measurement(candidate=name, error=error)
    return Measurement(
        candidate=name,
        values={
            "latency_p50_ms": as_measured(ms),
            "latency_p99_ms": as_measured(ms * 1.2),
            "package_mb": as_measured(mb, "MB"),
            "memory_peak_mb": as_measured(peak, "MB"),
            "accuracy_drop_points": as_measured(drop, "points"),
            "loss_points": as_measured(drop, "points"),
        },
    )


def make_profile(**budgets):
    limits = {"latency_p99_ms": 100, "memory_peak_mb": 500, "package_mb": 50,
             "accuracy_drop_points": 1.0, **budgets}  # fmt: skip
    sets = tuple(f"budgets.{name}={limit}" for name, limit in limits.items())
    return device_profiles.load("x86-64", sets)


def judge_all(*candidates, objective="latency", **budgets):
    return judge.judge(make_profile(**budgets), candidates, metric="top1", objective=objective)


def find_judgement(verdict, name):
    return next(judgement for judgement in verdict.judgements if judgement.candidate == name)


@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        (as_measured(10), "pass"),
        (as_measured(30), "fail"),
        (as_measured(20), "pass"),
        (as_predicted(10, 5, 15), "pass"),
        (as_predicted(15, 5, 45), "inconclusive"),
        (as_predicted(30, 10, 90), "inconclusive"),
        (as_predicted(90, 30, 270), "fail"),
        (Quantity("unknown", None, "ms", ""), "inconclusive"),
    ],
)
def test_a_gate_of_20_ms(value, outcome):
    result = judge.check_gate("latency_p99_ms", 20.0, value)
    assert result.outcome == outcome
    assert result.why


def test_a_gate_from_below():
    share = Quantity("measured", 0.96, "", "here", 0.95, 0.97)
    assert judge.check_gate("agreement_min", 0.90, share).outcome == "pass"
    assert judge.check_gate("agreement_min", 0.955, share).outcome == "inconclusive"
    assert judge.check_gate("agreement_min", 0.97, share).outcome == "fail"


def test_the_fastest_that_fits_wins():
    verdict = judge_all(
        make_candidate("float", ms=8, mb=18), make_candidate("int8", ms=4, drop=0.4)
    )
    assert verdict.winner == "int8"
    assert verdict.outcome == "pass"
    assert "int8 is better in latency" in find_judgement(verdict, "float").reason


def test_a_candidate_beyond_a_gate_never_wins():
    verdict = judge_all(
        make_candidate("float", ms=8, mb=18), make_candidate("int8", ms=4, drop=1.5)
    )
    assert verdict.winner == "float"
    assert find_judgement(verdict, "int8").outcome == "fail"
    assert "accuracy_drop_points: 1.5 points is not <= 1" in find_judgement(verdict, "int8").reason


def test_what_the_device_has_at_all_is_a_limit_without_a_budget():
    small = device_profiles.load(
        "x86-64", ("memory.available_mb=90", "storage.available_mb=3", "budgets.package_mb=50")
    )
    verdict = judge.judge(small, [make_candidate("a", mb=5, peak=100)], metric="top1")
    assert verdict.winner == ""
    assert "memory_available_mb: 100 MB is not <= 90" in verdict.judgements[0].reason
    assert "storage_available_mb: 5 MB is not <= 3" in verdict.judgements[0].reason
    assert verdict.relaxation == "memory.available_mb=100, storage.available_mb=5 would let a in"


def test_a_candidate_that_crashed_is_a_loser_with_its_reason():
    verdict = judge_all(
        make_candidate("float"), make_candidate("int8", error="the process crashed with SIGSEGV")
    )
    assert verdict.winner == "float"
    assert find_judgement(verdict, "int8").reason == "the process crashed with SIGSEGV"


def test_what_is_slower_and_less_accurate_is_dominated():
    verdict = judge_all(
        make_candidate("float", ms=4, mb=5), make_candidate("int8", ms=8, mb=5, drop=0.5)
    )
    assert find_judgement(verdict, "int8").reason.startswith("dominated by float")
    assert not find_judgement(verdict, "int8").pareto
    assert find_judgement(verdict, "float").pareto


def test_what_is_not_known_of_one_of_them_does_not_dominate():
    unknown = make_candidate("ort", mb=4)
    unknown.values["latency_p50_ms"] = Quantity("unknown", None, "ms", "")
    verdict = judge_all(unknown, make_candidate("float", mb=5))
    assert find_judgement(verdict, "float").pareto
    assert verdict.winner == "float"


def test_a_dominated_candidate_does_not_win_by_its_name():
    # Latencies within noise of the fastest, and of each other: "a" only loses more accuracy.
    verdict = judge_all(
        make_candidate("a", ms=4.0, drop=0.9), make_candidate("b", ms=4.1, drop=0.1)
    )
    assert verdict.winner == "b"
    assert find_judgement(verdict, "a").reason.startswith("dominated by b")
    # "a" is within noise of "fast", "c" only of "a": no chain of small steps away from the fastest.
    verdict = judge_all(make_candidate("fast", ms=10, mb=20), make_candidate("a", ms=10.9, mb=8),
                make_candidate("c", ms=11.5, mb=4))  # fmt: skip
    assert verdict.winner == "a"


def test_a_percentage_below_the_absolute_floor_is_noise():
    # 0.05 ms of 0.1 ms is 50 %, and still within the floor of 0.1 ms: the smaller file wins.
    verdict = judge_all(
        make_candidate("float", ms=0.10, mb=2), make_candidate("int8", ms=0.15, mb=1)
    )
    assert verdict.winner == "int8"


def test_a_surer_candidate_wins_over_a_faster_doubtful_one():
    doubtful = make_candidate("int8", ms=4)
    doubtful.values["latency_p99_ms"] = as_predicted(90, 30, 270)
    verdict = judge_all(make_candidate("float", ms=8), doubtful)
    assert verdict.winner == "float"
    assert verdict.outcome == "pass"
    assert "surer" in find_judgement(verdict, "int8").reason


@pytest.mark.parametrize(
    ("objective", "winner"),
    [("latency", "fast"), ("bytes", "small"), ("memory", "lean"), ("accuracy", "exact")],
)
def test_the_objective_chooses_among_those_that_fit(objective, winner):
    verdict = judge_all(
        make_candidate("fast", ms=1, mb=10, peak=200, drop=0.5),
        make_candidate("small", ms=5, mb=2, peak=200, drop=0.5),
        make_candidate("lean", ms=5, mb=10, peak=100, drop=0.5),
        make_candidate("exact", ms=5, mb=10, peak=200, drop=0.0),
        objective=objective,
    )
    assert verdict.winner == winner


def test_nothing_fits_names_the_smallest_relaxation():
    verdict = judge_all(
        make_candidate("float", ms=8, mb=18.6),
        make_candidate("int8", ms=4, mb=5.1),
        package_mb=5,
    )
    assert verdict.winner == ""
    assert verdict.outcome == "fail"
    assert verdict.relaxation == "budgets.package_mb=5.1 would let int8 in"


def test_the_relaxation_that_is_named_is_enough():
    small = [
        make_candidate("a", ms=50.123, mb=9.8765, drop=2.345),
        make_candidate("b", ms=70, mb=4),
    ]
    verdict = judge_all(*small, latency_p99_ms=20, package_mb=3)
    change, _, name = verdict.relaxation.partition(" would let ")
    relaxed = dict(part.removeprefix("budgets.").split("=") for part in change.split(", "))
    again = judge_all(*small, **{"latency_p99_ms": 20, "package_mb": 3, **relaxed})
    assert again.winner == name.removesuffix(" in")


@pytest.mark.parametrize("value", [-0.3332, -0.3337, 0.9655, 0.0])
def test_a_relaxation_from_below_is_enough_on_either_side_of_zero(value):
    below = make_candidate("a")
    below.values["cosine"] = Quantity("measured", value, "", "here")
    verdict = judge.judge(make_profile(cosine_min=0.99), [below], metric="cosine")
    limit = float(verdict.relaxation.split("=")[1].split(" ")[0])
    assert limit <= value
    again = judge.judge(make_profile(cosine_min=limit), [below], metric="cosine")
    assert again.winner == "a"


def test_no_budget_helps_when_nothing_ran():
    different = judge_all(make_candidate("a", error="boom"), make_candidate("b", error="bang"))
    assert different.relaxation == "no budget would help: no candidate ran"
    same = judge_all(make_candidate("a", error="boom"), make_candidate("b", error="boom"))
    assert same.relaxation == "no budget would help: no candidate ran: boom"


def test_only_the_accuracy_gate_of_the_metric_counts():
    verdict = judge.judge(make_profile(agreement_min=0.99), [make_candidate("a")], metric="top1")
    gates = [result.gate for result in verdict.judgements[0].gates]
    assert [name for name in gates if name.endswith("_min")] == []
    assert "accuracy_drop_points" in gates


numbers = st.floats(0.01, 1000)
anyone = st.builds(
    lambda ms, mb, peak, drop: (ms, mb, peak, drop), numbers, numbers, numbers, st.floats(0, 100)
)


@given(st.lists(anyone, min_size=1, max_size=8))
def test_the_winner_passes_every_gate_and_is_dominated_by_nobody_that_passes(values):
    everyone = [
        make_candidate(f"c{i}", ms=ms, mb=mb, peak=peak, drop=drop)
        for i, (ms, mb, peak, drop) in enumerate(values)
    ]
    verdict = judge_all(*everyone)
    passed = [
        judgement.candidate for judgement in verdict.judgements if judgement.outcome == "pass"
    ]
    assert (verdict.winner != "") == bool(passed)
    if verdict.winner:
        assert verdict.winner in passed
        fit = {one.candidate: one for one in everyone if one.candidate in passed}
        latencies = {name: one.values["latency_p50_ms"].value for name, one in fit.items()}
        best = min(latencies.values())
        noise = max(best * 1.1, best + 0.1)
        assert latencies[verdict.winner] <= noise + 1e-9
        tied = [one for name, one in fit.items() if latencies[name] <= noise]
        free = [
            one.candidate for one in tied if not any(judge.dominates(rival, one) for rival in tied)
        ]
        assert verdict.winner in free or not free
    for judgement in verdict.judgements:
        assert bool(judgement.reason) == (judgement.candidate != verdict.winner)
