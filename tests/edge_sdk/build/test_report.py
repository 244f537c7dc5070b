"""The report shows every number with how it is known, and nothing from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_core.profile import Budgets, Cpu, Memory, Platform, Profile, Runtime, Storage
from edge_core.tensors import TensorSpec
from edge_sdk.build import judge, plot, report
from edge_sdk.build.stages import (
    Artifact,
    Decision,
    Measurement,
    Model,
    Plan,
    Quantity,
    from_json,
    to_json,
)

PROFILE = Profile(
    name="raspberry-pi-4b",
    title="Raspberry Pi 4 Model B, 4 GB",
    platform=Platform(arch="aarch64", os="linux", os_version="Debian 12", glibc="2.36"),
    cpu=Cpu(model="Cortex-A72", cores=4, clock_mhz=1800),
    memory=Memory(total_mb=4000, available_mb=3000),
    storage=Storage(available_mb=8000),
    runtimes=(Runtime(name="onnxruntime", version="1.23.2"),),
    precisions=("fp32", "int8"),
    budgets=Budgets(latency_p90_ms=120, package_mb=20, memory_peak_mb=300, agreement_min=0.9),
)
SHAPE = TensorSpec("input", "float32", (1, 3, 224, 224), "NCHW")
MODEL = Model(
    path=Path("efficientnet-lite0.onnx"), format="onnx", sha256="5f" * 32, bytes=18_614_167,
    opset=17, ir=8, inputs=(SHAPE,), outputs=(TensorSpec("logits", "float32", (1, 1000)),),
    ops={"Conv": 49, "Clip": 33}, parameters=4_652_008, weight_bytes=18_608_032, macs=385_816_264,
    dynamic=(), facets={},
)  # fmt: skip
HERE = "onnxruntime 1.23.2 on this x86_64 host"
PLAN = Plan(
    model="efficientnet-lite0.onnx",
    profile="raspberry-pi-4b",
    runtime="onnxruntime 1.23.2",
    decisions=(
        Decision(candidate="onnx-fp32", title="float, as it is", verdict="in", reason="the base"),
        Decision(
            candidate="onnx-int4-conv",
            title="INT4 convolution weights",
            verdict="out",
            reason="INT4 convolution weights lose the model <and> are never faster",
            rule="int4-conv-loses-the-model",
            evidence="EfficientNet-Lite0, blockwise INT4: top-1 agreement 0.61",
        ),
    ),
)


def measured(
    name: str, mb: float, agreement: float, ms: float, device_ms: float, peak: float
) -> Measurement:
    """A candidate's numbers as the measure stage labels them."""

    def host(value: float, unit: str, note: str = "") -> Quantity:
        return Quantity("measured", value, unit, HERE, note=note)

    def device(value: float, unit: str, band: float) -> Quantity:
        low, high = value / band, value * band
        return Quantity("predicted", value, unit, "Cortex-A72", low, high, "by peak MAC rates")

    spread = {"p50": 1.0, "p90": 1.13, "p99": 1.6}
    return Measurement(
        candidate=name,
        values={
            "package_mb": Quantity("measured", mb, "MB", "the file"),
            "agreement": host(agreement, "", "100 samples"),
            "cosine": host(0.9 + agreement / 10, ""),
            "loss_points": host(100 * (1 - agreement), "points"),
            **{f"host_{p}_ms": host(ms * s, "ms", "1 thread(s)") for p, s in spread.items()},
            **{f"latency_{p}_ms": device(device_ms * s, "ms", 3) for p, s in spread.items()},
            "load_ms": device(12 * mb, "ms", 3),
            "memory_peak_mb": device(peak, "MB", 1.25),
            "energy_mj": Quantity("unknown", None, "mJ", "", note="no default power mode"),
        },
    )


MEASURED = (
    measured("onnx-fp32", 18.6, 1.0, 7.9, 62, 131),
    measured("onnx-fp32-ort", 18.7, 1.0, 7.8, 61, 118),
    measured("onnx-fp16-storage", 9.4, 0.99, 8.1, 63, 150),
    measured("onnx-int8-static", 4.9, 0.96, 4.3, 21, 96),
    measured("onnx-int8-dynamic", 5.0, 0.83, 16.2, 140, 98),
    Measurement(candidate="onnx-int8-weights", error="onnxruntime cannot load the file: opset 21"),
)


