"""The activations that LSTM, GRU and RNN name in an attribute."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node
from converters.tflite.ops.elementwise import Math, elu, softplus

Curve = Callable[[Math, Tensor, float, float], Tensor]
Activation = Callable[[Math, Tensor], Tensor]


def _threshold_relu(calc: Math, x: Tensor, alpha: float, _beta: float) -> Tensor:
    zeros = calc("MINIMUM", calc("RELU", x), 0.0)
    return calc("SELECT_V2", calc("GREATER", x, alpha, dtype=np.bool_), x, zeros, dtype=x.dtype)


# What must be given: the standard has no default, or ONNX Runtime takes 0 in its place.
GIVEN = math.nan
# The function, and the defaults of its alpha and its beta; None: it takes none.
CURVES: dict[str, tuple[Curve, float | None, float | None]] = {
    "sigmoid": (lambda m, x, a, b: m("LOGISTIC", x), None, None),
    "tanh": (lambda m, x, a, b: m("TANH", x), None, None),
    "relu": (lambda m, x, a, b: m("RELU", x), None, None),
    "softsign": (lambda m, x, a, b: m("DIV", x, m("ADD", m("ABS", x), 1.0)), None, None),
    "softplus": (lambda m, x, a, b: softplus(m, x), None, None),
    "leakyrelu": (lambda m, x, a, b: m("LEAKY_RELU", x, alpha=a), 0.01, None),
    "thresholdedrelu": (_threshold_relu, GIVEN, None),
    "elu": (lambda m, x, a, b: elu(a, m, x), 1.0, None),
    "affine": (lambda m, x, a, b: m("ADD", m("MUL", x, a), b), GIVEN, GIVEN),
    "scaledtanh": (lambda m, x, a, b: m("MUL", m("TANH", m("MUL", x, b)), a), GIVEN, GIVEN),
    "hardsigmoid": (lambda m, x, a, b: m.clamp(m("ADD", m("MUL", x, a), b), 0.0, 1.0), 0.2, 0.5),
}
DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}


def read_activations(node: Node, directions: int) -> list[Activation]:
    """The activations, in order; those that take an alpha or a beta use the lists up in turn."""
    names = node.attributes.get("activations") or DEFAULTS[node.op] * directions
    lists = [iter(node.attr(f"activation_{k}") or ()) for k in ("alpha", "beta")]
    found: list[Activation] = []
    for name in names:
        text = name.decode() if isinstance(name, bytes) else name
        if text.lower() not in CURVES:
            raise node.refusal(f"activation '{text}' is not one of {', '.join(sorted(CURVES))}")
        curve, *defaults = CURVES[text.lower()]
        a, b = (
            0.0 if d is None else float(next(given, d))
            for given, d in zip(lists, defaults, strict=True)
        )
        if math.isnan(a) or math.isnan(b):
            raise node.refusal(f"activation '{text}' comes without its alpha or beta")
        found.append(_bind_parameters(curve, a, b))
    return found


def _bind_parameters(curve: Curve, alpha: float, beta: float) -> Activation:
    return lambda m, x: curve(m, x, alpha, beta)
