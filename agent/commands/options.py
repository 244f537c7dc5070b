"""Arguments and options that several commands take, spelled once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from agent import config
from agent.config import Config

PackageFile = Annotated[
    Path, typer.Argument(metavar="PACKAGE", help="An .edgepkg file or OCI layout.")
]
InputFile = Annotated[Path, typer.Argument(metavar="INPUT", help="An image, .npz or .npy.")]
VariantName = Annotated[
    str, typer.Option("--variant", metavar="NAME", help="Of a package; default: what fits here.")
]
ModelName = Annotated[str, typer.Argument(metavar="NAME", help="An installed model.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="The settings file to use.")
]


def load_settings(path: Path | None) -> Config:
    """The settings that count, for a command that may write into data_dir; raises InputError."""
    os.umask(0o077)
    return config.load_config(config.find_config(path))
