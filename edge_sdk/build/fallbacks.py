"""Candidates that are only made when another one has lost too much accuracy. Pure.

A search for the layers that must stay in higher precision takes minutes; a model that passes its
accuracy gate without it does not pay for it. Names given by --only and --with are made at once.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from converters import registry as converters
from edge_sdk.build.judge import ACCURACY
from edge_sdk.build.request import BuildRequest
from edge_sdk.build.stages import Decision, Plan, Verdict
from edge_sdk.build.trials import ProfileTrials

Plans = Mapping[str, Plan]  # by profile
FLOAT_FORMS = ("fp32", "given")  # of a .tflite file there is only the latter


def without(plans: Plans, request: BuildRequest) -> dict[str, Plan]:
    """What is made in any case."""
    return {
        name: _only(plan, [c for c in plan.chosen if not _waits(c, request)])
        for name, plan in plans.items()
    }


def needed(plans: Plans, verdicts: Mapping[str, Verdict], request: BuildRequest) -> dict[str, Plan]:
    """Rescues of what failed its accuracy gate, with it and the float form to be timed beside."""
    found = {}
    for name, plan in plans.items():
        failed = {
            j.candidate
            for j in verdicts[name].judged
            if any(g.gate in ACCURACY and g.outcome == "fail" for g in j.gates)
        }
        waiting = [
            c for c in plan.chosen if _waits(c, request) and failed.intersection(_rescued(c))
        ]
        beside = {r for c in waiting for r in _rescued(c)} | {
            f"{converters.get(c).SPEC.target}-{form}" for c in waiting for form in FLOAT_FORMS
        }
        found[name] = _only(plan, [*waiting, *(c for c in plan.chosen if c in beside)])
    return found


def joined(first: ProfileTrials, second: ProfileTrials) -> ProfileTrials:
    """The first trial and what is new in the second."""
    new = tuple(m for m in second.measurements if m.candidate not in first.artifacts)
    return ProfileTrials(
        envs={**first.envs, **second.envs},
        artifacts={**second.artifacts, **first.artifacts},
        measurements=first.measurements + new,
    )


def told(plans: Plans, tried: Mapping[str, ProfileTrials]) -> dict[str, Plan]:
    """The plans, with the rescues that were not needed left out and why."""
    return {
        name: msgspec.structs.replace(
            plan, decisions=tuple(_told(d, tried[name]) for d in plan.decisions)
        )
        for name, plan in plans.items()
    }


def _told(d: Decision, trial: ProfileTrials) -> Decision:
    if d.verdict == "out" or d.candidate in trial.artifacts:
        return d
    reason = f"not needed: {' or '.join(_rescued(d.candidate))} did not fail an accuracy gate"
    return msgspec.structs.replace(d, verdict="out", reason=reason)


def _rescued(candidate: str) -> tuple[str, ...]:
    return converters.get(candidate).SPEC.rescues


def _waits(candidate: str, request: BuildRequest) -> bool:
    return bool(_rescued(candidate)) and candidate not in (*request.only, *request.also)


def _only(plan: Plan, names: list[str]) -> Plan:
    kept = tuple(d for d in plan.decisions if d.candidate in names)
    return msgspec.structs.replace(plan, decisions=kept)
