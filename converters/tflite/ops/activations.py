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


def _threshold_relu(calc: Math, tensor: Tensor, alpha: float, _beta: float) -> Tensor:
    zeros = calc("MINIMUM", calc("RELU", tensor), 0.0)
    return calc(
        "SELECT_V2",
        calc("GREATER", tensor, alpha, dtype=np.bool_),
        tensor,
        zeros,
        dtype=tensor.dtype,
    )


def _softsign(calc: Math, tensor: Tensor, _alpha: float, _beta: float) -> Tensor:
    return calc("DIV", tensor, calc("ADD", calc("ABS", tensor), 1.0))


def _affine(calc: Math, tensor: Tensor, alpha: float, beta: float) -> Tensor:
    return calc("ADD", calc("MUL", tensor, alpha), beta)


def _scale_tanh(calc: Math, tensor: Tensor, alpha: float, beta: float) -> Tensor:
    return calc("MUL", calc("TANH", calc("MUL", tensor, beta)), alpha)


def _hard_sigmoid(calc: Math, tensor: Tensor, alpha: float, beta: float) -> Tensor:
    return calc.clamp(_affine(calc, tensor, alpha, beta), 0.0, 1.0)


# An argument without a default: the standard has none, or ONNX Runtime takes 0 in its place.
REQUIRED = math.nan
# The function, and the defaults of its alpha and beta; None where it takes none.
CURVES: dict[str, tuple[Curve, float | None, float | None]] = {
    "sigmoid": (lambda calc, tensor, *_: calc("LOGISTIC", tensor), None, None),
    "tanh": (lambda calc, tensor, *_: calc("TANH", tensor), None, None),
    "relu": (lambda calc, tensor, *_: calc("RELU", tensor), None, None),
    "softsign": (_softsign, None, None),
    "softplus": (lambda calc, tensor, *_: softplus(calc, tensor), None, None),
    "leakyrelu": (
        lambda calc, tensor, alpha, _: calc("LEAKY_RELU", tensor, alpha=alpha),
        0.01,
        None,
    ),
    "thresholdedrelu": (_threshold_relu, REQUIRED, None),
    "elu": (lambda calc, tensor, alpha, _: elu(alpha, calc, tensor), 1.0, None),
    "affine": (_affine, REQUIRED, REQUIRED),
    "scaledtanh": (_scale_tanh, REQUIRED, REQUIRED),
    "hardsigmoid": (_hard_sigmoid, 0.2, 0.5),
}
DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}


def read_activations(node: Node, directions: int) -> list[Activation]:
    """The node's activations in order; each takes its alpha and beta from the lists in turn."""
    names = node.attributes.get("activations") or DEFAULTS[node.op] * directions
    lists = [iter(node.attr(f"activation_{name}") or ()) for name in ("alpha", "beta")]
    chosen: list[Activation] = []
    for name in names:
        text = name.decode() if isinstance(name, bytes) else name
        if text.lower() not in CURVES:
            raise node.refusal(f"activation '{text}' is not one of {', '.join(sorted(CURVES))}")
        curve, *defaults = CURVES[text.lower()]
        alpha, beta = (
            0.0 if default is None else float(next(supplied, default))
            for supplied, default in zip(lists, defaults, strict=True)
        )
        if math.isnan(alpha) or math.isnan(beta):
            raise node.refusal(f"activation '{text}' comes without its alpha or beta")
        chosen.append(_bind_parameters(curve, alpha, beta))
    return chosen


def _bind_parameters(curve: Curve, alpha: float, beta: float) -> Activation:
    return lambda calc, tensor: curve(calc, tensor, alpha, beta)
