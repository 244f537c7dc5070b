"""`edge-agent install`, `rollback`, `models` and `infer`: installed models and their answers."""

from __future__ import annotations

from typing import Annotated

import typer

from agent.commands.options import (
    ConfigFile,
    InputFile,
    ModelName,
    PackageFile,
    VariantName,
    load_settings,
)
from agent.commands.render import render_answer, render_models, render_switch, show_progress
from agent.service import control
from edge_core import console
from edge_core.console import Json
from edge_core.package.run import MAX_TOP

app = typer.Typer()


@app.command("install")
def install_package(
    package: PackageFile,
    force: Annotated[
        bool, typer.Option("--force", help="Even if it was rolled back; measure again.")
    ] = False,
    path: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Verify, self-test and tune PACKAGE, then serve it; the current one becomes previous."""
    settings = load_settings(path)
    switch = control.install_package(settings, package, force=force, progress=show_progress)
    console.print_json(switch) if as_json else render_switch(switch)


@app.command("rollback")
def roll_back(
    name: ModelName,
    refuse: Annotated[
        bool, typer.Option("--refuse", help="Refuse to install the abandoned package again.")
    ] = False,
    path: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Return NAME to its previous package."""
    switch = control.roll_back(load_settings(path), name, refuse=refuse)
    console.print_json(switch) if as_json else render_switch(switch)


@app.command("models")
def list_models(path: ConfigFile = None, as_json: Json = False) -> None:
    """List the installed models."""
    models = control.read_models(load_settings(path))
    console.print_json(models) if as_json else render_models(models)


@app.command("infer")
def infer(
    target: Annotated[str, typer.Argument(help="An installed model, or a package's path.")],
    source: InputFile,
    top: Annotated[
        int, typer.Option(min=0, max=MAX_TOP, help="Classes to show; 0: raw outputs.")
    ] = 5,
    variant: VariantName = "",
    path: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Run one INPUT; a running agent answers for an installed model."""
    answer = control.infer(path, target, source, top=top, variant=variant)
    if as_json or not answer.top:
        console.print_json(answer)
    else:
        render_answer(answer)