def artifact(name: str) -> Artifact:
    return Artifact(
        candidate=name, path=Path(f"{name}.onnx"), sha256="ab" * 32, bytes=4_900_000,
        written_for={"opset": "17", "ir": "8"}, options={}, inputs=(), outputs=(),
        toolchain={"onnx": "1.23.2", "onnxruntime": "1.31.1"}, seconds=3.2,
    )  # fmt: skip


def a_report(budgets: Budgets = PROFILE.budgets) -> report.Report:
    profile = msgspec.structs.replace(PROFILE, budgets=budgets)
    verdict = judge.judge(profile, MEASURED, metric="agreement")
    return report.Report(
        model=MODEL, profile=profile, plan=PLAN, measurements=MEASURED, verdict=verdict,
        artifacts=tuple(artifact(m.candidate) for m in MEASURED if not m.error),
        notes=("initializers are no inputs",), metric="agreement",
        evaluation="photos/, 100 samples", package="lite0.edgepkg" if verdict.winner else "",
        digest=f"sha256:{'0c' * 32}" if verdict.winner else "", host="Example CPU, 2 cores",
        seconds={"read": 0.31, "convert": 11.2, "measure": 42.0},
    )  # fmt: skip


class Page(HTMLParser):
    """Checks that tags are balanced; collects tags, attributes and the text that is seen."""

    VOID = ("meta", "br", "circle", "line", "polyline")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = re.sub(r" ([,:])", r"\1", " ".join(" ".join(self.words).split()))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def told():
    return a_report()


@pytest.fixture(scope="module")
def html(told):
    return report.render(told)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_the_page_needs_nothing_from_elsewhere(html, page):
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not [a for _, a in page.tags if {"src", "href", "style", "onclick"} & a.keys()]
    assert not re.search(r"url\(|@import|https?:", html)


def test_the_page_is_the_same_for_the_same_report(told, html):
    assert report.render(msgspec.structs.replace(told)) == html


def test_json_is_the_same_content(told):
    assert from_json(to_json(told, indent=1), report.Report) == told


def test_the_headline_and_the_package_are_on_top(page):
    top = page.text[: page.text.index("Gates of")]
    assert "onnx-int8-static fits Raspberry Pi 4 Model B, 4 GB" in top
    assert f"Package lite0.edgepkg, digest sha256:{'0c' * 32}" in top
    assert "26.3 % of the original's 18.6 MB" in top
    assert "on this host 4.3 ms, onnx-fp32 7.9 ms" in top


def test_every_value_of_every_candidate_is_there_with_how_it_is_known(page):
    for m in MEASURED:
        if m.error:
            assert m.error in page.text
            continue
        part = page.text[page.text.index(f"Every value of {m.candidate} ") :]
        for name, v in m.values.items():
            words = [name, report.number(v.value), v.unit if v.value is not None else ""]
            words += [report.span(v), v.kind, v.where, v.note]
            assert " ".join(w for w in words if w) in part


def test_predictions_show_their_range_and_where_values_are_from(page):
    assert "21 predicted c 7 to 63" in page.text
    assert "4.3 measured b" in page.text
    assert f"a the file b {HERE} c Cortex-A72" in page.text


def test_every_loser_and_every_refusal_has_its_reason(told, page):
    for j in told.verdict.judged:
        assert j.candidate == told.verdict.winner or f"{j.candidate}: {j.lost}" in page.text
    for d in told.plan.decisions:
        assert d.reason in page.text
        assert d.evidence in page.text


def test_gates_toolchain_budgets_and_stage_times_are_there(page):
    for text in (
        "agreement_min 0.9 0.96 measured ✓ pass 0.96 >= 0.9",
        "Toolchain onnx 1.23.2 onnxruntime 1.31.1",
        "budget latency_p90_ms 120",
        "convert 11.2 s",
        "photos/, 100 samples, by agreement",
        "prepared initializers are no inputs",
    ):
        assert text in page.text


def test_doubtful_gates_are_in_the_headline():
    doubtful = report.render(a_report(Budgets(latency_p90_ms=30, energy_mj=9, agreement_min=0.9)))
    assert "4 GB; 2 gates are inconclusive" in Page(doubtful).text


def test_nothing_fits_names_the_smallest_relaxation():
    told = a_report(Budgets(latency_p90_ms=2, agreement_min=0.99))
    text = Page(report.render(told)).text
    assert "Nothing fits Raspberry Pi 4 Model B, 4 GB" in text
    assert f"The smallest change that would help: {told.verdict.relaxation}." in text
    assert "Gates of" not in text


