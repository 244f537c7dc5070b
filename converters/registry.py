"""Converters by name: ours are listed here, others come by the entry-point group.

Importing one is cheap: heavy packages are imported inside convert(), so listing and planning need
none of them.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from converters.onnx.recipes import ONNX_CONVERTERS
from converters.spec import Converter
from converters.tflite.recipes import TFLITE_CONVERTERS
from edge_core.errors import InputError

OURS: tuple[Converter, ...] = (*ONNX_CONVERTERS, *TFLITE_CONVERTERS)
GROUP = "edge_deploy.converters"


@cache
def by_name() -> dict[str, Converter]:
    """Every converter that is installed, by the name of its recipe."""
    table: dict[str, Converter] = {}
    for c in (*OURS, *(e.load() for e in entry_points(group=GROUP))):
        if table.setdefault(c.SPEC.name, c) is not c:
            raise InputError(f"two converters are named '{c.SPEC.name}'")
    return table


def get(name: str) -> Converter:
    """The converter of that name; raises InputError with the known names."""
    try:
        return by_name()[name]
    except KeyError:
        known = ", ".join(sorted(by_name()))
        raise InputError(f"no converter '{name}'", hint=f"one of: {known}") from None
