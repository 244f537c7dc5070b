"""What ONNX exporters write down about the batch they saw, rewritten for any number of rows.

    REWRITES["Reshape"](draft, node, batched) -> nodes in its place

``batched`` is the first input that has rows; only of Concat it need not be the first of all.

A rewrite makes the same of one row, and asks how many rows there are where a constant said 1. None
of them is believed: converters.onnx.batch tries what they return.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from converters.batch_tracker import (
    BATCH_NAME,
    BatchedTensor,
    BatchTracker,
    RunUnit,
    Shape,
    Values,
    find_free_dimension,
)
from converters.foreign_errors import translate_foreign_errors
from converters.onnx.weights import read_attribute
from edge_core.extras import need
from edge_core.tensors import Array

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

OPEN = int(np.iinfo(np.int64).max)  # an end beyond every size


class Draft:
    """The graph that is being changed: what is known of it, and what it gets."""

    def __init__(self, model: ModelProto, tracker: BatchTracker) -> None:
        self._onnx = need("onnx", "onnx")
        self._model, self._tracker = model, tracker
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self._names = {name for node in model.graph.node for name in (*node.input, *node.output)}
        self._names.update(self._stored)
        self._lists: dict[tuple[int, ...], str] = {}

    def load(
        self, unit: Sequence[NodeProto], rows: Mapping[str, BatchedTensor], constants: Values
    ) -> RunUnit:
        """The nodes alone, on the real runtime, without optimisation."""
        onnx, ort = self._onnx, need("onnxruntime", "onnx")
        results = sorted({name for node in unit for name in node.output if name})
        graph = onnx.helper.make_graph(
            unit,
            "unit",
            [self._input(name, tensor) for name, tensor in rows.items()],
            [onnx.ValueInfoProto(name=name) for name in results],
            [self._tensor(name, array) for name, array in constants.items()],
        )
        alone = onnx.helper.make_model(
            graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version
        )
        so = ort.SessionOptions()
        so.log_severity_level = 4
        so.intra_op_num_threads = so.inter_op_num_threads = 1
        so.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        with translate_foreign_errors("onnxruntime"):
            session = ort.InferenceSession(
                alone.SerializeToString(), so, providers=["CPUExecutionProvider"]
            )

        def run(feeds: Values) -> Values:
            with translate_foreign_errors("onnxruntime"):
                return dict(zip(results, session.run(results, feeds), strict=True))

        return run

    def _input(self, name: str, tensor: BatchedTensor) -> ValueInfoProto:
        """As in the graph: free where the rows lie, fixed elsewhere."""
        helper = self._onnx.helper
        shape: list[int | str] = list(tensor.shape)
        shape[tensor.where.axis] = BATCH_NAME
        value: ValueInfoProto = helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(tensor.dtype), shape
        )
        return value

    def _tensor(self, name: str, array: Array) -> TensorProto:
        """The graph's own, if it has it: not every type has an array that tells it."""
        own: TensorProto | None = self._stored.get(name)
        return self._onnx.numpy_helper.from_array(array, name) if own is None else own

    def constant(self, node: NodeProto, place: int) -> Array | None:
        """An input's value, if it is known."""
        if len(node.input) <= place:
            return None
        return self._tracker.constants.get(node.input[place])

    def infer_shape(self, node: NodeProto, batched: BatchedTensor) -> Shape | None:
        """The shape of the result for one row of the first input; None where others have rows."""
        others = [name for name in node.input[1:] if name]
        if any(name not in self._tracker.constants for name in others):
            return None
        run = self.load(
            [node],
            {node.input[0]: batched},
            {name: self._tracker.constants[name] for name in others},
        )
        return tuple(
            run({node.input[0]: np.zeros(batched.shape, batched.dtype)})[node.output[0]].shape
        )

    def ints(self, values: Sequence[int]) -> str:
        """A constant list of the graph; equal ones are one."""
        key = tuple(int(value) for value in values)
        if key not in self._lists:
            name = self._lists[key] = self.name("_".join([BATCH_NAME, *map(str, key)]))
            self._tracker.constants[name] = np.array(key, np.int64)
            tensor = self._onnx.numpy_helper.from_array(self._tracker.constants[name], name)
            self._model.graph.initializer.append(tensor)
        return self._lists[key]

    def name(self, name: str) -> str:
        """The name, or a longer one that is free."""
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name

    def make(self, op: str, inputs: Sequence[str], output: str, **how: Any) -> NodeProto:
        """A node of the standard domain."""
        node: NodeProto = self._onnx.helper.make_node(op, inputs, [output], output, **how)
        return node

    def with_inputs(self, node: NodeProto, inputs: Mapping[int, str]) -> NodeProto:
        """A copy of a node with other inputs."""
        copied: NodeProto = self._onnx.NodeProto()
        copied.CopyFrom(node)
        for place, name in inputs.items():
            copied.input[place] = name
        return copied

    def free_at(self, shape: Shape, place: int) -> str:
        """A constant for Reshape: ``shape``, with as many rows as there are in one dimension."""
        return self.ints([*shape[:place], -1, *shape[place + 1 :]])

    def count_rows(
        self, source: str, batched: BatchedTensor, sizes: Sequence[int], name: str
    ) -> tuple[str, list[NodeProto]]:
        """A shape for other ops: ``sizes``, and the rows of ``source`` in their dimension."""
        at = batched.where.axis
        shape, rows, joined = (self.name(f"{name}_{n}") for n in ("shape", "rows", "sizes"))
        around = [list(sizes[:at]), list(sizes[at + 1 :])]
        parts = [*map(self.ints, around[:1]), rows, *map(self.ints, around[1:])]
        return joined, [
            self.make("Shape", [source], shape),
            self.make("Slice", [shape, self.ints([at]), self.ints([at + 1])], rows),
            self.make("Concat", parts, joined, axis=0),
        ]


