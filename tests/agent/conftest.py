"""Packages and data directories for the agent's tests: real models, really installed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from agent.config import Config, Install
from agent.packages.install import install
from edge_core.machine import detect
from edge_core.package import format as package
from edge_core.package import golden
from edge_core.package.manifest import Manifest, RuntimeNeed, Selector, Variant
from edge_core.runtimes import onnxruntime as adapter

LABELS = ("left", "ahead", "right")
MakePackage = Callable[..., Path]


def dense(path: Path, *, seed: int, rows: int | str, width: int) -> Path:
    """One dense layer with softmax: ``width`` inputs, three classes."""
    weights = np.random.default_rng(seed).normal(size=(width, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Softmax", ["h"], ["y"])],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (rows, width))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (rows, 3))],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def write_package(out: Path, model: Path, feeds: list[dict[str, np.ndarray]], **facts: Any):
    """A package of ``model`` for this machine, with its answers on ``feeds`` as golden vectors."""
    session = adapter.open(model, threads=1, options={})
    answers = tuple(session.run(sample) for sample in feeds)
    here = detect.detect_platform()
    version = adapter.version()
    variant = Variant(
        name="here",
        selector=facts.pop("selector", Selector(arch=here.arch, os=here.os)),
        profiles=("here",),
        candidate="onnx-fp32",
        precision="fp32",
        files=("golden.npz", "model.onnx", "recipe.json"),
        entry="model.onnx",
        runtime=facts.pop("runtime", RuntimeNeed("onnxruntime", version, version)),
        inputs=session.inputs,
        outputs=session.outputs,
        preprocess=facts.pop("preprocess", None),
    )
    known: dict[str, object] = {
        "name": "dense",
        "version": "1.0.0",
        "model_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "variants": (variant,),
    }
    return package.write(
        out,
        Manifest(**{**known, **facts}),  # type: ignore[arg-type]
        {
            "here/model.onnx": model,
            "here/golden.npz": golden.make(tuple(feeds), answers, answers).to_bytes(),
            "here/recipe.json": b"{}",
            "model-card.md": b"# dense\n",
            "sbom.cdx.json": b"{}",
        },
    ).path


@pytest.fixture(scope="session")
def make_package(tmp_path_factory: pytest.TempPathFactory) -> MakePackage:
    """make_package(version="2", seed=2, rows="batch", width=4, **manifest fields) -> .edgepkg"""

    def make(
        *, version: str = "1.0.0", seed: int = 1, rows: int | str = 1, width: int = 4, **facts
    ) -> Path:
        folder = tmp_path_factory.mktemp("package")
        model = dense(folder / "model.onnx", seed=seed, rows=rows, width=width)
        rng = np.random.default_rng(8)
        feeds = [{"x": rng.normal(size=(1, width)).astype(np.float32)} for _ in range(3)]
        facts = {"labels": LABELS, **facts}
        return write_package(folder / "dense.edgepkg", model, feeds, version=version, **facts)

    return make


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Settings with a data directory of the test's own and short measurements."""
    return Config(data_dir=str(tmp_path / "agent"), install=Install(tune_s=0.2))


@pytest.fixture
def installed_config(config: Config, make_package: MakePackage) -> Config:
    """The same with the dense model installed."""
    install(config, make_package())
    return config
