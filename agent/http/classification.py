"""Class scores as Triton's classification extension writes them: "score:index:label". No I/O."""

from __future__ import annotations

from typing import Any

import numpy as np

from agent.serving.requests import Answer
from edge_core.tensors import Array, TensorSpec


def may_be_scores(spec: TensorSpec) -> bool:
    """Could an output be one row, or rows, of class scores?"""
    return spec.dtype != "string" and len(spec.shape) in (1, 2)


def is_scores(array: Array) -> bool:
    """Is an output one row, or rows, of class scores?"""
    return array.dtype != object and array.ndim in (1, 2)


def classify_rows(scores: Array, count: int, labels: tuple[str, ...]) -> Array:
    """The best classes of each row of scores, best first.

    ``scores`` of shape [rows, classes] or [classes]; the result holds texts, [rows, count].
    """
    width = scores.shape[-1]
    keep = min(count, width)
    classes = np.empty((*scores.shape[:-1], keep), object)
    flat = classes.reshape(-1)  # a view
    for n, row in enumerate(scores.reshape(-1, width) if scores.size else ()):
        for k, i in enumerate(np.argsort(-row.astype(np.float64), kind="stable")[:keep]):
            flat[n * keep + k] = _format(row[i], int(i), labels[i] if i < len(labels) else "")
    return classes


def format_top(answer: Answer) -> Array:
    """The classes that the agent found best in the first output; of shape [count]."""
    scores = next(iter(answer.outputs.values())).reshape(-1)
    best = [_format(scores[scored.index], scored.index, scored.label) for scored in answer.top]
    return np.array(best, object)


def _format(score: Any, index: int, label: str) -> str:
    return f"{score!s}:{index}:{label}" if label else f"{score!s}:{index}"
