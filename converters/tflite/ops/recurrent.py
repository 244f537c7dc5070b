"""LSTM, GRU and RNN, unrolled: the number of steps is known at conversion.

The input products of all steps are one FULLY_CONNECTED before the first step, and every step
reads the same constant of recurrent weights. TFLite's own UNIDIRECTIONAL_SEQUENCE_LSTM is not
used: its states are variables that survive a call, which ONNX states do not.
"""

# structure: mathematics: i, o, f, g, h and c are the gates and states of the LSTM's equations

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

    def __init__(self, node: Node, direction: int, functions: Sequence[Activation]):
        self.node, self.calc, self.functions = node, Math(node), functions
        self.input_weights, self.recurrent_weights = (
            node.require_constant(1, "its weight W")[direction],
            node.require_constant(2, "its weight R")[direction],
        )
        self.hidden = self.recurrent_weights.shape[-1]
        bias = (
            node.require_constant(3, "its bias")[direction]
            if node.has_input(3)
            else np.zeros(2 * len(self.input_weights), np.float32)
        )
        self.input_bias, self.recurrent_bias = np.split(bias, 2)
        self.clip = float(node.attr("clip", 0.0)) or math.inf
        self.prepare(direction)

    @abc.abstractmethod
    def prepare(self, direction: int) -> None:
        """Create the constants; add what biases can be added beforehand to ``input_bias``."""

    @abc.abstractmethod
    def step(self, products: Tensor, state: State) -> State:
        """The state after a step; ``products`` holds those of its input, [batch, gates]."""

    def project(self, tensor: Tensor) -> Tensor:
        """The products of all inputs: [steps * batch, gates]."""
        return emit_fully_connected(self.node, tensor, self.input_weights, self.input_bias)

    def multiply_state(self, state: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
        """A state [batch, hidden] times weights [gates, hidden]: [batch, gates].

        Computed here if the state is constant.
        """
        shape = (state.shape[0], weights.shape[0])
        if state.data is not None and weights.data is not None:
            extra = 0.0 if bias is None or bias.data is None else bias.data
            return self.node.const(np.broadcast_to(state.data @ weights.data.T + extra, shape))
        return self.node.emit("FULLY_CONNECTED", [state, weights, bias], shape, keep_num_dims=False)

    def add(self, left: Tensor, right: Tensor) -> Tensor:
        """The sum; nothing is emitted if ``right`` is a constant of zeros."""
        return (
            left
            if right.data is not None and not right.data.any()
            else self.calc("ADD", left, right)
        )

    def multiply(self, left: Tensor, right: Tensor) -> Tensor:
        """The product; nothing is emitted if ``right`` is a constant of zeros."""
        return (
            right
            if right.data is not None and not right.data.any()
            else self.calc("MUL", left, right)
        )

    def apply_gate(self, function: int, tensor: Tensor) -> Tensor:
        """The clipped tensor through an activation."""
        return self.functions[function](self.calc, self.calc.clamp(tensor, -self.clip, self.clip))

    def split_columns(self, tensor: Tensor, count: int) -> list[Tensor]:
        """[rows, columns] as ``count`` tensors [rows, columns / count]."""
        if count == 1:
            return [tensor]
        axis, shape = self.node.const(1, np.int32), (tensor.shape[0], tensor.shape[1] // count)
        return self.node.graph.emit_many(
            "SPLIT", [axis, tensor], [shape] * count, tensor.dtype, num_splits=count
        )


class Rnn(Cell):
    """h = f(x W + h R + b)"""

    def prepare(self, direction: int) -> None:
        self.input_bias = self.input_bias + self.recurrent_bias
        self.recurrent = self.node.const(self.recurrent_weights)

    def step(self, products: Tensor, state: State) -> State:
        return (
            self.apply_gate(0, self.add(products, self.multiply_state(state[0], self.recurrent))),
        )


class Gru(Cell):
    """Gates in the order update, reset, candidate."""

    def prepare(self, direction: int) -> None:
        size = self.hidden
        self.before = not self.node.attr("linear_before_reset", 0)  # reset, then product
        common = 3 * size if self.before else 2 * size
        self.input_bias = self.input_bias.copy()
        self.input_bias[:common] += self.recurrent_bias[:common]
        self.first, self.last = (
            self.node.const(self.recurrent_weights[: 2 * size]),
            self.node.const(self.recurrent_weights[2 * size :]),
        )
        self.last_bias = None if self.before else self.node.const(self.recurrent_bias[2 * size :])

    def step(self, products: Tensor, state: State) -> State:
        h, size = state[0], self.hidden
        x_gates = slice_tensor(self.node, products, (0, 0), (products.shape[0], 2 * size))
        x_last = slice_tensor(self.node, products, (0, 2 * size), (products.shape[0], size))
        gates = self.apply_gate(0, self.add(x_gates, self.multiply_state(h, self.first)))
        update, reset = self.split_columns(gates, 2)
        if self.before:
            more = self.multiply_state(self.multiply(reset, h), self.last)
        else:
            more = self.multiply(reset, self.multiply_state(h, self.last, self.last_bias))
        new = self.apply_gate(1, self.add(x_last, more))
        # (1 - z) new + z h
        kept = self.multiply(update, h)
        return (self.add(self.calc("MUL", self.calc("SUB", 1.0, update), new), kept),)


class Lstm(Cell):
    """Gates in the order input, output, forget, cell; the state is (h, c)."""

    def prepare(self, direction: int) -> None:
        self.input_bias = self.input_bias + self.recurrent_bias
        self.recurrent = self.node.const(self.recurrent_weights)
        peep = (
            self.node.require_constant(7, "its peepholes")[direction]
            if self.node.has_input(7)
            else None
        )
        self.peepholes = (
            [] if peep is None else [self.node.const(part[None]) for part in np.split(peep, 3)]
        )

    def step(self, products: Tensor, state: State) -> State:
        h, c = state
        i, o, f, g = self.split_columns(
            self.add(products, self.multiply_state(h, self.recurrent)), 4
        )
        if self.peepholes:
            i = self.add(i, self.multiply(self.peepholes[0], c))
            f = self.add(f, self.multiply(self.peepholes[2], c))
        i = self.apply_gate(0, i)
        f = self.calc("SUB", 1.0, i) if self.node.attr("input_forget", 0) else self.apply_gate(0, f)
        c = self.add(self.calc("MUL", i, self.apply_gate(1, g)), self.multiply(f, c))
        if self.peepholes:
            o = self.calc("ADD", o, self.calc("MUL", self.peepholes[1], c))
        return self.calc("MUL", self.apply_gate(0, o), self.functions[2](self.calc, c)), c


CELLS: dict[str, type[Cell]] = {"LSTM": Lstm, "GRU": Gru, "RNN": Rnn}


def lower_recurrent(node: Node) -> None:
    """The steps of all directions, one after the other."""
    if node.value(0).dtype != np.float32:
        raise node.refusal(f"{node.value(0).dtype} is not in TFLite")
    way = node.attr("direction", "forward")
    backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[way]
    batch_first = bool(node.attr("layout", 0))
    sequence = node.place_input(0, (1, 0, 2) if batch_first else None)
    steps, batch, size = sequence.shape
    total = steps * len(backwards)
    if total > MAX_STEPS:
        why = f"its {total} steps are more than the {MAX_STEPS} that are unrolled"
        raise node.refusal(why, "export it with a shorter sequence")
    functions = read_activations(node, len(backwards))
    each = len(functions) // len(backwards)
    flat = node.reshape(sequence, (steps * batch, size))
    rows: list[list[Tensor]] = []
    states: list[State] = []
    for direction, reverse in enumerate(backwards):
        cell = CELLS[node.op](node, direction, functions[direction * each : (direction + 1) * each])
        initial = tuple(
            _initial_state(node, index, direction, (batch, cell.hidden))
            for index in _state_inputs(node)
        )
        order = range(steps)[:: -1 if reverse else 1]
        results, state = _unroll(cell, cell.project(flat), batch, order, initial)
        rows.append([results[step] for step in range(steps)])
        states.append(state)
    _set_outputs(node, rows, states, batch_first)


def _state_inputs(node: Node) -> tuple[int, ...]:
    return (5, 6) if node.op == "LSTM" else (5,)


def _initial_state(node: Node, index: int, direction: int, shape: tuple[int, int]) -> Tensor:
    """The state before the first step of a direction, [batch, hidden]."""
    if not node.has_input(index):
        return node.const(np.zeros(shape))
    state = node.place_input(index, (1, 0, 2) if node.attr("layout", 0) else None)
    if state.data is not None:
        return node.const(state.data[direction])
    return node.reshape(slice_tensor(node, state, (direction, 0, 0), (1, *shape)), shape)


def _unroll(
    cell: Cell, products: Tensor, batch: int, order: range, state: State
) -> tuple[dict[int, Tensor], State]:
    """The output of each step, and the last state.

    Beyond the length of a sequence the state is kept and the output is zero, so that a reversed
    sequence starts at its own end.
    """
    node, results = cell.node, {}
    nothing = node.const(np.zeros((batch, cell.hidden)))
    for step in order:
        inside = _step_mask(node, step, batch)
        if inside is not None and inside.data is not None and not inside.data.any():
            results[step] = nothing
            continue
        new = cell.step(
            slice_tensor(node, products, (step * batch, 0), (batch, products.shape[1])), state
        )
        if inside is None:
            state, results[step] = new, new[0]
            continue
        state = tuple(
            _choose(node, inside, after, before) for after, before in zip(new, state, strict=True)
        )
        results[step] = _choose(node, inside, new[0], nothing)
    has_started = _step_mask(node, 0, batch)
    if has_started is not None:  # ONNX Runtime: a sequence without a step ends in zeros
        state = tuple(_choose(node, has_started, part, nothing) for part in state)
    return results, state


def _step_mask(node: Node, step: int, batch: int) -> Tensor | None:
    """Which sequences have that step, bool [batch, 1]; None: all of them."""
    if not node.has_input(4):
        return None
    lengths = node.array(4)
    if lengths is not None:
        mask = (lengths > step).reshape(batch, 1)
        return None if mask.all() else node.const(mask, bool)
    return Math(node)(
        "GREATER", node.reshape(node.place_input(4), (batch, 1)), step, dtype=np.bool_
    )


def _choose(node: Node, mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return node.emit("SELECT_V2", [mask, new, old], new.shape, new.dtype)


def _set_outputs(
    node: Node, rows: list[list[Tensor]], states: list[State], batch_first: bool
) -> None:
    batch, hidden = rows[0][0].shape
    count, steps = len(rows), len(rows[0])
    if node.has_output(0):
        flat = [rows[direction][step] for step in range(steps) for direction in range(count)]
        result = _stack_rows(node, flat, (steps, count, batch, hidden))
        node.set_output(result, _output_order((1, 2, 0, 3), batch_first))
    for i in range(len(states[0])):
        if node.has_output(i + 1):
            last = _stack_rows(node, [state[i] for state in states], (count, batch, hidden))
            node.set_output(last, _output_order((1, 0, 2), batch_first), i + 1)


def _output_order(batch_first: Axes, layout: bool) -> Axes | None:
    return batch_first if layout else None


def _stack_rows(node: Node, tensors: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    """Tensors [rows, columns] concatenated along axis 0, then reshaped to ``shape``."""
    if len(tensors) > 1:
        joined = (len(tensors) * tensors[0].shape[0], tensors[0].shape[1])
        return node.reshape(node.emit("CONCATENATION", tensors, joined, axis=0), shape)
    return node.reshape(tensors[0], shape)
