"""`edge doctor`: what this machine can do."""

from __future__ import annotations

import typer

from edge_core import console
from edge_core.console import Json
from edge_sdk import doctor
from edge_sdk.commands.render import render_checks

app = typer.Typer()


@app.command("doctor")
def check_machine(as_json: Json = False) -> None:
    """Check what this machine can do, and how to install what is missing."""
    checks = doctor.check_machine()
    if as_json:
        console.print_json(checks)
    else:
        render_checks(checks)
