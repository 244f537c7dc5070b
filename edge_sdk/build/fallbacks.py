"""Fallbacks: candidates that are only made when another one failed its accuracy gate. Pure.

A fallback, such as the search for the layers that must stay in higher precision, takes minutes; a
model that passes its accuracy gate without it does not pay for it. Names given by --only and --with
are made in any case.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from edge_sdk.build.judge import ACCURACY
from edge_sdk.build.request import BuildRequest
from edge_sdk.build.stages import Candidate, Decision, Plan, Verdict
from edge_sdk.build.trials import ProfileTrials

Plans = Mapping[str, Plan]  # by profile


def drop_fallbacks(plans: Plans, request: BuildRequest) -> dict[str, Plan]:
    """The plans without the fallbacks: what is converted in any case."""
    return {
        name: _keep(
            plan, [candidate for candidate in plan.chosen if not _is_waiting(candidate, request)]
        )
        for name, plan in plans.items()
    }


def select_fallbacks(
    plans: Plans, verdicts: Mapping[str, Verdict], request: BuildRequest
) -> dict[str, Plan]:
    """Fallbacks for what failed its accuracy gate, with it and the float form to compare with."""
    return {name: _select_fallbacks(plan, verdicts[name], request) for name, plan in plans.items()}


def _select_fallbacks(plan: Plan, verdict: Verdict, request: BuildRequest) -> Plan:
    failed = {
        judgement.candidate
        for judgement in verdict.judgements
        if any(gate.gate in ACCURACY and gate.outcome == "fail" for gate in judgement.gates)
    }
    waiting = [
        candidate
        for candidate in plan.chosen
        if _is_waiting(candidate, request) and failed.intersection(candidate.spec.fallback_for)
    ]
    primaries = {name for candidate in waiting for name in candidate.spec.fallback_for}
    targets = {candidate.spec.target for candidate in waiting}
    references = [
        candidate
        for candidate in plan.chosen
        if candidate.name in primaries
        or (candidate.spec.is_reference and candidate.spec.target in targets)
    ]
    return _keep(plan, [*waiting, *references])


def join_trials(first: ProfileTrials, second: ProfileTrials) -> ProfileTrials:
    """The first trials and those of new candidates in the second."""
    tried = {trial.candidate for trial in first}
    return first + tuple(trial for trial in second if trial.candidate not in tried)


def explain_unneeded(plans: Plans, trials: Mapping[str, ProfileTrials]) -> dict[str, Plan]:
    """The plans, with the fallbacks that were not needed marked out, and why."""
    return {
        name: _explain_unneeded(plan, {trial.candidate for trial in trials[name]})
        for name, plan in plans.items()
    }


def _explain_unneeded(plan: Plan, tried: set[Candidate]) -> Plan:
    untried = {candidate.name: candidate for candidate in plan.chosen if candidate not in tried}
    decisions = tuple(
        _not_needed(decision, untried[decision.candidate])
        if decision.candidate in untried
        else decision
        for decision in plan.decisions
    )
    chosen = tuple(candidate for candidate in plan.chosen if candidate in tried)
    return msgspec.structs.replace(plan, decisions=decisions, chosen=chosen)


def _not_needed(decision: Decision, candidate: Candidate) -> Decision:
    primaries = " or ".join(candidate.spec.fallback_for)
    return msgspec.structs.replace(
        decision, verdict="out", reason=f"not needed: {primaries} did not fail an accuracy gate"
    )


def _is_waiting(candidate: Candidate, request: BuildRequest) -> bool:
    is_requested = candidate.name in (*request.only, *request.also)
    return bool(candidate.spec.fallback_for) and not is_requested


def _keep(plan: Plan, candidates: list[Candidate]) -> Plan:
    """The plan with these candidates only, in the plan's order."""
    names = {candidate.name for candidate in candidates}
    return msgspec.structs.replace(
        plan,
        decisions=tuple(decision for decision in plan.decisions if decision.candidate in names),
        chosen=tuple(candidate for candidate in plan.chosen if candidate.name in names),
    )
