"""The report beside a package: every number of a build with how it is known, as HTML and JSON.

render(report) is one page without scripts, fonts or images from elsewhere; stages.to_json(report)
is the same as data. What varies between runs is here and not in the package, whose digest the
report names (docs/adr/0004).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec

from edge_core.extras import need
from edge_core.profile import Profile
from edge_sdk.build.judge import GATES
from edge_sdk.build.plot import Plot, Point, plot_points
from edge_sdk.build.stages import Artifact, Judgement, Measurement, Model, Plan, Quantity, Verdict


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
    variants: tuple[str, ...]  # of the package, in the order of choice
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
    judgement: Judgement
    measurement: Measurement
    artifact: Artifact | None


def render(report: Report) -> str:
    """The page; raises MissingExtra without Jinja2."""
    rows = _make_rows(report)
    winner = next((row for row in rows if row.name == report.verdict.winner), None)
    columns = [one for one in COLUMNS if any(_is_shown(one, row.measurement) for row in rows)]
    latency, latency_plot = _plot_latency(rows)
    decisions = report.plan.decisions
    budgets = msgspec.structs.asdict(report.profile.budgets)
    page: str = _template().render(
        report=report,
        headline=_headline(report, winner),
        tiles=_make_tiles(report, winner) if winner else (),
        rows=rows,
        winner=winner,
        columns=columns,
        groups=_group_columns(columns),
        sources=_letter_sources(rows, columns),
        latency=latency,
        plot=latency_plot,
        refused=[decision for decision in decisions if decision.verdict == "out"],
        chosen=[decision for decision in decisions if decision.verdict == "in"],
        toolchain=_merge_toolchains(report.artifacts),
        budgets={name: limit for name, limit in budgets.items() if limit is not None},
        units={name: rule.unit for name, rule in GATES.items()},
    )
    return page


@cache
def _template() -> Any:
    jinja2 = need("jinja2", "onnx")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": format_number, "span": format_span, "shape": _format_shape, "text": str,
    }  # fmt: skip
    return environment.from_string(
        files("edge_sdk.build").joinpath("report.html").read_text("utf-8")
    )


def format_number(value: float | None) -> str:
    """Three digits, and all of those before the point; ``unknown`` for None."""
    if value is None:
        return "unknown"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"


def format_span(quantity: Quantity) -> str:
    """``low to high``, or nothing for a value without bounds."""
    if quantity.low is None or quantity.high is None or quantity.low == quantity.high:
        return ""
    return f"{format_number(quantity.low)} to {format_number(quantity.high)}"


def _format_shape(shape: Iterable[int | str]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _is_shown(column: Column, measurement: Measurement) -> bool:
    """Energy is rarely known; a column without a number is left to the details below."""
    quantity = measurement.values.get(column.value)
    return quantity is not None and (column.value != "energy_mj" or quantity.value is not None)


def _make_rows(report: Report) -> list[Row]:
    """The winner first, then by outcome, in the order of measurement."""
    judgements = {one.candidate: one for one in report.verdict.judgements}
    artifacts = {artifact.candidate: artifact for artifact in report.artifacts}
    rank = {"pass": 0, "inconclusive": 1, "fail": 2}

    def order(measurement: Measurement) -> tuple[bool, bool, int]:
        name = measurement.candidate
        return (
            name != report.verdict.winner,
            bool(measurement.error),
            rank[judgements[name].outcome],
        )

    ordered = sorted((one for one in report.measurements if one.candidate in judgements), key=order)
    return [
        Row(number, one.candidate, judgements[one.candidate], one, artifacts.get(one.candidate))
        for number, one in enumerate(ordered, start=1)
    ]


def _headline(report: Report, winner: Row | None) -> str:
    if winner is None:
        return f"Nothing fits {report.profile.title}"
    doubtful = sum(gate.outcome == "inconclusive" for gate in winner.judgement.gates)
    if not doubtful:
        return f"{winner.name} fits {report.profile.title}"
    gates = "1 gate is" if doubtful == 1 else f"{doubtful} gates are"
    return f"{winner.name} fits {report.profile.title}; {gates} inconclusive"


class Tile(msgspec.Struct, frozen=True):
    """One figure of the winner, large."""

    title: str
    value: Quantity
    note: str


def _make_tiles(report: Report, winner: Row) -> list[Tile]:
    values = winner.measurement.values
    accuracy = report.metric if report.metric in _ACCURACY else "accuracy_drop_points"
    tiles = (
        ("Model file", "package_mb", _compare_size(values, report.model.bytes / 1e6)),
        (_ACCURACY[accuracy], accuracy, "" if report.metric == accuracy else report.metric),
        ("Latency, p50", "latency_p50_ms", _compare_latency(report, values)),
        ("Peak memory", "memory_peak_mb", ""),
    )
    return [Tile(title, values[name], note) for title, name, note in tiles if name in values]


_ACCURACY = {
    "agreement": "Agreement with the original",
    "cosine": "Cosine to the original",
    "accuracy_drop_points": "Accuracy drop",
}


def _compare_size(values: Mapping[str, Quantity], original_mb: float) -> str:
    size = _number_of(values, "package_mb")
    if size is None or not original_mb:
        return ""
    share = format_number(100 * size / original_mb)
    return f"{share} % of the original's {format_number(original_mb)} MB"


def _compare_latency(report: Report, values: Mapping[str, Quantity]) -> str:
    """How the winner compares with its target's float form on this host, if both were run."""
    chosen = report.plan.chosen
    targets: dict[str, str] = {one.name: one.spec.target for one in chosen}
    references: dict[str, str] = {
        one.spec.target: one.name for one in chosen if one.spec.is_reference
    }
    winner = report.verdict.winner
    reference = references.get(targets.get(winner, ""), winner)
    measurement = next((one for one in report.measurements if one.candidate == reference), None)
    here = _number_of(values, "host_p50_ms")
    float_ms = _number_of(measurement.values, "host_p50_ms") if measurement else None
    if reference == winner or not here or not float_ms:
        return ""
    return f"on this host {format_number(here)} ms, {reference} {format_number(float_ms)} ms"


