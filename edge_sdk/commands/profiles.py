"""`edge profiles`: the shipped device profiles, and the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import device_profiles
from edge_core import console
from edge_core.console import Json
from edge_core.files import write_atomic
from edge_core.machine import detect
from edge_core.profile import json_schema
from edge_core.runtimes import registry as runtimes
from edge_sdk.commands.options import Overrides, load_profile
from edge_sdk.commands.render import render_profiles

app = typer.Typer(no_args_is_help=True, help="Device profiles: built-in and your own.")

ProfileName = Annotated[str, typer.Argument(metavar="NAME", help="A profile's name or .toml file.")]
ProfileFile = Annotated[Path, typer.Argument(metavar="FILE", help="A .toml file.")]
NewProfile = Annotated[Path | None, typer.Option(help="Write to this file instead of stdout.")]


@app.command("list")
def list_profiles(as_json: Json = False) -> None:
    """List the built-in profiles."""
    profiles = [device_profiles.load(name) for name in device_profiles.names()]
    if as_json:
        console.print_json(profiles)
    else:
        render_profiles(profiles)


@app.command("show")
def show_profile(name: ProfileName, set_: Overrides = [], as_json: Json = False) -> None:
    """Print a profile with everything it inherits."""
    profile = load_profile(name, set_)
    if as_json:
        console.print_json(profile)
    else:
        typer.echo(device_profiles.dump(profile), nl=False)


@app.command("check")
def check_profile(path: ProfileFile, as_json: Json = False) -> None:
    """Check a profile file: which field is wrong, and what is allowed."""
    profile = load_profile(str(path))
    if as_json:
        console.print_json(profile)
    else:
        typer.echo(f"{path}: profile '{profile.name}' is fine", err=True)


@app.command("schema")
def print_schema() -> None:
    """Print the JSON Schema of profiles."""
    console.print_json(json_schema())


@app.command("detect")
def detect_profile(out: NewProfile = None, as_json: Json = False) -> None:
    """Write a profile of this machine.

    Facts that cannot be detected are left out; add the budgets yourself.
    """
    profile = detect.detect(runtimes=runtimes.installed_runtimes())
    text = device_profiles.dump(profile)
    if out:
        write_atomic(out, text.encode())
        typer.echo(f"wrote {out}", err=True)
    if as_json:
        console.print_json(profile)
    elif not out:
        typer.echo(text, nl=False)
