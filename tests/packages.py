"""A small package for tests: a real ONNX model, quantised, with its own golden vectors."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from edge_core.package import golden
from edge_core.package.manifest import Gate, Manifest, RuntimeNeed, Selector, Variant
from edge_core.runtimes import onnxruntime as adapter
from edge_core.tensors import Feeds

Files = dict[str, Path | bytes]
NAME = "raspberry-pi-4b"  # the only variant
FILES = ("golden.npz", "model.onnx", "recipe.json")


def with_variant(manifest: Manifest, **changes: object) -> Manifest:
    """The manifest with other fields in its first variant."""
    first = msgspec.structs.replace(manifest.variants[0], **changes)
    return msgspec.structs.replace(manifest, variants=(first, *manifest.variants[1:]))


def write_model(path: Path) -> Path:
    """Four inputs, one dense layer, three classes."""
    rng = np.random.default_rng(7)
    weights = numpy_helper.from_array(rng.normal(size=(4, 3)).astype(np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Softmax", ["h"], ["y"])],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 3))],
        [weights],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, path)
    return path


def run_model(path: Path, inputs: tuple[Feeds, ...]) -> tuple[Feeds, ...]:
    """What a model file makes of the inputs."""
    session = adapter.open(path, threads=1, options={})
    return tuple(session.run(feeds) for feeds in inputs)


def make_contents(folder: Path) -> tuple[Manifest, Files]:
    """A manifest and all files but the manifest's own, with the model file on disk."""
    original, quantised = write_model(folder / "original.onnx"), folder / "quantised.onnx"
    quantize_dynamic(original, quantised, weight_type=QuantType.QInt8)
    rng = np.random.default_rng(8)
    inputs = tuple({"x": rng.normal(size=(1, 4)).astype(np.float32)} for _ in range(3))
    vectors = golden.make(inputs, run_model(original, inputs), run_model(quantised, inputs))
    session = adapter.open(quantised, threads=1, options={})
    variant = Variant(
        name=NAME,
        selector=Selector(arch="aarch64", os="linux"),
        profiles=(NAME,),
        candidate="onnx-int8-dynamic",
        precision="int8",
        files=FILES,
        entry="model.onnx",
        runtime=RuntimeNeed("onnxruntime", "1.23.2", "1.23.2"),
        inputs=session.inputs,
        outputs=session.outputs,
        gates=(Gate("package_mb", 1.0, "pass", 0.001, "MB"),),
        toolchain={"onnx": "1.23.2", "onnxruntime": "1.31.1"},
    )
    manifest = Manifest(
        name="dense",
        version="1.0.0",
        model_sha256=hashlib.sha256(original.read_bytes()).hexdigest(),
        labels=("left", "ahead", "right"),
        variants=(variant,),
    )
    recipe = msgspec.json.encode({"candidate": variant.candidate})
    return manifest, {
        f"{NAME}/model.onnx": quantised,
        f"{NAME}/golden.npz": vectors.to_bytes(),
        f"{NAME}/recipe.json": recipe,
        "model-card.md": b"# dense 1.0.0\n",
        "sbom.cdx.json": b'{"bomFormat":"CycloneDX","specVersion":"1.6","version":1}',
    }
