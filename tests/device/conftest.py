"""FastestDet as a package for this machine, written by edge_core alone from a plain file."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_core.files import sha256_file
from edge_core.machine import detect
from edge_core.package import format as package
from edge_core.package import golden
from edge_core.package.manifest import Manifest, RuntimeNeed, Selector, Variant
from edge_core.package.preprocess import ImageRecipe, to_tensor
from edge_core.runtimes import onnxruntime

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "data" / "detection" / "FastestDet.onnx"
PHOTO = ROOT / "examples" / "data" / "photos" / "bird.jpg"
RECIPE = ImageRecipe(
    height=352, width=352, fit="stretch", interpolation="box", color="BGR", scale=1 / 255
)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FastestDet as a package, with golden vectors from this machine's runtime."""
    session = onnxruntime.open(MODEL, threads=1, options={})
    feeds = {session.inputs[0].name: to_tensor(PHOTO, RECIPE)}
    answers = session.run(feeds)
    version, here = onnxruntime.version(), detect.detect_platform()
    variant = Variant(
        name="here",
        selector=Selector(arch=here.arch, os=here.os),
        profiles=("here",),
        candidate="onnx-fp32",
        precision="fp32",
        files=("golden.npz", "model.onnx", "recipe.json"),
        entry="model.onnx",
        runtime=RuntimeNeed("onnxruntime", version, version),
        inputs=session.inputs,
        outputs=session.outputs,
        preprocess=RECIPE,
    )
    manifest = Manifest(
        name="detector", version="1.0", model_sha256=sha256_file(MODEL), variants=(variant,)
    )
    vectors = golden.make((feeds,), (answers,), (answers,))
    files: dict[str, Path | bytes] = {
        "here/model.onnx": MODEL,
        "here/golden.npz": vectors.to_bytes(),
        "here/recipe.json": b"{}",
        "model-card.md": b"# detector\n",
        "sbom.cdx.json": b"{}",
    }
    path = tmp_path_factory.mktemp("package") / "detector.edgepkg"
    package.write(path, manifest, files)
    return path
