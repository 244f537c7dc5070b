"""A format, converters and a runtime that another package brings: linear models in NumPy.

A .lin file is a .npz with ``weights`` [inputs, outputs] and ``bias`` [outputs].
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters.spec import Conversion, Description, Format, Job, Spec
from edge_core.errors import InputError
from edge_core.tensors import TensorSpec


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path) as arrays:
            return arrays["weights"], arrays["bias"]
    except (OSError, KeyError, ValueError) as e:
        raise InputError(f"{path} is no linear model: {e}") from e


def read_io_specs(path: Path):
    weights, _ = read(path)
    inputs, outputs = weights.shape
    return (
        (TensorSpec("x", "float32", (1, inputs)),),
        (TensorSpec("y", "float32", (1, outputs)),),
    )


def describe(path: Path, shapes) -> Description:
    weights, bias = read(path)
    inputs, outputs = read_io_specs(path)
    return Description(
        inputs=inputs, outputs=outputs, ops={"Linear": 1}, parameters=weights.size + bias.size,
        weight_bytes=weights.nbytes + bias.nbytes, macs=weights.size,
    )  # fmt: skip


@dataclass(frozen=True)
class Folder:
    """Writes a folder with a file for each array: what a runtime opens may be a folder, too."""

    SPEC: Spec

    def convert(self, job: Job) -> Conversion:
        path = job.out_dir / "model.linpkg"
        (path / "data").mkdir(parents=True)
        for name, array in zip(("weights", "bias"), read(job.model), strict=True):
            np.save(path / "data" / f"{name}.npy", array)
        return Conversion(path=path)


@dataclass(frozen=True)
class Linear:
    """Writes the weights in another type."""

    SPEC: Spec
    dtype: str

    def convert(self, job: Job) -> Conversion:
        weights, bias = read(job.model)
        path = job.out_dir / "model.lin"
        with path.open("wb") as file:
            np.savez(file, weights=weights.astype(self.dtype), bias=bias)
        return Conversion(path=path)


def make_spec(name, *, suffix=".lin", **more):
    return Spec(
        name=f"linear-{name}", title=f"linear model in {name}", target="linear",
        sources=("linear",), runtimes=("linear",), precision=name[:4], suffix=suffix, extra="",
        toolchain=("numpy",), **more,
    )  # fmt: skip


LINEAR = Format(
    name="linear",
    suffixes=(".lin",),
    runtimes=("linear",),
    describe=describe,
    read_io_specs=read_io_specs,
    read_versions=lambda path: {"linear": "1"},
)
FP32 = Linear(make_spec("fp32", scheme="float", is_reference=True), "float32")
FP16 = Linear(make_spec("fp16", scheme="storage"), "float16")
FOLDER = Folder(make_spec("fp32-folder", suffix=".linpkg", scheme="float"))
