"""`edge-agent cache`: what remembered answers save, how to forget them, calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agent.caches.rules import AnswerRule
from agent.commands.options import ConfigFile, ModelName, load_settings
from agent.commands.render import render_caches, render_calibration
from agent.service import cache_control
from edge_core import console
from edge_core.console import Json
from edge_core.errors import GateFailed

app = typer.Typer(help="Stored answers: show, clear, calibrate.")


@app.callback(invoke_without_command=True)
def show_caches(context: typer.Context, path: ConfigFile = None, as_json: Json = False) -> None:
    """Show what each cache holds, and its counters if the agent is running."""
    if context.invoked_subcommand:
        return
    caches = cache_control.read_caches(load_settings(path))
    console.print_json(caches) if as_json else render_caches(caches)


@app.command("clear")
def clear_caches(path: ConfigFile = None, as_json: Json = False) -> None:
    """Delete every stored answer; the agent must be stopped."""
    names = cache_control.clear_caches(load_settings(path))
    if as_json:
        console.print_json({"cleared": names})
    else:
        typer.echo(f"cleared: {', '.join(names) or 'nothing was there'}")


@app.command("calibrate")
def calibrate_cache(
    name: ModelName,
    samples: Annotated[
        Path, typer.Argument(help="A folder of inputs; each sub-folder is one clip.")
    ],
    epsilon: Annotated[float, typer.Option(help="Largest accepted share of wrong reuses.")],
    confidence: Annotated[float, typer.Option(help="Confidence of the proof.")] = 0.95,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Accepted difference of answers; 0: same best class.")
    ] = 0.0,
    path: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Find how near is near enough for NAME. Exit code 2: none is proven, the cache stays off."""
    rule = AnswerRule(kind="tolerance" if tolerance else "top1", tolerance=tolerance)
    calibration = cache_control.calibrate_cache(
        load_settings(path), name, samples, rule=rule, epsilon=epsilon, confidence=confidence
    )
    console.print_json(calibration) if as_json else render_calibration(calibration)
    if calibration.evidence is None:
        raise typer.Exit(GateFailed.exit_code)
