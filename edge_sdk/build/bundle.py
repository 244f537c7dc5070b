"""One package for several profiles: selectors that tell them apart, in an order that reaches each.

    order_variants(profiles, variants, digests) -> variants in the package's order

Pure. A selector gets no more than it needs: for each other profile the first kind of fact that
tells its device apart, in the order of make_requirements(). The variant that demands more comes
first. Profiles that no detectable fact tells apart share a variant if it has the same files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from edge_core.errors import InputError
from edge_core.facts import DeviceFacts
from edge_core.machine import accelerators, linux
from edge_core.package.manifest import (
    MAX_NEEDS,
    AcceleratorNeed,
    RuntimeRange,
    Variant,
    VersionRange,
)
from edge_core.package.selector import find_mismatch
from edge_core.profile import Profile
from edge_core.runtimes import registry

# Of the profile's memory that a device must have: firmware and GPUs keep a part of what is sold.
MEMORY_SHARE = 0.8


class Placed(msgspec.Struct, frozen=True):
    """A variant and the devices that it is for."""

    variant: Variant
    devices: tuple[DeviceFacts, ...]
    digests: Mapping[str, str]  # path -> digest of the model's files


def order_variants(
    profiles: Sequence[Profile],
    variants: Sequence[Variant],
    digests: Sequence[Mapping[str, str]],
) -> tuple[Variant, ...]:
    """The variants with their selectors, merged where they are the same, in the package's order.

    Each profile has the variant and the digests at its place. Raises InputError for two profiles
    that no detectable fact tells apart and whose files differ.
    """
    facts = [detectable_facts(profile) for profile in profiles]
    pending = [
        Placed(
            _distinguish(variant, own, [other for other in facts if other is not own]),
            (own,),
            files,
        )
        for variant, own, files in zip(variants, facts, digests, strict=True)
    ]
    pending = _merge(pending)
    ordered: list[Variant] = []
    while pending:
        first = next((placed for placed in pending if not _catches(placed, pending)), None)
        if first is None:
            raise _indistinct(pending[0].variant, pending[1].variant)
        ordered.append(first.variant)
        pending.remove(first)
    return tuple(ordered)


def detectable_facts(profile: Profile) -> DeviceFacts:
    """What a device of the profile finds out about itself."""
    facts = DeviceFacts.from_profile(profile)
    detectable = tuple(
        accelerator for accelerator in facts.accelerators if accelerators.is_detectable(accelerator)
    )
    runtimes = {
        name: version for name, version in facts.runtimes.items() if name in registry.by_name()
    }
    features = tuple(feature for feature in facts.cpu_features if feature in linux.ISA)
    return msgspec.structs.replace(
        facts, accelerators=detectable, runtimes=runtimes, cpu_features=features
    )


def make_requirements(own: DeviceFacts, other: DeviceFacts) -> Iterator[dict[str, object]]:
    """Fields of a selector that may tell ``own`` from ``other``, the surest kind first."""
    for accelerator in own.accelerators:
        name = accelerator.name if accelerator.name == accelerators.EDGE_TPU else ""
        need = AcceleratorNeed(kind=accelerator.kind, name=name, capability=accelerator.capability)
        yield {"accelerator": need}
    features = tuple(feature for feature in own.cpu_features if feature not in other.cpu_features)
    yield {"cpu_features": features[:MAX_NEEDS]}
    for runtime, version in own.runtimes.items():
        versions = VersionRange(minimal=_numbers(version))
        yield {"runtime": RuntimeRange(name=runtime, versions=versions)}
    yield {"memory_mb": round(MEMORY_SHARE * own.memory_mb)}
    yield {"glibc": _numbers(own.glibc)}
    yield {"python": VersionRange(minimal=_numbers(own.python))}


def _distinguish(variant: Variant, own: DeviceFacts, others: Sequence[DeviceFacts]) -> Variant:
    for other in others:
        if find_mismatch(variant, other):
            continue
        # A selector names one runtime and one accelerator: the new one must not let back in whom
        # the old one kept out.
        excluded = [other, *(f for f in others if find_mismatch(variant, f))]
        for fields in make_requirements(own, other):
            stricter = _require(variant, fields)
            if not find_mismatch(stricter, own) and all(
                find_mismatch(stricter, facts) for facts in excluded
            ):
                variant = stricter
                break
    return variant


def _require(variant: Variant, fields: dict[str, object]) -> Variant:
    selector = msgspec.structs.replace(variant.selector, **fields)
    groups = (*variant.selector.cpu_features, *selector.cpu_features)
    unique: tuple[str, ...] = tuple(dict.fromkeys(groups))[:MAX_NEEDS]
    selector = msgspec.structs.replace(selector, cpu_features=unique)
    return msgspec.structs.replace(variant, selector=selector)


def _merge(placed: Sequence[Placed]) -> list[Placed]:
    merged: list[Placed] = []
    for late in placed:
        early = next((earlier for earlier in merged if _is_indistinct(earlier, late)), None)
        if early is None:
            merged.append(late)
            continue
        if not _is_same(early, late):
            raise _indistinct(early.variant, late.variant)
        merged[merged.index(early)] = _join(early, late)
    return merged


def _is_indistinct(one: Placed, two: Placed) -> bool:
    return _matches_any(one.variant, two.devices) and _matches_any(two.variant, one.devices)


def _matches_any(variant: Variant, devices: Sequence[DeviceFacts]) -> bool:
    return any(not find_mismatch(variant, facts) for facts in devices)


def _is_same(one: Placed, two: Placed) -> bool:
    runtimes = [(place.variant.runtime.name, place.variant.runtime.options) for place in (one, two)]
    return one.digests == two.digests and runtimes[0] == runtimes[1]


def _join(one: Placed, two: Placed) -> Placed:
    """One variant for both profiles; each gate says whose it is."""
    gates = tuple(
        gate if gate.profile else msgspec.structs.replace(gate, profile=place.variant.profiles[0])
        for place in (one, two)
        for gate in place.variant.gates
    )
    profiles = (*one.variant.profiles, *two.variant.profiles)
    variant = msgspec.structs.replace(one.variant, profiles=profiles, gates=gates)
    return msgspec.structs.replace(one, variant=variant, devices=(*one.devices, *two.devices))


def _catches(placed: Placed, pending: Sequence[Placed]) -> bool:
    """Would a device of another variant that waits take this one?"""
    return any(
        _matches_any(placed.variant, other.devices) for other in pending if other is not placed
    )


def _indistinct(one: Variant, two: Variant) -> InputError:
    return InputError(
        f"no fact that a device detects tells '{one.profiles[0]}' from '{two.profiles[0]}', "
        "and each needs other files",
        hint="leave one profile out, or write separate packages, without --bundle",
    )


def _numbers(version: str) -> str:
    """'2.20.0' of '2.20.0.dev1': what a selector compares."""
    match = re.match(r"[0-9]{1,9}(\.[0-9]{1,9}){0,5}", version)
    return match[0] if match else ""
