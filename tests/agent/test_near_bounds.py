"""The bounds of error rates are right: against SciPy, published values, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from agent.caches.bounds import binomial_tail, clopper_pearson, needed, p_value, upper_bound


@given(n=st.integers(1, 3000), k=st.integers(0, 3000), p=st.floats(1e-6, 1 - 1e-6))
def test_the_binomial_tail_is_scipys(n, k, p):
    expected = float(stats.binom.cdf(k, n, p))
    assert binomial_tail(k, n, p) == pytest.approx(expected, rel=1e-7, abs=1e-290)


@given(n=st.integers(1, 2000), share=st.floats(0, 1), confidence=st.sampled_from((0.9, 0.95, 0.99)))
def test_the_interval_is_scipys(n, share, confidence):
    k = round(n * share)
    made = stats.binomtest(k, n).proportion_ci(confidence, method="exact")
    assert clopper_pearson(k, n, confidence) == pytest.approx((made.low, made.high), abs=1e-9)


def test_published_values():
    # Clopper and Pearson (1934), as tabled since: 95 % for 10 of 20, and the rule of three.
    assert clopper_pearson(10, 20) == pytest.approx((0.2720, 0.7280), abs=5e-5)
    assert upper_bound(0, 100) == pytest.approx(1 - 0.05 ** (1 / 100))
    assert upper_bound(0, 100) == pytest.approx(3 / 100, rel=0.02)


def test_the_ends_of_the_scale_are_no_surprise():
    assert clopper_pearson(0, 0) == (0.0, 1.0)
    assert clopper_pearson(0, 5)[0] == 0.0
    assert clopper_pearson(5, 5)[1] == 1.0
    assert upper_bound(5, 5) == 1.0
    assert p_value(0, 0, 0.02, whole=True) == 1.0
    assert binomial_tail(-1, 5, 0.5) == 0.0
    assert binomial_tail(5, 5, 0.5) == 1.0


@pytest.mark.parametrize("epsilon", [0.001, 0.01, 0.02, 0.05, 0.2])
def test_the_needed_number_without_an_error_is_the_least_that_proves(epsilon):
    n = needed(epsilon)
    assert n == math.ceil(math.log(0.05) / math.log(1 - epsilon))
    for whole in (True, False):
        assert p_value(0, n, epsilon, whole=whole) <= 0.05
        assert p_value(0, n - 1, epsilon, whole=whole) > 0.05


@given(
    n=st.integers(1, 500), shares=st.floats(0, 500), epsilon=st.floats(0.001, 0.5),
    whole=st.booleans(),
)  # fmt: skip
def test_more_errors_prove_less_and_more_trials_prove_more(n, shares, epsilon, whole):
    shares = min(shares, n)
    p = p_value(shares, n, epsilon, whole=whole)
    assert 0 <= p <= 1
    assert p_value(min(shares + 1, n), n, epsilon, whole=whole) >= p - 1e-12
    assert p_value(shares, n + 1, epsilon, whole=whole) <= p + 1e-12
    assert p_value(shares, n, min(0.5, epsilon * 1.1), whole=whole) <= p + 1e-12


@given(n=st.integers(1, 300), wrong=st.integers(0, 300))
def test_groups_are_never_trusted_more_than_single_trials(n, wrong):
    wrong = min(wrong, n)
    loose = upper_bound(wrong, n, whole=False)
    assert loose >= upper_bound(wrong, n, whole=True) - 1e-9


@pytest.mark.parametrize("share", ["all or nothing", "spread", "rare and heavy"])
def test_the_bound_of_group_shares_holds(share):
    """Over 2000 data sets whose true mean is just epsilon, at most 5 % may 'prove' less."""
    rng, epsilon, n = np.random.default_rng(3), 0.1, 120
    draw = {
        "all or nothing": lambda: rng.random(n) < epsilon,
        "spread": lambda: rng.beta(0.5, 0.5 * (1 / epsilon - 1), n),
        "rare and heavy": lambda: np.where(rng.random(n) < 2 * epsilon, rng.random(n), 0),
    }[share]
    fooled = sum(p_value(float(draw().sum()), n, epsilon, whole=False) <= 0.05 for _ in range(2000))
    assert fooled <= 2000 * 0.05 + 3 * math.sqrt(2000 * 0.05 * 0.95)
