"""What the commands print for people: tables on stdout. Shows values; decides nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence

import typer

from agent.caches.calibration import Calibration
from agent.commands.actions import Model, Overview, Switched
from agent.commands.caches import CacheFile
from agent.packages.slots import Slot
from agent.service.client import Document
from agent.service.doctor import Check
from edge_core import console
from edge_core.package.bench import Timed
from edge_core.package.run import Answer

STAGES = ("prepare", "wait", "infer", "finish", "total")


def progress(text: str) -> None:
    """One line a step, on stderr."""
    typer.echo(text, err=True)


def switched(done: Switched) -> None:
    """What `edge-agent install` and `rollback` print."""
    slot, verb = done.current, "was already" if done.already else "is"
    typer.echo(f"{slot.name} {slot.version} {verb} current: {slot.digest}")
    typer.echo(f"  {_tuned(slot)}")
    if done.previous:
        typer.echo(f"  previous: {done.previous.version}, {done.previous.digest}")
    typer.echo(f"  {done.note}")


def models(found: Sequence[Model]) -> None:
    """What `edge-agent models` prints."""
    t = console.new_table(
        "model", "version", "candidate", "runs with", "installed", "previous", "why"
    )
    for m in found:
        slot, before = m.current, m.previous
        t.add_row(
            m.name,
            slot.version if slot else "",
            slot.candidate if slot else "",
            _tuned(slot) if slot else "",
            _when(slot.installed_at) if slot else "",
            before.version if before else "",
            m.why,
        )
    console.stdout().print(t)


def overview(found: Overview) -> None:
    """What `edge-agent status` prints."""
    if found.agent is None:
        typer.echo("no agent runs here; installed:")
        models(found.models)
        return
    where = found.agent.address or "no HTTP"
    typer.echo(f"process {found.agent.pid} since {_when(found.agent.since)}, {where}")
    if found.status is None:
        models(found.models)
        return
    _status(found.status)


def _status(status: Document) -> None:
    word = "ready" if status["ready"] else "not ready"
    errors = ", ".join(f"{n} {name}" for name, n in status["errors"].items()) or "no errors"
    typer.echo(f"{word}, up {status['uptime_s']:.0f} s, {status['swaps']} swaps, {errors}")
    if status["health"]:
        typer.echo(status["health"])
    stages = [f"{s} p50" for s in STAGES] + ["total p99"]
    t = console.new_table("model", "version", "state", "answers", *stages, "why", right=stages)
    for m in status["models"]:
        ms = [m["stages"].get(s, {}).get("p50_ms") for s in STAGES]
        ms.append(m["stages"].get("total", {}).get("p99_ms"))
        count = m["stages"].get("total", {}).get("n", 0)
        cells = ("" if x is None else f"{x:.3f}" for x in ms)
        t.add_row(m["name"], m["version"], m["state"], str(count), *cells, m["why"])
    console.stdout().print(t)


def caches(found: Sequence[CacheFile]) -> None:
    """What `edge-agent cache` prints."""
    t = console.new_table("cache", "MB", "holds", "since it was made", right=("MB",))
    for c in found:
        holds = ", ".join(f"{x.rows} {x.name}" for x in c.tables)
        counted = ", ".join(f"{k} {v}" for k, v in c.counters.items())
        t.add_row(c.name, f"{c.bytes / 1e6:.2f}", holds, counted)
    console.stdout().print(t)


def calibrated(found: Calibration) -> None:
    """What `edge-agent cache calibrate` prints."""
    typer.echo(f"{found.samples} samples in {found.groups} independent groups")
    if found.evidence is None:
        typer.echo(f"off: {found.why}")
        return
    seen = found.evidence
    typer.echo(
        f"threshold {found.threshold:g}: {seen.hits} reuses, {seen.wrong} wrong; below "
        f"{seen.upper:.2%} at {found.confidence:.0%} confidence (asked for {found.epsilon:.2%})"
    )


def answer(found: Answer) -> None:
    """What `edge-agent infer` prints of class scores."""
    for scored in found.top:
        typer.echo(f"{scored.score:10.4f}  {scored.label}")


def timed(rows: Sequence[Timed]) -> None:
    """What `edge-agent bench` prints."""
    right = ("threads", "p50 ms", "p90 ms", "p99 ms", "runs", "load ms", "peak MB")
    t = console.new_table(*right, right=right)
    for r in rows:
        ms = (f"{x:.3f}" for x in (r.p50_ms, r.p90_ms, r.p99_ms))
        t.add_row(str(r.threads), *ms, str(r.runs), f"{r.load_ms:.1f}", f"{r.peak_mb:.1f}")
    console.stdout().print(t)


def checks(found: Sequence[Check]) -> None:
    """What `edge-agent doctor` prints."""
    t = console.new_table("", "what", "", "hint")
    for c in found:
        t.add_row(c.state, c.what, c.detail, c.hint)
    console.stdout().print(t)


def _tuned(slot: Slot) -> str:
    tuning = slot.tuning
    ms = tuning.p50_ms.get(str(tuning.threads))
    speed = f", {ms:.2f} ms" if ms is not None else ""
    batches = ", batches" if tuning.batching.pays else ""
    return f"{tuning.runtime}, {tuning.threads} thread(s){speed}{batches}"


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
