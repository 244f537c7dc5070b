"""Elementwise operators: they work in whatever order the axes are stored."""

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
    """Apply a function to the first input, in its stored order."""
    value = node.value(0)
    node.set_output(function(Math(node), node.place(value, value.axes)), value.axes)


def lower_unary(node: Node) -> None:
    """One operator of one input, by the names in UNARY."""
    code = UNARY[node.op]
    whole = node.value(0).dtype.kind in "iu"
    apply_unary(
        node,
        lambda calc, tensor: apply_to_integers(node, code, tensor) if whole else calc(code, tensor),
    )


def lower_identity(node: Node) -> None:
    """The input itself; the mask of Dropout is all True."""
    if node.has_output(1):
        ones = np.ones(node.value(0).shape, bool)
        node.set_output(node.const(ones, bool), index=1)
    node.set_output_value(node.value(0))


def lower_binary(node: Node) -> None:
    """One operator, repeated for more than two inputs, by the names in BINARY."""
    values = [node.value(i) for i in range(len(node.proto.input))]
    _reduce_left(node, BINARY[node.op], values)


def lower_mean(node: Node) -> None:
    """The sum of the inputs times 1 / their number."""
    values = [node.value(i) for i in range(len(node.proto.input))]
    tensors, order = align_operands(node, values)
    total = tensors[0]
    for tensor in tensors[1:]:
        total = emit_broadcast(node, "ADD", [total, tensor])
    node.set_output(Math(node)("MUL", total, 1 / len(tensors)), order)


def _reduce_left(node: Node, code: str, values: list[PlacedValue]) -> None:
    if len(values) == 1:
        node.set_output_value(values[0])
        return
    tensors, order = align_operands(node, values)
    tensors, back = widen_bytes(node, tensors)
    result = tensors[0]
    for tensor in tensors[1:]:
        result = (
            divide(node, result, tensor)
            if code == "DIV"
            else emit_broadcast(node, code, [result, tensor])
        )
    node.set_output(back(result), order)


def lower_comparison(node: Node) -> None:
    """One comparison, by the names in COMPARISONS."""
    tensors, order = align_operands(node, [node.value(0), node.value(1)])
    tensors, _ = widen_bytes(node, tensors)
    node.set_output(emit_broadcast(node, COMPARISONS[node.op], tensors, np.bool_), order)


def lower_where(node: Node) -> None:
    """SELECT_V2."""
    values = [node.value(i) for i in range(3)]
    tensors, order = align_operands(node, values)
    node.set_output(emit_broadcast(node, "SELECT_V2", tensors, values[1].dtype), order)


def lower_cast(node: Node) -> None:
    """CAST, or nothing if the type is the same."""
    value, dtype = node.value(0), np.dtype(node.dtypes[0])
    if value.dtype == dtype:
        node.set_output_value(value)
        return
    tensor = node.place(value, value.axes)
    node.set_output(cast(node, tensor, dtype), value.axes)


def lower_clip(node: Node) -> None:
    """RELU or RELU6 where the bounds are theirs, MINIMUM and MAXIMUM elsewhere."""
    bounds = []
    for i, (name, default) in enumerate((("min", -math.inf), ("max", math.inf)), start=1):
        bound = node.array(i)
        if node.has_input(i) and bound is None:
            _clip_by_tensors(node)
            return
        bounds.append(node.attr(name, default) if bound is None else bound.item())
    low, high = bounds
    if low > high:
        low = high  # as ONNX defines it
    apply_unary(node, lambda calc, tensor: calc.clamp(tensor, low, high))


def _clip_by_tensors(node: Node) -> None:
    value = node.value(0)
    for index, code in ((1, "MAXIMUM"), (2, "MINIMUM")):
        if node.has_input(index):
            tensor, order = apply_elementwise(node, code, [value, node.value(index)])
            value = PlacedValue(value.shape, value.dtype, tensor, order)
    node.set_output_value(value)


def lower_pow(node: Node) -> None:
    """MUL, SQRT or POW; integers are raised by repeated squaring."""
    exponent = node.array(1)
    if exponent is not None and exponent.size == 1 and node.value(0).dtype == np.float32:
        power = float(exponent.reshape(()))
        value = widen_rank(node, node.value(0), len(node.shape))
        tensor = node.place(value, value.axes)
        if power == 2.0:
            return node.set_output(emit_broadcast(node, "MUL", [tensor, tensor]), value.axes)
        if power == 0.5:
            return node.set_output(emit_broadcast(node, "SQRT", [tensor]), value.axes)
        return node.set_output(Math(node)("POW", tensor, power), value.axes)
    (base, exponents_tensor), order = align_operands(node, [node.value(0), node.value(1)])
    if base.dtype.kind == "f":
        return node.set_output(
            emit_broadcast(node, "POW", [base, cast(node, exponents_tensor, base.dtype)]), order
        )
    exponents = exponents_tensor.data
    if exponents is None or (exponents < 0).any() or (exponents % 1).any():
        raise node.refusal(
            "a power of integers needs constant whole exponents that are not negative"
        )
    (tensor,), back = widen_bytes(node, [base])
    return node.set_output(back(_raise_integers(node, tensor, exponents.astype(np.int64))), order)


