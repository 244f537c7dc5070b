"""How far a candidate's outputs are from the original's, and from the labels. Pure.

A value's ``low`` and ``high`` are one sample away: a pass that a single sample could turn is no
pass, so its gate is inconclusive. The note gives the 95 % interval besides: Wilson's for a
share, and a normal one on the discordant pairs for the difference of two accuracies on the same
samples (Agresti, Categorical Data Analysis, 10.1), the rule of three when no pair is discordant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from edge_core.errors import InputError, MeasureError
from edge_core.tensors import Array, Feeds
from edge_sdk.build.stages import Quantity

Outputs = Mapping[str, Array]  # name -> stacked over the samples: (N, *shape)
UserMetric = Callable[[Sequence[Feeds], Sequence[int] | None], float]
BUILT_IN = ("top1", "top5", "agreement", "cosine")
_Z = 1.96
T = TypeVar("T")


def compare(
    original: Outputs,
    candidate: Outputs,
    labels: Sequence[int] | None,
    metric: str,
    where: str,
    user: UserMetric | None = None,
) -> dict[str, Quantity]:
    """Every accuracy value of one candidate; cosine and max_error are those of the worst output.

    ``metric`` is one of BUILT_IN or the user's 'module:function'; it decides which drop is gated:
    top1, top5 and a user's metric give accuracy_drop_points, the others stand for themselves.
    Raises MeasureError for a candidate with other outputs, or whose outputs or metric are not
    finite where the original's are; InputError for labels or a metric that do not fit the model.
    """
    want, have = ({n: o.shape[1:] for n, o in x.items()} for x in (original, candidate))
    if want != have:
        raise MeasureError(f"the candidate's outputs are {have}; the original's are {want}")
    pairs = [_finite(name, original[name], candidate[name]) for name in _real(original)]
    cosine = min(_cosine(x, y) for x, y in pairs)
    error = max(float(np.max(np.abs(x - y), initial=0.0)) for x, y in pairs)
    a, b = (
        _rows(compared(list(o.values()), lambda x: x.dtype.name)) for o in (original, candidate)
    )
    n = len(a)
    values = {
        "cosine": Quantity("measured", cosine, "", where, note=f"{n} samples"),
        "max_error": Quantity("measured", error, "", where),
    }
    same = int(np.sum(a.argmax(1) == b.argmax(1)))
    low, high = wilson(same, n)
    note = f"{n} samples, 95 % interval {low:.3f} to {high:.3f}"
    one = (max(0, same - 1) / n, min(n, same + 1) / n)
    values["agreement"] = Quantity("measured", same / n, "", where, *one, note)
    if metric in ("top1", "top5"):
        assert labels is not None  # the pipeline refuses the metric without labels
        values |= _labelled(a, b, np.asarray(labels), 1 if metric == "top1" else 5, where)
    elif user is not None:
        values |= _by_user(original, candidate, labels, user, metric, where)
    loss = values.get("accuracy_drop_points") or values[metric]
    lost = loss.value if loss.unit == "points" else 100 * (1 - (loss.value or 0.0))
    values["loss_points"] = Quantity("measured", lost, "points", where, note=f"by {metric}")
    return values


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a share of ``hits`` in ``n`` (Wilson 1927)."""
    p, z2 = hits / n, _Z * _Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_drop(right_a: Array, right_b: Array) -> tuple[float, float, float]:
    """Drop in points from a to b on the same samples: (drop, low, high)."""
    n = len(right_a)
    lost = int(np.sum(right_a & ~right_b))
    won = int(np.sum(~right_a & right_b))
    drop = (lost - won) / n
    if lost + won == 0:
        return 0.0, -300 / n, 300 / n  # rule of three, in points
    half = _Z * math.sqrt(lost + won - (lost - won) ** 2 / n) / n
    return 100 * drop, 100 * (drop - half), 100 * (drop + half)


