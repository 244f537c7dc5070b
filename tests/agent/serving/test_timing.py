"""Stage times: percentiles of durations of any size, within the buckets' width."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.serving.timing import STAGES, Histogram, Stages

DURATIONS = st.integers(0, 2**62)


@given(ns=DURATIONS)
def test_one_duration_is_told_within_the_width_of_a_bucket(ns):
    histogram = Histogram()
    histogram.add(ns)
    assert histogram.quantile(0.5) == pytest.approx(ns, rel=1 / 32, abs=0.5)


@given(many=st.lists(DURATIONS, min_size=1, max_size=200), share=st.sampled_from([0.5, 0.9, 0.99]))
def test_percentiles_are_those_of_the_sorted_durations(many, share):
    histogram = Histogram()
    for ns in many:
        histogram.add(ns)
    at = -int(-share * len(many) // 1) - 1  # the smallest that `share` of them do not exceed
    assert histogram.quantile(share) == pytest.approx(sorted(many)[max(0, at)], rel=1 / 32, abs=0.5)


def test_every_stage_has_its_count_mean_percentiles_and_maximum():
    stages = Stages()
    for i in range(1, 101):
        stages.add(*(i * 1_000_000 * (k + 1) for k in range(len(STAGES))))
    read = stages.read()
    assert tuple(read) == STAGES
    infer = read["infer"]
    assert infer.n == 100
    assert infer.mean_ms == pytest.approx(50.5 * 3)
    assert infer.p50_ms == pytest.approx(150, rel=1 / 32)
    assert infer.p90_ms == pytest.approx(270, rel=1 / 32)
    assert infer.p99_ms == pytest.approx(297, rel=1 / 32)
    assert infer.max_ms == 300


def test_nothing_recorded_is_zero():
    assert Stages().read()["total"].p99_ms == 0
