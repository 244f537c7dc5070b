"""Arithmetic with constants that a layer in front of it can do in its own weights.

    fold(graph)

A MUL, DIV, ADD or SUB by one number for each channel, after a layer whose result nobody else
reads, goes into that layer's weights and bias: MatMul + Add, and what is left of a
BatchNormalization. Equal operators become one, a RESHAPE of a RESHAPE is one, and the last step of
an LSTM is not joined with the others to be cut off again.
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
    """Change the graph in place; it computes the same to rounding."""
    _merge_equal(graph)
    _join_reshapes(graph)
    _skip_concatenations(graph)
    _merge_equal(graph)
    graph.sweep()
    _Folding(graph).run()


def _merge_equal(graph: Graph) -> None:
    """Operators that do the same to the same tensors are one."""
    same: dict[int, Tensor] = {}
    first: dict[object, Op] = {}
    kept = []
    outputs = set(map(id, graph.outputs))
    for op in graph.ops:
        op.inputs = [None if t is None else same.get(id(t), t) for t in op.inputs]
        options = tuple(sorted((k, str(v)) for k, v in op.options.items()))
        shapes = tuple((t.shape, t.dtype) for t in op.outputs)
        key = (op.code, tuple(map(id, op.inputs)), options, shapes)
        other = first.setdefault(key, op)
        if other is op or any(id(t) in outputs for t in op.outputs):
            kept.append(op)
        else:
            same |= {id(a): b for a, b in zip(op.outputs, other.outputs, strict=True)}
    graph.ops = kept


def _join_reshapes(graph: Graph) -> None:
    """A RESHAPE reads what the RESHAPE before it reads; one that changes nothing goes."""
    makers = {id(t): op for op in graph.ops for t in op.outputs}
    same: dict[int, Tensor] = {}
    outputs = set(map(id, graph.outputs))
    for op in graph.ops:
        op.inputs = [None if t is None else same.get(id(t), t) for t in op.inputs]
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
    """A SLICE that takes just what one operand of a CONCATENATION gave reads that operand."""
    makers = {id(t): op for op in graph.ops for t in op.outputs}
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
        for t in before.inputs:
            assert t is not None
            size = math.prod(t.shape)
            if block == (start, size):
                shape = op.outputs[0].shape
                new = np.array(shape, np.int32)
                op.code, op.options = "RESHAPE", {"new_shape": new}
                op.inputs = [t, graph.ints(shape)]
                break
            start += size


def _block(op: Op) -> tuple[int, int] | None:
    """The first element and the number of elements of a SLICE that takes one block of memory."""
    x, begin, size = op.inputs
    if x is None or begin is None or size is None or begin.data is None or size.data is None:
        return None
    begins, sizes = begin.data.tolist(), op.outputs[0].shape
    if not math.prod(sizes):
        return None
    cut = max((i for i, d in enumerate(x.shape) if sizes[i] != d), default=0)
    if math.prod(sizes[:cut]) != 1:
        return None
    strides = [math.prod(x.shape[i + 1 :]) for i in range(len(sizes))]
    return sum(b * s for b, s in zip(begins, strides, strict=True)), math.prod(sizes)


class _Folding:
    def __init__(self, graph: Graph) -> None:
        self._graph, self._ops = graph, graph.ops  # the list keeps tensors, so that ids stay theirs
        self._uses = Counter(id(t) for op in graph.ops for t in op.inputs if t is not None)
        self._uses.update(map(id, graph.outputs))
        self._makers = {id(t): op for op in graph.ops for t in op.outputs}

    def run(self) -> None:
        self._graph.ops = [op for op in self._graph.ops if not self._try_fold(op)]

    def _try_fold(self, op: Op) -> bool:
        """Put ``op`` into the layer before it; False if that cannot be done."""
        found = _constant_operand(op)
        if found is None:
            return False
        x, c, negative = found
        last = before = self._sole_maker(x)
        if before is not None and before.code == "RESHAPE" and _has_same_channels(before):
            before = self._sole_maker(before.inputs[0])
        if last is None or before is None or before.code not in CHANNELS:
            return False
        if x.shape != op.outputs[0].shape or not self._try_change(before, op.code, c, negative):
            return False
        last.outputs = op.outputs
        self._makers[id(op.outputs[0])] = last
        return True

    def _sole_maker(self, t: Tensor | None) -> Op | None:
        """What makes a tensor that has one reader."""
        return self._makers.get(id(t)) if t is not None and self._uses[id(t)] == 1 else None

    def _try_change(self, layer: Op, code: str, c: Array, negative: bool) -> bool:
        """Give the layer other constants; False if it cannot have them."""
        w, b = layer.inputs[WEIGHTS], _bias(layer)
        if w is None or w.data is None or w.dtype != np.float32 or b is None:
            return False
        if layer.options.get("fused_activation_function"):
            return False
        count = len(b)
        if c.size not in (1, count):
            return False
        c = np.broadcast_to(c.reshape(-1).astype(np.float64), (count,))
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            factor, term = _to_affine(code, c, negative)
            weights, bias = w.data, (b * factor + term).astype(np.float32)
            if np.any(factor != 1):
                if self._uses[id(w)] > 1:
                    return False  # as the steps of an LSTM share them: each would need its own
                shape = [count if i == CHANNELS[layer.code] else 1 for i in range(w.data.ndim)]
                weights = (w.data * factor.reshape(shape)).astype(np.float32)
        if not (np.isfinite(weights).all() and np.isfinite(bias).all()):
            return False
        if weights is not w.data:
            w = self._graph.constant(weights, w.name)
        layer.inputs = [layer.inputs[0], w, self._graph.constant(bias)]
        return True


def _bias(layer: Op) -> Array | None:
    """In float64; None if it is no constant."""
    w, b = layer.inputs[WEIGHTS], layer.inputs[BIAS] if len(layer.inputs) > BIAS else None
    if w is not None and b is None:
        return np.zeros(w.shape[CHANNELS[layer.code]])
    return None if b is None or b.data is None else b.data.astype(np.float64)


def _to_affine(code: str, c: Array, negative: bool) -> tuple[Array, Array]:
    """The operator as y * factor + term."""
    one, zero = np.ones_like(c), np.zeros_like(c)
    if code in ("MUL", "DIV"):
        return (c if code == "MUL" else 1 / c), zero
    if negative:
        return -one, c
    return one, c if code == "ADD" else -c


def _constant_operand(op: Op) -> tuple[Tensor, Array, bool] | None:
    """The operand that is computed, and the constant, which has one number for each channel; is
    the first subtracted from it?"""
    if op.code not in ("MUL", "DIV", "ADD", "SUB") or op.options.get("fused_activation_function"):
        return None
    a, b = op.inputs
    assert a is not None
    assert b is not None
    swapped = b.data is None and a.data is not None and op.code != "DIV"
    if swapped:
        a, b = b, a
    c = b.data
    if a.data is not None or c is None or c.dtype != np.float32 or not a.shape or not c.size:
        return None
    if c.size != 1 and (c.shape[-1] != a.shape[-1] or c.size != c.shape[-1]):
        return None
    return a, c, swapped and op.code == "SUB"


def _has_same_channels(reshape: Op) -> bool:
    before, after = reshape.inputs[0], reshape.outputs[0]
    return before is not None and before.shape[-1:] == after.shape[-1:]
