"""The report shows every number with how it is known, and nothing from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from converters import registry as converters
from edge_core.profile import Budgets, Cpu, Memory, Platform, Profile, Runtime, Storage
from edge_core.tensors import TensorSpec
from edge_sdk.build import judge, planner, report
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
FLOAT = planner.resolve(converters.get("onnx-fp32").SPEC, PROFILE)
INT8 = msgspec.structs.replace(
    FLOAT, spec=msgspec.structs.replace(FLOAT.spec, name="onnx-int8-static", is_reference=False)
)
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
    chosen=(FLOAT, INT8),
)


def make_measurement(
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
            **{
                f"host_{name}_ms": host(ms * factor, "ms", "1 thread(s)")
                for name, factor in spread.items()
            },
            **{
                f"latency_{name}_ms": device(device_ms * factor, "ms", 3)
                for name, factor in spread.items()
            },
            "load_ms": device(12 * mb, "ms", 3),
            "memory_peak_mb": device(peak, "MB", 1.25),
            "energy_mj": Quantity("unknown", None, "mJ", "", note="no default power mode"),
        },
    )


MEASURED = (
    make_measurement("onnx-fp32", 18.6, 1.0, 7.9, 62, 131),
    make_measurement("onnx-fp32-ort", 18.7, 1.0, 7.8, 61, 118),
    make_measurement("onnx-fp16-storage", 9.4, 0.99, 8.1, 63, 150),
    make_measurement("onnx-int8-static", 4.9, 0.96, 4.3, 21, 96),
    make_measurement("onnx-int8-dynamic", 5.0, 0.83, 16.2, 140, 98),
    Measurement(candidate="onnx-int8-weights", error="onnxruntime cannot load the file: opset 21"),
)


def make_artifact(name: str) -> Artifact:
    return Artifact(
        candidate=name, path=Path(f"{name}.onnx"), sha256="ab" * 32, bytes=4_900_000,
        written_for={"opset": "17", "ir": "8"}, options={}, inputs=(), outputs=(),
        toolchain={"onnx": "1.23.2", "onnxruntime": "1.31.1"}, seconds=3.2,
    )  # fmt: skip


def make_report(budgets: Budgets = PROFILE.budgets) -> report.Report:
    profile = msgspec.structs.replace(PROFILE, budgets=budgets)
    verdict = judge.judge(profile, MEASURED, metric="agreement")
    return report.Report(
        model=MODEL, profile=profile, plan=PLAN, measurements=MEASURED, verdict=verdict,
        artifacts=tuple(make_artifact(one.candidate) for one in MEASURED if not one.error),
        notes=("initializers are no inputs",), metric="agreement",
        evaluation="photos/, 100 samples", package="lite0.edgepkg" if verdict.winner else "",
        digest=f"sha256:{'0c' * 32}" if verdict.winner else "", host="Example CPU, 2 cores",
        variants=("pi",) if verdict.winner else (),
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
def full_report():
    return make_report()


@pytest.fixture(scope="module")
def html(full_report):
    return report.render(full_report)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_the_page_needs_nothing_from_elsewhere(html, page):
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not [
        names for _, names in page.tags if {"src", "href", "style", "onclick"} & names.keys()
    ]
    assert not re.search(r"url\(|@import|https?:", html)


def test_the_page_is_the_same_for_the_same_report(full_report, html):
    assert report.render(msgspec.structs.replace(full_report)) == html


def test_json_is_the_same_content(full_report):
    assert from_json(to_json(full_report, indent=1), report.Report) == full_report


def test_the_headline_and_the_package_are_on_top(page):
    top = page.text[: page.text.index("Gates of")]
    assert "onnx-int8-static fits Raspberry Pi 4 Model B, 4 GB" in top
    assert f"Package lite0.edgepkg, digest sha256:{'0c' * 32}" in top
    assert "26.3 % of the original's 18.6 MB" in top
    assert "on this host 4.3 ms, onnx-fp32 7.9 ms" in top


def test_every_value_of_every_candidate_is_there_with_how_it_is_known(page):
    for measurement in MEASURED:
        if measurement.error:
            assert measurement.error in page.text
            continue
        part = page.text[page.text.index(f"Every value of {measurement.candidate} ") :]
        for name, quantity in measurement.values.items():
            unit = quantity.unit if quantity.value is not None else ""
            words = [name, report.format_number(quantity.value), unit]
            words += [report.format_span(quantity), quantity.kind, quantity.where, quantity.note]
            assert " ".join(filter(None, words)) in part


def test_predictions_show_their_range_and_where_values_are_from(page):
    assert "21 predicted c 7 to 63" in page.text
    assert "4.3 measured b" in page.text
    assert f"a the file b {HERE} c Cortex-A72" in page.text


def test_every_loser_and_every_refusal_has_its_reason(full_report, page):
    verdict = full_report.verdict
    for judgement in verdict.judgements:
        reason = f"{judgement.candidate}: {judgement.reason}"
        assert judgement.candidate == verdict.winner or reason in page.text
    for decision in full_report.plan.decisions:
        assert decision.reason in page.text
        assert decision.evidence in page.text


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
    doubtful = report.render(
        make_report(Budgets(latency_p90_ms=30, energy_mj=9, agreement_min=0.9))
    )
    assert "4 GB; 2 gates are inconclusive" in Page(doubtful).text


def test_nothing_fits_names_the_smallest_relaxation():
    refusal = make_report(Budgets(latency_p90_ms=2, agreement_min=0.99))
    text = Page(report.render(refusal)).text
    assert "Nothing fits Raspberry Pi 4 Model B, 4 GB" in text
    assert f"The smallest change that would help: {refusal.verdict.relaxation}." in text
    assert "Gates of" not in text


def test_a_plan_without_candidates_still_has_a_report(full_report):
    empty = msgspec.structs.replace(
        full_report, measurements=(), artifacts=(), package="", digest="", variants=(),
        verdict=judge.judge(PROFILE, (), metric="agreement"),
    )  # fmt: skip
    assert "Candidates None was measured." in Page(report.render(empty)).text


def test_names_and_notes_are_text_and_never_markup(full_report):
    evil = "<script>alert('x')</script>\"onload=\"y"
    model = msgspec.structs.replace(MODEL, path=Path("<b>.onnx"))
    shown = msgspec.structs.replace(
        full_report, model=model, notes=(evil,), host=evil, evaluation=evil
    )
    page = Page(report.render(shown))
    assert not page.all("script")
    assert not page.all("b") or all(not attributes for attributes in page.all("b"))
    assert page.text.count(evil) == 3


def test_tables_and_the_plot_can_be_read_without_seeing_them(page):
    assert page.all("html") == [{"lang": "en"}]
    assert all(heading.get("scope") for heading in page.all("th"))
    scrolling = [block for block in page.all("div") if block.get("class") == "scroll"]
    assert all(block.get("tabindex") == "0" for block in scrolling)
    (svg,) = page.all("svg")
    assert svg["role"] == "img"
    for measurement in MEASURED:
        if not measurement.error:
            size = report.format_number(measurement.values["package_mb"].value)
            assert f"{measurement.candidate}: {size} MB" in (svg["aria-label"] or "")


def contrast(ink: str, ground: str) -> float:
    """The ratio of WCAG 2.2, 1 to 21."""

    def luminance(colour: str) -> float:
        digits = colour if len(colour) == 6 else "".join(2 * digit for digit in colour)
        parts = [int(digits[i : i + 2], 16) / 255 for i in range(0, 6, 2)]
        linear = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(ink), luminance(ground)))
    return (light + 0.05) / (dark + 0.05)


def test_every_text_colour_has_enough_contrast_in_light_and_dark(html):
    schemes = [
        dict(re.findall(r"--(\w+): #(\w+)", block))
        for block in re.findall(r":root \{(.*?)\}", html, re.S)
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
    assert report.format_number(value) == text
