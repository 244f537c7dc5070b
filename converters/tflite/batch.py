"""A TFLite graph made for one row, made to take any number of rows in its first dimension.

    free(model) -> None        changes the objects in place; what comes out is stamped and written

Inputs and outputs get a shape signature that begins with -1; the runtime then resizes them, and
every tensor between, without giving its delegates up. Constants that hold the 1 of the batch are
rewritten: RESHAPE, SQUEEZE, EXPAND_DIMS, SLICE, STRIDED_SLICE, GATHER, and BROADCAST_TO, which has
no free form and becomes a product with ones. converters.batch then tries every op on the runtime.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from converters import batch
from converters.batch import Run, Shape, Tensor, Tracker, Values, refused
from converters.foreign import foreign
from converters.tflite import flat
from converters.tflite.op_versions import BLOCKWISE
from edge_core.extras import need
from edge_core.tensors import Array

Op = Any  # OperatorT


def free(model: flat.Model) -> None:
    """Make the batch of a model free; raises ConvertError naming an op that mixes the rows or
    fixes their number."""
    _Freer(model).free()


class _Freer:
    """One model, changed in place. Tensors go by their index, as text."""

    def __init__(self, model: flat.Model) -> None:
        self._schema = flat.schema()
        self._model, self._graph = model, model.subgraphs[0]
        self._tracker = Tracker()
        self._lists: dict[tuple[int, ...], int] = {}

    def free(self) -> None:
        if len(self._model.subgraphs) > 1:
            raise refused("its control flow takes one way for all rows of a batch")
        tensors = self._graph.tensors
        for i in self._graph.inputs:
            self._tracker.input(str(i), flat.shape(tensors[i]), self._dtype(i))
        ops = [new for op in self._graph.operators for new in self._taken(op)]
        for i in self._graph.outputs:
            self._tracker.output(str(i))
        for i in _inputs(self._graph.operators) - _inputs(ops):
            tensors[i].buffer = 0  # nothing reads it any more
        self._graph.operators = ops
        for i in (*self._graph.inputs, *self._graph.outputs):
            tensors[i].shapeSignature = np.array([-1, *flat.shape(tensors[i])[1:]], np.int32)

    def _taken(self, op: Op) -> list[Op]:
        """One op, rewritten where it must be, and tried."""
        kind = flat.op_name(self._model, op)
        label = f"{kind} at '{flat.tensor_name(self._graph.tensors[op.outputs[0]])}'"
        x = self._tracker.rows.get(str(op.inputs[0])) if len(op.inputs) else None
        unit = REWRITES[kind](self, op, x) if x is not None and kind in REWRITES else [op]
        made = {int(i) for u in unit for i in u.outputs}
        inputs = [str(i) for u in unit for i in u.inputs if i >= 0 and i not in made]
        outputs = [str(i) for i in op.outputs]
        self._tracker.step(label, inputs, outputs, lambda *given: self._load(unit, *given))
        return unit

    def _load(self, unit: Sequence[Op], rows: Mapping[str, Tensor], constants: Values) -> Run:
        """The ops alone, on the real runtime, without delegates."""
        fed = [int(n) for n in (*rows, *constants)]
        made = [int(i) for u in unit for i in u.outputs]
        module = need("ai_edge_litert.interpreter", "tflite")
        with foreign("LiteRT"):
            interpreter = module.Interpreter(
                model_content=flat.to_bytes(self._alone(unit, fed, made)),
                num_threads=1,
                experimental_op_resolver_type=module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            )
        places = [d["index"] for d in interpreter.get_input_details()]
        results = [d["index"] for d in interpreter.get_output_details()]

        def run(feeds: Values) -> Values:
            arrays = [{**constants, **feeds}[str(i)] for i in fed]
            with foreign("LiteRT"):
                for place, a in zip(places, arrays, strict=True):
                    interpreter.resize_tensor_input(place, a.shape)
                interpreter.allocate_tensors()
                for place, a in zip(places, arrays, strict=True):
                    interpreter.set_tensor(place, a)
                interpreter.invoke()
                return {
                    str(i): interpreter.get_tensor(place).copy()
                    for i, place in zip(made, results, strict=True)
                }

        return run

    def _alone(self, unit: Sequence[Op], fed: Sequence[int], made: Sequence[int]) -> flat.Model:
        """A model of the ops only, with the tensors and the buffers that they use."""
        used = dict.fromkeys([*fed, *made, *sorted(_inputs(unit))])
        scales = {i: int(q.details.scales) for i in used if (q := self._blocks(i))}
        number = {i: n for n, i in enumerate(dict.fromkeys([*used, *scales.values()]))}
        model, graph = self._schema.ModelT(), self._schema.SubGraphT()
        model.version, model.operatorCodes = 3, self._model.operatorCodes
        model.buffers, model.subgraphs, graph.tensors = [self._schema.BufferT()], [graph], []
        for i in number:
            tensor = copy.copy(self._graph.tensors[i])
            data = self._model.buffers[tensor.buffer].data
            tensor.buffer = 0
            if data is not None and len(data):
                tensor.buffer = len(model.buffers)
                model.buffers.append(self._model.buffers[self._graph.tensors[i].buffer])
            if i in scales:
                tensor.quantization = copy.copy(tensor.quantization)
                tensor.quantization.details = copy.copy(tensor.quantization.details)
                tensor.quantization.details.scales = number[scales[i]]
            graph.tensors.append(tensor)
        graph.operators = []
        for op in unit:
            moved = copy.copy(op)
            moved.inputs, moved.outputs = (
                np.array([number.get(int(i), -1) for i in each], np.int32)
                for each in (op.inputs, op.outputs)
            )
            graph.operators.append(moved)
        graph.inputs = np.array([number[i] for i in fed], np.int32)
        graph.outputs = np.array([number[i] for i in made], np.int32)
        return model

    def _blocks(self, index: int) -> Any:
        """The quantisation of a tensor whose blocks have scales, which are in another tensor."""
        q = self._graph.tensors[index].quantization
        return q if q is not None and q.detailsType == BLOCKWISE else None

    # What converters write down, rewritten. ``x`` is what the first input is for one row.

    def _reshape(self, op: Op, x: Tensor) -> list[Op]:
        want = self._shape(op.outputs[0])
        place = batch.reshape(x.where, x.shape, want)
        if place is not None:
            return [self._reshaped(op.inputs[0], _free_at(want, place), op.outputs[0])]
        before = math.prod(x.shape[: x.where.axis]) * x.where.outer
        rest = math.prod(x.shape) // before
        parts = self._tensor(op, (before, 1, rest), "rows")
        moved = self._tensor(op, (1, before, rest), "moved")
        return [
            self._reshaped(op.inputs[0], (before, -1, rest), parts),
            self._op("TRANSPOSE", [parts, self._ints([1, 0, 2])], [moved], "TransposeOptions"),
            self._reshaped(moved, _free_at(want, 0), op.outputs[0]),
        ]

    def _squeeze(self, op: Op, x: Tensor) -> list[Op]:
        """Another rank: a RESHAPE."""
        return self._reshape(op, x)

    def _slice(self, op: Op, x: Tensor) -> list[Op]:
        """All of the rows, where it is all of the one row.

        As a STRIDED_SLICE: XNNPACK leaves a SLICE with an open size (-1) to the runtime's kernels.
        """
        begin, size = (self._constant(op, i) for i in (1, 2))
        want, at = self._shape(op.outputs[0]), x.where.axis
        if begin is None or size is None or begin[at] or want[at] != x.shape[at]:
            return [op]
        end = [int(b) + w for b, w in zip(begin, want, strict=True)]
        bounds = [self._ints(each) for each in (begin.tolist(), end, [1] * len(want))]
        inputs = [op.inputs[0], *bounds]
        made = self._op("STRIDED_SLICE", inputs, op.outputs, "StridedSliceOptions")
        made.builtinOptions.beginMask = made.builtinOptions.endMask = 1 << at
        return [made]

    def _strided_slice(self, op: Op, x: Tensor) -> list[Op]:
        """The same."""
        o, at = op.builtinOptions, x.where.axis
        begin, end, strides = (self._constant(op, i) for i in (1, 2, 3))
        if begin is None or end is None or strides is None or len(begin) <= at:
            return [op]
        bit = 1 << at
        starts, ends = o.beginMask & bit or not begin[at], o.endMask & bit or end[at] >= x.shape[at]
        shifted = o.ellipsisMask or o.newAxisMask or o.shrinkAxisMask & bit or o.offset
        if shifted or strides[at] != 1 or not (starts and ends):
            return [op]
        opened = copy.copy(op)
        opened.builtinOptions = copy.copy(o)
        opened.builtinOptions.beginMask |= bit
        opened.builtinOptions.endMask |= bit
        return [opened]

    def _gather(self, op: Op, x: Tensor) -> list[Op]:
        """Constant places of each row, where all rows lie in the dimension that is looked up."""
        axis, want = op.builtinOptions.axis % len(x.shape), self._shape(op.outputs[0])
        fixed = self._constant(op, 1) is not None and not op.builtinOptions.batchDims
        if not fixed or axis != x.where.axis or x.where.outer != 1:
            return [op]
        split = (*x.shape[:axis], 1, *x.shape[axis:])
        found = (*split[: axis + 1], *want[axis:])
        place = batch.reshape(x.where, found, want)
        if place is None:
            return [op]
        parts, chosen = self._tensor(op, split, "rows"), self._tensor(op, found, "chosen")
        taken = self._with_input(op, 0, parts)
        taken.builtinOptions = copy.copy(op.builtinOptions)
        taken.builtinOptions.axis, taken.outputs = axis + 1, np.array([chosen], np.int32)
        return [
            self._reshaped(op.inputs[0], _free_at(split, axis), parts),
            taken,
            self._reshaped(chosen, _free_at(want, place), op.outputs[0]),
        ]

    def _broadcast(self, op: Op, x: Tensor) -> list[Op]:
        """A product with ones where it repeats: exact, also for -0.0, infinity and NaN."""
        want, dtype = self._shape(op.outputs[0]), x.dtype
        have = (1,) * (len(want) - len(x.shape)) + x.shape
        ones = np.ones([w if w != h else 1 for w, h in zip(want, have, strict=True)], dtype)
        if flat.has_scale(self._graph.tensors[op.inputs[0]]):
            return [op]
        other = self._stored(ones, self._graph.tensors[op.inputs[0]].type)
        kind = ("LOGICAL_AND", "LogicalAndOptions") if dtype.kind == "b" else ("MUL", "MulOptions")
        return [self._op(kind[0], [op.inputs[0], other], op.outputs, kind[1])]

    def _reshaped(self, source: int, shape: Shape, target: int) -> Op:
        made = self._op("RESHAPE", [source, self._ints(shape)], [target], "ReshapeOptions")
        made.builtinOptions.newShape = np.array(shape, np.int32)
        return made

    def _op(self, kind: str, inputs: Sequence[int], outputs: Sequence[int], options: str) -> Op:
        made = self._schema.OperatorT()
        made.opcodeIndex = flat.op_code(self._model, kind)
        made.inputs, made.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        made.builtinOptionsType = getattr(self._schema.BuiltinOptions, options)
        made.builtinOptions = getattr(self._schema, f"{options}T")()
        return made

    def _with_input(self, op: Op, place: int, tensor: int) -> Op:
        made = copy.copy(op)
        made.inputs = np.array(op.inputs, np.int32)
        made.inputs[place] = tensor
        return made

    def _constant(self, op: Op, place: int) -> Array | None:
        return flat.constant(self._model, self._graph.tensors[op.inputs[place]])

    def _shape(self, index: int) -> Shape:
        return flat.shape(self._graph.tensors[index])

    def _dtype(self, index: int) -> Any:
        return np.dtype(flat.type_name(self._graph.tensors[index]).lower())

    def _ints(self, values: Sequence[int]) -> int:
        """A constant list; equal ones are one tensor."""
        key = tuple(values)
        if key not in self._lists:
            kind = self._schema.TensorType.INT32
            self._lists[key] = self._stored(np.array(key, np.int32), kind)
        return self._lists[key]

    def _stored(self, values: Array, kind: int) -> int:
        """A new constant."""
        index = self._added(values.shape, f"{batch.NAME}/{len(self._graph.tensors)}", kind)
        flat.set_constant(self._model, self._graph.tensors[index], values)
        return index

    def _tensor(self, op: Op, shape: Shape, part: str) -> int:
        """A tensor between the ops that ``op`` becomes, of the type and scale of its result."""
        result = self._graph.tensors[op.outputs[0]]
        index = self._added(shape, f"{flat.tensor_name(result)}/{part}", result.type)
        self._graph.tensors[index].quantization = result.quantization
        return index

    def _added(self, shape: Shape, name: str, kind: int) -> int:
        tensor = self._schema.TensorT()
        tensor.name, tensor.type, tensor.buffer = name.encode(), kind, 0
        tensor.shape, tensor.hasRank = np.array(shape, np.int32), True
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1


def _inputs(ops: Sequence[Op]) -> set[int]:
    return {int(i) for op in ops for i in op.inputs if i >= 0}


def _free_at(shape: Shape, place: int) -> Shape:
    return (*shape[:place], -1, *shape[place + 1 :])


Rewrite = Callable[[_Freer, Op, Tensor], "list[Op]"]
REWRITES: dict[str, Rewrite] = {
    "RESHAPE": _Freer._reshape,
    "SQUEEZE": _Freer._squeeze,
    "EXPAND_DIMS": _Freer._squeeze,
    "SLICE": _Freer._slice,
    "STRIDED_SLICE": _Freer._strided_slice,
    "GATHER": _Freer._gather,
    "BROADCAST_TO": _Freer._broadcast,
}
