"""A TFLite graph made for one row, made to take any number of rows in its first dimension.

    free(model) -> None        changes the objects in place; what comes out is stamped and written

Inputs and outputs get a shape signature that begins with -1: the runtime then resizes them, and
all between, without giving its delegates up. Operators that hold the 1 of the batch are rewritten
(converters.tflite.batch_rewrites), and each is tried on the runtime (converters.batch_tracker).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from converters.batch_tracker import BatchedTensor, BatchTracker, RunUnit, Values, make_batch_error
from converters.foreign_errors import translate_foreign_errors
from converters.tflite import flatbuffer
from converters.tflite.batch_rewrites import REWRITES, Draft, Op
from converters.tflite.op_versions import BLOCKWISE
from edge_core.extras import need


def free_tflite_batch(model: flatbuffer.Model) -> None:
    """Make the batch of a model free; raises ConvertError naming an op that mixes the rows or
    fixes their number."""
    if len(model.subgraphs) > 1:
        raise make_batch_error("its control flow takes one way for all rows of a batch")
    draft, tracker = Draft(model), BatchTracker()
    graph, tensors = draft.graph, draft.graph.tensors
    for i in graph.inputs:
        tracker.input(str(i), draft.shape(i), flatbuffer.type_name(tensors[i]).lower())
    ops = [new for op in graph.operators for new in _try_operator(draft, tracker, op)]
    for i in graph.outputs:
        tracker.output(str(i))
    for i in _collect_inputs(graph.operators) - _collect_inputs(ops):
        tensors[i].buffer = 0  # nothing reads it any more
    graph.operators = ops
    for i in (*graph.inputs, *graph.outputs):
        tensors[i].shapeSignature = np.array([-1, *draft.shape(i)[1:]], np.int32)


def _try_operator(draft: Draft, tracker: BatchTracker, op: Op) -> list[Op]:
    """An operator, or what takes its place. Tensors go by their index, as text."""
    kind = flatbuffer.op_name(draft.model, op)
    label = f"{kind} at '{flatbuffer.tensor_name(draft.graph.tensors[op.outputs[0]])}'"
    x = tracker.rows.get(str(op.inputs[0])) if len(op.inputs) else None
    unit = REWRITES[kind](draft, op, x) if x is not None and kind in REWRITES else [op]
    made = {int(i) for u in unit for i in u.outputs}
    inputs = [str(i) for i in sorted(_collect_inputs(unit) - made)]
    results = [str(i) for i in sorted(made) if i in op.outputs or i in draft.split.values()]
    tracker.step(label, inputs, results, lambda rows, known: _load_unit(draft, unit, rows, known))
    return unit


def _load_unit(
    draft: Draft, unit: Sequence[Op], rows: Mapping[str, BatchedTensor], constants: Values
) -> RunUnit:
    """The operators alone, on the real runtime, without delegates."""
    fed = [int(n) for n in (*rows, *constants)]
    made = [int(i) for u in unit for i in u.outputs]
    module = need("ai_edge_litert.interpreter", "tflite")
    with translate_foreign_errors("LiteRT"):
        interpreter = module.Interpreter(
            model_content=flatbuffer.to_bytes(_extract_model(draft, unit, fed, made)),
            num_threads=1,
            experimental_op_resolver_type=module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
    places = [d["index"] for d in interpreter.get_input_details()]
    results = [d["index"] for d in interpreter.get_output_details()]

    def run(feeds: Values) -> Values:
        arrays = [{**constants, **feeds}[str(i)] for i in fed]
        with translate_foreign_errors("LiteRT"):
            for place, a in zip(places, arrays, strict=True):
                interpreter.resize_tensor_input(place, a.shape)
            interpreter.allocate_tensors()
            for place, a in zip(places, arrays, strict=True):
                interpreter.set_tensor(place, a)
            interpreter.invoke()
            answers = [interpreter.get_tensor(place).copy() for place in results]
        return {str(i): a for i, a in zip(made, answers, strict=True)}

    return run


def _extract_model(
    draft: Draft, unit: Sequence[Op], fed: Sequence[int], made: Sequence[int]
) -> flatbuffer.Model:
    """A model of the operators only, with the tensors and the buffers that they use."""
    fb, tensors, buffers = flatbuffer.schema(), draft.graph.tensors, draft.model.buffers
    used = dict.fromkeys([*fed, *made, *sorted(_collect_inputs(unit))])
    scales = {i: int(q.details.scales) for i in used if (q := _find_block_scales(tensors[i]))}
    number = {i: n for n, i in enumerate(dict.fromkeys([*used, *scales.values()]))}
    model, graph = fb.ModelT(), fb.SubGraphT()
    model.version, model.operatorCodes = 3, draft.model.operatorCodes
    model.buffers, model.subgraphs = [fb.BufferT()], [graph]
    graph.tensors, graph.operators = [], []
    for i in number:
        tensor = copy.copy(tensors[i])
        data = buffers[tensor.buffer].data
        tensor.buffer = 0
        if data is not None and len(data):
            tensor.buffer = len(model.buffers)
            model.buffers.append(buffers[tensors[i].buffer])
        if i in scales:
            tensor.quantization = copy.copy(tensor.quantization)
            tensor.quantization.details = copy.copy(tensor.quantization.details)
            tensor.quantization.details.scales = number[scales[i]]
        graph.tensors.append(tensor)
    for op in unit:
        moved = copy.copy(op)
        moved.inputs = np.array([number.get(int(i), -1) for i in op.inputs], np.int32)
        moved.outputs = np.array([number[int(i)] for i in op.outputs], np.int32)
        graph.operators.append(moved)
    graph.inputs = np.array([number[i] for i in fed], np.int32)
    graph.outputs = np.array([number[i] for i in made], np.int32)
    return model


def _find_block_scales(tensor: flatbuffer.Tensor) -> Any:
    """The quantisation of a tensor whose blocks have scales, which are in another tensor."""
    q = tensor.quantization
    return q if q is not None and q.detailsType == BLOCKWISE else None


def _collect_inputs(ops: Iterable[Op]) -> set[int]:
    return {int(i) for op in ops for i in op.inputs if i >= 0}
