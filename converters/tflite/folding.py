"""Constant arithmetic that is folded into the weights of the layer before it.

    fold(graph)

A MUL, DIV, ADD or SUB by one number per channel, after a layer whose result nothing else reads,
goes into that layer's weights and bias: MatMul + Add, and the remains of a BatchNormalization.
Equal operators are merged, a RESHAPE of a RESHAPE becomes one, and the last step of an LSTM is read
directly instead of being concatenated and cut out again.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from converters.tflite.graph import Graph, Op, Tensor
from edge_core.tensors import Array

# The layers that take it, and the axis of their weights that holds the output channels.
CHANNELS = {"FULLY_CONNECTED": 0, "CONV_2D": 0, "DEPTHWISE_CONV_2D": 3}
WEIGHTS, BIAS = 1, 2  # inputs


def fold(graph: Graph) -> None:
    """Change the graph in place; its results stay the same up to rounding."""
    _merge_equal(graph)
    _join_reshapes(graph)
    _skip_concatenations(graph)
    _merge_equal(graph)
    graph.sweep()
    _Folding(graph).run()


def _merge_equal(graph: Graph) -> None:
    """Merge operators that do the same to the same tensors."""
    same: dict[int, Tensor] = {}
    first: dict[object, Op] = {}
    kept = []
    outputs = set(map(id, graph.outputs))
    for op in graph.ops:
        op.inputs = [
            None if tensor is None else same.get(id(tensor), tensor) for tensor in op.inputs
        ]
        options = tuple(sorted((name, str(setting)) for name, setting in op.options.items()))
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in op.outputs)
        key = (op.code, tuple(map(id, op.inputs)), options, shapes)
        other = first.setdefault(key, op)
        if other is op or any(id(tensor) in outputs for tensor in op.outputs):
            kept.append(op)
        else:
            same |= {
                id(duplicate): kept_output
                for duplicate, kept_output in zip(op.outputs, other.outputs, strict=True)
            }
    graph.ops = kept


def _join_reshapes(graph: Graph) -> None:
    """Let a RESHAPE read what the RESHAPE before it reads; drop one that changes nothing."""
    makers = {id(tensor): op for op in graph.ops for tensor in op.outputs}
    same: dict[int, Tensor] = {}
    outputs = set(map(id, graph.outputs))
    for op in graph.ops:
        op.inputs = [
            None if tensor is None else same.get(id(tensor), tensor) for tensor in op.inputs
        ]
        if op.code != "RESHAPE":
            continue
        source = op.inputs[0]
        before = makers.get(id(source))
        if before is not None and before.code == "RESHAPE":
            op.inputs[0] = source = before.inputs[0]
        assert source is not None
        if source.shape == op.outputs[0].shape and id(op.outputs[0]) not in outputs:
            same[id(op.outputs[0])] = source


def _skip_concatenations(graph: Graph) -> None:
    """Let a SLICE that takes exactly one operand of a CONCATENATION read that operand."""
    makers = {id(tensor): op for op in graph.ops for tensor in op.outputs}
    for op in graph.ops:
        block = _block(op) if op.code == "SLICE" else None
        source = op.inputs[0]
        before = makers.get(id(source))
        if before is not None and before.code == "RESHAPE":
            before = makers.get(id(before.inputs[0]))
        if block is None or before is None or before.code != "CONCATENATION":
            continue
        if math.prod(before.outputs[0].shape[: before.options["axis"]]) != 1:
            continue  # its operands are not whole blocks of memory
        start = 0
        for tensor in before.inputs:
            assert tensor is not None
            size = math.prod(tensor.shape)
            if block == (start, size):
                shape = op.outputs[0].shape
                new = np.array(shape, np.int32)
                op.code, op.options = "RESHAPE", {"new_shape": new}
                op.inputs = [tensor, graph.ints(shape)]
                break
            start += size


def _block(op: Op) -> tuple[int, int] | None:
    """The first element and the number of elements of a SLICE that takes one block of memory."""
    source, begin, size = op.inputs
    if source is None or begin is None or size is None or begin.data is None or size.data is None:
        return None
    begins, sizes = begin.data.tolist(), op.outputs[0].shape
    if not math.prod(sizes):
        return None
    cut = max((i for i, length in enumerate(source.shape) if sizes[i] != length), default=0)
    if math.prod(sizes[:cut]) != 1:
        return None
    strides = [math.prod(source.shape[i + 1 :]) for i in range(len(sizes))]
    return sum(start * stride for start, stride in zip(begins, strides, strict=True)), math.prod(
        sizes
    )


class _Folding:
    def __init__(self, graph: Graph) -> None:
        self._graph, self._ops = graph, graph.ops  # the list keeps tensors, so that ids stay theirs
        self._uses = Counter(
            id(tensor) for op in graph.ops for tensor in op.inputs if tensor is not None
        )
        self._uses.update(map(id, graph.outputs))
        self._makers = {id(tensor): op for op in graph.ops for tensor in op.outputs}

    def run(self) -> None:
        self._graph.ops = [op for op in self._graph.ops if not self._try_fold(op)]

    def _try_fold(self, op: Op) -> bool:
        """Fold ``op`` into the layer before it; False if that is not possible."""
        operand = _constant_operand(op)
        if operand is None:
            return False
        source, constant, negative = operand
        last = before = self._sole_maker(source)
        if before is not None and before.code == "RESHAPE" and _has_same_channels(before):
            before = self._sole_maker(before.inputs[0])
        if last is None or before is None or before.code not in CHANNELS:
            return False
        if source.shape != op.outputs[0].shape or not self._try_change(
            before, op.code, constant, negative
        ):
            return False
        last.outputs = op.outputs
        self._makers[id(op.outputs[0])] = last
        return True

    def _sole_maker(self, tensor: Tensor | None) -> Op | None:
        """The operator that computes a tensor that has a single reader, else None."""
        return (
            self._makers.get(id(tensor))
            if tensor is not None and self._uses[id(tensor)] == 1
            else None
        )

    def _try_change(self, layer: Op, code: str, constant: Array, negative: bool) -> bool:
        """Change the layer's weights and bias; False if that is not possible."""
        weight, old_bias = layer.inputs[WEIGHTS], _bias(layer)
        if weight is None or weight.data is None or weight.dtype != np.float32 or old_bias is None:
            return False
        if layer.options.get("fused_activation_function"):
            return False
        count = len(old_bias)
        if constant.size not in (1, count):
            return False
        constant = np.broadcast_to(constant.reshape(-1).astype(np.float64), (count,))
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            factor, term = _to_affine(code, constant, negative)
            weights, bias = weight.data, (old_bias * factor + term).astype(np.float32)
            if np.any(factor != 1):
                if self._uses[id(weight)] > 1:
                    return False  # the steps of an LSTM share them: each would need a copy
                shape = [count if i == CHANNELS[layer.code] else 1 for i in range(weight.data.ndim)]
                weights = (weight.data * factor.reshape(shape)).astype(np.float32)
        if not (np.isfinite(weights).all() and np.isfinite(bias).all()):
            return False
        if weights is not weight.data:
            weight = self._graph.constant(weights, weight.name)
        layer.inputs = [layer.inputs[0], weight, self._graph.constant(bias)]
        return True