def _labelled(a: Array, b: Array, labels: Array, k: int, where: str) -> dict[str, Quantity]:
    if labels.max(initial=0) >= a.shape[1]:
        raise InputError(
            f"label {int(labels.max())} is beyond the model's {a.shape[1]} classes",
            hint="labels count from 0",
        )
    right_a, right_b = _top(a, labels, k), _top(b, labels, k)
    drop, low, high = paired_drop(right_a, right_b)
    n, unit = len(labels), "points"
    scores = 100 * float(right_a.mean()), 100 * float(right_b.mean())
    note = f"{n} samples, 95 % interval {low:.2f} to {high:.2f}"
    one = (drop - 100 / n, drop + 100 / n)
    return {
        "metric_original": Quantity(
            "measured", scores[0], unit, where, note=f"top-{k}, {n} samples"
        ),
        "metric": Quantity("measured", scores[1], unit, where, note=f"top-{k}, {n} samples"),
        "accuracy_drop_points": Quantity("measured", drop, unit, where, *one, note),
    }


def _by_user(
    original: Outputs,
    candidate: Outputs,
    labels: Sequence[int] | None,
    user: UserMetric,
    name: str,
    where: str,
) -> dict[str, Quantity]:
    try:
        scores = [100 * float(user(_unstack(o), labels)) for o in (original, candidate)]
    except Exception as e:  # the user's own code
        raise InputError(f"{name} failed: {type(e).__name__}: {e}") from e
    if not math.isfinite(scores[0]):
        raise InputError(f"{name} gives {scores[0]} for the original model's outputs")
    if not math.isfinite(scores[1]):  # it would be beyond no limit
        raise MeasureError(f"{name} gives {scores[1]} for its outputs")
    drop = scores[0] - scores[1]
    return {
        "metric_original": Quantity("measured", scores[0], "points", where, note=name),
        "metric": Quantity("measured", scores[1], "points", where, note=name),
        "accuracy_drop_points": Quantity("measured", drop, "points", where, note=name),
    }


def _top(scores: Array, labels: Array, k: int) -> Array:
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    hits: Array = (best == labels[:, None]).any(1)
    return hits


def compared(outputs: Sequence[T], dtype: Callable[[T], str]) -> T:
    """The output whose highest score counts: the first floating-point one, or the first."""
    return next((o for o in outputs if dtype(o).startswith("float")), outputs[0])


def _real(outputs: Outputs) -> list[str]:
    """Names of the floating-point outputs, or of the first one."""
    return [n for n, o in outputs.items() if o.dtype.kind == "f"] or list(outputs)[:1]


def _rows(output: Array) -> Array:
    """One row a sample, as float64."""
    return np.asarray(output).reshape(len(output), -1).astype(np.float64)


def _finite(name: str, original: Array, candidate: Array) -> tuple[Array, Array]:
    """Both as rows, with zeros where both are infinite or both are no number."""
    a, b = _rows(original), _rows(candidate)
    odd = ~(np.isfinite(a) & np.isfinite(b))
    if odd.any():
        if not np.array_equal(a[odd], b[odd], equal_nan=True):
            raise MeasureError(f"output '{name}' is not finite where the original's is")
        a, b = np.where(odd, 0.0, a), np.where(odd, 0.0, b)
    return a, b


def _cosine(a: Array, b: Array) -> float:
    if a.shape[1] == 1:  # single numbers have no angle; the samples together do
        a, b = a.T, b.T
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    dots = np.einsum("ij,ij->i", a, b)
    same = np.all(a == b, axis=1)  # two zero vectors point the same way
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.mean(np.where(same, 1.0, np.where(norms > 0, dots / norms, 0.0))))


def _unstack(outputs: Outputs) -> list[Feeds]:
    count: Any = len(next(iter(outputs.values())))
    return [{name: np.asarray(a[i]) for name, a in outputs.items()} for i in range(count)]