def _raise_integers(node: Node, tensor: Tensor, exponents: Array) -> Tensor:
    """Integers to constant powers, by squaring: POW computes in float32, which has 24 bits."""
    shape = np.broadcast_shapes(tensor.shape, exponents.shape)
    one = node.const(np.ones((1,) * len(shape)), tensor.dtype)
    result = node.const(np.ones(shape), tensor.dtype)
    for bit in range(int(exponents.max(initial=0)).bit_length()):
        tensor = emit_broadcast(node, "MUL", [tensor, tensor]) if bit else tensor
        is_factor = node.const(exponents >> bit & 1, np.bool_)
        result = emit_broadcast(
            node,
            "MUL",
            [result, emit_broadcast(node, "SELECT_V2", [is_factor, tensor, one], tensor.dtype)],
        )
    return result


def lower_mod(node: Node) -> None:
    """FLOOR_MOD, or the remainder with the sign of the dividend (fmod)."""
    tensors, order = align_operands(node, [node.value(0), node.value(1)])
    (dividend, divisor), back = widen_bytes(node, tensors)
    if not node.attr("fmod", 0):
        node.set_output(back(emit_broadcast(node, "FLOOR_MOD", [dividend, divisor])), order)
        return
    if dividend.dtype.kind in "iu":
        node.set_output(back(compute_remainder(node, dividend, divisor)), order)
        return
    calc = Math(node)
    # The sign is that of the dividend: the remainder of the magnitudes is below the divisor's.
    rest = calc("FLOOR_MOD", calc("ABS", dividend), calc("ABS", divisor))
    node.set_output(calc("MUL", rest, calc("SIGN", dividend)), order)


def lower_leaky_relu(node: Node) -> None:
    """LEAKY_RELU."""
    apply_unary(
        node, lambda calc, tensor: calc("LEAKY_RELU", tensor, alpha=float(node.attr("alpha", 0.01)))
    )


def lower_prelu(node: Node) -> None:
    """PRELU for images with a constant slope, arithmetic elsewhere."""
    value = node.value(0)
    tensor = node.place(value, value.axes)
    slope = node.place(widen_rank(node, node.value(1), len(value.shape)), value.axes)
    if (
        slope.data is not None
        and tensor.dtype == np.float32
        and len(tensor.shape) == 4
        and slope.shape[0] == 1
    ):
        node.set_output(
            node.emit("PRELU", [tensor, node.reshape(slope, slope.shape[1:])], tensor.shape),
            value.axes,
        )
        return
    calc = Math(node)
    node.set_output(
        calc("ADD", calc("MAXIMUM", tensor, 0), calc("MUL", calc("MINIMUM", tensor, 0), slope)),
        value.axes,
    )


def lower_gelu(node: Node) -> None:
    """GELU."""
    tanh = node.attr("approximate", "none") == "tanh"
    apply_unary(node, lambda calc, tensor: calc("GELU", tensor, approximate=tanh))


def _erf(calc: Math, tensor: Tensor) -> Tensor:
    magnitude = calc("ABS", tensor)
    reciprocal = calc("DIV", 1.0, calc("ADD", calc("MUL", magnitude, ERF_P), 1.0))
    poly = calc("MUL", reciprocal, ERF_A[0])
    for coefficient in ERF_A[1:]:
        poly = calc("MUL", calc("ADD", poly, coefficient), reciprocal)
    bell = calc("EXP", calc("NEG", calc("MUL", tensor, tensor)))
    return calc("MUL", calc("SIGN", tensor), calc("SUB", 1.0, calc("MUL", poly, bell)))


def softplus(calc: Math, tensor: Tensor) -> Tensor:
    # log(1 + e^x) without overflow
    """log(1 + e^x) of each element, without overflow."""
    tail = calc("LOG", calc("ADD", calc("EXP", calc("NEG", calc("ABS", tensor))), 1.0))
    return calc("ADD", calc("RELU", tensor), tail)


def elu(alpha: float, calc: Math, tensor: Tensor) -> Tensor:
    """x above 0, alpha (e^x - 1) below."""
    if alpha == 1.0:
        return calc("ELU", tensor)
    low = calc("MUL", calc("SUB", calc("EXP", calc("MINIMUM", tensor, 0.0)), 1.0), alpha)
    return calc("ADD", calc("RELU", tensor), low)


def _atan(calc: Math, tensor: Tensor) -> Tensor:
    return calc("ATAN2", tensor, calc("ADD", calc("MUL", tensor, 0.0), 1.0))


def _asin(calc: Math, tensor: Tensor) -> Tensor:
    return calc("ATAN2", tensor, calc("SQRT", _one_minus_square(calc, tensor)))


def _acos(calc: Math, tensor: Tensor) -> Tensor:
    return calc("ATAN2", calc("SQRT", _one_minus_square(calc, tensor)), tensor)


