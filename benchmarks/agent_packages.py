"""The packages that the agent's benchmarks install: made once, kept below .cache/agent-packages.

lite0(), lite0("tflite-int8-static")   EfficientNet-Lite0 INT8 by `edge build`; 602,112 bytes in
digits()        a CNN of 0.15 ms whose batch is free: a batch of 8 costs 5 times a single one
magika()        a model of 6 ms whose batch is free: a batch of 8 costs 8 times a single one
dense("1")      4 numbers in, 3 out, in microseconds; each version has weights of its own
"""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from edge_core.files import sha256_file, write_atomic
from edge_core.package import format as package
from edge_core.package import golden
from edge_core.package.manifest import MANIFEST, Manifest, RuntimeNeed, Selector, Variant
from edge_core.package.preprocess import BUILT_IN, ImageRecipe
from edge_core.runtimes import onnxruntime as adapter
from edge_core.tensors import Feeds
from examples import data

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "agent-packages"
PROFILE = "x86-64"
ONNX_INT8 = "onnx-int8-static-u8s8"
SOURCES = (Path(__file__), ROOT / "examples" / "models.py", ROOT / "examples" / "data.py")
GOLDEN = 3  # samples in each package that is made here


def lite0(candidate: str = ONNX_INT8) -> Path:
    """EfficientNet-Lite0 as `edge build` makes it, with its recipe for images."""

    def make(out: Path) -> None:
        samples = [f"--{what}=examples.data:photo_crops_{what}" for what in ("calibration", "eval")]
        kinds = [f"--only={candidate}", f"--with={candidate}"]
        folder = out.parent / f"{out.stem}.built"
        _python(
            "edge_sdk", "build", example("lite0"), "--profile", PROFILE, *samples, *kinds,
            "--preprocess", "efficientnet-lite0", "--name", "lite0", "--version", "1",
            "--out", folder,
        )  # fmt: skip
        (built,) = folder.glob("*.edgepkg")
        built.rename(out)

    return _cache_package(f"lite0-{candidate}", make)


def digits() -> Path:
    """The CNN for handwritten digits with a free first dimension."""

    def make(out: Path) -> None:
        model = free_batch(example("digits"), out.with_suffix(".onnx"))
        samples = [
            {"input": image} for image in itertools.islice(data.digits_calibration(), GOLDEN)
        ]
        write(out, model, samples, name="digits", recipe=BUILT_IN["mnist"])

    return _cache_package("digits", make)


def magika() -> Path:
    """Content types of files; the first dimension is free as the model comes."""

    def make(out: Path) -> None:
        samples = [
            {"bytes": content} for content in itertools.islice(data.magika_calibration(), GOLDEN)
        ]
        write(out, example("magika"), samples, name="magika")

    return _cache_package("magika", make)


def dense(version: str) -> Path:
    """One dense layer and a softmax: "x" float32 (1,4) -> "y" (1,3). The version is its seed."""

    def make(out: Path) -> None:
        model = dense_model(out.with_suffix(".onnx"), int(version))
        rng = np.random.default_rng(0)
        samples = [{"x": rng.normal(size=(1, 4)).astype(np.float32)} for _ in range(GOLDEN)]
        write(out, model, samples, name="dense", version=version)

    return _cache_package(f"dense-{version}", make)


def write(
    out: Path,
    model: Path,
    samples: Sequence[Feeds],
    *,
    name: str,
    version: str = "1",
    recipe: ImageRecipe | None = None,
) -> package.PackageRef:
    """Package an ONNX file as it is, with golden vectors from this machine's runtime."""
    session = adapter.open(model, threads=1, options={})
    answers = [session.run(feeds) for feeds in samples]
    ours = adapter.version()
    variant = Variant(
        name=PROFILE, selector=Selector(arch="x86_64", os="linux"), profiles=(PROFILE,),
        candidate="onnx-fp32", precision="fp32", entry="model.onnx",
        files=("golden.npz", "model.onnx", "recipe.json"),
        runtime=RuntimeNeed("onnxruntime", ours, ours), inputs=session.inputs,
        outputs=session.outputs, preprocess=recipe,
    )  # fmt: skip
    manifest = Manifest(
        name=name, version=version, model_sha256=sha256_file(model), variants=(variant,)
    )
    files: dict[str, Path | bytes] = {
        variant.title("model.onnx"): model,
        variant.title("golden.npz"): golden.make(
            tuple(samples), tuple(answers), tuple(answers)
        ).to_bytes(),
        variant.title("recipe.json"): b"{}",
        "model-card.md": f"# {name} {version}\n".encode(),
        "sbom.cdx.json": b"{}",
    }
    return package.write(out, manifest, files)


def read_golden(opened: package.Package) -> golden.Golden:
    """The golden vectors of a package with one variant."""
    (variant,) = opened.manifest.variants
    return golden.from_bytes(opened.read(variant.title(variant.golden)))


def again(path: Path, out: Path, version: str) -> package.PackageRef:
    """The same package with another version, and so another digest."""
    opened = package.open(path)
    files = {title: opened.read(title) for title in opened.titles if title != MANIFEST}
    return package.write(out, msgspec.structs.replace(opened.manifest, version=version), files)


def example(name: str) -> Path:
    """One of the example models; a child makes it, so that nobody carries PyTorch around."""
    return _cache_package(name, lambda out: _python("examples.models", name, out), suffix=".onnx")


def free_batch(model: Path, out: Path) -> Path:
    """The same graph with a free first dimension: a Reshape to (1, ...) keeps it (0) instead."""
    import onnx
    from onnx import numpy_helper

    proto = onnx.load(model)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del proto.graph.value_info[:]
    constants = {
        constant.output[0]: constant.attribute[0].t
        for constant in proto.graph.node
        if constant.op_type == "Constant"
    }
    for node in proto.graph.node:
        if node.op_type == "Reshape" and node.input[1] in constants:
            tensor = constants[node.input[1]]
            shape = numpy_helper.to_array(tensor).copy()
            if shape[0] == 1:
                shape[0] = 0
                tensor.CopyFrom(numpy_helper.from_array(shape))
    onnx.checker.check_model(proto)
    write_atomic(out, proto.SerializeToString())
    return out


def dense_model(out: Path, seed: int) -> Path:
    """An ONNX file of two nodes."""
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Softmax", ["h"], ["y"])],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 3))],
        [numpy_helper.from_array(weights, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    write_atomic(out, made.SerializeToString())
    return out


def _cache_package(name: str, make: Callable[[Path], object], suffix: str = ".edgepkg") -> Path:
    path = CACHE / _key() / f"{name}{suffix}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"making {name}{suffix}", file=sys.stderr, flush=True)
        make(path)
    return path


def _key() -> str:
    digest = hashlib.sha256(adapter.version().encode())
    for source in SOURCES:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _python(module: str, *arguments: object) -> None:
    env = {**os.environ, "EDGE_CACHE": str(ROOT / ".cache" / "edge")}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{module} failed:\n{done.stderr}")
