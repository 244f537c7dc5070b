"""Judging: values checked against limits, losers named with their reason. Pure.

    judge(profile, measurements, metric=..., objective=...) -> Verdict

A gate passes when the whole interval of its value is within the limit, fails when the value is
beyond it (for a prediction: when the whole interval is), and is inconclusive otherwise. An
inconclusive gate does not refuse a package: it says what to check on the device, or that more
samples are needed.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from edge_core.errors import GateFailed
from edge_core.profile import Profile
from edge_sdk.build import policy
from edge_sdk.build.stages import (
    GateResult,
    Judgement,
    Measurement,
    Outcome,
    Plan,
    Quantity,
    Verdict,
)

Objective = Literal["latency", "bytes", "memory", "accuracy"]
Gates = Mapping[str, tuple[GateResult, ...]]  # by candidate


class GateRule(msgspec.Struct, frozen=True):
    """Where a limit stands in the profile, which value it bounds, and from which side."""

    setting: str
    value: str
    unit: str
    at_most: bool = True


# Gates by name: one for each budget, and what the device has at all.
GATES: dict[str, GateRule] = {
    "latency_p50_ms": GateRule("budgets.latency_p50_ms", "latency_p50_ms", "ms"),
    "latency_p90_ms": GateRule("budgets.latency_p90_ms", "latency_p90_ms", "ms"),
    "latency_p99_ms": GateRule("budgets.latency_p99_ms", "latency_p99_ms", "ms"),
    "load_ms": GateRule("budgets.load_ms", "load_ms", "ms"),
    "memory_peak_mb": GateRule("budgets.memory_peak_mb", "memory_peak_mb", "MB"),
    "memory_available_mb": GateRule("memory.available_mb", "memory_peak_mb", "MB"),
    "package_mb": GateRule("budgets.package_mb", "package_mb", "MB"),
    "storage_available_mb": GateRule("storage.available_mb", "package_mb", "MB"),
    "energy_mj": GateRule("budgets.energy_mj", "energy_mj", "mJ"),
    "accuracy_drop_points": GateRule(
        "budgets.accuracy_drop_points", "accuracy_drop_points", "points"
    ),
    "agreement_min": GateRule("budgets.agreement_min", "agreement", "", at_most=False),
    "cosine_min": GateRule("budgets.cosine_min", "cosine", "", at_most=False),
}
ACCURACY = ("accuracy_drop_points", "agreement_min", "cosine_min")  # the metric picks one
# What the objective compares first; the other criteria break ties in this order.
_ORDER: dict[Objective, tuple[Objective, ...]] = {
    "latency": ("latency", "bytes", "memory", "accuracy"),
    "bytes": ("bytes", "latency", "memory", "accuracy"),
    "memory": ("memory", "bytes", "latency", "accuracy"),
    "accuracy": ("accuracy", "latency", "bytes", "memory"),
}
_RANK: dict[Outcome, int] = {"pass": 0, "inconclusive": 1, "fail": 2}


def accuracy_gate(metric: str) -> str:
    """The name of the accuracy budget that limits a metric."""
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
    """Gates, Pareto front and winner for one profile.

    ``metric`` is the one that compare() was given; it decides which accuracy budget counts.
    """
    gates = {one.candidate: _check_gates(profile, one, metric) for one in measurements}
    outcomes = {one.candidate: _worst_outcome(one, gates[one.candidate]) for one in measurements}
    ran = [one for one in measurements if not one.error]
    fit = [one for one in ran if outcomes[one.candidate] != "fail"]
    winner = _pick_winner(fit, outcomes, objective) if fit else None
    judgements = []
    for measurement in measurements:
        name = measurement.candidate
        reason, figures = _explain_loss(measurement, gates[name], winner, fit, objective)
        judgements.append(
            Judgement(
                candidate=name,
                outcome=outcomes[name],
                gates=gates[name],
                pareto=_is_on_front(measurement, ran),
                reason=reason,
                figures=figures,
            )
        )
    return Verdict(
        profile=profile.name,
        outcome=outcomes[winner.candidate] if winner else "fail",
        winner=winner.candidate if winner else "",
        judgements=tuple(judgements),
        relaxation="" if winner else find_relaxation(judgements),
    )


def explain_refusal(verdict: Verdict, plan: Plan) -> Verdict:
    """The verdict; without any candidate no budget stands in the way, but what the plan says."""
    if verdict.judgements:
        return verdict
    reason = plan.decisions[0].reason
    return msgspec.structs.replace(verdict, relaxation=f"no candidate: {reason}")


def check_verdicts(verdicts: Iterable[Verdict], *, strict: bool = False) -> None:
    """Raise GateFailed if nothing fits a profile (or, if ``strict``, only doubtfully)."""
    verdicts = tuple(verdicts)
    for verdict in verdicts:
        if not verdict.winner:
            raise GateFailed(f"{verdict.profile}: nothing fits", hint=verdict.relaxation)
    for verdict in verdicts:
        if strict and verdict.outcome != "pass":
            winner = next(one for one in verdict.judgements if one.candidate == verdict.winner)
            open_gates = [gate for gate in winner.gates if gate.outcome != "pass"]
            why = "; ".join(f"{gate.gate}: {gate.why}" for gate in open_gates)
            raise GateFailed(f"{verdict.profile}: {verdict.winner} is inconclusive: {why}")


def check_gate(name: str, limit: float, value: Quantity) -> GateResult:
    """Check one value against one limit."""
    outcome, why = _compare_to_limit(GATES[name], limit, value)
    return GateResult(gate=name, limit=limit, value=value, outcome=outcome, why=why)


def dominates(better: Measurement, worse: Measurement) -> bool:
    """Is the first no worse in anything, and better in something, noise aside?

    What is known of only one of them cannot be compared, and so nothing dominates.
    """
    is_better = False
    for criterion in _ORDER["latency"]:
        floor = policy.load_policy().floor_of(criterion)
        cost, other_cost = _cost(better, criterion), _cost(worse, criterion)
        if cost is None and other_cost is None:
            continue
        if cost is None or other_cost is None or floor.is_worse(cost, other_cost):
            return False
        is_better = is_better or floor.is_worse(other_cost, cost)
    return is_better


def find_relaxation(judgements: Sequence[Judgement]) -> str:
    """The smallest change of budgets that would let one candidate pass.

    Smallest: the fewest budgets, then the smallest relative change of the one that moves most.
    """
    options = []
    for candidate in judgements:
        failed = [gate for gate in candidate.gates if gate.outcome == "fail"]
        limits = [limit for gate in failed if (limit := _limit_that_passes(gate)) is not None]
        if not failed or len(limits) < len(failed):
            continue
        pairs = list(zip(failed, limits, strict=True))
        change = max(abs(limit - gate.limit) / max(abs(gate.limit), 1e-9) for gate, limit in pairs)
        text = ", ".join(f"{GATES[gate.gate].setting}={limit:g}" for gate, limit in pairs)
        options.append((len(failed), change, candidate.candidate, text))
    if not options:
        errors = {candidate.reason for candidate in judgements}
        is_common = len(errors) == 1 and not any(candidate.gates for candidate in judgements)
        return "no budget would help: no candidate ran" + (f": {errors.pop()}" if is_common else "")
    _, _, name, text = min(options)
    return f"{text} would let {name} in"


def _is_on_front(measurement: Measurement, ran: Sequence[Measurement]) -> bool:
    """Does it run, and does no other candidate dominate it?"""
    return not measurement.error and not any(
        dominates(other, measurement) for other in ran if other is not measurement
    )


def _check_gates(profile: Profile, measurement: Measurement, metric: str) -> tuple[GateResult, ...]:
    if measurement.error:
        return ()
    results = []
    for name, rule in GATES.items():
        limit = operator.attrgetter(rule.setting)(profile)
        if limit is None or (name in ACCURACY and name != accuracy_gate(metric)):
            continue
        unknown = Quantity("unknown", None, rule.unit, "", note="not measured")
        results.append(check_gate(name, limit, measurement.values.get(rule.value, unknown)))
    return tuple(results)


def _compare_to_limit(rule: GateRule, limit: float, quantity: Quantity) -> tuple[Outcome, str]:
    """The outcome of a gate, and why."""
    value = quantity.value
    if value is None:
        return "inconclusive", "not known here" + (f": {quantity.note}" if quantity.note else "")
    low = quantity.low if quantity.low is not None else value
    high = quantity.high if quantity.high is not None else value
    best, worst = (low, high) if rule.at_most else (high, low)

    def is_beyond(bound: float) -> bool:
        return bound > limit if rule.at_most else bound < limit

    sign = "<=" if rule.at_most else ">="
    text = f"{value:.4g} {rule.unit}".strip()
    if is_beyond(best if quantity.kind == "predicted" else value):
        return "fail", f"{text} is not {sign} {limit:g}"
    if not is_beyond(worst):
        return "pass", f"{text} {sign} {limit:g}"
    if is_beyond(value):
        return "inconclusive", f"{text} is not {sign} {limit:g}, but it may be {best:.4g}"
    return "inconclusive", f"{text} is {sign} {limit:g}, but it may be {worst:.4g}"


def _limit_that_passes(result: GateResult) -> float | None:
    """The limit at which a failed gate would just not fail, rounded outwards to 3 digits."""
    at_most, quantity = GATES[result.gate].at_most, result.value
    best = quantity.value
    if quantity.kind == "predicted":
        best = quantity.low if at_most else quantity.high
    if best is None:
        return None
    rounded = float(f"{best:.3g}")
    if (rounded < best) if at_most else (rounded > best):
        rounded = float(f"{best + 0.005 * abs(best) * (1 if at_most else -1):.3g}")
    return rounded


def _worst_outcome(measurement: Measurement, gates: Sequence[GateResult]) -> Outcome:
    if measurement.error:
        return "fail"
    return max((gate.outcome for gate in gates), key=_RANK.__getitem__, default="pass")


_COSTS: dict[Objective, str] = {  # the value that each criterion compares; smaller is better
    "latency": "latency_p50_ms",
    "memory": "memory_peak_mb",
    "bytes": "package_mb",
    "accuracy": "loss_points",
}


def _cost(measurement: Measurement, criterion: Objective) -> float | None:
    """One number, smaller is better, in the unit of the policy's floor; None if not known."""
    quantity = measurement.values.get(_COSTS[criterion])
    if quantity is None or quantity.value is None:
        return None
    return quantity.value * 1e6 if criterion == "bytes" else quantity.value


