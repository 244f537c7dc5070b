"""How sure a count of errors makes us. Pure mathematics, no SciPy: the device has none.

    clopper_pearson(wrong, n)    interval for an error rate, from independent yes/no trials
    p_value(shares, n, epsilon)  how likely so few errors are if the rate is epsilon or more
    upper_bound(shares, n)       the largest rate that such a test does not rule out
    needed(epsilon)              trials without an error after which epsilon is ruled out

Yes/no trials are tested by the binomial tail (Clopper-Pearson). Groups of trials, whose outcome is
a share between 0 and 1, are tested by the Hoeffding-Bentkus bound of "Learn then Test"
(Angelopoulos, Bates, Candes, Jordan, Lei 2021): valid for any independent values in 0..1 with a
common mean, and equal to the binomial tail where no error was seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable

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


def p_value(shares: float, n: int, epsilon: float, *, whole: bool) -> float:
    """How likely ``n`` shares that add up to ``shares`` are if their mean is ``epsilon`` or more.

    ``whole``: every share is 0 or 1 by design, that is, each group is one trial.
    """
    if n == 0:
        return 1.0
    if whole:
        return binomial_tail(round(shares), n, epsilon)
    mean = shares / n
    if mean >= epsilon:
        return 1.0
    hoeffding = math.exp(-n * _divergence(mean, epsilon))
    bentkus = math.e * binomial_tail(math.ceil(shares - 1e-9), n, epsilon)
    return min(hoeffding, bentkus, 1.0)


def upper_bound(shares: float, n: int, confidence: float = 0.95, *, whole: bool = True) -> float:
    """The one-sided upper bound of the mean; 1.0 without data."""
    if n == 0 or shares >= n:
        return 1.0
    return _bisect(lambda p: p_value(shares, n, p, whole=whole) <= 1 - confidence)


def needed(epsilon: float, confidence: float = 0.95) -> int:
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


def _divergence(a: float, b: float) -> float:
    """Kullback-Leibler divergence between two coins."""
    left = a * math.log(a / b) if a > 0 else 0.0
    return left + (1 - a) * (math.log1p(-a) - math.log1p(-b))


def _bisect(turned: Callable[[float], bool]) -> float:
    """The p in 0..1 from which on ``turned`` holds."""
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if turned(middle) else (middle, high)
    return high
