"""The `edge-agent` command on a device: parses, calls one function, shows the result.

Results on stdout, progress and errors on stderr. Exit codes: 0 pass, 1 error, 2 a gate failed,
130 interrupted.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from agent import config
from agent.caches.rules import Rule
from agent.commands import actions, render
from agent.commands import caches as cache_commands
from agent.config import Config
from agent.service import doctor
from edge_core import console
from edge_core.console import Json
from edge_core.errors import GateFailed
from edge_core.machine import detect
from edge_core.package.bench import bench_package
from edge_core.package.run import MAX_TOP
from edge_core.package.verify import verify_package
from edge_core.runtimes import registry as runtimes

app = console.new_app("Installs packages on this device and serves them, offline.")
cache = typer.Typer(help="Remembered answers: what they save, and how to forget them.")
app.add_typer(cache, name="cache")

PackageFile = Annotated[Path, typer.Argument(metavar="PACKAGE", help=".edgepkg or OCI layout.")]
Source = Annotated[Path, typer.Argument(metavar="INPUT", help="An image, .npz or .npy.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="An installed model.")]
Settings = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings other than the usual.")
]
Top = Annotated[int, typer.Option(min=0, max=MAX_TOP, help="Classes to show; 0: outputs.")]


@app.command("init")
def init(
    path: Settings = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where packages and caches are kept.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the settings, every one explained, and make the data directory."""
    done = actions.begin(path, data_dir)
    if as_json:
        console.print_json(done)
    else:
        typer.echo(f"wrote {done.config}; data goes to {done.data_dir}")


@app.command("install")
def install(
    package: PackageFile,
    force: Annotated[
        bool, typer.Option("--force", help="Also if it was rolled back; measure again.")
    ] = False,
    path: Settings = None,
    as_json: Json = False,
) -> None:
    """Verify, self-test and tune PACKAGE, then serve it; what was served becomes previous."""
    done = actions.install(load(path), package, force=force, progress=render.progress)
    console.print_json(done) if as_json else render.switched(done)


@app.command("run")
def run_(
    path: Settings = None,
    as_json: Annotated[bool, typer.Option("--json", help="Log as JSON, an event a line.")] = False,
) -> None:
    """Serve the installed models until SIGTERM or Ctrl-C."""
    words = ["--config", str(config.find(path)), *(["--json"] if as_json else [])]
    sys.stdout.flush()
    # In place of this process, so that what only commands need is not kept in memory.
    os.execv(sys.executable, [sys.executable, "-I", "-m", "agent.service.daemon", *words])  # noqa: S606


@app.command("status")
def status(path: Settings = None, as_json: Json = False) -> None:
    """Show what the running agent does: models, stage times, errors, caches."""
    found = actions.overview(load(path))
    console.print_json(found) if as_json else render.overview(found)


@app.command("infer")
def infer(
    target: Annotated[str, typer.Argument(help="An installed model, or a package's path.")],
    source: Source,
    top: Top = 5,
    path: Settings = None,
    as_json: Json = False,
) -> None:
    """Answer one INPUT; the running agent does it for an installed model."""
    answer = actions.infer(path, target, source, top=top)
    if as_json or not answer.top:
        console.print_json(answer)
    else:
        render.answer(answer)


@app.command("models")
def models(path: Settings = None, as_json: Json = False) -> None:
    """List the installed models."""
    found = actions.models(load(path))
    console.print_json(found) if as_json else render.models(found)


@app.command("rollback")
def rollback(
    name: Name,
    refuse: Annotated[
        bool, typer.Option("--refuse", help="Do not install the abandoned package again.")
    ] = False,
    path: Settings = None,
    as_json: Json = False,
) -> None:
    """Serve the previous package of NAME again."""
    done = actions.rollback(load(path), name, refuse=refuse)
    console.print_json(done) if as_json else render.switched(done)


@app.command("doctor")
def doctor_(path: Settings = None, as_json: Json = False) -> None:
    """Check whether this device is fit to serve, and say what to do if not."""
    found = doctor.check(path)
    console.print_json(found) if as_json else render.checks(found)
    if any(c.state == "fail" for c in found):
        raise typer.Exit(1)


@cache.callback(invoke_without_command=True)
def caches(context: typer.Context, path: Settings = None, as_json: Json = False) -> None:
    """Show what each cache holds, and its counters if the agent runs."""
    if context.invoked_subcommand:
        return
    found = cache_commands.caches(load(path))
    console.print_json(found) if as_json else render.caches(found)


@cache.command("clear")
def clear(path: Settings = None, as_json: Json = False) -> None:
    """Forget every remembered answer; the agent must not run."""
    gone = cache_commands.clear(load(path))
    if as_json:
        console.print_json({"cleared": gone})
    else:
        typer.echo(f"cleared: {', '.join(gone) or 'nothing was there'}")


@cache.command("calibrate")
def calibrate(
    name: Name,
    samples: Annotated[Path, typer.Argument(help="Folder of inputs; a sub-folder is one clip.")],
    epsilon: Annotated[float, typer.Option(help="Largest share of wrong reuses.")],
    confidence: Annotated[float, typer.Option(help="Of the proof.")] = 0.95,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Answers may differ by it; 0: the best class counts.")
    ] = 0.0,
    path: Settings = None,
    as_json: Json = False,
) -> None:
    """Find how near is near enough for NAME. Exit code 2: no threshold is proven, it stays off."""
    rule = Rule(kind="tolerance" if tolerance else "top1", tolerance=tolerance)
    found = cache_commands.calibrate(
        load(path), name, samples, rule=rule, epsilon=epsilon, confidence=confidence
    )
    console.print_json(found) if as_json else render.calibrated(found)
    if found.evidence is None:
        raise typer.Exit(GateFailed.exit_code)


@app.command("verify")
def verify(package: PackageFile, as_json: Json = False) -> None:
    """Check PACKAGE's digests and replay its golden vectors here."""
    verified = verify_package(package)
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
    runs: Annotated[int, typer.Option(min=2, max=1_000_000, help="Inferences each.")] = 100,
    as_json: Json = False,
) -> None:
    """Time PACKAGE on this device with its own golden inputs."""
    timed = bench_package(package, threads=tuple(threads), runs=runs)
    console.print_json(timed) if as_json else render.timed(timed)


@app.command("detect")
def detect_(as_json: Json = False) -> None:
    """Print a profile of this device as JSON."""
    console.print_json(detect.detect(runtimes=runtimes.installed_runtimes()))


def load(path: Path | None) -> Config:
    """The settings that count, for a command that may write into data_dir; raises InputError."""
    os.umask(0o077)
    return config.load(config.find(path))


def main() -> None:
    """Entry point."""
    console.main(app, "edge-agent")


if __name__ == "__main__":
    main()
