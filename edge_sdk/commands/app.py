"""The `edge` command: parses, calls one library function, shows the result.

Results on stdout, progress and errors on stderr. Exit codes: 0 pass, 1 error, 2 a gate failed,
130 interrupted.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

import device_profiles
from edge_core import console
from edge_core.console import Json
from edge_core.errors import InputError
from edge_core.machine import detect
from edge_core.package import format as package
from edge_core.package.bench import bench_package
from edge_core.package.run import run_package
from edge_core.package.verify import verify_package
from edge_core.profile import Profile, json_schema
from edge_sdk import doctor
from edge_sdk.build import inspection, pipeline, planner, samples
from edge_sdk.build.request import BuildRequest
from edge_sdk.build.workspace import Workspace
from edge_sdk.commands import render

app = console.new_app("One model and a device profile in, a measured and verified package out.")
profiles = typer.Typer(no_args_is_help=True, help="Device profiles: ours and your own.")
app.add_typer(profiles, name="profiles")

ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx, .pt2 or .tflite file.")]
PackageFile = Annotated[Path, typer.Argument(metavar="PACKAGE", help=".edgepkg or OCI layout.")]
ImageLayout = Literal["nhwc", "nchw"]
Batch = Literal["fixed", "dynamic"]
Layout = Annotated[Path, typer.Argument(metavar="DIR", help="OCI layout, as registries give it.")]
NewFolder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that does not exist.")]
NewPackage = Annotated[Path, typer.Argument(metavar="FILE", help="The .edgepkg to write.")]
ProfileName = Annotated[
    list[str], typer.Option("--profile", "-p", help="A profile's name or .toml file; repeatable.")
]
Set = Annotated[
    list[str], typer.Option("--set", help="Override, like budgets.latency_p99_ms=20; repeatable.")
]
Shape = Annotated[
    list[str], typer.Option("--shape", help="Fix a dynamic dimension, like batch=1; repeatable.")
]
Names = list[str]
Also = Annotated[
    Names, typer.Option("--with", help="Measure a candidate although refused; repeatable.")
]
Objective = Literal["latency", "bytes", "memory", "accuracy"]


@app.command("inspect")
def inspect_(
    model: ModelFile, profile: ProfileName = [], shape: Shape = [], as_json: Json = False
) -> None:
    """Show what MODEL is made of, and what a runtime lacks for it."""
    found = inspection.inspect(model, shapes(shape), [load(p, []) for p in profile])
    if as_json:
        console.print_json(found)
    else:
        render.inspection(found)


@app.command("plan")
def plan_(
    model: ModelFile,
    profile: ProfileName,
    set_: Set = [],
    shape: Shape = [],
    with_: Also = [],
    as_json: Json = False,
) -> None:
    """Show every candidate for MODEL, in or out, with the reason.

    No samples are needed, and nothing is converted or measured.
    """
    found = inspection.inspect(model, shapes(shape), []).model
    plans = [planner.plan(found, load(p, set_), samples=True, also=with_) for p in profile]
    if as_json:
        console.print_json(plans)
    else:
        render.plans(plans)


@app.command()
def build(
    model: ModelFile,
    profile: ProfileName,
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
    set_: Set = [],
    shape: Shape = [],
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
    with_: Also = [],
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
        profiles=tuple(load(p, set_) for p in profile),
        out=out,
        evaluation=evaluation,
        calibration=calibration,
        labels=labels,
        preprocess=samples.recipe(preprocess) if preprocess else None,
        metric=metric,
        shapes=shapes(shape),
        layout="NHWC" if layout == "nhwc" else "NCHW",
        batch=batch,
        objective=objective,
        only=tuple(only),
        also=tuple(with_),
        name=name,
        version=version,
        class_names=samples.class_names(class_names) if class_names else (),
    )
    with render.progress() as tell:
        work = Workspace(cache, jobs=jobs or None, offline=offline, progress=tell)
        built = pipeline.build(request, work)
    console.print_json(built) if as_json else render.built(built)
    pipeline.check(built, strict=strict)


@app.command()
def verify(path: PackageFile, as_json: Json = False) -> None:
    """Check PACKAGE's digests and replay its golden vectors here.

    Exit code 2: the digests are right, and the answers on this machine are not.
    """
    verified = verify_package(path)
    if as_json:
        console.print_json(verified)
    else:
        render.verified(verified)


@app.command()
def run(
    path: PackageFile,
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="An image, .npz or .npy.")],
    top: Annotated[int, typer.Option(min=0, max=1000, help="Classes to show; 0: raw outputs.")] = 5,
    as_json: Json = False,
) -> None:
    """Run PACKAGE on one INPUT and print the labels or the outputs."""
    answer = run_package(path, source, top=top)
    if as_json:
        console.print_json(answer)
    else:
        render.answer(answer)


@app.command()
def bench(
    path: PackageFile,
    threads: Annotated[
        list[int], typer.Option("--threads", "-t", min=1, max=256, help="Repeatable.")
    ] = [1],
    runs: Annotated[int, typer.Option(min=2, max=1_000_000, help="Inferences each.")] = 100,
    as_json: Json = False,
) -> None:
    """Time PACKAGE on this machine with its own golden inputs."""
    timed = bench_package(path, threads=tuple(threads), runs=runs)
    if as_json:
        console.print_json(timed)
    else:
        render.timed(timed)


@app.command()
def unpack(path: PackageFile, folder: NewFolder) -> None:
    """Write PACKAGE as an OCI image layout, for `skopeo inspect oci:DIR`."""
    package.unpack(path, folder)
    typer.echo(f"wrote {folder}", err=True)


@app.command()
def pack(folder: Layout, out: NewPackage, as_json: Json = False) -> None:
    """Write an OCI image layout back as one .edgepkg file."""
    written = package.pack(folder, out)
    if as_json:
        console.print_json(written)
    else:
        typer.echo(f"wrote {written.path}", err=True)


@app.command("doctor")
def doctor_(as_json: Json = False) -> None:
    """Check what this machine can do, and say how to get the rest."""
    checks = doctor.check()
    if as_json:
        console.print_json(checks)
    else:
        render.checks(checks)


@profiles.command("list")
def list_(as_json: Json = False) -> None:
    """List the profiles that come with this version."""
    found = [device_profiles.load(n) for n in device_profiles.names()]
    if as_json:
        console.print_json(found)
    else:
        render.profiles(found)


@profiles.command("show")
def show_(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A profile's name or .toml file.")],
    set_: Set = [],
    as_json: Json = False,
) -> None:
    """Print a profile with everything it inherits."""
    found = load(name, set_)
    if as_json:
        console.print_json(found)
    else:
        typer.echo(device_profiles.dump(found), nl=False)


@profiles.command()
def check(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A .toml file.")],
    as_json: Json = False,
) -> None:
    """Check a profile file: which field is wrong, what is allowed."""
    found = load(str(path), [])
    if as_json:
        console.print_json(found)
    else:
        typer.echo(f"{path}: profile '{found.name}' is fine", err=True)


@profiles.command()
def schema() -> None:
    """Print the JSON Schema of profiles."""
    console.print_json(json_schema())


@profiles.command("detect")
def detect_(
    out: Annotated[Path | None, typer.Option(help="Write it there instead of stdout.")] = None,
    as_json: Json = False,
) -> None:
    """Write a profile of this machine.

    Facts that it cannot find out are left out, and budgets are yours to add.
    """
    render.detected(detect.detect(), out, as_json=as_json)


def load(name: str, overrides: list[str]) -> Profile:
    """A profile by name or file, with --set overrides."""
    return device_profiles.load(name, tuple(overrides))


def shapes(texts: list[str]) -> dict[str, int | tuple[int, ...]]:
    """--shape options as a table; raises InputError."""
    table: dict[str, int | tuple[int, ...]] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        sizes = value.split("x")
        if not name or not all(re.fullmatch("0*[1-9][0-9]{0,9}", x) for x in sizes):
            raise InputError(f"--shape {text}: write batch=1, or input=1x3x224x224")
        table[name] = int(value) if len(sizes) == 1 else tuple(map(int, sizes))
    return table


def main() -> None:
    """Entry point."""
    console.main(app, "edge")


if __name__ == "__main__":
    main()
