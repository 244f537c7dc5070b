"""How sure a count of errors makes us. Pure mathematics, no SciPy: the device has none.

    clopper_pearson(wrong, n)              interval for an error rate, from yes/no trials
    p_value(reused, wrong, epsilon, ...)   how likely so few errors are at a rate of epsilon or more
    upper_bound(reused, wrong, ...)        the smallest rate that such a test rules out
    count_required_trials(epsilon)         trials without an error that rule out epsilon

Independent yes/no trials are tested by the binomial tail (Clopper-Pearson). Groups of dependent
trials are tested by betting ("Estimating means of bounded random variables by betting",
Waudby-Smith & Ramdas 2024): a group with the share h of its trials reused and the share w wrongly
reused multiplies a stake of 1 by 1 + b (epsilon h - w). If wrong reuses are epsilon of all reuses
or more, the product has a mean of at most 1, so it reaches 20 with a probability of at most 1/20.
Nothing is assumed about the trials of one group.
"""

# structure: mathematics: formulas for binomial tails and bets, in their usual symbols
from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from edge_core.tensors import Array

SINGLE = 0.0  # the stake that stands for groups of one trial
_STEPS = 60  # of a bisection: 2**-60 is below what a float can tell apart


def binomial_tail(k: int, n: int, p: float) -> float:
    """P(at most ``k`` of ``n``), each with probability ``p``."""
    if k < 0:
        return 0.0
    if k >= n or p <= 0:
        return 1.0
    if p >= 1:
        return 0.0
    if k > n * p:  # the other tail is the shorter sum
        return 1.0 - _run(k + 1, n, p, +1)
    return _run(k, n, p, -1)


def clopper_pearson(wrong: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The two-sided interval for the rate behind ``wrong`` of ``n`` independent trials."""
    if n == 0:
        return 0.0, 1.0
    tail = (1 - confidence) / 2
    low = 0.0 if wrong == 0 else _bisect(lambda p: 1 - binomial_tail(wrong - 1, n, p) > tail)
    high = 1.0 if wrong == n else _bisect(lambda p: binomial_tail(wrong, n, p) <= tail)
    return low, high


def p_value(reused: Array, wrong: Array, epsilon: float, stake: float) -> float:
    """How likely these shares, one of each a group, are at a wrong rate of ``epsilon`` or more.

    ``stake`` is the share of the money that a group can lose, below 1 and fixed without looking at
    these groups. SINGLE: every group is one trial, its shares are 0 or 1, and the test is exact.
    """
    if stake == SINGLE:
        return binomial_tail(round(wrong.sum()), round(reused.sum()), epsilon)
    return math.exp(min(0.0, -log_wealth(reused, wrong, epsilon, stake)))


def log_wealth(reused: Array, wrong: Array, epsilon: float, stake: float) -> float:
    """ln of what the bets against "``epsilon`` or more" make of 1."""
    bet = stake / (1 - epsilon)
    return float(np.log1p(bet * (epsilon * reused - wrong)).sum())


def upper_bound(
    reused: Array, wrong: Array, confidence: float = 0.95, stake: float = SINGLE
) -> float:
    """The one-sided upper bound of the wrong rate; 1.0 if nothing can be ruled out."""
    if wrong.sum() >= reused.sum():
        return 1.0
    return _bisect(lambda p: p < 1 and p_value(reused, wrong, p, stake) <= 1 - confidence)


def count_required_trials(epsilon: float, confidence: float = 0.95) -> int:
    """Trials without one error that rule out a rate of ``epsilon``: ln(1 - c) / ln(1 - epsilon)."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-epsilon) - 1e-9)


def _run(start: int, n: int, p: float, step: int) -> float:
    """The binomial terms from ``start`` to the end of the tail, which shrink all the way."""
    log_term = (
        math.lgamma(n + 1) - math.lgamma(start + 1) - math.lgamma(n - start + 1)
        + start * math.log(p) + (n - start) * math.log1p(-p)
    )  # fmt: skip
    total = term = 1.0
    odds = p / (1 - p)
    i = start
    while 0 <= i + step <= n and term > 1e-18 * total:
        term *= (n - i) / (i + 1) * odds if step > 0 else i / (n - i + 1) / odds
        total += term
        i += step
    return min(1.0, math.exp(log_term) * total)


def _bisect(turned: Callable[[float], bool]) -> float:
    """The p in 0..1 from which on ``turned`` holds."""
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if turned(middle) else (middle, high)
    return high
