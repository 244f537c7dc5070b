"""Runtime adapters by name: ours are listed here, others come by the entry-point group."""

from __future__ import annotations

import re
from functools import cache
from importlib import metadata
from importlib.util import find_spec

from edge_core.errors import InputError, MissingExtra
from edge_core.profile import Precision, Runtime
from edge_core.runtimes import onnxruntime, tflite
from edge_core.runtimes.adapter import Adapter

# The type checker verifies each.
OURS: tuple[Adapter, ...] = (onnxruntime, tflite.LITERT, tflite.TFLITE_RUNTIME)
GROUP = "edge_deploy.runtimes"
ANNOUNCED = ("tensorrt", "coreml")  # profiles name them already; their adapters are to come


@cache
def by_name() -> dict[str, Adapter]:
    """Every adapter that is installed, by the name that profiles and packages use."""
    table: dict[str, Adapter] = {}
    for a in (*OURS, *(e.load() for e in metadata.entry_points(group=GROUP))):
        if table.setdefault(a.SPEC.name, a) is not a:
            raise InputError(f"two runtimes are named '{a.SPEC.name}'")
    return table


def get(name: str) -> Adapter:
    """The adapter of that name; raises InputError with the known names."""
    try:
        return by_name()[name]
    except KeyError:
        known = ", ".join(sorted(by_name()))
        raise InputError(f"no runtime '{name}'", hint=f"one of: {known}") from None


def known_names() -> tuple[str, ...]:
    """Names that a profile may give a runtime."""
    return tuple(dict.fromkeys((*by_name(), *ANNOUNCED)))


def installed_runtimes() -> dict[Runtime, tuple[Precision, ...]]:
    """Runtimes of this interpreter, with the wheel that each came from and what each computes."""
    installed = {}
    for name, adapter in by_name().items():
        version, wheel = _installed_version(adapter)
        if version:
            installed[Runtime(name=name, version=version, wheel=wheel)] = adapter.SPEC.precisions
    return installed


def _installed_version(adapter: Adapter) -> tuple[str, str]:
    """Version and wheel tag; empty strings where the runtime is not installed.

    A nightly build is another distribution with the same module: only importing it tells. One
    that cannot be imported here, say beside this NumPy, runs nothing.
    """
    try:
        installed = metadata.distribution(adapter.SPEC.distribution)
    except metadata.PackageNotFoundError:
        if not find_spec(adapter.SPEC.module.partition(".")[0]):
            return "", ""
        try:
            return adapter.version(), ""
        except (MissingExtra, ImportError):
            return "", ""
    tag = re.search(r"^Tag: (\S+)", installed.read_text("WHEEL") or "", re.MULTILINE)
    return installed.version, tag[1] if tag else ""
