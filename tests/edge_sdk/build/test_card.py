"""The model card says what a package is, with values that never vary."""

from pathlib import Path

import msgspec
import pytest

from edge_core.package.manifest import Gate
from edge_core.package.preprocess import BUILT_IN
from edge_sdk.build import card
from edge_sdk.build.stages import Artifact
from tests import packages

ARTIFACT = Artifact(
    candidate="onnx-int8-dynamic", path=Path("a.onnx"), sha256="ab" * 32, bytes=1_234_567,
    written_for={"opset": "17", "ir": "8"}, options={}, inputs=(), outputs=(),
    toolchain={}, notes=("biases stay float",), quantised_share=0.984, seconds=1.5,
)  # fmt: skip


def render(manifest, artifact=ARTIFACT):
    return card.render_card(manifest, {variant.name: artifact for variant in manifest.variants})


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return packages.make_contents(tmp_path_factory.mktemp("contents"))[0]


def test_a_card_has_the_facts_of_the_manifest_and_the_artifact(manifest):
    text = render(manifest)
    for line in (
        "# dense 1.0.0",
        "| bytes | 1,234,567 |",
        f"| made from a model with SHA-256 | `{manifest.model_sha256}` |",
        "| share of the weight bytes that is quantised | 98.4% |",
        "| note | biases stay float |",
        "| input | `x` | float32 | 1 x 4 |  |",
        "| output | `y` | float32 | 1 x 3 |  |",
        "The labels of 3 classes are in the package.",
        "| `package_mb` | 1 MB | 0.001 MB | pass |",
        "| onnxruntime | 1.31.1 |",
    ):
        assert line in text.splitlines()
    assert "for `raspberry-pi-4b` (aarch64, linux)" in text


def test_what_varies_from_run_to_run_does_not_change_the_card(manifest):
    other = msgspec.structs.replace(ARTIFACT, seconds=99.0, path=Path("elsewhere/b.onnx"))
    assert render(manifest, other) == render(manifest)


def test_a_gate_without_a_stable_value_has_an_empty_cell(manifest):
    gates = (Gate("latency_p90_ms", 50, "see the report", None, "ms"),)
    text = render(packages.with_variant(manifest, gates=gates))
    assert "| `latency_p90_ms` | 50 ms |  | see the report |" in text
    free = render(packages.with_variant(manifest, gates=()))
    assert "nothing was gated" in free


def test_preprocessing_and_the_command_fit_each_other(manifest):
    assert "edge-agent infer PACKAGE.edgepkg inputs.npz" in render(manifest)
    prepared = packages.with_variant(manifest, preprocess=BUILT_IN["efficientnet-lite0"])
    text = render(prepared)
    assert "edge-agent infer PACKAGE.edgepkg photo.jpg" in text
    assert "the central 87.5% is resized to 224 x 224 (bicubic)" in text
    assert "`(value x 1 - [127.0]) / [128.0]`, as float32 in NCHW" in text


def test_another_version_on_the_device_is_a_limit(manifest):
    assert "verify it there" not in render(manifest)
    older = msgspec.structs.replace(manifest.variants[0].runtime, measured_on="1.24.4")
    text = render(packages.with_variant(manifest, runtime=older))
    assert "measured on onnxruntime 1.24.4, the device has 1.23.2: verify it there" in text


def test_names_cannot_become_markup_or_break_a_table(manifest):
    evil = "a|b`c\n# d <img src=x> [e](f) *g*"
    named = packages.with_variant(msgspec.structs.replace(manifest, name=evil), candidate=evil)
    noted = msgspec.structs.replace(ARTIFACT, notes=(evil,))
    text = render(named, noted)
    assert text.splitlines()[0] == (r"# a\|b\`c \# d \<img src=x\> \[e\](f) \*g\* 1.0.0")
    assert "recipe `a/b'c # d <img src=x> [e](f) *g*` for" in text
    assert r"| note | a\|b\`c \# d \<img src=x\> \[e\](f) \*g\* |" in text.splitlines()
