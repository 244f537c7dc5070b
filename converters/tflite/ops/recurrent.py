"""LSTM, GRU and RNN, unrolled: the number of steps is a plain number at conversion.

The input products of all steps are one FULLY_CONNECTED before the first step, and every step
reads the same constant of recurrent weights. TFLite's own UNIDIRECTIONAL_SEQUENCE_LSTM is not
used: its states are variables that outlive a call, and no ONNX state does.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node
from converters.tflite.ops.activations import Activation, read_activations
from converters.tflite.ops.elementwise import Math
from converters.tflite.ops.movement import slice_tensor
from converters.tflite.ops.products import emit_fully_connected
from converters.tflite.values import Axes

MAX_STEPS = 1024  # of all directions together; each is 5 to 15 operators
State = tuple[Tensor, ...]


class Cell(abc.ABC):
    """One direction of a node: its weights, and the step from state to state."""

    def __init__(self, node: Node, d: int, functions: Sequence[Activation]):
        self.n, self.m, self.f = node, Math(node), functions
        self.w, self.r = (
            node.require_constant(1, "its weight W")[d],
            node.require_constant(2, "its weight R")[d],
        )
        self.hidden = self.r.shape[-1]
        bias = (
            node.require_constant(3, "its bias")[d]
            if node.has_input(3)
            else np.zeros(2 * len(self.w), np.float32)
        )
        self.w_bias, self.r_bias = np.split(bias, 2)
        self.clip = float(node.attr("clip", 0.0)) or math.inf
        self.prepare(d)

    @abc.abstractmethod
    def prepare(self, d: int) -> None:
        """Make constants, and put what biases can be added once into ``w_bias``."""

    @abc.abstractmethod
    def step(self, x: Tensor, state: State) -> State:
        """The state after a step; ``x`` holds the products of its input, [batch, gates]."""

    def project(self, x: Tensor) -> Tensor:
        """The products of all inputs: [steps * batch, gates]."""
        return emit_fully_connected(self.n, x, self.w, self.w_bias)

    def product(self, h: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        """A state times weights; computed here where the state is constant."""
        shape = (h.shape[0], w.shape[0])
        if h.data is not None and w.data is not None:
            extra = 0.0 if bias is None or bias.data is None else bias.data
            return self.n.const(np.broadcast_to(h.data @ w.data.T + extra, shape))
        return self.n.emit("FULLY_CONNECTED", [h, w, bias], shape, keep_num_dims=False)

    def plus(self, a: Tensor, b: Tensor) -> Tensor:
        """a + b, where b may be a constant of nothing but zeros."""
        return a if b.data is not None and not b.data.any() else self.m("ADD", a, b)

    def times(self, a: Tensor, b: Tensor) -> Tensor:
        """a * b, where b may be a constant of nothing but zeros."""
        return b if b.data is not None and not b.data.any() else self.m("MUL", a, b)

    def gate(self, function: int, x: Tensor) -> Tensor:
        """An activation, after the clip."""
        return self.f[function](self.m, self.m.clamp(x, -self.clip, self.clip))

    def parts(self, x: Tensor, count: int) -> list[Tensor]:
        """``x`` in ``count`` equal pieces of its columns."""
        if count == 1:
            return [x]
        axis, shape = self.n.const(1, np.int32), (x.shape[0], x.shape[1] // count)
        return self.n.graph.emit_many(
            "SPLIT", [axis, x], [shape] * count, x.dtype, num_splits=count
        )


class Rnn(Cell):
    """h = f(x W + h R + b)"""

    def prepare(self, d: int) -> None:
        self.w_bias = self.w_bias + self.r_bias
        self.recurrent = self.n.const(self.r)

    def step(self, x: Tensor, state: State) -> State:
        return (self.gate(0, self.plus(x, self.product(state[0], self.recurrent))),)


class Gru(Cell):
    """Gates in the order update, reset, candidate."""

    def prepare(self, d: int) -> None:
        size = self.hidden
        self.before = not self.n.attr("linear_before_reset", 0)  # reset, then product
        common = 3 * size if self.before else 2 * size
        self.w_bias = self.w_bias.copy()
        self.w_bias[:common] += self.r_bias[:common]
        self.first, self.last = self.n.const(self.r[: 2 * size]), self.n.const(self.r[2 * size :])
        self.last_bias = None if self.before else self.n.const(self.r_bias[2 * size :])

    def step(self, x: Tensor, state: State) -> State:
        h, size = state[0], self.hidden
        x_gates = slice_tensor(self.n, x, (0, 0), (x.shape[0], 2 * size))
        x_last = slice_tensor(self.n, x, (0, 2 * size), (x.shape[0], size))
        gates = self.gate(0, self.plus(x_gates, self.product(h, self.first)))
        update, reset = self.parts(gates, 2)
        if self.before:
            more = self.product(self.times(reset, h), self.last)
        else:
            more = self.times(reset, self.product(h, self.last, self.last_bias))
        new = self.gate(1, self.plus(x_last, more))
        # (1 - z) new + z h
        kept = self.times(update, h)
        return (self.plus(self.m("MUL", self.m("SUB", 1.0, update), new), kept),)


class Lstm(Cell):
    """Gates in the order input, output, forget, cell; the state is (h, c)."""

    def prepare(self, d: int) -> None:
        self.w_bias = self.w_bias + self.r_bias
        self.recurrent = self.n.const(self.r)
        peep = self.n.require_constant(7, "its peepholes")[d] if self.n.has_input(7) else None
        self.peepholes = [] if peep is None else [self.n.const(p[None]) for p in np.split(peep, 3)]

    def step(self, x: Tensor, state: State) -> State:
        h, c = state
        i, o, f, g = self.parts(self.plus(x, self.product(h, self.recurrent)), 4)
        if self.peepholes:
            i = self.plus(i, self.times(self.peepholes[0], c))
            f = self.plus(f, self.times(self.peepholes[2], c))
        i = self.gate(0, i)
        f = self.m("SUB", 1.0, i) if self.n.attr("input_forget", 0) else self.gate(0, f)
        c = self.plus(self.m("MUL", i, self.gate(1, g)), self.times(f, c))
        if self.peepholes:
            o = self.m("ADD", o, self.m("MUL", self.peepholes[1], c))
        return self.m("MUL", self.gate(0, o), self.f[2](self.m, c)), c


CELLS: dict[str, type[Cell]] = {"LSTM": Lstm, "GRU": Gru, "RNN": Rnn}


def lower_recurrent(node: Node) -> None:
    if node.value(0).dtype != np.float32:
        raise node.refusal(f"{node.value(0).dtype} is not in TFLite")
    way = node.attr("direction", "forward")
    backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[way]
    batch_first = bool(node.attr("layout", 0))
    x = node.place_input(0, (1, 0, 2) if batch_first else None)
    steps, batch, size = x.shape
    total = steps * len(backwards)
    if total > MAX_STEPS:
        why = f"its {total} steps are more than the {MAX_STEPS} that are unrolled"
        raise node.refusal(why, "export it with a shorter sequence")
    functions = read_activations(node, len(backwards))
    each = len(functions) // len(backwards)
    flat = node.reshape(x, (steps * batch, size))
    rows: list[list[Tensor]] = []
    states: list[State] = []
    for d, reverse in enumerate(backwards):
        cell = CELLS[node.op](node, d, functions[d * each : (d + 1) * each])
        initial = tuple(
            _initial_state(node, i, d, (batch, cell.hidden)) for i in _state_inputs(node)
        )
        order = range(steps)[:: -1 if reverse else 1]
        made, state = _unroll(cell, cell.project(flat), batch, order, initial)
        rows.append([made[t] for t in range(steps)])
        states.append(state)
    _set_outputs(node, rows, states, batch_first)


def _state_inputs(node: Node) -> tuple[int, ...]:
    return (5, 6) if node.op == "LSTM" else (5,)


def _initial_state(node: Node, index: int, d: int, shape: tuple[int, int]) -> Tensor:
    """The state before the first step of direction ``d``."""
    if not node.has_input(index):
        return node.const(np.zeros(shape))
    s = node.place_input(index, (1, 0, 2) if node.attr("layout", 0) else None)
    if s.data is not None:
        return node.const(s.data[d])
    return node.reshape(slice_tensor(node, s, (d, 0, 0), (1, *shape)), shape)


def _unroll(
    cell: Cell, x: Tensor, batch: int, order: range, state: State
) -> tuple[dict[int, Tensor], State]:
    """What each step gives, and the last state. Beyond the length of a sequence the state stays
    as it is and the output is zero, so that a reversed sequence begins at its own end."""
    n, made = cell.n, {}
    nothing = n.const(np.zeros((batch, cell.hidden)))
    for t in order:
        inside = _step_mask(n, t, batch)
        if inside is not None and inside.data is not None and not inside.data.any():
            made[t] = nothing
            continue
        new = cell.step(slice_tensor(n, x, (t * batch, 0), (batch, x.shape[1])), state)
        if inside is None:
            state, made[t] = new, new[0]
            continue
        state = tuple(_choose(n, inside, a, b) for a, b in zip(new, state, strict=True))
        made[t] = _choose(n, inside, new[0], nothing)
    begun = _step_mask(n, 0, batch)
    if begun is not None:  # ONNX Runtime: a sequence without a step ends in zeros
        state = tuple(_choose(n, begun, s, nothing) for s in state)
    return made, state


def _step_mask(node: Node, t: int, batch: int) -> Tensor | None:
    """Which sequences have a step ``t``, [batch, 1]; None: all."""
    if not node.has_input(4):
        return None
    lengths = node.array(4)
    if lengths is not None:
        mask = (lengths > t).reshape(batch, 1)
        return None if mask.all() else node.const(mask, bool)
    return Math(node)("GREATER", node.reshape(node.place_input(4), (batch, 1)), t, dtype=np.bool_)


def _choose(node: Node, mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return node.emit("SELECT_V2", [mask, yes, no], yes.shape, yes.dtype)


def _set_outputs(
    node: Node, rows: list[list[Tensor]], states: list[State], batch_first: bool
) -> None:
    batch, hidden = rows[0][0].shape
    count, steps = len(rows), len(rows[0])
    if node.has_output(0):
        flat = [rows[d][t] for t in range(steps) for d in range(count)]
        y = _stack_rows(node, flat, (steps, count, batch, hidden))
        node.set_output(y, _output_order((1, 2, 0, 3), batch_first))
    for i in range(len(states[0])):
        if node.has_output(i + 1):
            last = _stack_rows(node, [s[i] for s in states], (count, batch, hidden))
            node.set_output(last, _output_order((1, 0, 2), batch_first), i + 1)


def _output_order(batch_first: Axes, layout: bool) -> Axes | None:
    return batch_first if layout else None


def _stack_rows(node: Node, tensors: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    """Tensors of one shape below each other, then in the shape given."""
    if len(tensors) > 1:
        joined = (len(tensors) * tensors[0].shape[0], tensors[0].shape[1])
        return node.reshape(node.emit("CONCATENATION", tensors, joined, axis=0), shape)
    return node.reshape(tensors[0], shape)
