"""Class scores as Triton's classification extension writes them: "score:index:label". No I/O."""

from __future__ import annotations

from typing import Any

import numpy as np

from agent.serving.requests import Answer
from edge_core.tensors import Array, TensorSpec


def may_fit(spec: TensorSpec) -> bool:
    """Could an output be one row, or rows, of class scores?"""
    return spec.dtype != "string" and len(spec.shape) in (1, 2)


def fit(a: Array) -> bool:
    """Is an output one row, or rows, of class scores?"""
    return a.dtype != object and a.ndim in (1, 2)


def of_rows(a: Array, count: int, labels: tuple[str, ...]) -> Array:
    """The best classes of each row of scores, best first; of shape [rows, count]."""
    width = a.shape[-1]
    keep = min(count, width)
    out = np.empty((*a.shape[:-1], keep), object)
    flat = out.reshape(-1)  # a view
    for r, row in enumerate(a.reshape(-1, width) if a.size else ()):
        for k, i in enumerate(np.argsort(-row.astype(np.float64), kind="stable")[:keep]):
            flat[r * keep + k] = _class(row[i], int(i), labels[i] if i < len(labels) else "")
    return out


def of_answer(answer: Answer) -> Array:
    """The classes that the agent found best in the first output; of shape [count]."""
    scores = next(iter(answer.outputs.values())).reshape(-1)
    best = [_class(scores[s.index], s.index, s.label) for s in answer.top]
    return np.array(best, object)


def _class(score: Any, index: int, label: str) -> str:
    return f"{score!s}:{index}:{label}" if label else f"{score!s}:{index}"
