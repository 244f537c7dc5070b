"""Which variant of a package a device gets. Pure: facts come in as values.

select_variant(manifest, facts) -> Variant           the device: the first that matches, or none
choose_variant(manifest, facts, name) -> Choice      the host: any variant may be tried
find_mismatch(variant, facts) -> str                 the first fact that does not match, or ""
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import msgspec

from edge_core.errors import InputError
from edge_core.facts import DeviceFacts
from edge_core.package.manifest import AcceleratorNeed, Manifest, Variant, VersionRange

MAX_SHOWN = 80  # characters of a value in a message
MAX_LISTED = 8  # variants in a message


class Choice(msgspec.Struct, frozen=True):
    """A variant, and why it is not the one that a device like this would get."""

    variant: Variant
    notes: tuple[str, ...] = ()


def select_variant(manifest: Manifest, facts: DeviceFacts) -> Variant:
    """The first variant in the package's order that matches; raises InputError if none does.

    The error names for each variant the first fact that does not match.
    """
    mismatches = {}
    for variant in manifest.variants:
        mismatch = find_mismatch(variant, facts)
        if not mismatch:
            return variant
        mismatches[variant.name] = mismatch
    shown = [f"'{name}' {why}" for name, why in itertools.islice(mismatches.items(), MAX_LISTED)]
    if len(mismatches) > MAX_LISTED:
        shown.append(f"and {len(mismatches) - MAX_LISTED} more")
    raise InputError(
        f"{manifest.name} {manifest.version} has no variant for this machine: {'; '.join(shown)}",
        hint="build it for the profile of a device like this one",
    )


def choose_variant(manifest: Manifest, facts: DeviceFacts, name: str = "") -> Choice:
    """The variant called ``name``, else the one to check on a host that may be no such device.

    Without a name: the first that matches; if none does, the first whose runtime is installed;
    if there is none either, the first. Raises InputError for an unknown name.
    """
    if name:
        variant = manifest.variant(name)
        return _with_note(variant, facts)
    for variant in manifest.variants:
        if not find_mismatch(variant, facts):
            return Choice(variant)
    runnable = (known for known in manifest.variants if known.runtime.name in facts.runtimes)
    return _with_note(next(runnable, manifest.variants[0]), facts)


def find_mismatch(variant: Variant, facts: DeviceFacts) -> str:
    """The first fact that excludes ``facts``, required and present value; empty if none does."""
    return next(_mismatches(variant, facts), "")


def _with_note(variant: Variant, facts: DeviceFacts) -> Choice:
    mismatch = find_mismatch(variant, facts)
    return Choice(variant, (f"variant '{variant.name}' {mismatch}",) if mismatch else ())


def _mismatches(variant: Variant, facts: DeviceFacts) -> Iterator[str]:
    needs = variant.selector
    if (needs.arch, needs.os) != (facts.arch, facts.os):
        yield _unmet(f"{needs.arch} {needs.os}", f"{facts.arch} {facts.os}")
    if needs.glibc and not _in_range(facts.glibc, VersionRange(minimal=needs.glibc)):
        yield _unmet(f"glibc {needs.glibc}", facts.glibc)
    if not _in_range(facts.python, needs.python):
        yield _unmet(f"Python {_range_text(needs.python)}", facts.python)
    for group in needs.cpu_features:
        if not set(group.split("|")) & set(facts.cpu_features):
            features = group.replace("|", " or ")
            yield _unmet(f"the CPU feature {features}", " ".join(facts.cpu_features))
    if needs.accelerator and not _has_accelerator(needs.accelerator, facts):
        present = ", ".join(
            f"{accelerator.name} {accelerator.capability}".strip()
            for accelerator in facts.accelerators
        )
        yield _unmet(_accelerator_text(needs.accelerator), present)
    if needs.runtime:
        present = facts.runtimes.get(needs.runtime.name, "")
        if not present or not _in_range(present, needs.runtime.versions):
            wanted = f"{needs.runtime.name} {_range_text(needs.runtime.versions)}".strip()
            yield _unmet(wanted, present)
    if facts.memory_mb < needs.memory_mb:
        yield _unmet(f"{needs.memory_mb:g} MB of memory", f"{facts.memory_mb:g} MB")
    if variant.runtime.name not in facts.runtimes:  # last: it can be installed
        yield _unmet(f"the runtime {variant.runtime.name}", ", ".join(facts.runtimes))


def _unmet(required: str, present: str) -> str:
    return f"needs {_shorten(required)}; it has {_shorten(present) or 'none'}"


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_SHOWN else f"{line[:MAX_SHOWN]}..."


def _has_accelerator(need: AcceleratorNeed, facts: DeviceFacts) -> bool:
    return any(
        present.kind == need.kind
        and need.name in ("", present.name)
        and _is_capable(present.capability, need.capability)
        for present in facts.accelerators
    )


def _is_capable(present: str, minimal: str) -> bool:
    """Is sm_87 at least sm_72? Of another family, or unknown: no."""
    if not minimal:
        return True
    family, _, number = minimal.partition("_")
    has_family, _, has_number = present.partition("_")
    return has_family == family and has_number.isdecimal() and int(has_number) >= int(number)


def _accelerator_text(need: AcceleratorNeed) -> str:
    return " ".join(filter(None, (need.kind, need.name, need.capability)))


def _in_range(version: str, versions: VersionRange) -> bool:
    """An unknown version is in no range but the one without bounds."""
    if not versions.minimal and not versions.below:
        return True
    numbers = _numbers(version)
    above = not versions.minimal or numbers >= _numbers(versions.minimal)
    return bool(numbers) and above and (not versions.below or numbers < _numbers(versions.below))


def _range_text(versions: VersionRange) -> str:
    bounds = (("from ", versions.minimal), ("below ", versions.below))
    return " ".join(f"{word}{bound}" for word, bound in bounds if bound)


def _numbers(version: str) -> tuple[int, ...]:
    """(2, 20) of "2.20.0.dev1": the leading numbers, without zeros at the end."""
    match = re.match(r"\d{1,9}(\.\d{1,9})*", version)
    numbers = [int(digits) for digits in match[0].split(".")] if match else []
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