def _number_of(values: Mapping[str, Quantity], name: str) -> float | None:
    return values[name].value if name in values else None


def _group_columns(columns: Iterable[Column]) -> list[tuple[str, int]]:
    """Headings over neighbouring columns, each with how many it spans."""
    counts = Counter(column.group for column in columns)  # in the order of the columns
    return list(counts.items())


def _letter_sources(rows: Iterable[Row], columns: Iterable[Column]) -> dict[str, str]:
    """Where the table's values are from -> a letter."""
    names = [column.value for column in columns]
    values = [row.measurement.values.get(name) for row in rows for name in names]
    places = dict.fromkeys(value.where for value in values if value and value.where)
    return {where: _to_letters(i) for i, where in enumerate(places)}


def _to_letters(index: int) -> str:
    """a, b, ... z, aa, ab, ..."""
    if index < 26:
        return chr(ord("a") + index)
    return _to_letters(index // 26 - 1) + _to_letters(index % 26)


def _plot_latency(rows: Iterable[Row]) -> tuple[str, Plot | None]:
    """The name of the latency that is drawn (the device's, if it is known) and the plot."""
    for latency in ("latency_p50_ms", "host_p50_ms"):
        points = [point for row in rows if (point := _to_point(row, latency)) is not None]
        if result := plot_points(points):
            return latency, result
    return "", None


def _to_point(row: Row, latency: str) -> Point | None:
    """A candidate in the plot; None where its size or this latency is not known."""
    values = row.measurement.values
    size_mb, latency_ms = _number_of(values, "package_mb"), _number_of(values, latency)
    if size_mb is None or latency_ms is None:
        return None
    return Point(
        number=row.number,
        name=row.name,
        size_mb=size_mb,
        latency_ms=latency_ms,
        loss=_number_of(values, "loss_points"),
        fits=row.judgement.outcome != "fail",
        front=row.judgement.pareto,
    )


def _merge_toolchains(artifacts: Iterable[Artifact]) -> dict[str, str]:
    """Tool -> its version, or versions where candidates were made with several."""
    versions: dict[str, set[str]] = {}
    for artifact in artifacts:
        for name, version in artifact.toolchain.items():
            versions.setdefault(name, set()).add(version)
    return {name: ", ".join(sorted(versions[name])) for name in sorted(versions)}
