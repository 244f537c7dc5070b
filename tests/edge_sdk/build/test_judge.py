"""Gates, winners and relaxations: decisions on values, without running anything."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import device_profiles
from edge_sdk.build import judge
from edge_sdk.build.stages import Measurement, Quantity


def measured(x, unit="ms"):
    return Quantity("measured", x, unit, "here")


def predicted(x, low, high, unit="ms"):
    return Quantity("predicted", x, unit, "device", low, high)


def candidate(name, *, ms=10.0, mb=5.0, peak=100.0, drop=0.0, error=""):
    if error:
        return Measurement(candidate=name, error=error)
    return Measurement(
        candidate=name,
        values={
            "latency_p50_ms": measured(ms),
            "latency_p99_ms": measured(ms * 1.2),
            "package_mb": measured(mb, "MB"),
            "memory_peak_mb": measured(peak, "MB"),
            "accuracy_drop_points": measured(drop, "points"),
            "loss_points": measured(drop, "points"),
        },
    )


def profile(**budgets):
    given = {"latency_p99_ms": 100, "memory_peak_mb": 500, "package_mb": 50,
             "accuracy_drop_points": 1.0, **budgets}  # fmt: skip
    sets = tuple(f"budgets.{k}={v}" for k, v in given.items())
    return device_profiles.load("x86-64", sets)


def verdict(*candidates, objective="latency", **budgets):
    return judge.judge(profile(**budgets), candidates, metric="top1", objective=objective)


def judged(v, name):
    return next(j for j in v.judged if j.candidate == name)


@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        (measured(10), "pass"),
        (measured(30), "fail"),
        (measured(20), "pass"),
        (predicted(10, 5, 15), "pass"),
        (predicted(15, 5, 45), "inconclusive"),
        (predicted(30, 10, 90), "inconclusive"),
        (predicted(90, 30, 270), "fail"),
        (Quantity("unknown", None, "ms", ""), "inconclusive"),
    ],
)
def test_a_gate_of_20_ms(value, outcome):
    result = judge.gate("latency_p99_ms", 20.0, value)
    assert result.outcome == outcome
    assert result.why


def test_a_gate_from_below():
    share = Quantity("measured", 0.96, "", "here", 0.95, 0.97)
    assert judge.gate("agreement_min", 0.90, share).outcome == "pass"
    assert judge.gate("agreement_min", 0.955, share).outcome == "inconclusive"
    assert judge.gate("agreement_min", 0.97, share).outcome == "fail"


def test_the_fastest_that_fits_wins():
    v = verdict(candidate("float", ms=8, mb=18), candidate("int8", ms=4, drop=0.4))
    assert v.winner == "int8"
    assert v.outcome == "pass"
    assert "int8 is better in latency" in judged(v, "float").lost


def test_a_candidate_beyond_a_gate_never_wins():
    v = verdict(candidate("float", ms=8, mb=18), candidate("int8", ms=4, drop=1.5))
    assert v.winner == "float"
    assert judged(v, "int8").outcome == "fail"
    assert "accuracy_drop_points: 1.5 points is not <= 1" in judged(v, "int8").lost


def test_what_the_device_has_at_all_is_a_limit_without_a_budget():
    small = device_profiles.load(
        "x86-64", ("memory.available_mb=90", "storage.available_mb=3", "budgets.package_mb=50")
    )
    v = judge.judge(small, [candidate("a", mb=5, peak=100)], metric="top1")
    assert v.winner == ""
    assert "memory_available_mb: 100 MB is not <= 90" in v.judged[0].lost
    assert "storage_available_mb: 5 MB is not <= 3" in v.judged[0].lost
    assert v.relaxation == "memory.available_mb=100, storage.available_mb=5 would let a in"


def test_a_candidate_that_crashed_is_a_loser_with_its_reason():
    v = verdict(candidate("float"), candidate("int8", error="the process crashed with SIGSEGV"))
    assert v.winner == "float"
    assert judged(v, "int8").lost == "the process crashed with SIGSEGV"


def test_what_is_slower_and_less_accurate_is_dominated():
    v = verdict(candidate("float", ms=4, mb=5), candidate("int8", ms=8, mb=5, drop=0.5))
    assert judged(v, "int8").lost.startswith("dominated by float")
    assert not judged(v, "int8").pareto
    assert judged(v, "float").pareto


def test_what_is_not_known_of_one_of_them_does_not_dominate():
    unknown = candidate("ort", mb=4)
    unknown.values["latency_p50_ms"] = Quantity("unknown", None, "ms", "")
    v = verdict(unknown, candidate("float", mb=5))
    assert judged(v, "float").pareto
    assert v.winner == "float"


def test_a_dominated_candidate_does_not_win_by_its_name():
    # Latencies within noise of the fastest, and of each other: "a" only loses more accuracy.
    v = verdict(candidate("a", ms=4.0, drop=0.9), candidate("b", ms=4.1, drop=0.1))
    assert v.winner == "b"
    assert judged(v, "a").lost.startswith("dominated by b")
    # "a" is within noise of "fast", "c" only of "a": no chain of small steps away from the fastest.
    v = verdict(candidate("fast", ms=10, mb=20), candidate("a", ms=10.9, mb=8),
                candidate("c", ms=11.5, mb=4))  # fmt: skip
    assert v.winner == "a"


def test_a_percentage_below_the_absolute_floor_is_noise():
    # 0.05 ms of 0.1 ms is 50 %, and still within the floor of 0.1 ms: the smaller file wins.
    v = verdict(candidate("float", ms=0.10, mb=2), candidate("int8", ms=0.15, mb=1))
    assert v.winner == "int8"


def test_a_surer_candidate_wins_over_a_faster_doubtful_one():
    doubtful = candidate("int8", ms=4)
    doubtful.values["latency_p99_ms"] = predicted(90, 30, 270)
    v = verdict(candidate("float", ms=8), doubtful)
    assert v.winner == "float"
    assert v.outcome == "pass"
    assert "surer" in judged(v, "int8").lost


@pytest.mark.parametrize(
    ("objective", "winner"),
    [("latency", "fast"), ("bytes", "small"), ("memory", "lean"), ("accuracy", "exact")],
)
def test_the_objective_chooses_among_those_that_fit(objective, winner):
    v = verdict(
        candidate("fast", ms=1, mb=10, peak=200, drop=0.5),
        candidate("small", ms=5, mb=2, peak=200, drop=0.5),
        candidate("lean", ms=5, mb=10, peak=100, drop=0.5),
        candidate("exact", ms=5, mb=10, peak=200, drop=0.0),
        objective=objective,
    )
    assert v.winner == winner


def test_nothing_fits_names_the_smallest_relaxation():
    v = verdict(
        candidate("float", ms=8, mb=18.6),
        candidate("int8", ms=4, mb=5.1),
        package_mb=5,
    )
    assert v.winner == ""
    assert v.outcome == "fail"
    assert v.relaxation == "budgets.package_mb=5.1 would let int8 in"


def test_the_relaxation_that_is_named_is_enough():
    small = [candidate("a", ms=50.123, mb=9.8765, drop=2.345), candidate("b", ms=70, mb=4)]
    v = verdict(*small, latency_p99_ms=20, package_mb=3)
    change, _, name = v.relaxation.partition(" would let ")
    relaxed = dict(c.removeprefix("budgets.").split("=") for c in change.split(", "))
    again = verdict(*small, **{"latency_p99_ms": 20, "package_mb": 3, **relaxed})
    assert again.winner == name.removesuffix(" in")


@pytest.mark.parametrize("value", [-0.3332, -0.3337, 0.9655, 0.0])
def test_a_relaxation_from_below_is_enough_on_either_side_of_zero(value):
    got = candidate("a")
    got.values["cosine"] = Quantity("measured", value, "", "here")
    v = judge.judge(profile(cosine_min=0.99), [got], metric="cosine")
    limit = float(v.relaxation.split("=")[1].split(" ")[0])
    assert limit <= value
    again = judge.judge(profile(cosine_min=limit), [got], metric="cosine")
    assert again.winner == "a"


def test_no_budget_helps_when_nothing_ran():
    different = verdict(candidate("a", error="boom"), candidate("b", error="bang"))
    assert different.relaxation == "no budget would help: no candidate ran"
    same = verdict(candidate("a", error="boom"), candidate("b", error="boom"))
    assert same.relaxation == "no budget would help: no candidate ran: boom"


def test_only_the_accuracy_gate_of_the_metric_is_held():
    v = judge.judge(profile(agreement_min=0.99), [candidate("a")], metric="top1")
    assert [g.gate for g in v.judged[0].gates if "a" in g.gate and "min" in g.gate] == []
    assert "accuracy_drop_points" in [g.gate for g in v.judged[0].gates]


numbers = st.floats(0.01, 1000)
anyone = st.builds(
    lambda ms, mb, peak, drop: (ms, mb, peak, drop), numbers, numbers, numbers, st.floats(0, 100)
)


@given(st.lists(anyone, min_size=1, max_size=8))
def test_the_winner_passes_every_gate_and_is_dominated_by_nobody_that_passes(values):
    everyone = [
        candidate(f"c{i}", ms=ms, mb=mb, peak=peak, drop=drop)
        for i, (ms, mb, peak, drop) in enumerate(values)
    ]
    v = verdict(*everyone)
    passed = [j.candidate for j in v.judged if j.outcome == "pass"]
    assert (v.winner != "") == bool(passed)
    if v.winner:
        assert v.winner in passed
        best = min(m.values["latency_p50_ms"].value for m in everyone if m.candidate in passed)
        mine = next(m for m in everyone if m.candidate == v.winner).values["latency_p50_ms"].value
        assert mine <= max(best * 1.1, best + 0.1) + 1e-9
        tied = [m for m in everyone if m.candidate in passed
                and m.values["latency_p50_ms"].value <= max(best * 1.1, best + 0.1)]  # fmt: skip
        free = [m.candidate for m in tied if not any(judge.dominates(o, m) for o in tied)]
        assert v.winner in free or not free
    for j in v.judged:
        assert bool(j.lost) == (j.candidate != v.winner)