def rewrite_reshape(draft: Draft, node: NodeProto, batched: BatchedTensor) -> list[NodeProto]:
    """The free dimension where the rows are. Where they are in the middle of one, they are moved
    to the front."""
    target_shape = draft.infer_shape(node, batched)
    if target_shape is None:
        return [node]
    source, result = node.input[0], node.output[0]
    place = find_free_dimension(batched.where, batched.shape, target_shape)
    if place is not None:
        return [draft.make("Reshape", [source, draft.free_at(target_shape, place)], result)]
    before = math.prod(batched.shape[: batched.where.axis]) * batched.where.outer
    split = (before, 1, math.prod(batched.shape) // before)
    parts, moved = draft.name(f"{result}_rows"), draft.name(f"{result}_moved")
    return [
        draft.make("Reshape", [source, draft.free_at(split, 1)], parts),
        draft.make("Transpose", [parts], moved, perm=[1, 0, 2]),
        draft.make("Reshape", [moved, draft.free_at(target_shape, 0)], result),
    ]


def rewrite_squeeze(draft: Draft, node: NodeProto, batched: BatchedTensor) -> list[NodeProto]:
    """Another rank: a Reshape, if it concerns the dimension of the rows."""
    target_shape = draft.infer_shape(node, batched)
    if target_shape is None:
        return [node]
    kept = (
        len(target_shape) > len(batched.shape)
        or target_shape[: batched.where.axis + 1] == batched.shape[: batched.where.axis + 1]
    )
    alone = batched.shape[batched.where.axis] == 1
    return [node] if kept and alone else rewrite_reshape(draft, node, batched)


def rewrite_gather(draft: Draft, node: NodeProto, batched: BatchedTensor) -> list[NodeProto]:
    """Constant places of each row, where all rows lie in the dimension that is looked up."""
    axis = read_attribute(node, "axis", 0) % len(batched.shape)
    target_shape = (
        draft.infer_shape(node, batched)
        if axis == batched.where.axis and batched.where.outer == 1
        else None
    )
    if target_shape is None:
        return [node]
    split = (*batched.shape[:axis], 1, *batched.shape[axis:])
    place = find_free_dimension(
        batched.where, (*split[: axis + 1], *target_shape[axis:]), target_shape
    )
    if place is None:
        return [node]
    result = node.output[0]
    parts, chosen = draft.name(f"{result}_rows"), draft.name(f"{result}_chosen")
    return [
        draft.make("Reshape", [node.input[0], draft.free_at(split, axis)], parts),
        draft.make("Gather", [parts, node.input[1]], chosen, axis=axis + 1),
        draft.make("Reshape", [chosen, draft.free_at(target_shape, place)], result),
    ]


def rewrite_slice(draft: Draft, node: NodeProto, batched: BatchedTensor) -> list[NodeProto]:
    """All of the rows, where it is all of the one row."""
    starts, ends, axes, steps = (draft.constant(node, place) for place in (1, 2, 3, 4))
    if starts is None or ends is None:
        return [node]
    along = (
        list(range(len(starts)))
        if axes is None
        else [int(axis) % len(batched.shape) for axis in axes]
    )
    if batched.where.axis not in along:
        return [node]
    at, size = along.index(batched.where.axis), batched.shape[batched.where.axis]
    whole = starts[at] in (0, -size) and ends[at] >= size and (steps is None or steps[at] == 1)
    if not whole or starts.dtype != np.int64:
        return [node]
    opened = [OPEN if i == at else int(end) for i, end in enumerate(ends)]
    return [draft.with_inputs(node, {2: draft.ints(opened)})]


def rewrite_resize(draft: Draft, node: NodeProto, batched: BatchedTensor) -> list[NodeProto]:
    """Sizes as they are, with as many rows as come in."""
    sizes = draft.constant(node, 3)
    if sizes is None or len(sizes) != len(batched.shape) or sizes[batched.where.axis] != 1:
        return [node]
    shape, before = draft.count_rows(node.input[0], batched, sizes.tolist(), node.output[0])
    return [*before, draft.with_inputs(node, {3: shape})]


def rewrite_concat(draft: Draft, node: NodeProto, batched: BatchedTensor) -> list[NodeProto]:
    """Constants beside the rows, once for each: a class token."""
    if batched.shape[batched.where.axis] != 1:
        return [node]
    source = next(n for i, n in enumerate(node.input) if draft.constant(node, i) is None)
    new: list[NodeProto] = []
    inputs = {}
    for i, name in enumerate(node.input):
        if (value := draft.constant(node, i)) is not None:
            at = f"{node.output[0]}_{i}"
            shape, before = draft.count_rows(source, batched, [1] * value.ndim, at)
            inputs[i] = draft.name(f"{at}_wide")
            new += [*before, draft.make("Expand", [name, shape], inputs[i])]
    return [*new, draft.with_inputs(node, inputs)]


def rewrite_recurrent(draft: Draft, node: NodeProto, batched: BatchedTensor) -> list[NodeProto]:
    """Without first states, which start from zeros for every row, where they are zeros."""
    states = {place: draft.constant(node, place) for place in (5, 6)}
    zeros = {place: "" for place, state in states.items() if state is not None and not state.any()}
    return [draft.with_inputs(node, zeros)]


Rewrite = Callable[[Draft, Any, BatchedTensor], "list[NodeProto]"]
REWRITES: dict[str, Rewrite] = {
    "Reshape": rewrite_reshape,
    "Squeeze": rewrite_squeeze,
    "Unsqueeze": rewrite_squeeze,
    "Gather": rewrite_gather,
    "Slice": rewrite_slice,
    "Resize": rewrite_resize,
    "Concat": rewrite_concat,
    "LSTM": rewrite_recurrent,
    "GRU": rewrite_recurrent,
    "RNN": rewrite_recurrent,
}
