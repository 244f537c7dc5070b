"""What the commands print for people: tables on stdout. Shows values; decides nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence

import typer

from agent.caches.calibration import Calibration
from agent.packages.slots import Slot
from agent.service.cache_control import CacheFile
from agent.service.client import Document
from agent.service.control import ModelOverview, Overview, Switch
from agent.service.doctor import Check
from edge_core import console
from edge_core.package.bench import BenchResult
from edge_core.package.run import Answer

STAGES = ("prepare", "wait", "infer", "finish", "total")


def show_progress(text: str) -> None:
    """One line a step, on stderr."""
    typer.echo(text, err=True)


def render_switch(switch: Switch) -> None:
    """What `edge-agent install` and `rollback` print."""
    slot, verb = switch.current, "was already" if switch.already else "is"
    typer.echo(f"{slot.name} {slot.version} {verb} current: {slot.digest}")
    typer.echo(f"  {_describe_tuning(slot)}")
    if switch.previous:
        typer.echo(f"  previous: {switch.previous.version}, {switch.previous.digest}")
    typer.echo(f"  {switch.note}")


def render_models(models: Sequence[ModelOverview]) -> None:
    """What `edge-agent models` prints."""
    table = console.new_table(
        "model", "version", "variant", "candidate", "runs with", "installed", "previous", "why"
    )
    for model in models:
        slot, previous = model.current, model.previous
        table.add_row(
            model.name,
            slot.version if slot else "",
            slot.variant if slot else "",
            slot.candidate if slot else "",
            _describe_tuning(slot) if slot else "",
            _format_time(slot.installed_at) if slot else "",
            previous.version if previous else "",
            model.why,
        )
    console.stdout().print(table)


def render_overview(overview: Overview) -> None:
    """What `edge-agent status` prints."""
    if overview.agent is None:
        typer.echo("no agent runs here; installed:")
        render_models(overview.models)
        return
    where = overview.agent.address or "no HTTP"
    typer.echo(f"process {overview.agent.pid} since {_format_time(overview.agent.since)}, {where}")
    if overview.status is None:
        render_models(overview.models)
        return
    _render_status(overview.status)


def _render_status(status: Document) -> None:
    word = "ready" if status["ready"] else "not ready"
    errors = ", ".join(f"{count} {name}" for name, count in status["errors"].items()) or "no errors"
    typer.echo(f"{word}, up {status['uptime_s']:.0f} s, {status['swaps']} swaps, {errors}")
    if status["health"]:
        typer.echo(status["health"])
    stages = [f"{stage} p50" for stage in STAGES] + ["total p99"]
    table = console.new_table(
        "model", "version", "variant", "state", "answers", *stages, "why", right=stages
    )
    for model in status["models"]:
        times = [model["stages"].get(stage, {}).get("p50_ms") for stage in STAGES]
        times.append(model["stages"].get("total", {}).get("p99_ms"))
        cells = ("" if ms is None else f"{ms:.3f}" for ms in times)
        answers = str(model["counts"]["success"])
        variant = model["slot"]["variant"] if model["slot"] else ""
        table.add_row(
            model["name"], model["version"], variant, model["state"], answers, *cells, model["why"]
        )
    console.stdout().print(table)


def render_caches(caches: Sequence[CacheFile]) -> None:
    """What `edge-agent cache` prints."""
    table = console.new_table("cache", "MB", "holds", "since it was made", right=("MB",))
    for cache in caches:
        holds = ", ".join(f"{part.rows} {part.name}" for part in cache.tables)
        counters = ", ".join(f"{name} {value}" for name, value in cache.counters.items())
        table.add_row(cache.name, f"{cache.bytes / 1e6:.2f}", holds, counters)
    console.stdout().print(table)


def render_calibration(calibration: Calibration) -> None:
    """What `edge-agent cache calibrate` prints."""
    typer.echo(f"{calibration.samples} samples in {calibration.groups} independent groups")
    if calibration.evidence is None:
        typer.echo(f"off: {calibration.why}")
        return
    evidence = calibration.evidence
    typer.echo(
        f"threshold {calibration.threshold:g}: {evidence.hits} reuses, {evidence.wrong} wrong; "
        f"below {evidence.upper:.2%} at {calibration.confidence:.0%} confidence "
        f"(asked for {calibration.epsilon:.2%})"
    )


def render_answer(answer: Answer) -> None:
    """What `edge-agent infer` prints of class scores."""
    console.print_notes(answer.notes)
    for scored in answer.top:
        typer.echo(f"{scored.score:10.4f}  {scored.label}")


def render_timings(timings: Sequence[BenchResult]) -> None:
    """What `edge-agent bench` prints."""
    console.print_notes(timings[0].notes)
    right = ("threads", "p50 ms", "p90 ms", "p99 ms", "runs", "load ms", "peak MB")
    table = console.new_table(*right, right=right)
    for timing in timings:
        percentiles = (timing.p50_ms, timing.p90_ms, timing.p99_ms)
        table.add_row(
            str(timing.threads),
            *(f"{ms:.3f}" for ms in percentiles),
            str(timing.runs),
            f"{timing.load_ms:.1f}",
            f"{timing.peak_mb:.1f}",
        )
    console.stdout().print(table)


def render_checks(checks: Sequence[Check]) -> None:
    """What `edge-agent doctor` prints."""
    table = console.new_table("", "what", "", "hint")
    for check in checks:
        table.add_row(check.state, check.what, check.detail, check.hint)
    console.stdout().print(table)


def _describe_tuning(slot: Slot) -> str:
    tuning = slot.tuning
    ms = tuning.p50_ms.get(str(tuning.threads))
    speed = f", {ms:.2f} ms" if ms is not None else ""
    batches = ", batches" if tuning.batching.pays else ""
    return f"{tuning.runtime}, {tuning.threads} thread(s){speed}{batches}"


def _format_time(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