def _bias(layer: Op) -> Array | None:
    """The bias in float64, zeros if there is none; None if it is not constant."""
    weight, bias = layer.inputs[WEIGHTS], layer.inputs[BIAS] if len(layer.inputs) > BIAS else None
    if weight is not None and bias is None:
        return np.zeros(weight.shape[CHANNELS[layer.code]])
    return None if bias is None or bias.data is None else bias.data.astype(np.float64)


def _to_affine(code: str, constant: Array, negative: bool) -> tuple[Array, Array]:
    """The operator as y * factor + term."""
    one, zero = np.ones_like(constant), np.zeros_like(constant)
    if code in ("MUL", "DIV"):
        return (constant if code == "MUL" else 1 / constant), zero
    if negative:
        return -one, constant
    return one, constant if code == "ADD" else -constant


def _constant_operand(op: Op) -> tuple[Tensor, Array, bool] | None:
    """The operand that is computed, and the constant, which has one number for each channel; is
    the first subtracted from it?
    """
    if op.code not in ("MUL", "DIV", "ADD", "SUB") or op.options.get("fused_activation_function"):
        return None
    computed, other = op.inputs
    assert computed is not None
    assert other is not None
    swapped = other.data is None and computed.data is not None and op.code != "DIV"
    if swapped:
        computed, other = other, computed
    constant = other.data
    if (
        computed.data is not None
        or constant is None
        or constant.dtype != np.float32
        or not computed.shape
        or not constant.size
    ):
        return None
    if constant.size != 1 and (
        constant.shape[-1] != computed.shape[-1] or constant.size != constant.shape[-1]
    ):
        return None
    return computed, constant, swapped and op.code == "SUB"


def _has_same_channels(reshape: Op) -> bool:
    before, after = reshape.inputs[0], reshape.outputs[0]
    return before is not None and before.shape[-1:] == after.shape[-1:]
