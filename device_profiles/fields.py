"""The profile's fields: checking a partial table, overriding one value, building the Profile.

Messages name the file (or the override), the dotted field, and the nearest or the valid choices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_core import toml_schema
from edge_core.errors import InputError
from edge_core.profile import SCHEMA, Profile
from edge_core.runtimes import registry as runtimes


def check(doc: Mapping[str, Any], where: str) -> None:
    """Raise InputError for the first field of a partial profile that is unknown or invalid."""
    newer = doc.get("schema", SCHEMA)
    if isinstance(newer, int) and newer > SCHEMA:
        raise InputError(
            f"{where}: schema {newer}; this version reads up to {SCHEMA}",
            hint="update edge-deploy on this machine",
        )
    toml_schema.check(doc, Profile, where)


def override(doc: dict[str, Any], text: str) -> None:
    """Apply "budgets.latency_p99_ms=20" to ``doc``; list items are addressed by name.

    Its source becomes the override.
    """
    where = f"override '{text}'"
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise InputError(
            f"{where} has no field or no value", hint="write field.name=value, like cpu.cores=2"
        )
    toml_schema.place(doc, Profile, path, value.strip(), where)
    dotted = ".".join(path)
    if path[0] != "sources":
        sources = doc.get("sources", {}).items()
        kept = {field: source for field, source in sources if not _is_below(field, dotted)}
        doc["sources"] = {**kept, dotted: "override"}


def to_profile(doc: Mapping[str, Any], where: str) -> Profile:
    """Build the profile from a table whose parts were checked; InputError if one is missing."""
    profile: Profile = toml_schema.build(doc, Profile, where)
    known = runtimes.known_names()
    for index, runtime in enumerate(profile.runtimes):
        if runtime.name not in known:
            raise InputError(
                f"{where}: runtimes[{index}].name: no runtime '{runtime.name}' is known",
                hint=f"one of: {', '.join(known)}; others come with their adapter's package",
            )
    return profile


def _is_below(key: str, dotted: str) -> bool:
    return key == dotted or key.startswith(f"{dotted}.")
