"""The runtime of .lin files: one matrix product."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_core.errors import InputError, MeasureError
from edge_core.runtimes.adapter import Spec
from edge_core.tensors import TensorSpec

SPEC = Spec(
    name="linear",
    distribution="edge-linear",
    module="edge_linear",
    extra="",
    suffixes=(".lin", ".linpkg"),
    precisions=("fp32", "fp16"),
    portable=True,
)


def version() -> str:
    return "1.0"


@dataclass(frozen=True)
class LinearSession:
    weights: np.ndarray
    bias: np.ndarray

    @property
    def inputs(self):
        return (TensorSpec("x", "float32", (1, self.weights.shape[0])),)

    @property
    def outputs(self):
        return (TensorSpec("y", "float32", (1, self.weights.shape[1])),)

    def run(self, feeds):
        return {"y": feeds["x"] @ self.weights + self.bias}


def open(path: Path, *, threads, options):
    if options:
        raise InputError(f"linear has no option '{next(iter(options))}'")
    try:
        if path.is_dir():
            weights, bias = (np.load(path / "data" / f"{name}.npy") for name in ("weights", "bias"))
            return LinearSession(weights, bias)
        with np.load(path) as arrays:
            return LinearSession(arrays["weights"].astype(np.float32), arrays["bias"])
    except (OSError, KeyError, ValueError) as e:
        raise MeasureError(f"linear cannot load {path.name}: {e}") from e
