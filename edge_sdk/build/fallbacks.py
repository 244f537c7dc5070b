"""Candidates that are only made when another one has lost too much accuracy. Pure.

A search for the layers that must stay in higher precision takes minutes; a model that passes its
accuracy gate without it does not pay for it. Names given by --only and --with are made at once.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from edge_sdk.build.judge import ACCURACY
from edge_sdk.build.request import BuildRequest
from edge_sdk.build.stages import Candidate, Decision, Plan, Verdict
from edge_sdk.build.trials import ProfileTrials

Plans = Mapping[str, Plan]  # by profile


def without(plans: Plans, request: BuildRequest) -> dict[str, Plan]:
    """What is made in any case."""
    return {
        name: _keep(
            plan, [candidate for candidate in plan.chosen if not _waits(candidate, request)]
        )
        for name, plan in plans.items()
    }


def needed(plans: Plans, verdicts: Mapping[str, Verdict], request: BuildRequest) -> dict[str, Plan]:
    """Rescues of what failed its accuracy gate, with it and the float form to be timed beside."""
    return {name: _rescues(plan, verdicts[name], request) for name, plan in plans.items()}


def _rescues(plan: Plan, verdict: Verdict, request: BuildRequest) -> Plan:
    failed = {
        judged.candidate
        for judged in verdict.judged
        if any(gate.gate in ACCURACY and gate.outcome == "fail" for gate in judged.gates)
    }
    waiting = [
        candidate
        for candidate in plan.chosen
        if _waits(candidate, request) and failed.intersection(candidate.spec.rescues)
    ]
    rescued = {name for candidate in waiting for name in candidate.spec.rescues}
    targets = {candidate.spec.target for candidate in waiting}
    beside = [
        candidate
        for candidate in plan.chosen
        if candidate.name in rescued
        or (candidate.spec.is_reference and candidate.spec.target in targets)
    ]
    return _keep(plan, [*waiting, *beside])


def join(first: ProfileTrials, second: ProfileTrials) -> ProfileTrials:
    """The first trials and what is new in the second."""
    tried = {trial.candidate for trial in first}
    return first + tuple(trial for trial in second if trial.candidate not in tried)


def explain(plans: Plans, trials: Mapping[str, ProfileTrials]) -> dict[str, Plan]:
    """The plans, with the rescues that were not needed left out and why."""
    return {
        name: _explain(plan, {trial.candidate for trial in trials[name]})
        for name, plan in plans.items()
    }


def _explain(plan: Plan, tried: set[Candidate]) -> Plan:
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
    rescued = " or ".join(candidate.spec.rescues)
    return msgspec.structs.replace(
        decision, verdict="out", reason=f"not needed: {rescued} did not fail an accuracy gate"
    )


def _waits(candidate: Candidate, request: BuildRequest) -> bool:
    return bool(candidate.spec.rescues) and candidate.name not in (*request.only, *request.also)


def _keep(plan: Plan, candidates: list[Candidate]) -> Plan:
    """The plan with these candidates only, in the plan's order."""
    names = {candidate.name for candidate in candidates}
    return msgspec.structs.replace(
        plan,
        decisions=tuple(decision for decision in plan.decisions if decision.candidate in names),
        chosen=tuple(candidate for candidate in plan.chosen if candidate.name in names),
    )
