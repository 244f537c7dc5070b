"""Operators that compute each element alone: any order of axes is as good as another."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node, op
from converters.tflite.ops.arithmetic import (
    Math,
    cast,
    computed,
    divided,
    of_whole,
    quotient,
    remainder,
)
from converters.tflite.ops.broadcast import aligned, apply, emit, widened
from converters.tflite.values import Value
from edge_core.tensors import Array

UNARY = {
    "Abs": "ABS", "Neg": "NEG", "Exp": "EXP", "Log": "LOG", "Sqrt": "SQRT", "Sin": "SIN",
    "Cos": "COS", "Floor": "FLOOR", "Ceil": "CEIL", "Round": "ROUND", "Sigmoid": "LOGISTIC",
    "Tanh": "TANH", "Relu": "RELU", "Not": "LOGICAL_NOT", "Sign": "SIGN",
    "HardSwish": "HARD_SWISH",
}  # fmt: skip
BINARY = {
    "Add": "ADD", "Sub": "SUB", "Mul": "MUL", "Div": "DIV", "Max": "MAXIMUM", "Min": "MINIMUM",
    "Sum": "ADD", "And": "LOGICAL_AND", "Or": "LOGICAL_OR",
}  # fmt: skip
COMPARISONS = {
    "Equal": "EQUAL", "Greater": "GREATER", "GreaterOrEqual": "GREATER_EQUAL", "Less": "LESS",
    "LessOrEqual": "LESS_EQUAL", "Xor": "NOT_EQUAL",
}  # fmt: skip
# erf by Abramowitz and Stegun 7.1.26: the error is below 1.5e-7.
ERF_P = 0.3275911
ERF_A = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
Unary = Callable[["Math", Tensor], Tensor]


def unary(n: Node, function: Unary) -> None:
    """Apply a function to the first input, in the order in which it lies."""
    v = n.value(0)
    n.give(function(Math(n), n.place(v, v.axes)), v.axes)


@op(*UNARY)
def _unary(n: Node) -> None:
    code = UNARY[n.op]
    whole = n.value(0).dtype.kind in "iu"
    unary(n, lambda m, x: of_whole(n, code, x) if whole else m(code, x))


@op("Identity", "Dropout")
def _identity(n: Node) -> None:
    if n.wants(1):
        ones = np.ones(n.value(0).shape, bool)
        n.give(n.const(ones, bool), index=1)
    n.give_value(n.value(0))


@op(*BINARY)
def _binary(n: Node) -> None:
    values = [n.value(i) for i in range(len(n.proto.input))]
    _folded_left(n, BINARY[n.op], values)


@op("Mean")
def _mean(n: Node) -> None:
    values = [n.value(i) for i in range(len(n.proto.input))]
    tensors, order = aligned(n, values)
    total = tensors[0]
    for t in tensors[1:]:
        total = emit(n, "ADD", [total, t])
    n.give(Math(n)("MUL", total, 1 / len(tensors)), order)


def _folded_left(n: Node, code: str, values: list[Value]) -> None:
    if len(values) == 1:
        n.give_value(values[0])
        return
    tensors, order = aligned(n, values)
    tensors, back = computed(n, tensors)
    result = tensors[0]
    for t in tensors[1:]:
        result = divided(n, result, t) if code == "DIV" else emit(n, code, [result, t])
    n.give(back(result), order)


@op(*COMPARISONS)
def _compare(n: Node) -> None:
    tensors, order = aligned(n, [n.value(0), n.value(1)])
    tensors, _ = computed(n, tensors)
    n.give(emit(n, COMPARISONS[n.op], tensors, np.bool_), order)


@op("Where")
def _where(n: Node) -> None:
    values = [n.value(i) for i in range(3)]
    tensors, order = aligned(n, values)
    n.give(emit(n, "SELECT_V2", tensors, values[1].dtype), order)


@op("Cast", "CastLike")
def _cast(n: Node) -> None:
    v, dtype = n.value(0), np.dtype(n.dtypes[0])
    if v.dtype == dtype:
        n.give_value(v)
        return
    x = n.place(v, v.axes)
    n.give(cast(n, x, dtype), v.axes)


@op("Clip")
def _clip(n: Node) -> None:
    bounds = []
    for i, (name, default) in enumerate((("min", -math.inf), ("max", math.inf)), start=1):
        given = n.array(i)
        if n.has(i) and given is None:
            _clip_by_tensors(n)
            return
        bounds.append(n.attr(name, default) if given is None else given.item())
    low, high = bounds
    if low > high:
        low = high  # as ONNX defines it
    unary(n, lambda m, x: m.clamp(x, low, high))


def _clip_by_tensors(n: Node) -> None:
    value = n.value(0)
    for i, code in ((1, "MAXIMUM"), (2, "MINIMUM")):
        if n.has(i):
            tensor, order = apply(n, code, [value, n.value(i)])
            value = Value(value.shape, value.dtype, tensor, order)
    n.give_value(value)


@op("Pow")
def _pow(n: Node) -> None:
    exponent = n.array(1)
    if exponent is not None and exponent.size == 1 and n.value(0).dtype == np.float32:
        e = float(exponent.reshape(()))
        v = widened(n, n.value(0), len(n.shape))
        x = n.place(v, v.axes)
        if e == 2.0:
            return n.give(emit(n, "MUL", [x, x]), v.axes)
        if e == 0.5:
            return n.give(emit(n, "SQRT", [x]), v.axes)
        return n.give(Math(n)("POW", x, e), v.axes)
    (a, b), order = aligned(n, [n.value(0), n.value(1)])
    if a.dtype.kind == "f":
        return n.give(emit(n, "POW", [a, cast(n, b, a.dtype)]), order)
    exponents = b.data
    if exponents is None or (exponents < 0).any() or (exponents % 1).any():
        raise n.refusal("a power of integers needs constant whole exponents that are not negative")
    (x,), back = computed(n, [a])
    return n.give(back(_whole_power(n, x, exponents.astype(np.int64))), order)


def _whole_power(n: Node, x: Tensor, exponents: Array) -> Tensor:
    """Integers to constant powers by squaring: float32, which POW computes in, has 24 bits."""
    shape = np.broadcast_shapes(x.shape, exponents.shape)
    one, y = n.const(np.ones((1,) * len(shape)), x.dtype), n.const(np.ones(shape), x.dtype)
    for bit in range(int(exponents.max(initial=0)).bit_length()):
        x = emit(n, "MUL", [x, x]) if bit else x
        taken = n.const(exponents >> bit & 1, np.bool_)
        y = emit(n, "MUL", [y, emit(n, "SELECT_V2", [taken, x, one], x.dtype)])
    return y


@op("Mod")
def _mod(n: Node) -> None:
    tensors, order = aligned(n, [n.value(0), n.value(1)])
    (a, b), back = computed(n, tensors)
    if not n.attr("fmod", 0):
        n.give(back(emit(n, "FLOOR_MOD", [a, b])), order)
        return
    if a.dtype.kind in "iu":
        n.give(back(remainder(n, a, b)), order)
        return
    m = Math(n)
    # The sign is that of the dividend: the remainder of the magnitudes is below the divisor's.
    rest = m("FLOOR_MOD", m("ABS", a), m("ABS", b))
    n.give(m("MUL", rest, m("SIGN", a)), order)


@op("LeakyRelu")
def _leaky(n: Node) -> None:
    unary(n, lambda m, x: m("LEAKY_RELU", x, alpha=float(n.attr("alpha", 0.01))))


@op("PRelu")
def _prelu(n: Node) -> None:
    x = n.value(0)
    a, b = n.place(x, x.axes), n.place(widened(n, n.value(1), len(x.shape)), x.axes)
    if b.data is not None and a.dtype == np.float32 and len(a.shape) == 4 and b.shape[0] == 1:
        n.give(n.emit("PRELU", [a, n.reshaped(b, b.shape[1:])], a.shape), x.axes)
        return
    m = Math(n)
    n.give(m("ADD", m("MAXIMUM", a, 0), m("MUL", m("MINIMUM", a, 0), b)), x.axes)


@op("Gelu")
def _gelu(n: Node) -> None:
    tanh = n.attr("approximate", "none") == "tanh"
    unary(n, lambda m, x: m("GELU", x, approximate=tanh))


def _erf(m: Math, x: Tensor) -> Tensor:
    magnitude = m("ABS", x)
    t = m("DIV", 1.0, m("ADD", m("MUL", magnitude, ERF_P), 1.0))
    poly = m("MUL", t, ERF_A[0])
    for a in ERF_A[1:]:
        poly = m("MUL", m("ADD", poly, a), t)
    bell = m("EXP", m("NEG", m("MUL", x, x)))
    return m("MUL", m("SIGN", x), m("SUB", 1.0, m("MUL", poly, bell)))


def softplus(m: Math, x: Tensor) -> Tensor:
    # log(1 + e^x) without overflow
    tail = m("LOG", m("ADD", m("EXP", m("NEG", m("ABS", x))), 1.0))
    return m("ADD", m("RELU", x), tail)


def elu(alpha: float, m: Math, x: Tensor) -> Tensor:
    if alpha == 1.0:
        return m("ELU", x)
    low = m("MUL", m("SUB", m("EXP", m("MINIMUM", x, 0.0)), 1.0), alpha)
    return m("ADD", m("RELU", x), low)


def _atan(m: Math, x: Tensor) -> Tensor:
    return m("ATAN2", x, m("ADD", m("MUL", x, 0.0), 1.0))


def _asin(m: Math, x: Tensor) -> Tensor:
    return m("ATAN2", x, m("SQRT", _one_minus_square(m, x)))


def _acos(m: Math, x: Tensor) -> Tensor:
    return m("ATAN2", m("SQRT", _one_minus_square(m, x)), x)


def _one_minus_square(m: Math, x: Tensor) -> Tensor:
    return m("MUL", m("SUB", 1.0, x), m("ADD", x, 1.0))


def _half_of_exps(m: Math, x: Tensor, code: str) -> Tensor:
    return m("MUL", m(code, m("EXP", x), m("EXP", m("NEG", x))), 0.5)


def _asinh(m: Math, x: Tensor) -> Tensor:
    a = m("ABS", x)
    return m("MUL", m("SIGN", x), m("LOG", m("ADD", a, m("SQRT", m("ADD", m("MUL", a, a), 1.0)))))


def _acosh(m: Math, x: Tensor) -> Tensor:
    return m("LOG", m("ADD", x, m("SQRT", m("SUB", m("MUL", x, x), 1.0))))


def _atanh(m: Math, x: Tensor) -> Tensor:
    return m("MUL", m("LOG", m("DIV", m("ADD", x, 1.0), m("SUB", 1.0, x))), 0.5)


SIMPLE: dict[str, Unary] = {
    "Erf": _erf,
    "Softplus": softplus,
    "Reciprocal": lambda m, x: m("DIV", 1.0, x),
    "Softsign": lambda m, x: m("DIV", x, m("ADD", m("ABS", x), 1.0)),
    "Mish": lambda m, x: m("MUL", x, m("TANH", softplus(m, x))),
    "Tan": lambda m, x: m("DIV", m("SIN", x), m("COS", x)),
    "Atan": _atan, "Asin": _asin, "Acos": _acos, "Asinh": _asinh, "Acosh": _acosh,
    "Atanh": _atanh,
    "Sinh": lambda m, x: _half_of_exps(m, x, "SUB"),
    "Cosh": lambda m, x: _half_of_exps(m, x, "ADD"),
    "IsNaN": lambda m, x: m("NOT_EQUAL", x, x, dtype=np.bool_),
}  # fmt: skip


@op(*SIMPLE)
def _simple(n: Node) -> None:
    unary(n, SIMPLE[n.op])


@op("Elu")
def _elu_op(n: Node) -> None:
    unary(n, partial(elu, float(n.attr("alpha", 1.0))))


@op("Celu")
def _celu(n: Node) -> None:
    alpha = float(n.attr("alpha", 1.0))

    def celu(m: Math, x: Tensor) -> Tensor:
        low = m("SUB", m("EXP", m("MUL", m("MINIMUM", x, 0.0), 1 / alpha)), 1.0)
        return m("ADD", m("RELU", x), m("MUL", low, alpha))

    unary(n, celu)


@op("Selu")
def _selu(n: Node) -> None:
    alpha = float(n.attr("alpha", 1.67326319217681884765625))
    gamma = float(n.attr("gamma", 1.05070102214813232421875))
    unary(n, lambda m, x: m("MUL", elu(alpha, m, x), gamma))


@op("ThresholdedRelu")
def _thresholded(n: Node) -> None:
    alpha = float(n.attr("alpha", 1.0))

    def above(m: Math, x: Tensor) -> Tensor:
        keep = cast(n, m("GREATER", x, alpha, dtype=np.bool_), np.float32)
        return m("MUL", x, keep)

    unary(n, above)


@op("HardSigmoid")
def _hard_sigmoid(n: Node) -> None:
    alpha, beta = float(n.attr("alpha", 0.2)), float(n.attr("beta", 0.5))
    unary(n, lambda m, x: m.clamp(m("ADD", m("MUL", x, alpha), beta), 0.0, 1.0))


@op("IsInf")
def _is_inf(n: Node) -> None:
    positive, negative = n.attr("detect_positive", 1), n.attr("detect_negative", 1)

    def infinite(m: Math, x: Tensor) -> Tensor:
        if positive and negative:
            x = m("ABS", x)
        elif negative:
            x = m("NEG", x)
        elif not positive:
            return m("LESS", m("ABS", x), 0.0, dtype=np.bool_)
        return m("EQUAL", x, np.inf, dtype=np.bool_)

    unary(n, infinite)


__all__ = ["Math", "cast", "computed", "quotient", "unary"]
