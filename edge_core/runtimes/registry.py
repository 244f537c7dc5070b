"""Runtime adapters by name: ours are listed here, others come by the entry-point group."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from edge_core.errors import InputError
from edge_core.runtimes import onnxruntime, tflite
from edge_core.runtimes.adapter import Adapter

# The type checker verifies each.
OURS: tuple[Adapter, ...] = (onnxruntime, tflite.LITERT, tflite.TFLITE_RUNTIME)
GROUP = "edge_deploy.runtimes"


@cache
def by_name() -> dict[str, Adapter]:
    """Every adapter that is installed, by the name that profiles and packages use."""
    table: dict[str, Adapter] = {}
    for a in (*OURS, *(e.load() for e in entry_points(group=GROUP))):
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
