"""`edge verify`, `run`, `bench`, `pack` and `unpack`, on good and on bad packages."""

import json

import msgspec
import numpy as np
from PIL import Image

from edge_core.package import format as package
from edge_core.package import golden
from tests.cases import ROOT
from tests.edge_sdk.commands.messages import error_line

PHOTO = ROOT / "examples" / "data" / "photos" / "bird.jpg"


def test_verify_run_and_bench_a_package(edge, digits_package, tmp_path):
    assert "golden vectors replayed" in edge("verify", digits_package).stdout
    timings = json.loads(edge("bench", digits_package, "--runs", "20", "--json").stdout)
    assert timings[0]["p50_ms"] <= timings[0]["p99_ms"]
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / "digit.png")
    answer = json.loads(edge("run", digits_package, tmp_path / "digit.png", "--json").stdout)
    assert np.shape(answer["outputs"]["logits"]) == (1, 10)
    assert len(answer["top"]) == 5
    assert "score" in edge("run", digits_package, tmp_path / "digit.png").stdout


def test_pack_prints_json(edge, digits_package, tmp_path):
    edge("unpack", digits_package, tmp_path / "layout")
    packed = json.loads(edge("pack", tmp_path / "layout", tmp_path / "b.edgepkg", "--json").stdout)
    assert packed["bytes"] == digits_package.stat().st_size


def test_a_damaged_package(edge, digits_package, tmp_path):
    raw = bytearray(digits_package.read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "bad.edgepkg").write_bytes(raw)
    for command in (("verify",), ("run",), ("bench",)):
        extra = (PHOTO,) if command == ("run",) else ()
        assert "bad.edgepkg" in error_line(edge(*command, tmp_path / "bad.edgepkg", *extra, ok=1))


def test_what_is_no_package_is_refused_by_name(edge, tmp_path):
    (tmp_path / "zero.edgepkg").write_bytes(b"")
    completed = edge("verify", tmp_path / "zero.edgepkg", ok=1)
    assert "zero.edgepkg is no .edgepkg file" in error_line(completed)
    assert "no OCI image layout" in error_line(edge("verify", tmp_path, ok=1))


def test_an_input_that_does_not_fit_the_package(edge, digits_package, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((2, 2), np.float32))
    assert "shape 2x2" in error_line(edge("run", digits_package, tmp_path / "x.npy", ok=1))
    (tmp_path / "x.txt").write_text("hello")
    assert "inputs are an image" in error_line(
        edge("run", digits_package, tmp_path / "x.txt", ok=1)
    )
    assert "no input at" in error_line(edge("run", digits_package, tmp_path / "none.png", ok=1))


def test_golden_vectors_that_do_not_replay_fail_a_gate(edge, digits_package, tmp_path):
    """A package whose digests are right and whose model answers otherwise: exit code 2."""
    opened = package.open(digits_package)
    files = {title: opened.read(title) for title in opened.titles if title != "manifest.json"}
    (variant,) = opened.manifest.variants
    title = variant.title(variant.golden)
    vectors = golden.from_bytes(files[title])
    wrong = tuple(
        {name: array + 5 for name, array in sample.items()} for sample in vectors.artifact
    )
    files[title] = golden.make(
        vectors.inputs, wrong, wrong, tolerance=dict.fromkeys(vectors.tolerance, 0.01)
    ).to_bytes()
    package.write(tmp_path / "wrong.edgepkg", opened.manifest, files)
    completed = edge("verify", tmp_path / "wrong.edgepkg", ok=2)
    assert "golden vectors do not replay here" in error_line(completed)


def test_every_command_says_when_a_variant_is_for_another_kind_of_machine(
    edge, digits_package, tmp_path
):
    opened = package.open(digits_package)
    files = {title: opened.read(title) for title in opened.titles if title != "manifest.json"}
    (variant,) = opened.manifest.variants
    selector = msgspec.structs.replace(variant.selector, arch="riscv64")
    variants = (msgspec.structs.replace(variant, selector=selector),)
    manifest = msgspec.structs.replace(opened.manifest, variants=variants)
    elsewhere = package.write(tmp_path / "elsewhere.edgepkg", manifest, files).path
    inputs = golden.from_bytes(files[variant.title(variant.golden)]).inputs[0]
    np.savez(tmp_path / "x.npz", **inputs)
    verified = edge("verify", elsewhere)
    ran, timed = edge("run", elsewhere, tmp_path / "x.npz"), edge("bench", elsewhere, "--runs", 5)
    for printed in (verified.stdout, ran.stderr, timed.stderr):
        assert "needs riscv64 linux" in printed
    assert "note:" not in edge("run", digits_package, tmp_path / "x.npz").stderr
