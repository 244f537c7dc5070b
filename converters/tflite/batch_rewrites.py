"""What TFLite converters write down about the batch they saw, rewritten for any number of rows.

    REWRITES["RESHAPE"](draft, op, batched) -> operators in its place

``batched`` is what the first input is for one row. None of the rewrites is believed:
converters.tflite.batch tries what they return.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from converters.batch_tracker import (
    BATCH_NAME,
    BatchAxis,
    BatchedTensor,
    Shape,
    find_free_dimension,
)
from converters.tflite import flatbuffer
from edge_core.tensors import Array

Op = Any  # OperatorT
Ops = list[Op]


class Draft:
    """The first subgraph of a model that is being changed. Tensors go by their index."""

    def __init__(self, model: flatbuffer.Model) -> None:
        self.model, self.graph = model, model.subgraphs[0]
        self._schema = flatbuffer.schema()
        self._lists: dict[tuple[int, ...], int] = {}
        self.split: dict[int, int] = {}  # tensors -> the same with the rows in an axis of their own

    def constant(self, op: Op, place: int) -> Array | None:
        """An input's value, if the file has it."""
        return flatbuffer.constant(self.model, self.graph.tensors[op.inputs[place]])

    def shape(self, index: int) -> Shape:
        """For one row."""
        return flatbuffer.shape(self.graph.tensors[index])

    def ints(self, values: Sequence[int]) -> int:
        """A constant list; equal ones are one tensor."""
        key = tuple(int(value) for value in values)
        if key not in self._lists:
            kind = self._schema.TensorType.INT32
            self._lists[key] = self.add_constant(np.array(key, np.int32), kind)
        return self._lists[key]

    def add_constant(self, values: Array, kind: int) -> int:
        """A new constant."""
        index = self._add_tensor(values.shape, f"{BATCH_NAME}/{len(self.graph.tensors)}", kind)
        flatbuffer.set_constant(self.model, self.graph.tensors[index], values)
        return index

    def add_intermediate(self, op: Op, shape: Shape, part: str) -> int:
        """A new tensor among the operators that ``op`` becomes, of its result's type and scale."""
        result = self.graph.tensors[op.outputs[0]]
        index = self._add_tensor(shape, f"{flatbuffer.tensor_name(result)}/{part}", result.type)
        self.graph.tensors[index].quantization = result.quantization
        return index

    def _add_tensor(self, shape: Shape, name: str, kind: int) -> int:
        tensor = self._schema.TensorT()
        tensor.name, tensor.type, tensor.buffer = name.encode(), kind, 0
        tensor.shape, tensor.hasRank = np.array(shape, np.int32), True
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def op(self, kind: str, inputs: Sequence[int], output: int, options: str) -> Op:
        """A new operator with the default options of that table."""
        operator = self._schema.OperatorT()
        operator.opcodeIndex = flatbuffer.op_code(self.model, kind)
        operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array([output], np.int32)
        operator.builtinOptionsType = getattr(self._schema.BuiltinOptions, options)
        operator.builtinOptions = getattr(self._schema, f"{options}T")()
        return operator

    def make_reshape(self, source: int, shape: Shape, place: int, target: int) -> Op:
        """A RESHAPE to ``shape``, with as many rows as there are in one dimension."""
        free = (*shape[:place], -1, *shape[place + 1 :])
        operator = self.op("RESHAPE", [source, self.ints(free)], target, "ReshapeOptions")
        operator.builtinOptions.newShape = np.array(free, np.int32)
        return operator

    def make_slice(
        self, source: int, begin: Sequence[int], size: Shape, rows: int, target: int
    ) -> Op:
        """A part in every dimension, and all of the dimension ``rows``.

        As a STRIDED_SLICE: XNNPACK leaves a SLICE with an open size to the runtime's own kernels.
        """
        end = [start + length for start, length in zip(begin, size, strict=True)]
        bounds = [self.ints(each) for each in (begin, end, [1] * len(size))]
        operator = self.op("STRIDED_SLICE", [source, *bounds], target, "StridedSliceOptions")
        operator.builtinOptions.beginMask = operator.builtinOptions.endMask = 1 << rows
        return operator


def rewrite_reshape(draft: Draft, op: Op, batched: BatchedTensor) -> Ops:
    """The free dimension where the rows are; where they cannot stay, they go to the front."""
    source, result = op.inputs[0], op.outputs[0]
    target_shape = draft.shape(result)
    place = find_free_dimension(batched.where, batched.shape, target_shape)
    if place is not None:
        return [draft.make_reshape(source, target_shape, place, result)]
    before = math.prod(batched.shape[: batched.where.axis]) * batched.where.outer
    rest = math.prod(batched.shape) // before
    parts = draft.add_intermediate(op, (before, 1, rest), "rows")
    moved = draft.add_intermediate(op, (1, before, rest), "moved")
    return [
        draft.make_reshape(source, (before, 1, rest), 1, parts),
        draft.op("TRANSPOSE", [parts, draft.ints([1, 0, 2])], moved, "TransposeOptions"),
        draft.make_reshape(moved, target_shape, 0, result),
    ]


