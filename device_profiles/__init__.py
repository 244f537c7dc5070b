"""Device profiles: one TOML file per device; shipped and custom ones are read by the same code.

names()                                       -> ("android-arm64", "iphone-12", ...)
load("raspberry-pi-4b")                       -> Profile
load("gate.toml", ("budgets.load_ms=200",))   -> Profile; the file may say extends = "jetson-nano"
dump(profile)                                 -> TOML that loads to the same profile

    file -> extends, oldest first -> merged (tables deep, lists replaced) -> overrides -> Profile

Everything raises InputError, and only that; it names the file, the field and what is allowed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec
import tomli_w

from device_profiles import fields, files
from edge_core.profile import SCHEMA, Profile

__all__ = ["dump", "load", "names"]


def names() -> tuple[str, ...]:
    """Names of the profiles that come with this version."""
    return files.list_names()


def load(name: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Profile:
    """The profile of that name, or in that file, with ``overrides`` ("cpu.cores=2") applied.

    Text that ends in .toml or contains a slash is a file. A value is written as in TOML; quotes
    around a string may be left out; ``none`` removes an optional value.
    """
    doc, where = files.resolve(name)
    for text in overrides:
        fields.override(doc, text)
    return fields.to_profile(doc, where)


def dump(profile: Profile) -> str:
    """The profile as TOML, inherited values included; defaults are left out."""
    return tomli_w.dumps({"schema": SCHEMA, **_plain(profile)})


def _plain(struct: msgspec.Struct) -> dict[str, object]:
    out: dict[str, object] = {}
    for field in msgspec.structs.fields(struct):
        value = getattr(struct, field.name)
        # TOML has no null; an absent optional value is one.
        if value is not None and value != field.default and field.name != "schema":
            out[field.name] = _value(value)
    return out


def _value(value: object) -> object:
    if isinstance(value, msgspec.Struct):
        return _plain(value)
    if isinstance(value, tuple):
        return [_value(item) for item in value]
    return value
