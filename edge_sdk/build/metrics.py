"""How far a candidate's outputs are from the original's, and from the labels. Pure.

A value's ``low`` and ``high`` are one sample away: a pass that a single sample could turn is no
pass, so its gate is inconclusive. The note also gives the 95 % interval: Wilson's for a share, and
a normal one on the discordant pairs for the difference of two accuracies on the same samples
(Agresti, Categorical Data Analysis, 10.1), the rule of three when no pair is discordant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from edge_core.errors import InputError, MeasureError
from edge_core.tensors import Array, Feeds
from edge_sdk.build.stages import Quantity

Outputs = Mapping[str, Array]  # name -> stacked over the samples: (N, *shape)
# Scores the outputs of all samples, one dict of arrays of the model's own shapes for each, given
# their labels (or None): a share, where 1.0 is best.
UserMetric = Callable[[Sequence[Feeds], Sequence[int] | None], float]
BUILT_IN = ("top1", "top5", "agreement", "cosine")
Z_95 = 1.96  # standard deviations of a normal distribution that hold 95 %
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

    ``original`` and ``candidate`` hold the same names with arrays of (N, *shape), real values.
    ``metric`` is one of BUILT_IN or the user's 'module:function'; it decides which drop is gated:
    top1, top5 and a user's metric give accuracy_drop_points, the others stand for themselves.
    Raises MeasureError for a candidate with other outputs, or whose outputs or metric are not
    finite where the original's are; InputError for labels or a metric that do not fit the model.
    """
    _check_shapes(original, candidate)
    values = _compare_tensors(original, candidate, where)
    scores, candidate_scores = (
        _flatten_samples(pick_scored_output(list(outputs.values()), lambda array: array.dtype.name))
        for outputs in (original, candidate)
    )
    values["agreement"] = _agreement(scores, candidate_scores, where)
    if metric in ("top1", "top5"):
        assert labels is not None  # the pipeline refuses the metric without labels
        top = 1 if metric == "top1" else 5
        values |= _compare_top(scores, candidate_scores, np.asarray(labels), top, where)
    elif user is not None:
        values |= _compare_by_user(original, candidate, labels, user, metric, where)
    gated = values.get("accuracy_drop_points") or values[metric]
    loss = gated.value if gated.unit == "points" else 100 * (1 - (gated.value or 0.0))
    values["loss_points"] = Quantity("measured", loss, "points", where, note=f"by {metric}")
    return values


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """95 % interval of a share of ``hits`` in ``count`` (Wilson 1927)."""
    share, z_squared = hits / count, Z_95 * Z_95
    centre = (share + z_squared / (2 * count)) / (1 + z_squared / count)
    variance = share * (1 - share) / count + z_squared / (4 * count * count)
    half = Z_95 * math.sqrt(variance) / (1 + z_squared / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def drop_interval(original_hits: Array, candidate_hits: Array) -> tuple[float, float, float]:
    """Drop of accuracy on the same samples, in points, and its 95 % interval: (drop, low, high).

    Both are (N,) of bool: was the sample answered right?
    """
    count = len(original_hits)
    lost = int(np.sum(original_hits & ~candidate_hits))
    won = int(np.sum(~original_hits & candidate_hits))
    drop = (lost - won) / count
    if lost + won == 0:
        return 0.0, -300 / count, 300 / count  # rule of three, in points
    half = Z_95 * math.sqrt(lost + won - (lost - won) ** 2 / count) / count
    return 100 * drop, 100 * (drop - half), 100 * (drop + half)


def pick_scored_output(outputs: Sequence[T], dtype: Callable[[T], str]) -> T:
    """The output whose highest score counts: the first floating-point one, or the first."""
    return next((output for output in outputs if dtype(output).startswith("float")), outputs[0])


def _check_shapes(original: Outputs, candidate: Outputs) -> None:
    expected, actual = (
        {name: array.shape[1:] for name, array in outputs.items()}
        for outputs in (original, candidate)
    )
    if expected != actual:
        raise MeasureError(f"the candidate's outputs are {actual}; the original's are {expected}")


def _compare_tensors(original: Outputs, candidate: Outputs, where: str) -> dict[str, Quantity]:
    """Cosine and largest error over the floating-point outputs; of the worst output."""
    names = [name for name, array in original.items() if array.dtype.kind == "f"]
    pairs = [
        _finite_pair(name, original[name], candidate[name]) for name in names or list(original)[:1]
    ]
    cosine = min(_cosine(rows, candidate_rows) for rows, candidate_rows in pairs)
    error = max(
        float(np.max(np.abs(rows - candidate_rows), initial=0.0)) for rows, candidate_rows in pairs
    )
    count = len(pairs[0][0])
    return {
        "cosine": Quantity("measured", cosine, "", where, note=f"{count} samples"),
        "max_error": Quantity("measured", error, "", where),
    }


def _agreement(scores: Array, candidate_scores: Array, where: str) -> Quantity:
    """The share of samples with the same highest score; both are (N, classes)."""
    count = len(scores)
    same = int(np.sum(scores.argmax(1) == candidate_scores.argmax(1)))
    low, high = wilson_interval(same, count)
    note = f"{count} samples, 95 % interval {low:.3f} to {high:.3f}"
    one_sample = (max(0, same - 1) / count, min(count, same + 1) / count)
    return Quantity("measured", same / count, "", where, *one_sample, note)


def _compare_top(
    scores: Array, candidate_scores: Array, labels: Array, top: int, where: str
) -> dict[str, Quantity]:
    """Top-1 or top-5 accuracy of both; scores are (N, classes), labels are (N,) of integers."""
    if labels.max(initial=0) >= scores.shape[1]:
        raise InputError(
            f"label {int(labels.max())} is beyond the model's {scores.shape[1]} classes",
            hint="labels count from 0",
        )
    hits, candidate_hits = _top_hits(scores, labels, top), _top_hits(candidate_scores, labels, top)
    drop, low, high = drop_interval(hits, candidate_hits)
    count = len(labels)
    note = f"{count} samples, 95 % interval {low:.2f} to {high:.2f}"
    one_sample = (drop - 100 / count, drop + 100 / count)
    return {
        **_accuracies(hits.mean(), candidate_hits.mean(), where, f"top-{top}, {count} samples"),
        "accuracy_drop_points": Quantity("measured", drop, "points", where, *one_sample, note),
    }


def _compare_by_user(
    original: Outputs,
    candidate: Outputs,
    labels: Sequence[int] | None,
    user: UserMetric,
    name: str,
    where: str,
) -> dict[str, Quantity]:
    try:
        score, candidate_score = (
            float(user(_split_samples(outputs), labels)) for outputs in (original, candidate)
        )
    except Exception as error:  # the user's own code
        raise InputError(f"{name} failed: {type(error).__name__}: {error}") from error
    if not math.isfinite(score):
        raise InputError(f"{name} gives {score} for the original model's outputs")
    if not math.isfinite(candidate_score):  # it would be beyond no limit
        raise MeasureError(f"{name} gives {candidate_score} for its outputs")
    drop = 100 * score - 100 * candidate_score
    return {
        **_accuracies(score, candidate_score, where, name),
        "accuracy_drop_points": Quantity("measured", drop, "points", where, note=name),
    }


def _accuracies(score: float, candidate_score: float, where: str, note: str) -> dict[str, Quantity]:
    """Shares of the original and the candidate as points."""
    return {
        "metric_original": Quantity("measured", 100 * float(score), "points", where, note=note),
        "metric": Quantity("measured", 100 * float(candidate_score), "points", where, note=note),
    }


def _top_hits(scores: Array, labels: Array, top: int) -> Array:
    """(N,) of bool: is the label among the ``top`` highest scores?"""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    hits: Array = (best == labels[:, None]).any(1)
    return hits


def _flatten_samples(output: Array) -> Array:
    """One row for each sample, as float64: (N, values)."""
    return np.asarray(output).reshape(len(output), -1).astype(np.float64)


def _finite_pair(name: str, original: Array, candidate: Array) -> tuple[Array, Array]:
    """Both as rows, with zeros where both are infinite or both are no number."""
    rows, candidate_rows = _flatten_samples(original), _flatten_samples(candidate)
    odd = ~(np.isfinite(rows) & np.isfinite(candidate_rows))
    if not odd.any():
        return rows, candidate_rows
    if not np.array_equal(rows[odd], candidate_rows[odd], equal_nan=True):
        raise MeasureError(f"output '{name}' is not finite where the original's is")
    return np.where(odd, 0.0, rows), np.where(odd, 0.0, candidate_rows)


def _cosine(rows: Array, candidate_rows: Array) -> float:
    """The mean over the samples of the cosine between two (N, values) arrays."""
    if rows.shape[1] == 1:  # single numbers have no angle; the samples together do
        rows, candidate_rows = rows.T, candidate_rows.T
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(candidate_rows, axis=1)
    dots = np.einsum("ij,ij->i", rows, candidate_rows)
    same = np.all(rows == candidate_rows, axis=1)  # two zero vectors point the same way
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.mean(np.where(same, 1.0, np.where(norms > 0, dots / norms, 0.0))))


def _split_samples(outputs: Outputs) -> list[Feeds]:
    """One dict of arrays for each sample."""
    count = len(next(iter(outputs.values())))
    return [{name: np.asarray(array[i]) for name, array in outputs.items()} for i in range(count)]