def rewrite_slice(draft: Draft, op: Op, batched: BatchedTensor) -> Ops:
    """All of the rows, where it is all of the one row; or a part of each row."""
    begin_values, target_shape, at = (
        draft.constant(op, 1),
        draft.shape(op.outputs[0]),
        batched.where.axis,
    )
    if begin_values is None:
        return [op]
    begin = [int(start) for start in begin_values]
    if target_shape[at] == batched.shape[at]:
        return [draft.make_slice(op.inputs[0], begin, target_shape, at, op.outputs[0])]
    return _each(draft, op, batched, target_shape, lambda rows, chosen: draft.make_slice(
        rows, [*begin[:at], 0, *begin[at:]], draft.shape(chosen), at, chosen
    ))  # fmt: skip


def rewrite_strided_slice(draft: Draft, op: Op, batched: BatchedTensor) -> Ops:
    """All of the rows, where it is all of the one row."""
    options, at = op.builtinOptions, batched.where.axis
    begin, end, strides = (draft.constant(op, place) for place in (1, 2, 3))
    if begin is None or end is None or strides is None or len(begin) <= at:
        return [op]
    bit = 1 << at
    starts, ends = (
        options.beginMask & bit or not begin[at],
        options.endMask & bit or end[at] >= batched.shape[at],
    )
    shifted = (
        options.ellipsisMask
        or options.newAxisMask
        or options.shrinkAxisMask & bit
        or options.offset
    )
    if shifted or strides[at] != 1 or not (starts and ends):
        return [op]
    opened = copy.copy(op)
    opened.builtinOptions = copy.copy(options)
    opened.builtinOptions.beginMask |= bit
    opened.builtinOptions.endMask |= bit
    return [opened]


def rewrite_gather(draft: Draft, op: Op, batched: BatchedTensor) -> Ops:
    """Constant places of each row, where all rows lie in the dimension that is looked up."""
    options, target_shape = op.builtinOptions, draft.shape(op.outputs[0])
    axis = options.axis % len(batched.shape)
    if draft.constant(op, 1) is None or options.batchDims or axis != batched.where.axis:
        return [op]

    def make_gather(rows: int, chosen: int) -> Op:
        copied = copy.copy(op)
        copied.inputs, copied.outputs = (
            np.array(each, np.int32) for each in ([rows, op.inputs[1]], [chosen])
        )
        copied.builtinOptions = copy.copy(options)
        copied.builtinOptions.axis = axis + 1
        return copied

    return _each(draft, op, batched, target_shape, make_gather)


def _each(
    draft: Draft,
    op: Op,
    batched: BatchedTensor,
    target_shape: Shape,
    part: Callable[[int, int], Op],
) -> Ops:
    """A part of each row, from the rows in an axis of their own, before that of ``batched``."""
    at = batched.where.axis
    chosen_shape = (*batched.shape[:at], 1, *target_shape[at:])
    place = find_free_dimension(BatchAxis(at), chosen_shape, target_shape)
    if batched.where.outer != 1 or place is None:
        return [op]
    source, new = int(op.inputs[0]), []
    if source not in draft.split:
        split = (*batched.shape[:at], 1, *batched.shape[at:])
        draft.split[source] = draft.add_intermediate(op, split, "rows")
        new = [draft.make_reshape(source, split, at, draft.split[source])]
    chosen = draft.add_intermediate(op, chosen_shape, "chosen")
    whole = draft.make_reshape(chosen, target_shape, place, op.outputs[0])
    return [*new, part(draft.split[source], chosen), whole]


def rewrite_broadcast_to(draft: Draft, op: Op, batched: BatchedTensor) -> Ops:
    """A product with ones where it repeats, because its shape has no free form.

    It is exact, also for -0.0, infinity and NaN.
    """
    tensor, target_shape = draft.graph.tensors[op.inputs[0]], draft.shape(op.outputs[0])
    if flatbuffer.has_scale(tensor):
        return [op]
    have = (1,) * (len(target_shape) - len(batched.shape)) + batched.shape
    ones = np.ones(
        [
            wanted_size if wanted_size != size else 1
            for wanted_size, size in zip(target_shape, have, strict=True)
        ],
        batched.dtype,
    )
    inputs = [op.inputs[0], draft.add_constant(ones, tensor.type)]
    if batched.dtype.kind == "b":
        return [draft.op("LOGICAL_AND", inputs, op.outputs[0], "LogicalAndOptions")]
    return [draft.op("MUL", inputs, op.outputs[0], "MulOptions")]


REWRITES: dict[str, Callable[[Draft, Op, BatchedTensor], Ops]] = {
    "RESHAPE": rewrite_reshape,
    "SQUEEZE": rewrite_reshape,
    "EXPAND_DIMS": rewrite_reshape,
    "SLICE": rewrite_slice,
    "STRIDED_SLICE": rewrite_strided_slice,
    "GATHER": rewrite_gather,
    "BROADCAST_TO": rewrite_broadcast_to,
}
