"""The `edge-agent` command on a device: verify, run and time packages, offline.

Installing, serving and updating are not here yet; everything that is here is what the host's
gates use, so "fine on the host" and "fine on the device" mean the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_core import console, detect, run
from edge_core.console import Json

app = console.new_app("Packages on this device: verify, run and time them, offline.")
PackageFile = Annotated[Path, typer.Argument(metavar="PACKAGE", help=".edgepkg or OCI layout.")]


@app.command("verify")
def verify(path: PackageFile, as_json: Json = False) -> None:
    """Check PACKAGE's digests and replay its golden vectors here."""
    verified = run.verify(path)
    if as_json:
        console.print_json(verified)
    else:
        typer.echo(f"{verified.name} {verified.version}: {verified.golden.text}")


@app.command("run")
def run_(
    path: PackageFile,
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="An image, .npz or .npy.")],
    top: Annotated[int, typer.Option(min=0, max=1000, help="Classes to show; 0: raw outputs.")] = 5,
    as_json: Json = False,
) -> None:
    """Run PACKAGE on one INPUT and print the labels or the outputs."""
    answer = run.run(path, source, top=top)
    if as_json or not answer.top:
        console.print_json(answer)
        return
    for scored in answer.top:
        typer.echo(f"{scored.score:10.4f}  {scored.label}")


@app.command("bench")
def bench(
    path: PackageFile,
    threads: Annotated[
        list[int], typer.Option("--threads", "-t", min=1, max=256, help="Repeatable.")
    ] = [1],
    runs: Annotated[int, typer.Option(min=2, max=1_000_000, help="Inferences each.")] = 100,
    as_json: Json = False,
) -> None:
    """Time PACKAGE on this device with its own golden inputs."""
    timed = run.bench(path, threads=tuple(threads), runs=runs)
    if as_json:
        console.print_json(timed)
        return
    for t in timed:
        typer.echo(
            f"{t.threads} thread(s): p50 {t.p50_ms:.3f}, p90 {t.p90_ms:.3f}, p99 {t.p99_ms:.3f} ms "
            f"of {t.runs} runs; load {t.load_ms:.1f} ms, peak {t.peak_mb:.1f} MB"
        )


@app.command("detect")
def detect_() -> None:
    """Print a profile of this device as JSON."""
    console.print_json(detect.detect())


def main() -> None:
    """Entry point."""
    console.main(app, "edge-agent")


if __name__ == "__main__":
    main()
