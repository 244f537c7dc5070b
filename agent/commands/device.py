"""`edge-agent doctor`, `verify`, `bench` and `detect`: this device, and packages on it."""

from __future__ import annotations

from typing import Annotated

import typer

from agent.commands.options import ConfigFile, PackageFile, VariantName
from agent.commands.render import render_checks, render_timings
from agent.service import doctor
from edge_core import console
from edge_core.console import Json
from edge_core.machine import detect
from edge_core.package.bench import bench_package
from edge_core.package.verify import verify_package
from edge_core.runtimes import registry as runtimes

app = typer.Typer()


@app.command("doctor")
def check_device(path: ConfigFile = None, as_json: Json = False) -> None:
    """Check whether this device is fit to serve, and say what to do if not."""
    checks = doctor.check_device(path)
    console.print_json(checks) if as_json else render_checks(checks)
    if any(check.state == "fail" for check in checks):
        raise typer.Exit(1)


@app.command("verify")
def verify(package: PackageFile, variant: VariantName = "", as_json: Json = False) -> None:
    """Check PACKAGE's digests and replay its golden vectors here."""
    facts = detect.detect_facts(runtimes.installed_runtimes())
    verified = verify_package(package, facts, variant=variant)
    if as_json:
        console.print_json(verified)
    else:
        typer.echo(f"{verified.name} {verified.version}: {verified.golden.text}")


@app.command("bench")
def bench(
    package: PackageFile,
    threads: Annotated[
        list[int], typer.Option("--threads", "-t", min=1, max=256, help="Repeatable.")
    ] = [1],
    runs: Annotated[
        int, typer.Option(min=2, max=1_000_000, help="Inferences per thread count.")
    ] = 100,
    variant: VariantName = "",
    as_json: Json = False,
) -> None:
    """Time PACKAGE on this device with its own golden inputs."""
    facts = detect.detect_facts(runtimes.installed_runtimes())
    timings = bench_package(package, facts, threads=tuple(threads), runs=runs, variant=variant)
    console.print_json(timings) if as_json else render_timings(timings)


@app.command("detect")
def detect_device(as_json: Json = False) -> None:
    """Print a profile of this device as JSON."""
    console.print_json(detect.detect(runtimes=runtimes.installed_runtimes()))
