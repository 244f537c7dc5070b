"""`edge inspect`, `edge plan` and `edge build`: from a model to packages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from edge_core import console
from edge_core.console import Json
from edge_sdk.build import inspection, pipeline, planner, samples
from edge_sdk.build.request import BuildRequest
from edge_sdk.build.workspace import Workspace
from edge_sdk.commands.options import (
    AlsoMeasured,
    ModelFile,
    Overrides,
    ProfileNames,
    ShapeTexts,
    load_profile,
    parse_shapes,
)
from edge_sdk.commands.progress import show_progress
from edge_sdk.commands.render import render_build, render_inspection, render_plans

ImageLayout = Literal["nhwc", "nchw"]
Batch = Literal["fixed", "dynamic"]
Names = list[str]
Objective = Literal["latency", "bytes", "memory", "accuracy"]


app = typer.Typer()


@app.command("inspect")
def inspect_model(
    model: ModelFile, profile: ProfileNames = [], shape: ShapeTexts = [], as_json: Json = False
) -> None:
    """Show what MODEL is made of, and what a runtime lacks for it."""
    profiles = [load_profile(name) for name in profile]
    inspected = inspection.inspect(model, parse_shapes(shape), profiles)
    if as_json:
        console.print_json(inspected)
    else:
        render_inspection(inspected)


@app.command("plan")
def plan_candidates(
    model: ModelFile,
    profile: ProfileNames,
    set_: Overrides = [],
    shape: ShapeTexts = [],
    with_: AlsoMeasured = [],
    as_json: Json = False,
) -> None:
    """Show every candidate for MODEL, in or out, with the reason.

    No samples are needed, and nothing is converted or measured.
    """
    profiles = [load_profile(name, set_) for name in profile]
    facts = inspection.inspect(model, parse_shapes(shape), []).model
    plans = [planner.plan(facts, p, samples=True, also=with_) for p in profiles]
    if as_json:
        console.print_json(plans)
    else:
        render_plans(plans)


@app.command("build")
def build_packages(
    model: ModelFile,
    profile: ProfileNames,
    out: Annotated[Path, typer.Option(help="Folder for packages and reports.")] = Path("dist"),
    evaluation: Annotated[
        str, typer.Option("--eval", help="Samples: image folder, .npz, .npy, module:function.")
    ] = "",
    calibration: Annotated[str, typer.Option(help="Samples for static INT8; the same forms.")] = "",
    labels: Annotated[Path | None, typer.Option(help="Labels of --eval: .json .npy .txt")] = None,
    preprocess: Annotated[str, typer.Option(help="Image recipe: a name or a .toml file.")] = "",
    metric: Annotated[
        str, typer.Option(help="auto, top1, top5, agreement, cosine or module:function.")
    ] = "auto",
    set_: Overrides = [],
    shape: ShapeTexts = [],
    layout: Annotated[
        ImageLayout,
        typer.Option(help="Images of TFLite files: as cameras give them, or as in ONNX."),
    ] = "nhwc",
    batch: Annotated[
        Batch, typer.Option(help="dynamic: packages that take any number of rows at once.")
    ] = "fixed",
    objective: Annotated[
        Objective, typer.Option(help="What the winner is best at, among those that fit.")
    ] = "latency",
    only: Annotated[Names, typer.Option("--only", help="Candidates to look at; repeatable.")] = [],
    with_: AlsoMeasured = [],
    name: Annotated[str, typer.Option(help="Package name; default: the model's.")] = "",
    version: Annotated[str, typer.Option(help="Package version; default: from content.")] = "",
    class_names: Annotated[
        Path | None, typer.Option(help="Text file with one class name a line.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder for finished candidates.")] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Candidates side by side; 0: cores.")] = 0,
    offline: Annotated[
        bool, typer.Option("--offline", help="Install no runtime versions.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="An inconclusive gate fails, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Convert MODEL, measure and judge candidates, package the winner.

    Writes one package and one report a profile. Exit code 2: a gate refused every candidate.
    """
    request = BuildRequest(
        model=model,
        profiles=tuple(load_profile(p, set_) for p in profile),
        out=out,
        evaluation=evaluation,
        calibration=calibration,
        labels=labels,
        preprocess=samples.recipe(preprocess) if preprocess else None,
        metric=metric,
        shapes=parse_shapes(shape),
        layout="NHWC" if layout == "nhwc" else "NCHW",
        batch=batch,
        objective=objective,
        only=tuple(only),
        also=tuple(with_),
        name=name,
        version=version,
        class_names=samples.class_names(class_names) if class_names else (),
    )
    with show_progress() as progress:
        workspace = Workspace(cache, jobs=jobs or None, offline=offline, progress=progress)
        results = pipeline.build(request, workspace)
    if as_json:
        console.print_json(results)
    else:
        render_build(results)
    pipeline.check(results, strict=strict)
