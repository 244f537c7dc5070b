"""Do two models compute the same? Random inputs for both, and the comparison of their outputs."""

from __future__ import annotations

import numpy as np

from edge_core.errors import ConvertError
from edge_core.tensors import Array, Feeds, TensorSpec

SEED = 0
TOLERANCE = 1e-3  # of an output's largest value: fusing reorders sums, nothing else may change
TOLERANCE_FP16 = 2e-2  # the same, where sums have 11 bits
INT_TOLERANCE = 0.01  # share of an integer output's values: ties of an arg-max may fall otherwise


def make_random_feeds(inputs: tuple[TensorSpec, ...]) -> Feeds:
    """Seeded values for static inputs: normal floats, any bytes, and 0 or 1 for other integers,
    which are valid as token ids, masks and indices."""
    rng = np.random.default_rng(SEED)
    return {spec.name: _make_random(rng, spec) for spec in inputs}


def _make_random(rng: np.random.Generator, spec: TensorSpec) -> Array:
    shape = [int(dim) for dim in spec.shape]
    if spec.dtype == "string":
        return np.full(shape, "a", dtype=object)
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 256 if spec.dtype == "uint8" else 2, shape).astype(dtype)


def require_same_outputs(
    expected_outputs: Feeds, actual_outputs: Feeds, tolerance: float = TOLERANCE
) -> None:
    """Raise ConvertError naming an output that differs by more than the tolerance."""
    for name, expected in expected_outputs.items():
        actual = actual_outputs[name]
        if expected.shape != actual.shape or expected.dtype != actual.dtype:
            raise ConvertError(
                f"output '{name}' changed from {expected.dtype}{list(expected.shape)} "
                f"to {actual.dtype}{list(actual.shape)}"
            )
        limit = tolerance if expected.dtype.kind == "f" else INT_TOLERANCE
        off = _measure_distance(expected, actual)
        if not off <= limit:  # NaN is off, too
            raise ConvertError(f"output '{name}' changed by {off:.2g} (limit {limit:g})")


def _measure_distance(expected: Array, actual: Array) -> float:
    """Largest difference over the largest value; of other than floats the share that differs."""
    if expected.dtype.kind != "f":
        return float(np.mean(expected != actual)) if expected.size else 0.0
    scale = float(np.max(np.abs(expected), initial=1e-6, where=np.isfinite(expected)))
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        apart = np.abs(expected.astype(np.float64) - actual)
    same = (expected == actual) | (np.isnan(expected) & np.isnan(actual))
    return float(np.max(np.where(same, 0.0, apart), initial=0.0)) / scale
