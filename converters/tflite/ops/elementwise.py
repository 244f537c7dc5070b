"""Operators that compute each element alone: any order of axes is as good as another."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node
from converters.tflite.ops.arithmetic import (
    Math,
    apply_to_integers,
    cast,
    compute_remainder,
    divide,
    divide_exactly,
    widen_bytes,
)
from converters.tflite.ops.broadcast import (
    align_operands,
    apply_elementwise,
    emit_broadcast,
    widen_rank,
)
from converters.tflite.values import PlacedValue
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


def apply_unary(node: Node, function: Unary) -> None:
    """Apply a function to the first input, in the order in which it lies."""
    v = node.value(0)
    node.set_output(function(Math(node), node.place(v, v.axes)), v.axes)


def lower_unary(node: Node) -> None:
    code = UNARY[node.op]
    whole = node.value(0).dtype.kind in "iu"
    apply_unary(node, lambda m, x: apply_to_integers(node, code, x) if whole else m(code, x))


def lower_identity(node: Node) -> None:
    if node.has_output(1):
        ones = np.ones(node.value(0).shape, bool)
        node.set_output(node.const(ones, bool), index=1)
    node.set_output_value(node.value(0))


def lower_binary(node: Node) -> None:
    values = [node.value(i) for i in range(len(node.proto.input))]
    _reduce_left(node, BINARY[node.op], values)


def lower_mean(node: Node) -> None:
    values = [node.value(i) for i in range(len(node.proto.input))]
    tensors, order = align_operands(node, values)
    total = tensors[0]
    for t in tensors[1:]:
        total = emit_broadcast(node, "ADD", [total, t])
    node.set_output(Math(node)("MUL", total, 1 / len(tensors)), order)


def _reduce_left(node: Node, code: str, values: list[PlacedValue]) -> None:
    if len(values) == 1:
        node.set_output_value(values[0])
        return
    tensors, order = align_operands(node, values)
    tensors, back = widen_bytes(node, tensors)
    result = tensors[0]
    for t in tensors[1:]:
        result = (
            divide(node, result, t) if code == "DIV" else emit_broadcast(node, code, [result, t])
        )
    node.set_output(back(result), order)


def lower_comparison(node: Node) -> None:
    tensors, order = align_operands(node, [node.value(0), node.value(1)])
    tensors, _ = widen_bytes(node, tensors)
    node.set_output(emit_broadcast(node, COMPARISONS[node.op], tensors, np.bool_), order)


def lower_where(node: Node) -> None:
    values = [node.value(i) for i in range(3)]
    tensors, order = align_operands(node, values)
    node.set_output(emit_broadcast(node, "SELECT_V2", tensors, values[1].dtype), order)


def lower_cast(node: Node) -> None:
    v, dtype = node.value(0), np.dtype(node.dtypes[0])
    if v.dtype == dtype:
        node.set_output_value(v)
        return
    x = node.place(v, v.axes)
    node.set_output(cast(node, x, dtype), v.axes)


def lower_clip(node: Node) -> None:
    bounds = []
    for i, (name, default) in enumerate((("min", -math.inf), ("max", math.inf)), start=1):
        given = node.array(i)
        if node.has_input(i) and given is None:
            _clip_by_tensors(node)
            return
        bounds.append(node.attr(name, default) if given is None else given.item())
    low, high = bounds
    if low > high:
        low = high  # as ONNX defines it
    apply_unary(node, lambda m, x: m.clamp(x, low, high))


def _clip_by_tensors(node: Node) -> None:
    value = node.value(0)
    for i, code in ((1, "MAXIMUM"), (2, "MINIMUM")):
        if node.has_input(i):
            tensor, order = apply_elementwise(node, code, [value, node.value(i)])
            value = PlacedValue(value.shape, value.dtype, tensor, order)
    node.set_output_value(value)


def lower_pow(node: Node) -> None:
    exponent = node.array(1)
    if exponent is not None and exponent.size == 1 and node.value(0).dtype == np.float32:
        e = float(exponent.reshape(()))
        v = widen_rank(node, node.value(0), len(node.shape))
        x = node.place(v, v.axes)
        if e == 2.0:
            return node.set_output(emit_broadcast(node, "MUL", [x, x]), v.axes)
        if e == 0.5:
            return node.set_output(emit_broadcast(node, "SQRT", [x]), v.axes)
        return node.set_output(Math(node)("POW", x, e), v.axes)
    (a, b), order = align_operands(node, [node.value(0), node.value(1)])
    if a.dtype.kind == "f":
        return node.set_output(emit_broadcast(node, "POW", [a, cast(node, b, a.dtype)]), order)
    exponents = b.data
    if exponents is None or (exponents < 0).any() or (exponents % 1).any():
        raise node.refusal(
            "a power of integers needs constant whole exponents that are not negative"
        )
    (x,), back = widen_bytes(node, [a])
    return node.set_output(back(_raise_integers(node, x, exponents.astype(np.int64))), order)


def _raise_integers(node: Node, x: Tensor, exponents: Array) -> Tensor:
    """Integers to constant powers by squaring: float32, which POW computes in, has 24 bits."""
    shape = np.broadcast_shapes(x.shape, exponents.shape)
    one, y = node.const(np.ones((1,) * len(shape)), x.dtype), node.const(np.ones(shape), x.dtype)
    for bit in range(int(exponents.max(initial=0)).bit_length()):
        x = emit_broadcast(node, "MUL", [x, x]) if bit else x
        taken = node.const(exponents >> bit & 1, np.bool_)
        y = emit_broadcast(
            node, "MUL", [y, emit_broadcast(node, "SELECT_V2", [taken, x, one], x.dtype)]
        )
    return y


def lower_mod(node: Node) -> None:
    tensors, order = align_operands(node, [node.value(0), node.value(1)])
    (a, b), back = widen_bytes(node, tensors)
    if not node.attr("fmod", 0):
        node.set_output(back(emit_broadcast(node, "FLOOR_MOD", [a, b])), order)
        return
    if a.dtype.kind in "iu":
        node.set_output(back(compute_remainder(node, a, b)), order)
        return
    calc = Math(node)
    # The sign is that of the dividend: the remainder of the magnitudes is below the divisor's.
    rest = calc("FLOOR_MOD", calc("ABS", a), calc("ABS", b))
    node.set_output(calc("MUL", rest, calc("SIGN", a)), order)


def lower_leaky_relu(node: Node) -> None:
    apply_unary(node, lambda m, x: m("LEAKY_RELU", x, alpha=float(node.attr("alpha", 0.01))))


def lower_prelu(node: Node) -> None:
    x = node.value(0)
    a, b = node.place(x, x.axes), node.place(widen_rank(node, node.value(1), len(x.shape)), x.axes)
    if b.data is not None and a.dtype == np.float32 and len(a.shape) == 4 and b.shape[0] == 1:
        node.set_output(node.emit("PRELU", [a, node.reshape(b, b.shape[1:])], a.shape), x.axes)
        return
    calc = Math(node)
    node.set_output(
        calc("ADD", calc("MAXIMUM", a, 0), calc("MUL", calc("MINIMUM", a, 0), b)), x.axes
    )


def lower_gelu(node: Node) -> None:
    tanh = node.attr("approximate", "none") == "tanh"
    apply_unary(node, lambda m, x: m("GELU", x, approximate=tanh))


def _erf(calc: Math, x: Tensor) -> Tensor:
    magnitude = calc("ABS", x)
    t = calc("DIV", 1.0, calc("ADD", calc("MUL", magnitude, ERF_P), 1.0))
    poly = calc("MUL", t, ERF_A[0])
    for a in ERF_A[1:]:
        poly = calc("MUL", calc("ADD", poly, a), t)
    bell = calc("EXP", calc("NEG", calc("MUL", x, x)))
    return calc("MUL", calc("SIGN", x), calc("SUB", 1.0, calc("MUL", poly, bell)))


def softplus(calc: Math, x: Tensor) -> Tensor:
    # log(1 + e^x) without overflow
    tail = calc("LOG", calc("ADD", calc("EXP", calc("NEG", calc("ABS", x))), 1.0))
    return calc("ADD", calc("RELU", x), tail)


def elu(alpha: float, calc: Math, x: Tensor) -> Tensor:
    if alpha == 1.0:
        return calc("ELU", x)
    low = calc("MUL", calc("SUB", calc("EXP", calc("MINIMUM", x, 0.0)), 1.0), alpha)
    return calc("ADD", calc("RELU", x), low)


def _atan(calc: Math, x: Tensor) -> Tensor:
    return calc("ATAN2", x, calc("ADD", calc("MUL", x, 0.0), 1.0))


def _asin(calc: Math, x: Tensor) -> Tensor:
    return calc("ATAN2", x, calc("SQRT", _one_minus_square(calc, x)))


def _acos(calc: Math, x: Tensor) -> Tensor:
    return calc("ATAN2", calc("SQRT", _one_minus_square(calc, x)), x)


def _one_minus_square(calc: Math, x: Tensor) -> Tensor:
    return calc("MUL", calc("SUB", 1.0, x), calc("ADD", x, 1.0))


def _half_of_exps(calc: Math, x: Tensor, code: str) -> Tensor:
    return calc("MUL", calc(code, calc("EXP", x), calc("EXP", calc("NEG", x))), 0.5)


def _asinh(calc: Math, x: Tensor) -> Tensor:
    a = calc("ABS", x)
    return calc(
        "MUL",
        calc("SIGN", x),
        calc("LOG", calc("ADD", a, calc("SQRT", calc("ADD", calc("MUL", a, a), 1.0)))),
    )


def _acosh(calc: Math, x: Tensor) -> Tensor:
    return calc("LOG", calc("ADD", x, calc("SQRT", calc("SUB", calc("MUL", x, x), 1.0))))


def _atanh(calc: Math, x: Tensor) -> Tensor:
    return calc("MUL", calc("LOG", calc("DIV", calc("ADD", x, 1.0), calc("SUB", 1.0, x))), 0.5)


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


def lower_simple(node: Node) -> None:
    apply_unary(node, SIMPLE[node.op])


def lower_elu(node: Node) -> None:
    apply_unary(node, partial(elu, float(node.attr("alpha", 1.0))))


def lower_celu(node: Node) -> None:
    alpha = float(node.attr("alpha", 1.0))

    def celu(calc: Math, x: Tensor) -> Tensor:
        low = calc("SUB", calc("EXP", calc("MUL", calc("MINIMUM", x, 0.0), 1 / alpha)), 1.0)
        return calc("ADD", calc("RELU", x), calc("MUL", low, alpha))

    apply_unary(node, celu)


def lower_selu(node: Node) -> None:
    alpha = float(node.attr("alpha", 1.67326319217681884765625))
    gamma = float(node.attr("gamma", 1.05070102214813232421875))
    apply_unary(node, lambda m, x: m("MUL", elu(alpha, m, x), gamma))


def lower_thresholded_relu(node: Node) -> None:
    alpha = float(node.attr("alpha", 1.0))

    def above(calc: Math, x: Tensor) -> Tensor:
        keep = cast(node, calc("GREATER", x, alpha, dtype=np.bool_), np.float32)
        return calc("MUL", x, keep)

    apply_unary(node, above)


def lower_hard_sigmoid(node: Node) -> None:
    alpha, beta = float(node.attr("alpha", 0.2)), float(node.attr("beta", 0.5))
    apply_unary(node, lambda m, x: m.clamp(m("ADD", m("MUL", x, alpha), beta), 0.0, 1.0))


def lower_is_inf(node: Node) -> None:
    positive, negative = node.attr("detect_positive", 1), node.attr("detect_negative", 1)

    def infinite(calc: Math, x: Tensor) -> Tensor:
        if positive and negative:
            x = calc("ABS", x)
        elif negative:
            x = calc("NEG", x)
        elif not positive:
            return calc("LESS", calc("ABS", x), 0.0, dtype=np.bool_)
        return calc("EQUAL", x, np.inf, dtype=np.bool_)

    apply_unary(node, infinite)


__all__ = ["Math", "apply_unary", "cast", "divide_exactly", "widen_bytes"]
