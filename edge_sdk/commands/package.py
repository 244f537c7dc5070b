"""`edge verify`, `run`, `bench`, `pack` and `unpack`: what can be done with a finished package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_core import console
from edge_core.console import Json
from edge_core.machine.detect import detect_facts
from edge_core.package import format as package_format
from edge_core.package.bench import bench_package
from edge_core.runtimes.registry import installed_runtimes
from edge_sdk import api
from edge_sdk.commands.options import PackageFile
from edge_sdk.commands.render import render_answer, render_timings, render_verification

app = typer.Typer()

InputFile = Annotated[Path, typer.Argument(metavar="INPUT", help="An image, .npz or .npy.")]
LayoutFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="An OCI layout, as copied from a registry.")
]
NewFolder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder to create.")]
NewPackage = Annotated[Path, typer.Argument(metavar="FILE", help="The .edgepkg to write.")]
ThreadCounts = Annotated[
    list[int], typer.Option("--threads", "-t", min=1, max=256, help="Repeatable.")
]

VariantName = Annotated[
    str,
    typer.Option(
        "--variant",
        metavar="NAME",
        help="The variant to use; default: the first that matches this machine.",
    ),
]


@app.command()
def verify(path: PackageFile, variant: VariantName = "", as_json: Json = False) -> None:
    """Check PACKAGE's digests and replay its golden vectors here.

    Exit code 2: the digests are right, but the answers on this machine are not.
    """
    verification = api.verify(path, variant=variant)
    if as_json:
        console.print_json(verification)
    else:
        render_verification(verification)


@app.command()
def run(
    path: PackageFile,
    source: InputFile,
    top: Annotated[int, typer.Option(min=0, max=1000, help="Classes to show; 0: raw outputs.")] = 5,
    variant: VariantName = "",
    as_json: Json = False,
) -> None:
    """Run PACKAGE on one INPUT and print the labels or the outputs."""
    answer = api.run(path, source, variant=variant, top=top)
    if as_json:
        console.print_json(answer)
    else:
        render_answer(answer)


@app.command()
def bench(
    path: PackageFile,
    threads: ThreadCounts = [1],
    runs: Annotated[
        int, typer.Option(min=2, max=1_000_000, help="Inferences per thread count.")
    ] = 100,
    variant: VariantName = "",
    as_json: Json = False,
) -> None:
    """Time PACKAGE on this machine with its own golden inputs."""
    facts = detect_facts(installed_runtimes())
    timings = bench_package(path, facts, threads=tuple(threads), runs=runs, variant=variant)
    if as_json:
        console.print_json(timings)
    else:
        render_timings(timings)


@app.command()
def unpack(path: PackageFile, folder: NewFolder) -> None:
    """Unpack PACKAGE into an OCI image layout, for `skopeo inspect oci:DIR`."""
    package_format.unpack(path, folder)
    typer.echo(f"wrote {folder}", err=True)


@app.command()
def pack(folder: LayoutFolder, out: NewPackage, as_json: Json = False) -> None:
    """Pack an OCI image layout into one .edgepkg file."""
    package_ref = package_format.pack(folder, out)
    if as_json:
        console.print_json(package_ref)
    else:
        typer.echo(f"wrote {package_ref.path}", err=True)
