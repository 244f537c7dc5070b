"""Judging: limits held against values, losers named with their reason. Pure.

    judge(profile, measurements, metric=..., objective=...) -> Verdict

A gate passes when the whole interval of its value is within the limit, fails when the value is
beyond it (for a prediction: when the whole interval is), and is inconclusive otherwise. An
inconclusive gate does not refuse a package: it says what to check on the device, or that more
samples are needed.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Literal

import msgspec

from edge_core.profile import Profile
from edge_sdk.build import policy
from edge_sdk.build.stages import GateResult, Judged, Measurement, Outcome, Quantity, Verdict

Objective = Literal["latency", "bytes", "memory", "accuracy"]
Kind = Literal["latency", "memory", "bytes", "accuracy"]


class Limit(msgspec.Struct, frozen=True):
    """Where a limit stands in the profile, which value it holds, and from which side."""

    setting: str
    value: str
    unit: str
    at_most: bool = True


# Gates by name: one a budget, and what the device has at all.
GATES: dict[str, Limit] = {
    "latency_p50_ms": Limit("budgets.latency_p50_ms", "latency_p50_ms", "ms"),
    "latency_p90_ms": Limit("budgets.latency_p90_ms", "latency_p90_ms", "ms"),
    "latency_p99_ms": Limit("budgets.latency_p99_ms", "latency_p99_ms", "ms"),
    "load_ms": Limit("budgets.load_ms", "load_ms", "ms"),
    "memory_peak_mb": Limit("budgets.memory_peak_mb", "memory_peak_mb", "MB"),
    "memory_available_mb": Limit("memory.available_mb", "memory_peak_mb", "MB"),
    "package_mb": Limit("budgets.package_mb", "package_mb", "MB"),
    "storage_available_mb": Limit("storage.available_mb", "package_mb", "MB"),
    "energy_mj": Limit("budgets.energy_mj", "energy_mj", "mJ"),
    "accuracy_drop_points": Limit("budgets.accuracy_drop_points", "accuracy_drop_points", "points"),
    "agreement_min": Limit("budgets.agreement_min", "agreement", "", at_most=False),
    "cosine_min": Limit("budgets.cosine_min", "cosine", "", at_most=False),
}
ACCURACY = ("accuracy_drop_points", "agreement_min", "cosine_min")  # the metric picks one
# What the objective compares first; the others break ties in this order.
_ORDER: dict[Objective, tuple[Kind, ...]] = {
    "latency": ("latency", "bytes", "memory", "accuracy"),
    "bytes": ("bytes", "latency", "memory", "accuracy"),
    "memory": ("memory", "bytes", "latency", "accuracy"),
    "accuracy": ("accuracy", "latency", "bytes", "memory"),
}
_RANK: dict[Outcome, int] = {"pass": 0, "inconclusive": 1, "fail": 2}


def accuracy_gate(metric: str) -> str:
    """The accuracy budget that a metric is held against."""
    return {"agreement": "agreement_min", "cosine": "cosine_min"}.get(
        metric, "accuracy_drop_points"
    )


def judge(
    profile: Profile,
    measurements: Sequence[Measurement],
    *,
    metric: str,
    objective: Objective = "latency",
) -> Verdict:
    """Gates, Pareto front and winner for one profile."""
    gates = {m.candidate: _gates(profile, m, metric) for m in measurements}
    outcomes = {m.candidate: _worst(m, gates[m.candidate]) for m in measurements}
    ran = [m for m in measurements if not m.error]
    front = {m.candidate for m in ran if not any(dominates(o, m) for o in ran if o is not m)}
    fit = [m for m in ran if outcomes[m.candidate] != "fail"]
    winner = _winner(fit, outcomes, objective) if fit else None
    judged = []
    for m in measurements:
        lost, figures = _lost(m, gates[m.candidate], winner, fit, objective)
        judged.append(
            Judged(
                candidate=m.candidate,
                outcome=outcomes[m.candidate],
                gates=gates[m.candidate],
                pareto=m.candidate in front,
                lost=lost,
                figures=figures,
            )
        )
    return Verdict(
        profile=profile.name,
        outcome=outcomes[winner.candidate] if winner else "fail",
        winner=winner.candidate if winner else "",
        judged=tuple(judged),
        relaxation="" if winner else relaxation(judged),
    )


def gate(name: str, limit: float, value: Quantity) -> GateResult:
    """Hold one value against one limit."""
    rule = GATES[name]
    outcome, why = _held(rule, limit, value)
    return GateResult(gate=name, limit=limit, value=value, outcome=outcome, why=why)


def dominates(a: Measurement, b: Measurement) -> bool:
    """Is ``a`` no worse than ``b`` in anything, and better in something, noise aside?

    What is known of one of them only cannot be compared, and so nothing dominates.
    """
    better = False
    for kind in _ORDER["latency"]:
        floor, x, y = policy.shipped().floor_of(kind), _cost(a, kind), _cost(b, kind)
        if x is None or y is None:
            if x is not y:
                return False
            continue
        if floor.worse(x, y):
            return False
        better = better or floor.worse(y, x)
    return better


def relaxation(judged: Sequence[Judged]) -> str:
    """The smallest change of budgets that would let one candidate pass.

    Smallest: the fewest budgets, then the smallest relative change of the one that moves most.
    """
    options = []
    for j in judged:
        failed = [g for g in j.gates if g.outcome == "fail"]
        needs = [(g, _needed(g)) for g in failed]
        if not failed or any(n is None for _, n in needs):
            continue
        change = max(abs((n or 0.0) - g.limit) / max(abs(g.limit), 1e-9) for g, n in needs)
        text = ", ".join(f"{GATES[g.gate].setting}={n:g}" for g, n in needs)
        options.append((len(needs), change, j.candidate, text))
    if not options:
        errors = {j.lost for j in judged}
        one = f": {errors.pop()}" if len(errors) == 1 and not any(j.gates for j in judged) else ""
        return f"no budget would help: no candidate ran{one}"
    _, _, candidate, text = min(options)
    return f"{text} would let {candidate} in"


def _gates(profile: Profile, m: Measurement, metric: str) -> tuple[GateResult, ...]:
    if m.error:
        return ()
    wanted = accuracy_gate(metric)
    results = []
    for name, rule in GATES.items():
        limit = operator.attrgetter(rule.setting)(profile)
        if limit is None or (name in ACCURACY and name != wanted):
            continue
        unknown = Quantity("unknown", None, rule.unit, "", note="not measured")
        results.append(gate(name, limit, m.values.get(rule.value, unknown)))
    return tuple(results)


def _held(rule: Limit, limit: float, v: Quantity) -> tuple[Outcome, str]:
    if v.value is None:
        return "inconclusive", f"not known here: {v.note}" if v.note else "not known here"
    low = v.low if v.low is not None else v.value
    high = v.high if v.high is not None else v.value
    best, worst = (low, high) if rule.at_most else (high, low)

    def beyond(x: float) -> bool:
        return x > limit if rule.at_most else x < limit

    sign = "<=" if rule.at_most else ">="
    text = f"{v.value:.4g} {rule.unit}".strip()
    if beyond(best if v.kind == "predicted" else v.value):
        return "fail", f"{text} is not {sign} {limit:g}"
    if not beyond(worst):
        return "pass", f"{text} {sign} {limit:g}"
    if beyond(v.value):
        return "inconclusive", f"{text} is not {sign} {limit:g}, but it may be {best:.4g}"
    return "inconclusive", f"{text} is {sign} {limit:g}, but it may be {worst:.4g}"


def _needed(g: GateResult) -> float | None:
    """The limit at which a failed gate would just not fail, rounded outwards to 3 digits."""
    v = g.value
    best = v.value
    if v.kind == "predicted":
        best = v.low if GATES[g.gate].at_most else v.high
    if best is None:
        return None
    up = GATES[g.gate].at_most
    rounded = float(f"{best:.3g}")
    if (rounded < best) if up else (rounded > best):
        rounded = float(f"{best + 0.005 * abs(best) * (1 if up else -1):.3g}")
    return rounded


def _worst(m: Measurement, gates: Sequence[GateResult]) -> Outcome:
    if m.error:
        return "fail"
    return max((g.outcome for g in gates), key=_RANK.__getitem__, default="pass")


def _cost(m: Measurement, kind: Kind) -> float | None:
    """One number, smaller is better; None when it is not known."""
    v = m.values
    known = {name: value.value for name, value in v.items()}
    if kind == "latency":
        return known.get("latency_p50_ms")
    if kind == "memory":
        return known.get("memory_peak_mb")
    if kind == "bytes":
        mb = known.get("package_mb")
        return None if mb is None else mb * 1e6
    return known.get("loss_points")


def _winner(
    fit: Sequence[Measurement], outcomes: dict[str, Outcome], objective: Objective
) -> Measurement:
    """Best outcome first, then the objective; what is within noise of the best is a tie.

    Those that one of them dominates go before the tie is broken, and not earlier: a chain of small
    steps, each within noise, would lead away from the best.
    """
    best_outcome = min((outcomes[m.candidate] for m in fit), key=_RANK.__getitem__)
    left = [m for m in fit if outcomes[m.candidate] == best_outcome]
    for kind in _ORDER[objective]:
        costs = {m.candidate: _cost(m, kind) for m in left}
        known = [c for c in costs.values() if c is not None]
        if not known:
            continue
        floor, best = policy.shipped().floor_of(kind), min(known)
        left = [
            m for m in left if (c := costs[m.candidate]) is not None and not floor.worse(c, best)
        ]
        left = [m for m in left if not any(dominates(o, m) for o in left)] or left
    return min(left, key=lambda m: m.candidate)


def _lost(
    m: Measurement,
    gates: Sequence[GateResult],
    winner: Measurement | None,
    fit: Sequence[Measurement],
    objective: Objective,
) -> tuple[str, str]:
    """Why it is not the winner, and the figures where it lost a comparison."""
    if winner is m:
        return "", ""
    if m.error:
        return m.error, ""
    failed = [g for g in gates if g.outcome == "fail"]
    if failed:
        return "; ".join(f"{g.gate}: {g.why}" for g in failed), ""
    assert winner is not None  # one that fails no gate is fit, and so there is a winner
    by = next((o for o in fit if dominates(o, m)), None)
    if by is not None:
        return f"dominated by {by.candidate}", _comparison(by, m)
    doubtful = [g for g in gates if g.outcome == "inconclusive"]
    if doubtful:
        return f"{doubtful[0].gate}: {doubtful[0].why}; {winner.candidate} is surer or better", ""
    figures = _comparison(winner, m)
    for kind in _ORDER[objective]:
        mine, best = _cost(m, kind), _cost(winner, kind)
        if mine is None or (best is not None and policy.shipped().floor_of(kind).worse(mine, best)):
            return f"{winner.candidate} is better in {kind}", figures
    return f"no different from {winner.candidate}", figures


_SHOWN: dict[Kind, tuple[str, float]] = {  # unit, and what a cost is multiplied by
    "latency": ("ms", 1.0),
    "bytes": ("MB", 1e-6),
    "memory": ("MB peak", 1.0),
    "accuracy": ("points lost", 1.0),
}


def _comparison(a: Measurement, b: Measurement) -> str:
    parts = []
    for kind, (unit, scale) in _SHOWN.items():
        x, y = _cost(a, kind), _cost(b, kind)
        if x is not None and y is not None:
            parts.append(f"{x * scale:.3g} against {y * scale:.3g} {unit}")
    return ", ".join(parts)
