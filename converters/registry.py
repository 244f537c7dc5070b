"""Converters and formats by name: ours are listed here, others come by their entry-point groups.

Importing one is cheap: heavy packages are imported inside its functions, so listing and planning
need none of them.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from converters.onnx.format import ONNX, TORCH_PROGRAM
from converters.onnx.recipes import ONNX_CONVERTERS
from converters.spec import Converter, Format
from converters.tflite.format import TFLITE
from converters.tflite.recipes import TFLITE_CONVERTERS
from edge_core.errors import InputError

OURS: tuple[Converter, ...] = (*ONNX_CONVERTERS, *TFLITE_CONVERTERS)
OUR_FORMATS: tuple[Format, ...] = (ONNX, TORCH_PROGRAM, TFLITE)
GROUP = "edge_deploy.converters"
FORMAT_GROUP = "edge_deploy.formats"


@cache
def by_name() -> dict[str, Converter]:
    """Every converter that is installed, by the name of its recipe."""
    table: dict[str, Converter] = {}
    for converter in (*OURS, *(entry_point.load() for entry_point in entry_points(group=GROUP))):
        if table.setdefault(converter.SPEC.name, converter) is not converter:
            raise InputError(f"two converters are named '{converter.SPEC.name}'")
    return table


def get(name: str) -> Converter:
    """The converter of that name; raises InputError with the known names."""
    try:
        return by_name()[name]
    except KeyError:
        known = ", ".join(sorted(by_name()))
        raise InputError(f"no converter '{name}'", hint=f"one of: {known}") from None


@cache
def formats_by_name() -> dict[str, Format]:
    """Every format that is installed."""
    table: dict[str, Format] = {}
    suffixes: dict[str, Format] = {}
    for f in (*OUR_FORMATS, *(e.load() for e in entry_points(group=FORMAT_GROUP))):
        if table.setdefault(f.name, f) is not f:
            raise InputError(f"two formats are named '{f.name}'")
        for suffix in f.suffixes:
            if suffixes.setdefault(suffix, f) is not f:
                raise InputError(f"formats '{suffixes[suffix].name}' and '{f.name}' read {suffix}")
    return table


def get_format(name: str) -> Format:
    """The format of that name; raises InputError with the known names."""
    try:
        return formats_by_name()[name]
    except KeyError:
        known = ", ".join(sorted(formats_by_name()))
        raise InputError(f"no format '{name}'", hint=f"one of: {known}") from None


def find_format(path: Path) -> Format:
    """The format that a file's suffix says; raises InputError with the known suffixes."""
    by_suffix = {suffix: f for f in formats_by_name().values() for suffix in f.suffixes}
    if path.suffix not in by_suffix:
        raise InputError(
            f"{path}: models are read from {' or '.join(by_suffix)}, not '{path.suffix}'",
            hint="export to ONNX with the framework's own exporter",
        )
    return by_suffix[path.suffix]


def prepared_format(source: Format) -> Format:
    """The format that converters get a model of ``source`` in."""
    return get_format(source.exports_to) if source.exports_to else source
