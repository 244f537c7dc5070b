"""What a device does with a package: verify it, run it, time it, with no framework but its runtime.

The package is written here by edge_core alone, from a model that is a plain file.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edge_core import golden, package
from edge_core.files import sha256_file
from edge_core.manifest import Manifest, RuntimeNeed, Selector
from edge_core.preprocess import Recipe, to_tensor
from edge_core.runtimes import onnxruntime

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "data" / "detection" / "FastestDet.onnx"
PHOTO = ROOT / "examples" / "data" / "photos" / "bird.jpg"
RECIPE = Recipe(
    height=352, width=352, fit="stretch", interpolation="box", color="BGR", scale=1 / 255
)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FastestDet as a package, with golden vectors from this machine's runtime."""
    session = onnxruntime.open(MODEL, threads=1, options={})
    feeds = {session.inputs[0].name: to_tensor(PHOTO, RECIPE)}
    answers = session.run(feeds)
    version = onnxruntime.version()
    manifest = Manifest(
        name="detector",
        version="1.0",
        model_sha256=sha256_file(MODEL),
        candidate="onnx-fp32",
        precision="fp32",
        file="model.onnx",
        selector=Selector(("here",), "x86_64", "linux"),
        runtime=RuntimeNeed("onnxruntime", version, version),
        inputs=session.inputs,
        outputs=session.outputs,
        preprocess=RECIPE,
    )
    vectors = golden.make((feeds,), (answers,), (answers,))
    files: dict[str, Path | bytes] = {
        "model.onnx": MODEL,
        "golden.npz": vectors.to_bytes(),
        "recipe.json": b"{}",
        "model-card.md": b"# detector\n",
        "sbom.cdx.json": b"{}",
    }
    path = tmp_path_factory.mktemp("package") / "detector.edgepkg"
    package.write(path, manifest, files)
    return path


def agent(*arguments: object, ok: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "agent", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == ok, done.stderr
    return done


def test_the_agent_verifies_runs_and_times_a_package(detector: Path):
    assert "1 of 1 golden samples reproduced" in agent("verify", detector).stdout
    answer = json.loads(agent("infer", detector, PHOTO, "--json").stdout)
    (outputs,) = answer["outputs"].values()
    assert len(outputs[0]) == 85
    (timed,) = json.loads(agent("bench", detector, "--runs", "5", "--json").stdout)
    assert 0 < timed["p50_ms"] <= timed["p99_ms"]


def test_a_damaged_package_is_refused_before_it_is_run(detector: Path, tmp_path: Path):
    raw = bytearray(detector.read_bytes())
    raw[-100_000] ^= 1
    (tmp_path / "bad.edgepkg").write_bytes(raw)
    for command in (("verify",), ("infer", PHOTO), ("bench",)):
        name, *rest = command
        done = agent(name, tmp_path / "bad.edgepkg", *rest, ok=1)
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr


def test_the_agent_describes_the_machine_it_is_on():
    assert json.loads(agent("detect").stdout)["platform"]["os"] in ("linux", "macos")
