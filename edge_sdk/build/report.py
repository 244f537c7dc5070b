"""The report beside a package: every number of a build with how it is known, as HTML and JSON.

render(report) is one page without scripts, fonts or images from elsewhere; stages.to_json(report)
is the same as data. What varies from run to run is here and not in the package, whose digest the
report names (docs/adr/0004).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec

from edge_core.extras import need
from edge_core.profile import Profile
from edge_sdk.build.judge import GATES
from edge_sdk.build.plot import Plot, Point, plot
from edge_sdk.build.stages import Artifact, Judged, Measurement, Model, Plan, Quantity, Verdict


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One profile's build, whole."""

    model: Model
    profile: Profile
    plan: Plan
    measurements: tuple[Measurement, ...]
    verdict: Verdict
    artifacts: tuple[Artifact, ...]
    notes: tuple[str, ...]  # what preparing the model changed
    metric: str
    evaluation: str  # source and number of the samples
    package: str  # file name; empty when nothing fits
    digest: str
    host: str
    seconds: dict[str, float]  # wall time by stage


class Column(msgspec.Struct, frozen=True):
    """One column of the table of candidates."""

    value: str  # name in Measurement.values
    group: str
    title: str


COLUMNS = (
    Column("package_mb", "File", "MB"),
    Column("metric", "Accuracy", "score"),
    Column("accuracy_drop_points", "Accuracy", "drop, points"),
    Column("agreement", "Accuracy", "agreement"),
    Column("cosine", "Accuracy", "cosine"),
    Column("host_p50_ms", "Latency on this host, ms", "p50"),
    Column("host_p90_ms", "Latency on this host, ms", "p90"),
    Column("host_p99_ms", "Latency on this host, ms", "p99"),
    Column("latency_p50_ms", "Latency on the device, ms", "p50"),
    Column("latency_p90_ms", "Latency on the device, ms", "p90"),
    Column("latency_p99_ms", "Latency on the device, ms", "p99"),
    Column("load_ms", "On the device", "load, ms"),
    Column("memory_peak_mb", "On the device", "peak memory, MB"),
    Column("energy_mj", "On the device", "energy, mJ"),
)


class Row(msgspec.Struct, frozen=True):
    """One candidate, ready to print."""

    number: int
    name: str
    judged: Judged
    measurement: Measurement
    artifact: Artifact | None


def render(report: Report) -> str:
    """The page; raises MissingExtra without Jinja2."""
    rows = _rows(report)
    winner = next((r for r in rows if r.name == report.verdict.winner), None)
    used = [c for c in COLUMNS if any(_shown(c, r.measurement) for r in rows)]
    latency, drawn = _drawn(rows)
    budgets = msgspec.structs.asdict(report.profile.budgets)
    page: str = _template().render(
        r=report,
        headline=_headline(report, winner),
        tiles=_tiles(report, winner) if winner else (),
        rows=rows,
        winner=winner,
        columns=used,
        groups=_groups(used),
        sources=_sources(rows, used),
        latency=latency,
        plot=drawn,
        refused=[d for d in report.plan.decisions if d.verdict == "out"],
        chosen=[d for d in report.plan.decisions if d.verdict == "in"],
        toolchain=_toolchain(report.artifacts),
        budgets={k: v for k, v in budgets.items() if v is not None},
        units={name: limit.unit for name, limit in GATES.items()},
    )
    return page


@cache
def _template() -> Any:
    jinja2 = need("jinja2", "onnx")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "span": span, "shape": _shape, "delegated": str}
    return environment.from_string(
        files("edge_sdk.build").joinpath("report.html").read_text("utf-8")
    )


def number(value: float | None) -> str:
    """Three digits, and all of those before the point; ``unknown`` for None."""
    if value is None:
        return "unknown"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"


def span(value: Quantity) -> str:
    """``low to high``, or nothing for a value without bounds."""
    if value.low is None or value.high is None or value.low == value.high:
        return ""
    return f"{number(value.low)} to {number(value.high)}"


