"""`edge-agent init`, `run` and `status`: the agent as a service."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from agent import config
from agent.commands.options import ConfigFile, load_settings
from agent.commands.render import render_overview
from agent.service import control
from edge_core import console
from edge_core.console import Json

app = typer.Typer()


@app.command("init")
def init_settings(
    path: ConfigFile = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where packages and caches go.")] = None,
    as_json: Json = False,
) -> None:
    """Write the settings, each one explained, and create the data directory."""
    locations = control.init_settings(path, data_dir)
    if as_json:
        console.print_json(locations)
    else:
        typer.echo(f"wrote {locations.config}; data goes to {locations.data_dir}")


@app.command("run")
def run_service(
    path: ConfigFile = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Log as JSON, one event per line.")
    ] = False,
) -> None:
    """Serve the installed models until SIGTERM or Ctrl-C."""
    words = ["--config", str(config.find_config(path)), *(["--json"] if as_json else [])]
    sys.stdout.flush()
    # In place of this process, so that what only commands need is not kept in memory.
    os.execv(sys.executable, [sys.executable, "-I", "-m", "agent.service.daemon", *words])  # noqa: S606


@app.command("status")
def show_status(path: ConfigFile = None, as_json: Json = False) -> None:
    """Show the running agent's models, stage times, errors and caches."""
    overview = control.read_overview(load_settings(path))
    console.print_json(overview) if as_json else render_overview(overview)
