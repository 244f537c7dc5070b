"""Results for people: tables on stdout, progress on stderr. Shows values; decides nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

import device_profiles
from edge_core import console
from edge_core.console import table
from edge_core.files import write_whole
from edge_core.package.bench import Timed
from edge_core.package.run import Answer
from edge_core.package.verify import Verified
from edge_core.profile import Profile
from edge_core.tensors import TensorSpec
from edge_sdk.build.inspection import Inspection
from edge_sdk.build.packaging import Built
from edge_sdk.build.stages import Judged, Measurement, Model, Plan, Quantity
from edge_sdk.build.workspace import Progress
from edge_sdk.doctor import Check

COLUMN_TITLES = {
    "metric": "metric",
    "accuracy_drop_points": "drop",
    "agreement": "agreement",
    "cosine": "cosine",
}
MARK = {"pass": "PASS", "fail": "FAIL", "inconclusive": "OPEN"}


@contextmanager
def progress() -> Iterator[Progress]:
    """A bar on stderr; on a log instead of a terminal, one line a finished step."""
    if not console.stderr.is_terminal:
        yield _line
        return
    columns = (
        TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(),
    )  # fmt: skip
    with Bar(*columns, console=console.stderr, transient=True) as bar:
        tasks: dict[str, object] = {}

        def tell(stage: str, what: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            task = tasks[stage]
            assert isinstance(task, int)
            bar.update(task, description=f"{stage} {what}".strip(), completed=done, total=total)  # type: ignore[arg-type]

        yield tell


def _line(stage: str, what: str, done: int, total: int) -> None:
    if what and (stage != "time" or done == total):
        typer.echo(f"{stage} {done}/{total} {what}", err=True)


def inspection(found: Inspection) -> None:
    """What `edge inspect` prints."""
    m, out = found.model, console.stdout()
    form = f"{m.format}, opset {m.opset}, IR {m.ir}" if m.opset else m.format
    out.print(f"{m.path.name}: {form}, {_size(m.bytes)}, sha256 {m.sha256[:12]}")
    macs = "unknown" if m.macs is None else f"{m.macs / 1e6:,.1f} M"
    out.print(f"{m.parameters:,} parameters, {_size(m.weight_bytes)} of weights, {macs} MACs")
    _tensors(m)
    ops = sorted(m.ops.items(), key=lambda pair: -pair[1])
    out.print("ops: " + ", ".join(f"{name} {count}" for name, count in ops))
    if m.dynamic:
        out.print(f"dynamic dimensions (fix with --shape): {', '.join(m.dynamic)}")
    for note in found.notes:
        out.print(f"note: {note}")
    for s in found.support:
        lacks = ", ".join(s.missing) or "no op"
        out.print(f"{s.profile} ({s.runtime}): lacks {lacks}; opset {s.opset or 'does not apply'}")


def _tensors(m: Model) -> None:
    t = table("tensor", "", "dtype", "shape")
    for kind, specs in (("input", m.inputs), ("output", m.outputs)):
        for s in specs:
            t.add_row(s.name, kind, s.dtype, _shape(s))
    console.stdout().print(t)


def plans(found: Sequence[Plan]) -> None:
    """What `edge plan` prints."""
    for p in found:
        t = table("candidate", "", "why", "evidence", title=f"{p.profile} ({p.runtime})")
        for d in p.decisions:
            t.add_row(d.candidate, d.verdict, d.reason, d.evidence)
        console.stdout().print(t)


def built(found: Sequence[Built]) -> None:
    """What `edge build` prints: a table a profile, then the packages."""
    for b in found:
        _verdict(b)
    t = table("profile", "verdict", "candidate", "package", "bytes", right=("bytes",))
    for b in found:
        where = str(b.package) if b.package else f"none; {b.verdict.relaxation}"
        size = f"{b.bytes:,}" if b.package else ""
        t.add_row(b.profile, b.verdict.outcome, b.verdict.winner or "none", where, size)
    console.stdout().print(t)
    for b in found:
        console.stdout().print(f"report: {b.report_html}", soft_wrap=True)


def _verdict(b: Built) -> None:
    accuracy = _accuracy_columns(b.measurements)
    names = [COLUMN_TITLES[a] for a in accuracy]
    t = table(
        "candidate", "", "MB", *names, "ms here", "ms device", "peak MB", "why not",
        right=("MB", *names, "ms here", "ms device", "peak MB"),
        title=f"{b.profile} ({b.plan.runtime})",
    )  # fmt: skip
    by_name = {m.candidate: m for m in b.measurements}
    for j in sorted(b.verdict.judged, key=lambda j: (j.candidate != b.verdict.winner, j.candidate)):
        m = by_name[j.candidate]
        numbers = ["package_mb", *accuracy, "host_p50_ms", "latency_p50_ms", "memory_peak_mb"]
        t.add_row(
            j.candidate,
            "WINS" if j.candidate == b.verdict.winner else MARK[j.outcome],
            *(number(m.values.get(n)) for n in numbers),
            j.lost or _open_gates(j),
        )
    console.stdout().print(t)
    refused = [d.candidate for d in b.plan.decisions if d.verdict == "out"]
    if refused:
        console.stdout().print(f"left out by the plan (edge plan says why): {', '.join(refused)}\n")
    for m in b.measurements:
        if m.delegation and m.delegation.outside:
            console.stdout().print(f"{m.candidate}: {m.delegation}", soft_wrap=True)


def _accuracy_columns(measurements: Sequence[Measurement]) -> list[str]:
    known = {name for m in measurements for name in m.values}
    return [n for n in COLUMN_TITLES if n in known]


def _open_gates(j: Judged) -> str:
    return "; ".join(f"{g.gate} is open: {g.why}" for g in j.gates if g.outcome != "pass")


def number(v: Quantity | None) -> str:
    """A value with its label: bare when measured, ~ when predicted, ? when unknown."""
    if v is None or v.value is None:
        return "?"
    digits = f"{v.value:.3f}" if v.unit == "" else f"{v.value:.2f}"
    return f"~{digits}" if v.kind == "predicted" else digits


def verified(v: Verified) -> None:
    """What `edge verify` prints."""
    out = console.stdout()
    out.print(f"{v.package}: {v.name} {v.version} ({v.candidate}), {v.digest}")
    out.print(f"digests fine; golden vectors replayed on {v.runtime}: {v.golden.text}")
    for note in v.notes:
        out.print(f"note: {note}")


def answer(a: Answer) -> None:
    """What `edge run` prints."""
    if not a.top:
        console.print_json(a.outputs)
        return
    t = table("score", "class", "index", right=("score", "index"))
    for s in a.top:
        t.add_row(f"{s.score:.4f}", s.label, str(s.index))
    console.stdout().print(t)
    typer.echo(f"{a.ms:.1f} ms", err=True)


def timed(rows: Sequence[Timed]) -> None:
    """What `edge bench` prints."""
    names = ("threads", "p50 ms", "p90 ms", "p99 ms", "runs", "load ms", "peak MB")
    t = table(*names, right=names)
    for r in rows:
        ms = (f"{x:.3f}" for x in (r.p50_ms, r.p90_ms, r.p99_ms))
        t.add_row(str(r.threads), *ms, str(r.runs), f"{r.load_ms:.1f}", f"{r.peak_mb:.1f}")
    console.stdout().print(t)


def checks(found: Sequence[Check]) -> None:
    """What `edge doctor` prints."""
    t = table("", "what", "", "hint")
    for c in found:
        t.add_row(c.state, c.what, c.detail, c.hint)
    console.stdout().print(t)


def profiles(found: Sequence[Profile]) -> None:
    """What `edge profiles list` prints."""
    t = table("name", "device", "arch", "runtimes")
    for p in found:
        runtimes = ", ".join(f"{r.name} {r.version}" for r in p.runtimes)
        t.add_row(p.name, p.title, p.platform.arch, runtimes)
    console.stdout().print(t)


def detected(found: Profile, out: Path | None, *, as_json: bool) -> None:
    """What `edge profiles detect` prints or writes."""
    if out:
        write_whole(out, device_profiles.dump(found).encode())
        typer.echo(f"wrote {out}", err=True)
    if as_json:
        console.print_json(found)
    elif not out:
        typer.echo(device_profiles.dump(found), nl=False)


def _shape(s: TensorSpec) -> str:
    return "x".join(map(str, s.shape)) or "scalar"


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count:,} bytes"
