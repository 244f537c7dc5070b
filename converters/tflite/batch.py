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
    for index in graph.inputs:
        tracker.input(str(index), draft.shape(index), flatbuffer.type_name(tensors[index]).lower())
    ops = [new for op in graph.operators for new in _try_operator(draft, tracker, op)]
    for index in graph.outputs:
        tracker.output(str(index))
    for index in _collect_inputs(graph.operators) - _collect_inputs(ops):
        tensors[index].buffer = 0  # nothing reads it any more
    graph.operators = ops
    for index in (*graph.inputs, *graph.outputs):
        tensors[index].shapeSignature = np.array([-1, *draft.shape(index)[1:]], np.int32)


def _try_operator(draft: Draft, tracker: BatchTracker, op: Op) -> list[Op]:
    """An operator, or what takes its place. Tensors go by their index, as text."""
    kind = flatbuffer.op_name(draft.model, op)
    label = f"{kind} at '{flatbuffer.tensor_name(draft.graph.tensors[op.outputs[0]])}'"
    batched = tracker.rows.get(str(op.inputs[0])) if len(op.inputs) else None
    unit = REWRITES[kind](draft, op, batched) if batched is not None and kind in REWRITES else [op]
    produced = {int(index) for member in unit for index in member.outputs}
    inputs = [str(index) for index in sorted(_collect_inputs(unit) - produced)]
    results = [
        str(index)
        for index in sorted(produced)
        if index in op.outputs or index in draft.split.values()
    ]
    tracker.step(label, inputs, results, lambda rows, known: _load_unit(draft, unit, rows, known))
    return unit


def _load_unit(
    draft: Draft, unit: Sequence[Op], rows: Mapping[str, BatchedTensor], constants: Values
) -> RunUnit:
    """The operators alone, on the real runtime, without delegates."""
    fed = [int(name) for name in (*rows, *constants)]
    produced = [int(index) for member in unit for index in member.outputs]
    module = need("ai_edge_litert.interpreter", "tflite")
    with translate_foreign_errors("LiteRT"):
        interpreter = module.Interpreter(
            model_content=flatbuffer.to_bytes(_extract_model(draft, unit, fed, produced)),
            num_threads=1,
            experimental_op_resolver_type=module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
    places = [detail["index"] for detail in interpreter.get_input_details()]
    results = [detail["index"] for detail in interpreter.get_output_details()]

    def run(feeds: Values) -> Values:
        arrays = [{**constants, **feeds}[str(index)] for index in fed]
        with translate_foreign_errors("LiteRT"):
            for place, array in zip(places, arrays, strict=True):
                interpreter.resize_tensor_input(place, array.shape)
            interpreter.allocate_tensors()
            for place, array in zip(places, arrays, strict=True):
                interpreter.set_tensor(place, array)
            interpreter.invoke()
            answers = [interpreter.get_tensor(place).copy() for place in results]
        return {str(index): array for index, array in zip(produced, answers, strict=True)}

    return run


def _extract_model(
    draft: Draft, unit: Sequence[Op], fed: Sequence[int], produced: Sequence[int]
) -> flatbuffer.Model:
    """A model of the operators only, with the tensors and the buffers that they use."""
    fb, tensors, buffers = flatbuffer.schema(), draft.graph.tensors, draft.model.buffers
    used = dict.fromkeys([*fed, *produced, *sorted(_collect_inputs(unit))])
    scales = {
        index: int(quantization.details.scales)
        for index in used
        if (quantization := _find_block_scales(tensors[index]))
    }
    number = {i: n for n, i in enumerate(dict.fromkeys([*used, *scales.values()]))}
    model, graph = fb.ModelT(), fb.SubGraphT()
    model.version, model.operatorCodes = 3, draft.model.operatorCodes
    model.buffers, model.subgraphs = [fb.BufferT()], [graph]
    graph.tensors, graph.operators = [], []
    for index in number:
        tensor = copy.copy(tensors[index])
        data = buffers[tensor.buffer].data
        tensor.buffer = 0
        if data is not None and len(data):
            tensor.buffer = len(model.buffers)
            model.buffers.append(buffers[tensors[index].buffer])
        if index in scales:
            tensor.quantization = copy.copy(tensor.quantization)
            tensor.quantization.details = copy.copy(tensor.quantization.details)
            tensor.quantization.details.scales = number[scales[index]]
        graph.tensors.append(tensor)
    for op in unit:
        moved = copy.copy(op)
        moved.inputs = np.array([number.get(int(index), -1) for index in op.inputs], np.int32)
        moved.outputs = np.array([number[int(index)] for index in op.outputs], np.int32)
        graph.operators.append(moved)
    graph.inputs = np.array([number[index] for index in fed], np.int32)
    graph.outputs = np.array([number[index] for index in produced], np.int32)
    return model


def _find_block_scales(tensor: flatbuffer.Tensor) -> Any:
    """The quantisation of a tensor whose blocks have scales, which are in another tensor."""
    quantization = tensor.quantization
    return (
        quantization if quantization is not None and quantization.detailsType == BLOCKWISE else None
    )


def _collect_inputs(ops: Iterable[Op]) -> set[int]:
    return {int(index) for op in ops for index in op.inputs if index >= 0}
