"""The audit notices a wrong rate above epsilon, seldom cries wolf, and tightens down to off."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.caches import audit
from agent.caches.audit import AuditState, begin, evidence, should_audit, step
from agent.caches.threshold_search import GRID

EPSILON = 0.05
Rate = Callable[[float], float]  # of wrong answers, by distance


def flat(rate: float) -> Rate:
    return lambda distance: rate


def run_audits(state: AuditState, rng: np.random.Generator, count: int, rate: Rate) -> AuditState:
    """``count`` audits of hits at random distances within the threshold."""
    for _ in range(count):
        if state.state == "off":
            break
        distance = rng.uniform(0, state.threshold)
        state = step(state, distance, bool(rng.random() < rate(distance)))
    return state


def test_a_cache_within_its_budget_is_left_alone_for_ever():
    """At a rate of just epsilon at most 5 % may ever see an alarm; far below it none does."""
    rng, runs = np.random.default_rng(1), 100
    start = begin(0.4, EPSILON, 0.95)
    at_limit = sum(run_audits(start, rng, 2500, flat(EPSILON)).alarms > 0 for _ in range(runs))
    assert at_limit <= runs * 0.05 + 2 * math.sqrt(runs * 0.05 * 0.95)
    for _ in range(20):
        assert run_audits(start, rng, 2500, flat(EPSILON / 3)).alarms == 0


@pytest.mark.parametrize(("rate", "most"), [(0.5, 40), (0.2, 250), (0.1, 1500)])
def test_trouble_is_noticed_from_the_start(rate, most):
    rng, start = np.random.default_rng(2), begin(0.4, EPSILON, 0.95)
    assert all(run_audits(start, rng, most, flat(rate)).alarms for _ in range(20))


def test_trouble_is_noticed_after_a_long_good_time():
    """Without money that is kept back, 3000 good audits would hide the bad ones for ages."""
    rng, start = np.random.default_rng(3), begin(0.4, EPSILON, 0.95)
    good = run_audits(start, rng, 3000, flat(0.005))
    assert good.alarms == 0
    assert all(run_audits(good, rng, 60, flat(0.5)).alarms for _ in range(20))


def test_wrong_answers_far_away_tighten_the_threshold_to_where_there_are_none():
    rng, start = np.random.default_rng(4), begin(0.4, EPSILON, 0.95)
    for _ in range(10):
        state = run_audits(start, rng, 6000, lambda distance: 0.3 if distance > 0.1 else 0.0)
        assert state.state == "calibrated"  # proven again, at the new threshold
        assert 0.02 < state.threshold < 0.13
        assert state.alarms >= 1


def test_wrong_answers_everywhere_turn_the_cache_off_and_it_stays_off():
    rng, start = np.random.default_rng(5), begin(0.4, EPSILON, 0.95)
    for _ in range(20):
        state = run_audits(start, rng, 2000, flat(0.4))
        assert (state.state, state.threshold) == ("off", 0.0)
        assert step(state, 0.1, False).state == "off"


def test_one_wrong_answer_is_no_alarm():
    state = begin(0.4, 0.02, 0.95)
    assert step(state, 0.1, True).alarms == 0
    assert evidence(state) == 1


def test_more_hits_are_audited_on_probation():
    calm = begin(0.4, EPSILON, 0.95, share=0.05)
    trial = msgspec.structs.replace(calm, state="probation")
    assert should_audit(calm, 0.049)
    assert not should_audit(calm, 0.05)
    assert should_audit(trial, 0.2)
    assert not should_audit(begin(0.4, EPSILON, 0.95, share=0.0), 0.0)


def test_an_audit_of_a_hit_before_the_tightening_is_counted_and_no_evidence():
    state = begin(0.2, EPSILON, 0.95)
    after = step(state, 0.3, True)
    assert (after.audited, after.wrong, after.audit_count, evidence(after)) == (1, 1, 0, 1)


@given(
    outcomes=st.lists(st.tuples(st.floats(0, 0.5), st.booleans()), max_size=120),
    epsilon=st.floats(0.005, 0.4),
)
def test_the_threshold_only_ever_falls_by_half_or_more_and_stays_in_the_grid(outcomes, epsilon):
    state = begin(0.5, epsilon, 0.95)
    for distance, wrong in outcomes:
        before, state = state, step(state, distance, wrong)
        assert state.audited == before.audited + 1
        assert state.wrong == before.wrong + wrong
        assert len(state.recent) <= audit.KEPT
        assert evidence(state) >= 0
        if state.alarms == before.alarms:
            assert state.threshold == before.threshold
        else:
            assert state.threshold <= before.threshold / 2
            assert state.threshold in (0.0, *GRID)
            assert wrong or state.state == "off"
        assert (state.state == "off") == (state.threshold == 0)


@given(wrong=st.lists(st.booleans(), max_size=30), epsilon=st.floats(0.01, 0.4))
def test_the_bets_are_fair_at_epsilon(wrong, epsilon):
    """From any history: the expected money after one more audit is what there was before."""
    state = begin(1.0, epsilon, 0.999999)  # no alarm in between
    for outcome in wrong:
        state = step(state, 0.1, outcome)
    bad, right = step(state, 0.1, True), step(state, 0.1, False)
    if bad.alarms:  # it begins anew with 1
        return
    fair = epsilon * evidence(bad) + (1 - epsilon) * evidence(right)
    assert fair == pytest.approx(evidence(state), rel=1e-9)


def test_the_state_survives_its_encoding():
    state = run_audits(begin(0.4, EPSILON, 0.95), np.random.default_rng(6), 300, flat(0.03))
    raw = msgspec.msgpack.encode(state)
    assert len(raw) < 10_000
    assert msgspec.msgpack.decode(raw, type=AuditState) == state
