"""Small real packages, installed and served, for the tests of agent.http."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper

from agent import Agent
from agent.config import Config, Http, Serve
from agent.http.limits import DEFAULT, ConnectionLimits
from agent.http.server import Server
from agent.packages.slots import Batching, Slot, Slots, Tuning
from edge_core.package import format as package
from edge_core.package import golden
from edge_core.package.manifest import Manifest, RuntimeNeed, Selector, Variant
from edge_core.package.preprocess import ImageRecipe
from edge_core.runtimes import onnxruntime
from edge_core.tensors import DTYPES, Feeds, TensorSpec
from tests import packages

ONNX_TYPES = {
    "float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE,
    "int8": TensorProto.INT8, "uint8": TensorProto.UINT8, "int16": TensorProto.INT16,
    "uint16": TensorProto.UINT16, "int32": TensorProto.INT32, "uint32": TensorProto.UINT32,
    "int64": TensorProto.INT64, "uint64": TensorProto.UINT64, "bool": TensorProto.BOOL,
    "string": TensorProto.STRING,
}  # fmt: skip
PICTURE = ImageRecipe(height=8, width=8, fit="stretch", color="L", scale=1 / 255)
SERVE = Serve()
SCALE, ZERO = 0.5, 10  # of the quantised echo


def dense(folder: Path, *, name: str = "dense", version: str = "1.0.0") -> Path:
    """Four numbers in, three labelled class scores out."""
    manifest, files = packages.make_contents(folder)
    out = folder / f"{name}-{version}.edgepkg"
    package.write(out, msgspec.structs.replace(manifest, name=name, version=version), files)
    return out


def echo(folder: Path) -> Path:
    """Gives back a tensor of every type, of any number of rows and two columns."""
    tensors = [
        (helper.make_tensor_value_info(f"in_{dtype}", ONNX_TYPES[dtype], ("rows", 2)),
         helper.make_tensor_value_info(f"out_{dtype}", ONNX_TYPES[dtype], ("rows", 2)))
        for dtype in DTYPES
    ]  # fmt: skip
    nodes = [helper.make_node("Identity", [f"in_{dtype}"], [f"out_{dtype}"]) for dtype in DTYPES]
    feeds = {
        f"in_{dtype}": np.zeros((1, 2), object if dtype == "string" else dtype) for dtype in DTYPES
    }
    feeds["in_string"][:] = "text"
    return _package(folder, "echo", nodes, tensors, feeds)


def write_quantised(folder: Path) -> Path:
    """Gives back int8 that stands for reals: (q - ZERO) * SCALE."""
    tensors = [
        (helper.make_tensor_value_info("x", TensorProto.INT8, (1, 3)),
         helper.make_tensor_value_info("y", TensorProto.INT8, (1, 3)))
    ]  # fmt: skip
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    specs = {name: TensorSpec(name, "int8", (1, 3), "", SCALE, ZERO) for name in "xy"}
    feeds = {"x": np.zeros((1, 3), np.int8)}
    return _package(
        folder, "quantised", nodes, tensors, feeds, inputs=(specs["x"],), outputs=(specs["y"],)
    )


def picture(folder: Path, *, name: str = "picture") -> Path:
    """The mean brightness of each quarter of a picture, as scores of four classes."""
    tensors = [
        (helper.make_tensor_value_info("pixels", TensorProto.FLOAT, (1, 1, 8, 8)),
         helper.make_tensor_value_info("scores", TensorProto.FLOAT, (1, 4)))
    ]  # fmt: skip
    nodes = [
        helper.make_node("AveragePool", ["pixels"], ["p"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Flatten", ["p"], ["scores"]),
    ]
    feeds = {"pixels": np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8)}
    labels = ("top left", "top right", "bottom: left", "bottom right")
    return _package(folder, name, nodes, tensors, feeds, preprocess=PICTURE, labels=labels)


def lookup(folder: Path) -> Path:
    """The x-th of three numbers; the runtime fails for any other x."""
    tensors = [
        (helper.make_tensor_value_info("x", TensorProto.INT64, (1,)),
         helper.make_tensor_value_info("y", TensorProto.FLOAT, (1,)))
    ]  # fmt: skip
    nodes = [
        helper.make_node("Constant", [], ["table"], value_floats=[1.0, 2.0, 3.0]),
        helper.make_node("Gather", ["table", "x"], ["y"]),
    ]
    return _package(folder, "lookup", nodes, tensors, {"x": np.ones(1, np.int64)})


def slow(folder: Path) -> Path:
    """Some tenths of a second of multiplications."""
    size, steps = 1024, 12
    tensors = [
        (helper.make_tensor_value_info("x", TensorProto.FLOAT, (1,)),
         helper.make_tensor_value_info("y", TensorProto.FLOAT, ()))
    ]  # fmt: skip
    shape = helper.make_node("Constant", [], ["shape"], value_ints=[size, size])
    nodes = [shape, helper.make_node("Expand", ["x", "shape"], ["m0"])]
    nodes += [helper.make_node("MatMul", [f"m{i}", "m0"], [f"m{i + 1}"]) for i in range(steps)]
    nodes.append(helper.make_node("ReduceMax", [f"m{steps}"], ["y"], keepdims=0))
    return _package(folder, "slow", nodes, tensors, {"x": np.zeros(1, np.float32)})


def install(root: Path, path: Path) -> Slot:
    """Unpack a package into a slot and make it current."""
    opened = package.open(path)
    slots = Slots(root)
    with slots.installing():
        slots.unpack(opened, opened.manifest.variants[0])
    tuning = Tuning(
        runtime=f"onnxruntime {onnxruntime.version()}",
        threads=1,
        p50_ms={},
        batching=Batching(
            can=False, pays=False, max_batch_size=1, why="not measured", single_per_s=0.0,
            batched_per_s=0.0, measured_at=1,
        ),
        seconds=0.0,
    )  # fmt: skip
    slot = Slot(
        digest=opened.digest, name=opened.manifest.name, version=opened.manifest.version,
        variant=opened.manifest.variants[0].name,
        candidate=opened.manifest.variants[0].candidate, installed_at=time.time(), tuning=tuning,
    )  # fmt: skip
    slots.switch(slot)
    return slot


@contextmanager
def serving(
    root: Path, *, serve: Serve = SERVE, limits: ConnectionLimits = DEFAULT, **http: object
) -> Iterator[tuple[Agent, str]]:
    """An agent on a data directory with its server on any free port; gives "host:port"."""
    settings = Http(**{"port": 0, **http})  # type: ignore[arg-type]
    config = Config(data_dir=str(root), http=settings, serve=serve)
    with Agent(config) as agent, Server(agent, settings, limits) as server:
        yield agent, server.start().removeprefix("http://")


def _package(folder: Path, name: str, nodes: list, tensors: list, feeds: Feeds, **more) -> Path:
    graph = helper.make_graph(
        nodes,
        name,
        [model_input for model_input, _ in tensors],
        [model_output for _, model_output in tensors],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file = folder / f"{name}.onnx"
    onnx.save(model, file)
    session = onnxruntime.open(file, threads=1, options={})
    answers = session.run(feeds)
    version = onnxruntime.version()
    about = {key: more.pop(key) for key in ("labels", "class_scores") if key in more}
    variant = Variant(
        name="here",
        selector=Selector(arch="x86_64", os="linux"),
        profiles=("here",),
        candidate="onnx-fp32",
        precision="fp32",
        files=("golden.npz", "model.onnx", "recipe.json"),
        entry="model.onnx",
        runtime=RuntimeNeed("onnxruntime", version, version),
        **{"inputs": session.inputs, "outputs": session.outputs, **more},
    )
    manifest = Manifest(
        name=name,
        version="1.0",
        model_sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        variants=(variant,),
        **about,
    )
    files: dict[str, Path | bytes] = {
        "here/model.onnx": file,
        "here/golden.npz": golden.make((feeds,), (answers,), (answers,)).to_bytes(),
        "here/recipe.json": b"{}",
        "model-card.md": b"# card\n",
        "sbom.cdx.json": b"{}",
    }
    out = folder / f"{name}.edgepkg"
    package.write(out, manifest, files)
    return out
