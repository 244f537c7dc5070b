"""Planning: every candidate for one model and one profile, in or out, with the reason. Pure.

    plan(model, profile, samples=True) -> Plan

Facts of the model, the profile and the candidate are laid side by side; policy.toml decides.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from converters import registry as converters
from converters.spec import Spec
from edge_core.errors import InputError
from edge_core.profile import Profile, Runtime
from edge_sdk.build import policy
from edge_sdk.build.stages import Candidate, Decision, Model, Plan


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
    specs = [converter.SPEC for converter in converters.by_name().values()]
    _check_names([*only, *also], specs)
    verdicts = [
        _decide(spec, model, profile, samples, spec.name in also)
        for spec in specs
        if not only or spec.name in only or spec.name in also
    ]
    verdicts.sort(key=lambda pair: (pair[0].verdict == "out", pair[0].candidate))
    usable = dict.fromkeys(runtime for spec in specs if (runtime := device_runtime(spec, profile)))
    return Plan(
        model=model.path.name,
        profile=profile.name,
        runtime=", ".join(f"{runtime.name} {runtime.version}" for runtime in usable)
        or "none for this model's format",
        decisions=tuple(decision for decision, _ in verdicts),
        chosen=tuple(
            candidate
            for decision, candidate in verdicts
            if candidate is not None and decision.verdict == "in"
        ),
    )


def facts(
    spec: Spec, candidate: Candidate | None, model: Model, profile: Profile, samples: bool
) -> dict[str, Any]:
    """Everything a policy rule may look at, by name; no ``candidate``: the device cannot run it."""
    source = converters.prepared_format(converters.get_format(model.format))
    runtime = candidate.runtime if candidate else None
    opset = candidate.ceiling.opset if candidate else 0
    return {
        **model.facets,
        "parameters": model.parameters,
        "arch": profile.platform.arch,
        "os": profile.platform.os,
        "isa": profile.cpu.isa,
        "format": model.format,
        "target": spec.target,
        "sources": " or ".join(spec.sources),
        "format_read": source.name in spec.sources,
        "runtime": runtime.name if runtime else " or ".join(spec.runtimes),
        "runtimes": ", ".join(f"{runtime.name} {runtime.version}" for runtime in profile.runtimes)
        or "none",
        "has_runtime": runtime is not None,
        "runtime_version": runtime.version if runtime else "",
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


def device_runtime(spec: Spec, profile: Profile) -> Runtime | None:
    """The device's runtime for a converter's files: the first of its own that the device has."""
    return next(filter(None, map(profile.runtime, spec.runtimes)), None)


def resolve(spec: Spec, profile: Profile) -> Candidate | None:
    """The candidate on that device, or None where no runtime of the device opens its files."""
    runtime = device_runtime(spec, profile)
    if runtime is None:
        return None
    return Candidate(
        spec=spec,
        runtime=runtime,
        ceiling=converters.get_format(spec.target).find_ceiling(runtime),
        arch=profile.platform.arch,
    )


def _decide(
    spec: Spec, model: Model, profile: Profile, samples: bool, asked_for: bool
) -> tuple[Decision, Candidate | None]:
    candidate = resolve(spec, profile)
    known = facts(spec, candidate, model, profile, samples)
    rule = policy.load_policy().decide(spec.name, known)
    forced = asked_for and rule.verdict == "out" and not rule.hard
    reason = rule.reason.format(**known)
    decision = Decision(
        candidate=spec.name,
        title=spec.title,
        verdict="in" if forced else rule.verdict,
        reason=f"asked for by --with, although {reason}" if forced else reason,
        rule=rule.id,
        evidence=rule.evidence,
    )
    return decision, candidate


def _check_names(names: Iterable[str], specs: Iterable[Spec]) -> None:
    known = [spec.name for spec in specs]
    for name in names:
        if name not in known:
            raise InputError(f"no candidate '{name}'", hint=f"one of: {', '.join(known)}")
