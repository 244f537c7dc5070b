"""Does a rewritten graph still compute what the user's file computes? One run of both decides."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from converters.onnx.model_file import iter_weights, make_unknown_op_error, save_model
from edge_core.errors import ConvertError, MeasureError
from edge_core.extras import need
from edge_core.runtimes import onnxruntime
from edge_core.runtimes.adapter import Session
from edge_core.tensors import Array, Feeds, TensorSpec

if TYPE_CHECKING:
    from onnx import ModelProto

SEED = 0
TOLERANCE = 1e-3  # of an output's largest value: fusing reorders sums, nothing else may change
TOLERANCE_FP16 = 2e-2  # the same, where sums have 11 bits
INT_TOLERANCE = 0.01  # share of an integer output's values: ties of an arg-max may fall otherwise
_NO_KERNEL = re.compile(r"implementation for (\S+)\(\d+\) node with name '([^']*)'")
_NO_SCHEMA = re.compile(r"(\S+:\w+)\(-?\d+\) is not a registered function/op")


def verify_rewrite(path: Path, given: Feeds, rewritten: ModelProto) -> str:
    """Run the file at ``path`` and ``rewritten`` on the same random input. Returns "" when they
    agree, or why they could not be compared.

    ``given`` are the inputs that became constants. Raises ConvertError when the outputs differ or
    a file does not load, naming the op that ONNX Runtime lacks.
    """
    # Without optimisation: the question is whether the graphs agree, not whether an optimiser errs.
    original = _open(path, path, "off")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "rewritten.onnx"
        save_model(rewritten, copy)
        session = _open(copy, path, "off")
        _open(copy, path, "all")  # as devices load it; some branches only fail there
    feeds = make_random_feeds(session.inputs)
    try:
        want = original.run({**feeds, **given})
    except MeasureError as e:  # some models refuse what no user would feed them
        return e.what
    try:
        got = session.run(feeds)
    except MeasureError as e:
        raise ConvertError(f"{path.name} does not run once rewritten: {e.what}") from e
    kinds = need("onnx", "onnx").TensorProto
    half = any(t.data_type in (kinds.FLOAT16, kinds.BFLOAT16) for t in iter_weights(rewritten))
    require_same_outputs(want, got, TOLERANCE_FP16 if half else TOLERANCE)
    return ""


def make_random_feeds(inputs: tuple[TensorSpec, ...]) -> Feeds:
    """Seeded values for static inputs: normal floats, any bytes, and 0 or 1 for other integers,
    which are valid as token ids, masks and indices."""
    rng = np.random.default_rng(SEED)
    return {spec.name: _make_random(rng, spec) for spec in inputs}


def _make_random(rng: np.random.Generator, spec: TensorSpec) -> Array:
    shape = [int(d) for d in spec.shape]
    if spec.dtype == "string":
        return np.full(shape, "a", dtype=object)
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 256 if spec.dtype == "uint8" else 2, shape).astype(dtype)


def _open(file: Path, path: Path, level: str) -> Session:
    try:
        return onnxruntime.open(file, threads=1, options={"graph_optimization": level})
    except MeasureError as e:
        if found := _NO_KERNEL.search(e.what):
            raise make_unknown_op_error(path, found[1], found[2]) from e
        if found := _NO_SCHEMA.search(e.what):
            raise make_unknown_op_error(path, found[1], "") from e
        if file == path:
            raise ConvertError(e.what, hint="'edge inspect' lists the model's ops") from e
        raise ConvertError(
            f"{path.name} does not load with these shapes: {e.what}",
            hint="a scalar input that chooses a branch can be fixed, too: --shape NAME=VALUE",
        ) from e


def require_same_outputs(want: Feeds, got: Feeds, tolerance: float = TOLERANCE) -> None:
    """Raise ConvertError naming an output that differs by more than the tolerance."""
    for name, a in want.items():
        b = got[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            raise ConvertError(
                f"output '{name}' changed from {a.dtype}{list(a.shape)} to {b.dtype}{list(b.shape)}"
            )
        limit = tolerance if a.dtype.kind == "f" else INT_TOLERANCE
        off = _measure_distance(a, b)
        if not off <= limit:  # NaN is off, too
            raise ConvertError(f"output '{name}' changed by {off:.2g} (limit {limit:g})")


def _measure_distance(a: Array, b: Array) -> float:
    """Largest difference over the largest value; of other than floats the share that differs."""
    if a.dtype.kind != "f":
        return float(np.mean(a != b)) if a.size else 0.0
    scale = float(np.max(np.abs(a), initial=1e-6, where=np.isfinite(a)))
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        apart = np.abs(a.astype(np.float64) - b)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return float(np.max(np.where(same, 0.0, apart), initial=0.0)) / scale