def _shape(shape: Iterable[int | str]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _shown(column: Column, m: Measurement) -> bool:
    """Energy is rarely known; a column without a number is left to the details below."""
    return column.value in m.values and (
        column.value != "energy_mj" or m.values[column.value].value is not None
    )


def _rows(report: Report) -> list[Row]:
    """The winner first, then by outcome, in the order of measurement."""
    judged = {j.candidate: j for j in report.verdict.judged}
    artifacts = {a.candidate: a for a in report.artifacts}
    rank = {"pass": 0, "inconclusive": 1, "fail": 2}
    order = sorted(
        (m for m in report.measurements if m.candidate in judged),
        key=lambda m: (
            m.candidate != report.verdict.winner,
            bool(m.error),
            rank[judged[m.candidate].outcome],
        ),
    )
    return [
        Row(i, m.candidate, judged[m.candidate], m, artifacts.get(m.candidate))
        for i, m in enumerate(order, start=1)
    ]


def _headline(report: Report, winner: Row | None) -> str:
    if winner is None:
        return f"Nothing fits {report.profile.title}"
    doubtful = sum(g.outcome == "inconclusive" for g in winner.judged.gates)
    if not doubtful:
        return f"{winner.name} fits {report.profile.title}"
    gates = "1 gate is" if doubtful == 1 else f"{doubtful} gates are"
    return f"{winner.name} fits {report.profile.title}; {gates} inconclusive"


class Tile(msgspec.Struct, frozen=True):
    """One figure of the winner, large."""

    title: str
    value: Quantity
    note: str


def _tiles(report: Report, winner: Row) -> list[Tile]:
    values = winner.measurement.values
    by_metric = report.metric if report.metric in _ACCURACY else "accuracy_drop_points"
    wanted = (
        ("Model file", "package_mb", _against(values, "package_mb", report.model.bytes / 1e6)),
        (_ACCURACY[by_metric], by_metric, "" if report.metric == by_metric else report.metric),
        ("Latency, p50", "latency_p50_ms", _faster(report, values)),
        ("Peak memory", "memory_peak_mb", ""),
    )
    return [Tile(title, values[name], note) for title, name, note in wanted if name in values]


_ACCURACY = {
    "agreement": "Agreement with the original",
    "cosine": "Cosine to the original",
    "accuracy_drop_points": "Accuracy drop",
}


def _against(values: Mapping[str, Quantity], name: str, original: float) -> str:
    now = values[name].value if name in values else None
    if now is None or not original:
        return ""
    return f"{number(100 * now / original)} % of the original's {number(original)} MB"


def _faster(report: Report, values: Mapping[str, Quantity]) -> str:
    """How the winner compares with the float model on this host, where both were run."""
    float32 = next((m for m in report.measurements if m.candidate == "onnx-fp32"), None)
    here, there = values.get("host_p50_ms"), _known(float32, "host_p50_ms") if float32 else None
    if here is None or not here.value or not there or report.verdict.winner == "onnx-fp32":
        return ""
    return f"on this host {number(here.value)} ms, onnx-fp32 {number(there)} ms"


def _known(m: Measurement, name: str) -> float | None:
    return m.values[name].value if name in m.values else None


def _groups(columns: Iterable[Column]) -> list[tuple[str, int]]:
    """Headings over neighbouring columns, each with how many it spans."""
    counts: dict[str, int] = {}
    for c in columns:
        counts[c.group] = counts.get(c.group, 0) + 1
    return list(counts.items())


def _sources(rows: Iterable[Row], columns: Iterable[Column]) -> dict[str, str]:
    """Where the table's values are from -> a letter."""
    names = [c.value for c in columns]
    values = [r.measurement.values[n] for r in rows for n in names if n in r.measurement.values]
    places = dict.fromkeys(v.where for v in values if v.where)
    return {where: _letter(i) for i, where in enumerate(places)}


def _letter(i: int) -> str:
    return chr(ord("a") + i) if i < 26 else _letter(i // 26 - 1) + _letter(i % 26)


def _drawn(rows: Iterable[Row]) -> tuple[str, Plot | None]:
    """The name of the latency that is drawn (the device's, if it is known) and the plot."""
    for latency in ("latency_p50_ms", "host_p50_ms"):
        points = [
            Point(
                number=r.number,
                name=r.name,
                x=x,
                y=y,
                loss=_known(r.measurement, "loss_points"),
                fits=r.judged.outcome != "fail",
                front=r.judged.pareto,
            )
            for r in rows
            if (x := _known(r.measurement, "package_mb")) is not None
            and (y := _known(r.measurement, latency)) is not None
        ]
        if drawn := plot(points):
            return latency, drawn
    return "", None


def _toolchain(artifacts: Iterable[Artifact]) -> dict[str, str]:
    found: dict[str, set[str]] = {}
    for a in artifacts:
        for name, version in a.toolchain.items():
            found.setdefault(name, set()).add(version)
    return {name: ", ".join(sorted(found[name])) for name in sorted(found)}
