"""Results for people: tables on stdout. Shows values; decides nothing."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from edge_core import console
from edge_core.console import new_table
from edge_core.package.bench import BenchResult
from edge_core.package.run import Answer
from edge_core.package.verify import Verification
from edge_core.profile import Profile
from edge_core.tensors import TensorSpec
from edge_sdk.build.inspection import Inspection
from edge_sdk.build.packaging import BuildResult
from edge_sdk.build.stages import Judgement, Measurement, Model, Plan, Quantity
from edge_sdk.doctor import Check

COLUMN_TITLES = {
    "metric": "metric",
    "accuracy_drop_points": "drop",
    "agreement": "agreement",
    "cosine": "cosine",
}
OUTCOME_MARKS = {"pass": "PASS", "fail": "FAIL", "inconclusive": "OPEN"}


def render_inspection(inspection: Inspection) -> None:
    """What `edge inspect` prints."""
    model, out = inspection.model, console.stdout()
    versions = f", opset {model.opset}, IR {model.ir}" if model.opset else ""
    out.print(
        f"{model.path.name}: {model.format}{versions}, {_format_bytes(model.bytes)}, "
        f"sha256 {model.sha256[:12]}"
    )
    macs = "unknown" if model.macs is None else f"{model.macs / 1e6:,.1f} M"
    weights = _format_bytes(model.weight_bytes)
    out.print(f"{model.parameters:,} parameters, {weights} of weights, {macs} MACs")
    _render_tensors(model)
    ops = sorted(model.ops.items(), key=lambda pair: -pair[1])
    out.print("ops: " + ", ".join(f"{name} {count}" for name, count in ops))
    if model.dynamic:
        out.print(f"dynamic dimensions (fix with --shape): {', '.join(model.dynamic)}")
    for note in inspection.notes:
        out.print(f"note: {note}")
    for support in inspection.support:
        lacks = ", ".join(support.missing) or "no op"
        opset = support.opset or "does not apply"
        out.print(f"{support.profile} ({support.runtime}): lacks {lacks}; opset {opset}")


def _render_tensors(model: Model) -> None:
    tensors = new_table("tensor", "", "dtype", "shape")
    for kind, specs in (("input", model.inputs), ("output", model.outputs)):
        for spec in specs:
            tensors.add_row(spec.name, kind, spec.dtype, _format_shape(spec))
    console.stdout().print(tensors)


def render_plans(plans: Sequence[Plan]) -> None:
    """What `edge plan` prints."""
    for plan in plans:
        candidates = new_table(
            "candidate", "", "why", "evidence", title=f"{plan.profile} ({plan.runtime})"
        )
        for decision in plan.decisions:
            candidates.add_row(
                decision.candidate, decision.verdict, decision.reason, decision.evidence
            )
        console.stdout().print(candidates)


def render_build(results: Sequence[BuildResult]) -> None:
    """What `edge build` prints: a table of candidates for each profile, then the packages."""
    out = console.stdout()
    for result in results:
        _render_candidates(result)
    packages = new_table("profile", "verdict", "candidate", "package", "bytes", right=("bytes",))
    for result in results:
        verdict = result.verdict
        where = str(result.package) if result.package else f"none; {verdict.relaxation}"
        size = f"{result.bytes:,}" if result.package else ""
        packages.add_row(result.profile, verdict.outcome, verdict.winner or "none", where, size)
    out.print(packages)
    for result in results:
        out.print(f"report: {result.report_html}", soft_wrap=True)


def _render_candidates(result: BuildResult) -> None:
    out, winner = console.stdout(), result.verdict.winner
    accuracy = _accuracy_columns(result.measurements)
    titles = [COLUMN_TITLES[name] for name in accuracy]
    candidates = new_table(
        "candidate", "", "MB", *titles, "ms here", "ms device", "peak MB", "why not",
        right=("MB", *titles, "ms here", "ms device", "peak MB"),
        title=f"{result.profile} ({result.plan.runtime})",
    )  # fmt: skip
    measurements = {one.candidate: one for one in result.measurements}
    names = ("package_mb", *accuracy, "host_p50_ms", "latency_p50_ms", "memory_peak_mb")
    for judgement in sorted(
        result.verdict.judgements, key=lambda one: (one.candidate != winner, one.candidate)
    ):
        values = measurements[judgement.candidate].values
        candidates.add_row(
            judgement.candidate,
            "WINS" if judgement.candidate == winner else OUTCOME_MARKS[judgement.outcome],
            *(format_quantity(values.get(name)) for name in names),
            judgement.reason or _describe_open_gates(judgement),
        )
    out.print(candidates)
    refused = [one.candidate for one in result.plan.decisions if one.verdict == "out"]
    if refused:
        out.print(f"left out by the plan (edge plan says why): {', '.join(refused)}\n")
    for measurement in result.measurements:
        if measurement.delegation and measurement.delegation.outside:
            out.print(f"{measurement.candidate}: {measurement.delegation}", soft_wrap=True)


def _accuracy_columns(measurements: Sequence[Measurement]) -> list[str]:
    known = {name for measurement in measurements for name in measurement.values}
    return [name for name in COLUMN_TITLES if name in known]


def _describe_open_gates(judgement: Judgement) -> str:
    return "; ".join(
        f"{gate.gate} is open: {gate.why}" for gate in judgement.gates if gate.outcome != "pass"
    )


def format_quantity(quantity: Quantity | None) -> str:
    """A value with its label: bare when measured, ~ when predicted, ? when unknown."""
    if quantity is None or quantity.value is None:
        return "?"
    digits = f"{quantity.value:.3f}" if quantity.unit == "" else f"{quantity.value:.2f}"
    return f"~{digits}" if quantity.kind == "predicted" else digits


def render_verification(verification: Verification) -> None:
    """What `edge verify` prints."""
    out = console.stdout()
    out.print(
        f"{verification.package}: {verification.name} {verification.version} "
        f"({verification.candidate}), {verification.digest}"
    )
    out.print(
        f"digests fine; golden vectors replayed on {verification.runtime}: "
        f"{verification.golden.text}"
    )
    for note in verification.notes:
        out.print(f"note: {note}")


def render_answer(answer: Answer) -> None:
    """What `edge run` prints."""
    console.print_notes(answer.notes)
    if not answer.top:
        console.print_json(answer.outputs)
        return
    scores = new_table("score", "class", "index", right=("score", "index"))
    for scored in answer.top:
        scores.add_row(f"{scored.score:.4f}", scored.label, str(scored.index))
    console.stdout().print(scores)
    typer.echo(f"{answer.ms:.1f} ms", err=True)


def render_timings(timings: Sequence[BenchResult]) -> None:
    """What `edge bench` prints."""
    console.print_notes(timings[0].notes)
    names = ("threads", "p50 ms", "p90 ms", "p99 ms", "runs", "load ms", "peak MB")
    rows = new_table(*names, right=names)
    for timing in timings:
        latencies = (f"{ms:.3f}" for ms in (timing.p50_ms, timing.p90_ms, timing.p99_ms))
        rows.add_row(
            str(timing.threads), *latencies, str(timing.runs),
            f"{timing.load_ms:.1f}", f"{timing.peak_mb:.1f}",
        )  # fmt: skip
    console.stdout().print(rows)


def render_checks(checks: Sequence[Check]) -> None:
    """What `edge doctor` prints."""
    rows = new_table("", "what", "", "hint")
    for check in checks:
        rows.add_row(check.state, check.what, check.detail, check.hint)
    console.stdout().print(rows)


def render_profiles(profiles: Sequence[Profile]) -> None:
    """What `edge profiles list` prints."""
    rows = new_table("name", "device", "arch", "runtimes")
    for profile in profiles:
        runtimes = ", ".join(f"{one.name} {one.version}" for one in profile.runtimes)
        rows.add_row(profile.name, profile.title, profile.platform.arch, runtimes)
    console.stdout().print(rows)


def _format_shape(spec: TensorSpec) -> str:
    return "x".join(map(str, spec.shape)) or "scalar"


def _format_bytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count:,} bytes"
