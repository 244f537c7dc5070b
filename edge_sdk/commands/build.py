"""`edge inspect`, `edge plan` and `edge build`: from a model to packages."""

from __future__ import annotations

from typing import Annotated

import typer

from edge_core import console
from edge_core.console import Json
from edge_sdk import api
from edge_sdk.build import inspection, judge, planner
from edge_sdk.build.request import BuildOptions
from edge_sdk.commands.build_options import expand_options
from edge_sdk.commands.options import (
    ModelFile,
    Overrides,
    ProfileNames,
    load_profile,
)
from edge_sdk.commands.progress import show_progress
from edge_sdk.commands.render import render_build, render_inspection, render_plans

Strict = Annotated[bool, typer.Option("--strict", help="Treat an inconclusive gate as failed.")]

app = typer.Typer()


@app.command("inspect")
@expand_options("shapes")
def inspect_model(
    model: ModelFile, options: BuildOptions, profile: ProfileNames = [], as_json: Json = False
) -> None:
    """Show what MODEL consists of, and which of its ops a runtime lacks."""
    profiles = [load_profile(name) for name in profile]
    inspected = inspection.inspect(model, options.shapes, profiles)
    if as_json:
        console.print_json(inspected)
    else:
        render_inspection(inspected)


@app.command("plan")
@expand_options("shapes", "also")
def plan_candidates(
    model: ModelFile,
    profile: ProfileNames,
    options: BuildOptions,
    set_: Overrides = [],
    as_json: Json = False,
) -> None:
    """Show every candidate for MODEL, in or out, with the reason.

    Needs no samples; converts and measures nothing.
    """
    profiles = [load_profile(name, set_) for name in profile]
    facts = inspection.inspect(model, options.shapes, []).model
    plans = [planner.plan(facts, one, samples=True, also=options.also) for one in profiles]
    if as_json:
        console.print_json(plans)
    else:
        render_plans(plans)


@app.command("build")
@expand_options()
def build_packages(
    model: ModelFile,
    profile: ProfileNames,
    options: BuildOptions,
    set_: Overrides = [],
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Convert MODEL, measure and judge the candidates, and package the winner.

    Writes one package and one report per profile. Exit code 2: a gate refused every candidate.
    """
    profiles = [load_profile(name, set_) for name in profile]
    with show_progress() as progress:
        results = api.build(model, profiles, options, progress=progress)
    if as_json:
        console.print_json(results)
    else:
        render_build(results)
    judge.check_verdicts((result.verdict for result in results), strict=strict)
