"""The functions that lower ONNX ops, by family; importing this package registers all of them."""

from __future__ import annotations

from converters.tflite.ops import (
    attention,
    control,
    elementwise,
    images,
    indexing,
    integers,
    losses,
    movement,
    normalising,
    products,
    recurrent,
    reductions,
    resampling,
    scatter,
    signal,
)

__all__ = [
    "attention",
    "control",
    "elementwise",
    "images",
    "indexing",
    "integers",
    "losses",
    "movement",
    "normalising",
    "products",
    "recurrent",
    "reductions",
    "resampling",
    "scatter",
    "signal",
]
