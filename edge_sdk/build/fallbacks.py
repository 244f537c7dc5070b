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
        name: _keep(plan, [c for c in plan.chosen if not _waits(c, request)])
        for name, plan in plans.items()
    }


def needed(plans: Plans, verdicts: Mapping[str, Verdict], request: BuildRequest) -> dict[str, Plan]:
    """Rescues of what failed its accuracy gate, with it and the float form to be timed beside."""
    return {name: _rescues(plan, verdicts[name], request) for name, plan in plans.items()}


def _rescues(plan: Plan, verdict: Verdict, request: BuildRequest) -> Plan:
    failed = {
        j.candidate
        for j in verdict.judged
        if any(g.gate in ACCURACY and g.outcome == "fail" for g in j.gates)
    }
    waiting = [c for c in plan.chosen if _waits(c, request) and failed.intersection(c.spec.rescues)]
    rescued = {name for c in waiting for name in c.spec.rescues}
    targets = {c.spec.target for c in waiting}
    beside = [
        c
        for c in plan.chosen
        if c.name in rescued or (c.spec.is_reference and c.spec.target in targets)
    ]
    return _keep(plan, [*waiting, *beside])


def join(first: ProfileTrials, second: ProfileTrials) -> ProfileTrials:
    """The first trials and what is new in the second."""
    tried = {t.candidate for t in first}
    return first + tuple(t for t in second if t.candidate not in tried)


def explain(plans: Plans, trials: Mapping[str, ProfileTrials]) -> dict[str, Plan]:
    """The plans, with the rescues that were not needed left out and why."""
    return {
        name: _explain(plan, {t.candidate for t in trials[name]}) for name, plan in plans.items()
    }


def _explain(plan: Plan, tried: set[Candidate]) -> Plan:
    untried = {c.name: c for c in plan.chosen if c not in tried}
    decisions = tuple(
        _not_needed(d, untried[d.candidate]) if d.candidate in untried else d
        for d in plan.decisions
    )
    chosen = tuple(c for c in plan.chosen if c in tried)
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
    names = {c.name for c in candidates}
    return msgspec.structs.replace(
        plan,
        decisions=tuple(d for d in plan.decisions if d.candidate in names),
        chosen=tuple(c for c in plan.chosen if c.name in names),
    )