def _pick_winner(
    fit: Sequence[Measurement], outcomes: Mapping[str, Outcome], objective: Objective
) -> Measurement:
    """Best outcome first, then the objective; what is within noise of the best is a tie.

    Those that another one dominates are dropped before a tie is broken, and not earlier: a chain
    of small steps, each within noise, would lead away from the best.
    """
    best_outcome = min((outcomes[one.candidate] for one in fit), key=_RANK.__getitem__)
    remaining = [one for one in fit if outcomes[one.candidate] == best_outcome]
    for criterion in _ORDER[objective]:
        costs = [(one, cost) for one in remaining if (cost := _cost(one, criterion)) is not None]
        if not costs:
            continue
        floor, best = policy.load_policy().floor_of(criterion), min(cost for _, cost in costs)
        tied = [one for one, cost in costs if not floor.is_worse(cost, best)]
        remaining = [
            one for one in tied if not any(dominates(other, one) for other in tied)
        ] or tied
    return min(remaining, key=lambda one: one.candidate)


def _explain_loss(
    measurement: Measurement,
    gates: Sequence[GateResult],
    winner: Measurement | None,
    fit: Sequence[Measurement],
    objective: Objective,
) -> tuple[str, str]:
    """Why it is not the winner, and the figures where it lost a comparison."""
    if winner is measurement:
        return "", ""
    if measurement.error:
        return measurement.error, ""
    failed = [gate for gate in gates if gate.outcome == "fail"]
    if failed:
        return "; ".join(f"{gate.gate}: {gate.why}" for gate in failed), ""
    assert winner is not None  # one that fails no gate is fit, and so there is a winner
    by = next((other for other in fit if dominates(other, measurement)), None)
    if by is not None:
        return f"dominated by {by.candidate}", _describe_costs(by, measurement)
    name = winner.candidate
    if doubtful := next((gate for gate in gates if gate.outcome == "inconclusive"), None):
        return f"{doubtful.gate}: {doubtful.why}; {name} is surer or better", ""
    figures = _describe_costs(winner, measurement)
    for criterion in _ORDER[objective]:
        cost, best = _cost(measurement, criterion), _cost(winner, criterion)
        floor = policy.load_policy().floor_of(criterion)
        if cost is None or (best is not None and floor.is_worse(cost, best)):
            return f"{name} is better in {criterion}", figures
    return f"no different from {name}", figures


_FIGURES: dict[Objective, tuple[str, float]] = {  # unit, and what a cost is multiplied by
    "latency": ("ms", 1.0),
    "bytes": ("MB", 1e-6),
    "memory": ("MB peak", 1.0),
    "accuracy": ("points lost", 1.0),
}


def _describe_costs(better: Measurement, worse: Measurement) -> str:
    parts = []
    for criterion, (unit, scale) in _FIGURES.items():
        cost, other_cost = _cost(better, criterion), _cost(worse, criterion)
        if cost is not None and other_cost is not None:
            parts.append(f"{cost * scale:.3g} against {other_cost * scale:.3g} {unit}")
    return ", ".join(parts)