def test_a_plan_without_candidates_still_has_a_report(told):
    empty = msgspec.structs.replace(
        told, measurements=(), verdict=judge.judge(PROFILE, (), metric="agreement"), artifacts=(),
        package="", digest="",
    )  # fmt: skip
    assert "Candidates None was measured." in Page(report.render(empty)).text


def test_names_and_notes_are_text_and_never_markup(told):
    evil = "<script>alert('x')</script>\"onload=\"y"
    model = msgspec.structs.replace(MODEL, path=Path("<b>.onnx"))
    shown = msgspec.structs.replace(told, model=model, notes=(evil,), host=evil, evaluation=evil)
    page = Page(report.render(shown))
    assert not page.all("script")
    assert not page.all("b") or all(not a for a in page.all("b"))
    assert page.text.count(evil) == 3


def test_tables_and_the_plot_can_be_read_without_seeing_them(page):
    assert page.all("html") == [{"lang": "en"}]
    assert all(a.get("scope") for a in page.all("th"))
    assert all(a.get("tabindex") == "0" for a in page.all("div") if a.get("class") == "scroll")
    (svg,) = page.all("svg")
    assert svg["role"] == "img"
    for m in MEASURED:
        assert m.error or f"{m.candidate}: {report.number(m.values['package_mb'].value)} MB" in (
            svg["aria-label"] or ""
        )


def contrast(a: str, b: str) -> float:
    """The ratio of WCAG 2.2, 1 to 21."""

    def luminance(colour: str) -> float:
        digits = colour if len(colour) == 6 else "".join(2 * c for c in colour)
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def test_every_text_colour_has_enough_contrast_in_light_and_dark(html):
    schemes = [
        dict(re.findall(r"--(\w+): #(\w+)", s)) for s in re.findall(r":root \{(.*?)\}", html, re.S)
    ]
    assert len(schemes) == 2
    for scheme in schemes:
        for ground in ("bg", "card", "win"):
            for ink in ("text", "soft", "accent", "pass", "fail", "inconclusive"):
                assert contrast(scheme[ink], scheme[ground]) >= 4.5, (ink, ground)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "unknown"), (0, "0"), (0.00012, "1.2e-04"), (0.1234, "0.123"), (4.3, "4.3"),
     (99.96, "100"), (1234.5, "1,234"), (-12.34, "-12.3")],
)  # fmt: skip
def test_numbers_have_three_digits(value, text):
    assert report.number(value) == text


POINTS = st.lists(
    st.builds(
        plot.Point,
        number=st.integers(1, 99), name=st.just("n"), x=st.floats(1e-3, 1e5),
        y=st.floats(1e-3, 1e5), loss=st.none() | st.floats(-5, 100), fits=st.booleans(),
        front=st.booleans(),
    ),
    min_size=2, max_size=9,
)  # fmt: skip


@given(points=POINTS)
def test_every_point_is_inside_the_axes_and_in_proportion(points):
    drawn = plot.plot(points)
    assert drawn is not None
    assert {m.point for m in drawn.marks} == set(points)
    for m in drawn.marks:
        assert plot.LEFT <= m.x <= plot.RIGHT
        assert plot.TOP <= m.y <= plot.BOTTOM
        top = float(drawn.x_ticks[-1].text)
        assert m.x == pytest.approx(plot.LEFT + (plot.RIGHT - plot.LEFT) * m.point.x / top, abs=0.1)
    for ticks in (drawn.x_ticks, drawn.y_ticks):
        assert ticks[0].text == "0"
        assert 4 <= len(ticks) <= 11


@given(points=POINTS)
def test_labels_of_near_points_do_not_cover_each_other(points):
    drawn = plot.plot(points)
    assert drawn is not None
    for i, a in enumerate(drawn.marks):
        assert a.label_y <= plot.BOTTOM
        for b in drawn.marks[:i]:
            if abs(a.x - b.x) < plot.LABEL:
                assert abs(a.label_y - b.label_y) >= plot.LABEL - 1e-6


def test_one_point_is_no_trade_off():
    assert plot.plot([]) is None
    assert plot.plot([plot.Point(1, "n", 1.0, 1.0, 0.0, True, True)]) is None


def test_colours_run_from_teal_to_magenta():
    assert plot.colour(0.0, 10.0) == "#0f9d8a"
    assert plot.colour(5.0, 10.0) == "#d69800"
    assert plot.colour(10.0, 10.0) == plot.colour(99.0, 10.0) == "#c2317a"
    assert plot.colour(None, 10.0) == "#808080"
