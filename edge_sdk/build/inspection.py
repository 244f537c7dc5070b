"""Inspecting: a model's facts, and what a profile's runtime lacks for it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from converters import registry as converters
from converters.spec import Format, Shapes
from edge_core.errors import EdgeError, InputError
from edge_core.files import sha256_file
from edge_core.profile import Profile
from edge_sdk.build import convert, reader
from edge_sdk.build.stages import Model


class ProfileSupport(msgspec.Struct, frozen=True, kw_only=True):
    """What one profile's runtime makes of the model."""

    profile: str
    runtime: str
    missing: tuple[str, ...]  # ops without a CPU kernel
    opset: str  # "17 of at most 21"


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    model: Model
    support: tuple[ProfileSupport, ...] = ()
    notes: tuple[str, ...] = ()


def inspect(path: Path, shapes: Shapes, profiles: Sequence[Profile]) -> Inspection:
    """Describe a model; its MACs and facets come from a static copy in a temporary folder."""
    if not path.is_file():
        raise InputError(f"no model at {path}")
    source = converters.find_format(path)
    target = converters.prepared_format(source)
    convert.check_shapes(path, target, shapes)
    with tempfile.TemporaryDirectory(prefix="edge-inspect-") as folder:
        original = path
        if source.export:
            original = Path(folder) / f"exported{target.suffixes[0]}"
            source.export(path, original)
        description = target.describe(original, shapes)
        model = reader.make_model(path, source, sha256_file(path), description)
        notes: tuple[str, ...] = ()
        if target.prepare:
            model, notes = _add_costs(model, target, original, Path(folder), shapes)
    support = tuple(_find_support(model, target, profile) for profile in profiles)
    return Inspection(model=model, notes=notes, support=support)


def _add_costs(
    model: Model, target: Format, original: Path, folder: Path, shapes: Shapes
) -> tuple[Model, tuple[str, ...]]:
    """The model with what only its static form tells, and notes on that form."""
    assert target.prepare
    static = folder / f"static{target.suffixes[0]}"
    try:
        notes = target.prepare(original, static, shapes, "fixed").notes
        known = target.describe(static, {})
    except EdgeError as error:  # still worth showing: the user may be looking for the reason
        return model, (
            f"cannot be converted yet: {error.what}",
            *([error.hint] if error.hint else []),
        )
    costs = {
        field: getattr(known, field)
        for field in ("macs", "facets", "parameters", "weight_bytes", "outputs")
    }
    return msgspec.structs.replace(model, **costs), notes


def _find_support(model: Model, target: Format, profile: Profile) -> ProfileSupport:
    runtime = next(filter(None, map(profile.runtime, target.runtimes)), None)
    if runtime is None:
        listed = ", ".join(f"{runtime.name} {runtime.version}" for runtime in profile.runtimes)
        name = f"none of {listed}" if listed else "none"
        return ProfileSupport(profile=profile.name, runtime=name, missing=(), opset="")
    support = target.find_support(model, runtime)
    return ProfileSupport(
        profile=profile.name,
        runtime=f"{runtime.name} {runtime.version}",
        missing=support.missing,
        opset=support.opset,
    )