def _one_minus_square(calc: Math, tensor: Tensor) -> Tensor:
    return calc("MUL", calc("SUB", 1.0, tensor), calc("ADD", tensor, 1.0))


def _half_of_exps(calc: Math, tensor: Tensor, code: str) -> Tensor:
    return calc("MUL", calc(code, calc("EXP", tensor), calc("EXP", calc("NEG", tensor))), 0.5)


def _asinh(calc: Math, tensor: Tensor) -> Tensor:
    magnitude = calc("ABS", tensor)
    return calc(
        "MUL",
        calc("SIGN", tensor),
        calc(
            "LOG",
            calc(
                "ADD", magnitude, calc("SQRT", calc("ADD", calc("MUL", magnitude, magnitude), 1.0))
            ),
        ),
    )


def _acosh(calc: Math, tensor: Tensor) -> Tensor:
    return calc(
        "LOG", calc("ADD", tensor, calc("SQRT", calc("SUB", calc("MUL", tensor, tensor), 1.0)))
    )


def _atanh(calc: Math, tensor: Tensor) -> Tensor:
    return calc(
        "MUL", calc("LOG", calc("DIV", calc("ADD", tensor, 1.0), calc("SUB", 1.0, tensor))), 0.5
    )


SIMPLE: dict[str, Unary] = {
    "Erf": _erf,
    "Softplus": softplus,
    "Reciprocal": lambda calc, tensor: calc("DIV", 1.0, tensor),
    "Softsign": lambda calc, tensor: calc("DIV", tensor, calc("ADD", calc("ABS", tensor), 1.0)),
    "Mish": lambda calc, tensor: calc("MUL", tensor, calc("TANH", softplus(calc, tensor))),
    "Tan": lambda calc, tensor: calc("DIV", calc("SIN", tensor), calc("COS", tensor)),
    "Atan": _atan, "Asin": _asin, "Acos": _acos, "Asinh": _asinh, "Acosh": _acosh,
    "Atanh": _atanh,
    "Sinh": lambda calc, tensor: _half_of_exps(calc, tensor, "SUB"),
    "Cosh": lambda calc, tensor: _half_of_exps(calc, tensor, "ADD"),
    "IsNaN": lambda calc, tensor: calc("NOT_EQUAL", tensor, tensor, dtype=np.bool_),
}  # fmt: skip


def lower_simple(node: Node) -> None:
    """The arithmetic that SIMPLE has for the op."""
    apply_unary(node, SIMPLE[node.op])


def lower_elu(node: Node) -> None:
    """ELU, or arithmetic where alpha is not 1."""
    apply_unary(node, partial(elu, float(node.attr("alpha", 1.0))))


def lower_celu(node: Node) -> None:
    """max(0, x) + alpha (e^(min(0, x) / alpha) - 1)."""
    alpha = float(node.attr("alpha", 1.0))

    def celu(calc: Math, tensor: Tensor) -> Tensor:
        low = calc("SUB", calc("EXP", calc("MUL", calc("MINIMUM", tensor, 0.0), 1 / alpha)), 1.0)
        return calc("ADD", calc("RELU", tensor), calc("MUL", low, alpha))

    apply_unary(node, celu)


def lower_selu(node: Node) -> None:
    """gamma times elu."""
    alpha = float(node.attr("alpha", 1.67326319217681884765625))
    gamma = float(node.attr("gamma", 1.05070102214813232421875))
    apply_unary(node, lambda calc, tensor: calc("MUL", elu(alpha, calc, tensor), gamma))


def lower_thresholded_relu(node: Node) -> None:
    """x where it is above alpha, 0 elsewhere."""
    alpha = float(node.attr("alpha", 1.0))

    def above(calc: Math, tensor: Tensor) -> Tensor:
        keep = cast(node, calc("GREATER", tensor, alpha, dtype=np.bool_), np.float32)
        return calc("MUL", tensor, keep)

    apply_unary(node, above)


def lower_hard_sigmoid(node: Node) -> None:
    """alpha x + beta, clamped to 0..1."""
    alpha, beta = float(node.attr("alpha", 0.2)), float(node.attr("beta", 0.5))
    apply_unary(
        node,
        lambda calc, tensor: calc.clamp(calc("ADD", calc("MUL", tensor, alpha), beta), 0.0, 1.0),
    )


def lower_is_inf(node: Node) -> None:
    """A comparison with infinity, of the signs that the node asks for."""
    positive, negative = node.attr("detect_positive", 1), node.attr("detect_negative", 1)

    def infinite(calc: Math, tensor: Tensor) -> Tensor:
        if positive and negative:
            tensor = calc("ABS", tensor)
        elif negative:
            tensor = calc("NEG", tensor)
        elif not positive:
            return calc("LESS", calc("ABS", tensor), 0.0, dtype=np.bool_)
        return calc("EQUAL", tensor, np.inf, dtype=np.bool_)

    apply_unary(node, infinite)


__all__ = ["Math", "apply_unary", "cast", "divide_exactly", "widen_bytes"]
