"""The bounds of error rates are right: against SciPy, published values, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from agent.caches.bounds import (
    SINGLE,
    binomial_tail,
    clopper_pearson,
    count_required_trials,
    p_value,
    upper_bound,
)
from edge_core.tensors import Array


@given(
    trial_count=st.integers(1, 3000),
    wrong_count=st.integers(0, 3000),
    rate=st.floats(1e-6, 1 - 1e-6),
)
def test_the_binomial_tail_is_scipys(trial_count, wrong_count, rate):
    expected = float(stats.binom.cdf(wrong_count, trial_count, rate))
    assert binomial_tail(wrong_count, trial_count, rate) == pytest.approx(
        expected, rel=1e-7, abs=1e-290
    )


@given(
    trial_count=st.integers(1, 2000),
    share=st.floats(0, 1),
    confidence=st.sampled_from((0.9, 0.95, 0.99)),
)
def test_the_interval_is_scipys(trial_count, share, confidence):
    wrong_count = round(trial_count * share)
    interval = stats.binomtest(wrong_count, trial_count).proportion_ci(confidence, method="exact")
    assert clopper_pearson(wrong_count, trial_count, confidence) == pytest.approx(
        (interval.low, interval.high), abs=1e-9
    )


def test_published_values():
    # Clopper and Pearson (1934), as tabled since: 95 % for 10 of 20, and the rule of three.
    assert clopper_pearson(10, 20) == pytest.approx((0.2720, 0.7280), abs=5e-5)
    assert upper_bound(*trials(0, 100)) == pytest.approx(1 - 0.05 ** (1 / 100))
    assert upper_bound(*trials(0, 100)) == pytest.approx(3 / 100, rel=0.02)


def trials(wrong: int, trial_count: int) -> tuple[Array, Array]:
    """Groups of one trial that was reused."""
    return np.ones(trial_count), np.arange(trial_count) < wrong


def test_the_ends_of_the_scale_are_no_surprise():
    none = np.zeros(0)
    assert clopper_pearson(0, 0) == (0.0, 1.0)
    assert clopper_pearson(0, 5)[0] == 0.0
    assert clopper_pearson(5, 5)[1] == 1.0
    assert upper_bound(*trials(5, 5)) == 1.0
    assert binomial_tail(-1, 5, 0.5) == 0.0
    assert binomial_tail(5, 5, 0.5) == 1.0
    for stake in (SINGLE, 0.5):
        assert p_value(none, none, 0.02, stake) == 1.0
        assert upper_bound(none, none, stake=stake) == 1.0
        assert p_value(*trials(9000, 9000), 0.02, stake) == 1.0
        assert p_value(*trials(0, 90_000), 0.02, stake) == pytest.approx(0, abs=1e-200)


@pytest.mark.parametrize("epsilon", [0.001, 0.01, 0.02, 0.05, 0.2])
def test_the_needed_number_without_an_error_is_the_least_that_proves(epsilon):
    trial_count = count_required_trials(epsilon)
    assert trial_count == math.ceil(math.log(0.05) / math.log(1 - epsilon))
    assert p_value(*trials(0, trial_count), epsilon, SINGLE) <= 0.05
    assert p_value(*trials(0, trial_count - 1), epsilon, SINGLE) > 0.05
    # With nearly all the money at stake, groups that were reused as a whole ask for no more.
    assert p_value(*trials(0, trial_count + 2), epsilon, 0.9995) <= 0.05


STAKE = st.sampled_from((SINGLE, 0.2, 0.5, 0.9))


@given(
    trial_count=st.integers(1, 300),
    wrong=st.integers(0, 300),
    epsilon=st.floats(0.001, 0.5),
    stake=STAKE,
)
def test_more_errors_prove_less_and_more_trials_prove_more(trial_count, wrong, epsilon, stake):
    wrong = min(wrong, trial_count)
    rate = p_value(*trials(wrong, trial_count), epsilon, stake)
    assert 0 <= rate <= 1
    assert (
        p_value(*trials(min(wrong + 1, trial_count), trial_count), epsilon, stake) >= rate - 1e-12
    )
    assert p_value(*trials(wrong, trial_count + 1), epsilon, stake) <= rate + 1e-12
    assert p_value(*trials(wrong, trial_count), epsilon * 1.1, stake) <= rate + 1e-12


@given(
    trial_count=st.integers(1, 200),
    wrong=st.integers(0, 200),
    stake=st.sampled_from((0.2, 0.5, 0.9)),
)
def test_the_upper_bound_is_where_the_test_turns(trial_count, wrong, stake):
    wrong = min(wrong, trial_count)
    for bet in (SINGLE, stake):
        bound = upper_bound(*trials(wrong, trial_count), stake=bet)
        assert bound >= wrong / trial_count
        if bound < 0.999:
            assert p_value(*trials(wrong, trial_count), bound + 1e-6, bet) <= 0.05
            assert p_value(*trials(wrong, trial_count), bound - 1e-6, bet) >= 0.05 - 1e-4
    # Groups are never trusted more than the same number of independent trials.
    assert (
        upper_bound(*trials(wrong, trial_count), stake=stake)
        >= upper_bound(*trials(wrong, trial_count)) - 1e-9
    )


@pytest.mark.parametrize("stake", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["all or nothing", "spread", "few reuses, often wrong"])
def test_the_bound_of_groups_holds(kind, stake):
    """Over 1000 data sets whose true rate is just epsilon, at most 5 % may 'prove' less."""
    rng, epsilon, trial_count = np.random.default_rng(3), 0.1, 150

    def draw() -> tuple[Array, Array]:
        if kind == "all or nothing":
            reused = (rng.random(trial_count) < 0.7).astype(float)
            return reused, reused * (rng.random(trial_count) < epsilon)
        if kind == "spread":
            reused = rng.random(trial_count)
            return reused, reused * rng.beta(0.5, 0.5 * (1 / epsilon - 1), trial_count)
        few = rng.random(trial_count) < 0.5  # a group with few reuses has all of the errors
        reused = np.where(few, 0.2, 0.8)
        return reused, np.where(few & (rng.random(trial_count) < 0.5), 0.2, 0.0)

    fooled = sum(p_value(*draw(), epsilon, stake) <= 0.05 for _ in range(1000))
    assert fooled <= 1000 * 0.05 + 3 * math.sqrt(1000 * 0.05 * 0.95)
