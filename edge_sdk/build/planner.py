"""Planning: every candidate for one model and one profile, in or out, with the reason. Pure.

    plan(model, profile, samples=True) -> Plan

Facts of the model, the profile and the candidate are laid side by side; policy.toml decides.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from converters import registry as converters
from converters.onnx import ort_facts
from converters.spec import Ceiling, Spec
from edge_core.errors import InputError
from edge_core.profile import Profile, Runtime
from edge_core.runtimes import onnxruntime
from edge_sdk.build import policy
from edge_sdk.build.stages import Decision, Model, Plan


def plan(
    model: Model,
    profile: Profile,
    *,
    samples: bool,
    only: Collection[str] = (),
    also: Collection[str] = (),
) -> Plan:
    """Decide on every candidate.

    ``only`` limits the candidates to these names; ``also`` measures these although a rule of
    experience refuses them (facts of the device still count). Raises InputError on unknown names.
    """
    specs = [c.SPEC for c in converters.by_name().values()]
    _known([*only, *also], specs)
    decisions = (
        _decide(s, model, profile, samples, s.name in also)
        for s in specs
        if not only or s.name in only or s.name in also
    )
    usable = dict.fromkeys(r for s in specs if (r := runtime(s, profile)))
    return Plan(
        model=model.path.name,
        profile=profile.name,
        runtime=", ".join(f"{r.name} {r.version}" for r in usable)
        or "none for this model's format",
        decisions=tuple(sorted(decisions, key=lambda d: (d.verdict == "out", d.candidate))),
    )


def facts(spec: Spec, model: Model, profile: Profile, samples: bool) -> dict[str, Any]:
    """Everything a policy rule may look at, by name."""
    found = runtime(spec, profile)
    opset = ceiling(found).opset if found else 0
    return {
        **model.facets,
        "parameters": model.parameters,
        "arch": profile.platform.arch,
        "os": profile.platform.os,
        "isa": profile.cpu.isa,
        "format": model.format,
        "target": spec.target,
        "runtime": found.name if found else " or ".join(spec.runtimes),
        "runtimes": ", ".join(f"{r.name} {r.version}" for r in profile.runtimes) or "none",
        "has_runtime": found is not None,
        "runtime_version": found.version if found else "",
        "ceiling_opset": opset,
        "min_opset": spec.min_opset,
        "opset_fits": spec.min_opset <= opset or not opset,
        "precision": spec.precision,
        "precisions": ", ".join(profile.precisions),
        "precision_listed": spec.precision in profile.precisions
        or spec.scheme == "storage",  # unpacked to fp32 when it is loaded
        "scheme": spec.scheme,
        "samples": samples,
    }


def runtime(spec: Spec, profile: Profile) -> Runtime | None:
    """The device's runtime for a candidate: the first of the candidate's that the device has."""
    return next(filter(None, map(profile.runtime, spec.runtimes)), None)


def planned(candidate: str, profile: Profile) -> Runtime:
    """The device's runtime for a candidate of its plan, which leaves those without one out."""
    found = runtime(converters.get(candidate).SPEC, profile)
    assert found is not None
    return found


def ceiling(runtime: Runtime) -> Ceiling:
    """The newest ONNX file that a device's runtime loads."""
    if runtime.name != onnxruntime.SPEC.name:
        return Ceiling(opset=0, ir=0)
    top = ort_facts.find_ceiling(runtime.version)
    return Ceiling(opset=top.opset, ir=top.ir)


def _decide(spec: Spec, model: Model, profile: Profile, samples: bool, wanted: bool) -> Decision:
    known = facts(spec, model, profile, samples)
    rule = policy.shipped().decide(spec.name, known)
    forced = wanted and rule.verdict == "out" and not rule.hard
    reason = rule.reason.format(**known)
    return Decision(
        candidate=spec.name,
        title=spec.title,
        verdict="in" if forced else rule.verdict,
        reason=f"asked for by --with, although {reason}" if forced else reason,
        rule=rule.id,
        evidence=rule.evidence,
    )


def _known(names: Iterable[str], specs: Iterable[Spec]) -> None:
    known = [s.name for s in specs]
    for name in names:
        if name not in known:
            raise InputError(f"no candidate '{name}'", hint=f"one of: {', '.join(known)}")
