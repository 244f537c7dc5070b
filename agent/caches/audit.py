"""Watching a near-duplicate cache for ever: a sampled share of its hits is computed after all.

    wants(state, u)                 compute this hit? u is a random number in 0..1
    step(state, distance, wrong)    the next state; pure, nothing is measured or stored here

        CALIBRATED --alarm--> PROBATION --alarm--> ... --alarm--> OFF
             ^                    |
             +------ proven ------+

Alarm. A test that is looked at after every audit for years must not count chances to be fooled. So
evidence is money: starting with 1, each audit is a bet that is fair or worse if the wrong rate is
epsilon or less (betting e-processes, Waudby-Smith & Ramdas 2024; Ville's inequality). Having
1 / alpha then has a probability of at most alpha, over all time. The bets are likelihood ratios
for a few higher rates. Since the trouble may begin any day, and a good year must not hide it, part
of the money is kept back and put in later: the k-th audit adds the share T(k) - T(k+1) of
T(k) = 1 / (1 + ln k). Alarm number s must reach 2**s / alpha, so all false alarms together have a
probability below alpha = 1 - confidence.

Tightening. The audits since the most likely beginning of the trouble are looked at again: the new
threshold is the largest of the grid, at most half the old one, at which their wrong share is within
epsilon; if there is none, the cache is off until the next calibration. A threshold chosen so is
no proof. It is on probation: more hits are audited, until a bet in the other direction, against
"epsilon or more", has reached 1 / alpha at this threshold.

The bets take audited hits as independent of each other. They are a thin sample, but two of one
clip may be in it: see docs/caches.md for the false alarms counted on real clips.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from agent.caches.threshold_search import GRID

SHARE = 0.05  # of the hits that are audited
PROBATION_SHARE = 0.25
KEPT = 512  # audits that are remembered for tightening
_RATES = (1.5, 3.0, 6.0, 12.0)  # times epsilon: what the bets on trouble expect
_LOW_RATES = (0.0, 0.25, 0.5)  # times epsilon: what the bets on health expect


class Audit(msgspec.Struct, frozen=True, array_like=True):
    distance: float  # divided by the reach
    wrong: bool


class AuditState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the audit remembers; kept over restarts."""

    calibration: str = ""  # digest of the calibration that it belongs to
    epsilon: float
    confidence: float
    share: float = SHARE
    threshold: float  # 0.0 = off
    state: Literal["calibrated", "probation", "off"] = "calibrated"
    alarms: int = 0
    audit_count: int = 0  # audits at this threshold
    trouble: tuple[float, ...] = ()  # ln of the money on each of _RATES
    health: tuple[float, ...] = ()
    recent: tuple[Audit, ...] = ()
    audited: int = 0
    wrong: int = 0


def begin(
    threshold: float, epsilon: float, confidence: float, share: float = SHARE, calibration: str = ""
) -> AuditState:
    """The state after a calibration."""
    return AuditState(
        calibration=calibration, epsilon=epsilon, confidence=confidence, share=share,
        threshold=threshold, state="calibrated" if threshold > 0 else "off",
    )  # fmt: skip


def should_audit(state: AuditState, chance: float) -> bool:
    """Shall this hit be computed after all? ``u`` is uniform in 0..1."""
    share = max(state.share, PROBATION_SHARE) if state.state == "probation" else state.share
    return chance < share


def step(state: AuditState, distance: float, wrong: bool) -> AuditState:
    """What one audited hit changes."""
    state = msgspec.structs.replace(
        state, audited=state.audited + 1, wrong=state.wrong + int(wrong)
    )
    if distance > state.threshold:  # found before the last tightening
        return state
    state = _bet(state, wrong)
    recent = (*state.recent, Audit(distance, wrong))[-KEPT:]
    state = msgspec.structs.replace(state, recent=recent)
    alpha = 1 - state.confidence
    if evidence(state) >= 2 ** (state.alarms + 1) / alpha:
        return _tighten(state)
    if state.state == "probation" and _mean(state.health) >= 1 / alpha:
        return msgspec.structs.replace(state, state="calibrated")
    return state


def evidence(state: AuditState) -> float:
    """The money on trouble at this threshold: 1 at the start, an alarm at 2**s / alpha."""
    return _mean(state.trouble) + _rest(state.audit_count + 1) if state.audit_count else 1.0


def _bet(state: AuditState, wrong: bool) -> AuditState:
    audit_count, epsilon = state.audit_count + 1, state.epsilon
    fresh = math.log(_rest(audit_count) - _rest(audit_count + 1))
    odds = _odds(_rates(epsilon), epsilon, wrong)
    trouble = [
        _log_add(money, fresh) + odd
        for money, odd in zip(state.trouble or (-math.inf,) * len(odds), odds, strict=True)
    ]
    low = _odds(tuple(rate * epsilon for rate in _LOW_RATES), epsilon, wrong)
    health = [a + b for a, b in zip(state.health or (0.0,) * len(low), low, strict=True)]
    return msgspec.structs.replace(
        state, audit_count=audit_count, trouble=tuple(trouble), health=tuple(health)
    )


def _tighten(state: AuditState) -> AuditState:
    """The next smaller threshold, from the audits since the trouble most likely began."""
    since = state.recent[_onset(state) :]
    allowed = [
        threshold
        for threshold in GRID
        if threshold <= state.threshold / 2 and _within(since, threshold, state.epsilon)
    ]
    return msgspec.structs.replace(
        state, threshold=max(allowed, default=0.0), state="probation" if allowed else "off",
        alarms=state.alarms + 1, audit_count=0, trouble=(), health=(), recent=(),
    )  # fmt: skip


def _onset(state: AuditState) -> int:
    """Where in ``recent`` the bets would best have begun."""
    best, at = -math.inf, 0
    for rate in _rates(state.epsilon):
        right, bad = (_odds((rate,), state.epsilon, wrong)[0] for wrong in (False, True))
        money = 0.0
        for i in range(len(state.recent) - 1, -1, -1):
            money += bad if state.recent[i].wrong else right
            if money > best:
                best, at = money, i
    return at


def _within(audits: tuple[Audit, ...], threshold: float, epsilon: float) -> bool:
    near = [audit.wrong for audit in audits if audit.distance <= threshold]
    return sum(near) <= epsilon * len(near)


def _rates(epsilon: float) -> tuple[float, ...]:
    return tuple(min(multiple * epsilon, (1 + epsilon) / 2) for multiple in _RATES)


def _odds(rates: tuple[float, ...], epsilon: float, wrong: bool) -> tuple[float, ...]:
    """ln of what a bet on each rate pays, against epsilon."""
    if wrong:
        return tuple(math.log(rate / epsilon) if rate else -math.inf for rate in rates)
    return tuple(math.log((1 - rate) / (1 - epsilon)) for rate in rates)


def _rest(audit_number: int) -> float:
    """The share of the money that is still kept back before audit ``k``."""
    return 1 / (1 + math.log(audit_number))


def _mean(logs: tuple[float, ...]) -> float:
    """The mean of the amounts; capped where a float ends."""
    return sum(math.exp(min(log, 700.0)) for log in logs) / len(logs)


def _log_add(left: float, right: float) -> float:
    high, low = max(left, right), min(left, right)
    return high + math.log1p(math.exp(low - high))
