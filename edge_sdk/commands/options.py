"""Arguments and options that several commands take, and what their text means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

import device_profiles
from edge_core.errors import InputError
from edge_core.profile import Profile

ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx, .pt2 or .tflite file.")]
PackageFile = Annotated[Path, typer.Argument(metavar="PACKAGE", help=".edgepkg or OCI layout.")]
ProfileNames = Annotated[
    list[str], typer.Option("--profile", "-p", help="A profile's name or .toml file; repeatable.")
]
Overrides = Annotated[
    list[str], typer.Option("--set", help="Override, like budgets.latency_p99_ms=20; repeatable.")
]
ShapeTexts = Annotated[
    list[str], typer.Option("--shape", help="Fix a dynamic dimension, like batch=1; repeatable.")
]
AlsoMeasured = Annotated[
    list[str], typer.Option("--with", help="Measure a candidate although refused; repeatable.")
]


def load_profile(name: str, overrides: Sequence[str] = ()) -> Profile:
    """A profile by name or file, with the overrides of --set; raises InputError."""
    return device_profiles.load(name, tuple(overrides))


def parse_shapes(texts: Iterable[str]) -> dict[str, int | tuple[int, ...]]:
    """--shape options as a table of name to size or shape; raises InputError."""
    table: dict[str, int | tuple[int, ...]] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        sizes = value.split("x")
        if not name or not all(re.fullmatch("0*[1-9][0-9]{0,9}", size) for size in sizes):
            raise InputError(f"--shape {text}: write batch=1, or input=1x3x224x224")
        table[name] = int(value) if len(sizes) == 1 else tuple(map(int, sizes))
    return table
