"""Arguments and options that several commands take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import device_profiles
from edge_core.profile import Profile

ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx, .pt2 or .tflite file.")]
PackageFile = Annotated[
    Path, typer.Argument(metavar="PACKAGE", help="An .edgepkg file or OCI layout.")
]
ProfileNames = Annotated[
    list[str], typer.Option("--profile", "-p", help="A profile's name or .toml file; repeatable.")
]
Overrides = Annotated[
    list[str],
    typer.Option("--set", help="Override a value: budgets.latency_p99_ms=20; repeatable."),
]


def load_profile(name: str, overrides: Sequence[str] = ()) -> Profile:
    """A profile by name or file, with the overrides of --set; raises InputError."""
    return device_profiles.load(name, tuple(overrides))
