"""Tables made ready for the quantiser.

use_lookups(model)     GATHER of rows of a constant -> EMBEDDING_LOOKUP, whose table can be int8 or
                       int4
own_tables(model, ..)  a table of its own for every op that takes a shared one in another form
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from converters.tflite import flatbuffer


def use_lookups(model: flatbuffer.Model) -> int:
    """Change the first subgraph in place; returns how many ops were replaced.

    The ids of an EMBEDDING_LOOKUP are a flat int32 list, so others are reshaped around it.
    """
    graph = model.subgraphs[0]
    replaced = 0
    operators = []
    for op in graph.operators:
        if flatbuffer.op_name(model, op) != "GATHER" or not _is_table_lookup(model, graph, op):
            operators.append(op)
            continue
        table, ids = op.inputs
        dims = flatbuffer.shape(graph.tensors[ids])
        rows, width = math.prod(dims), flatbuffer.shape(graph.tensors[table])[1]
        looked_up = op.outputs[0]
        if len(dims) != 1:
            flat_ids = _add_tensor(graph, graph.tensors[ids], f"ids_{replaced}", (rows,))
            operators.append(_make_reshape(model, graph, ids, flat_ids, (rows,)))
            ids = flat_ids
            looked_up = _add_tensor(
                graph, graph.tensors[looked_up], f"rows_{replaced}", (rows, width)
            )
        operators.append(_make_op(model, "EMBEDDING_LOOKUP", [ids, table], looked_up))
        if looked_up != op.outputs[0]:
            operators.append(_make_reshape(model, graph, looked_up, op.outputs[0], (*dims, width)))
        replaced += 1
    graph.operators = operators
    return replaced


def separate_tables(model: flatbuffer.Model, forms: Iterable[tuple[flatbuffer.Op, str]]) -> None:
    """Change the first subgraph in place: ops that share weights, as a language model's first and
    last layer do, and take them in different forms get copies. The quantiser stores one form."""
    graph = model.subgraphs[0]
    places: dict[int, dict[str, int]] = {}
    for op, form in forms:
        shared = int(op.inputs[1])
        place = places.setdefault(shared, {form: shared})
        if form not in place:
            values = flatbuffer.constant(model, graph.tensors[shared])
            assert values is not None  # weights are constant
            place[form] = _add_tensor(graph, graph.tensors[shared], form, values.shape)
            flatbuffer.set_constant(model, graph.tensors[place[form]], values)
        op.inputs = [place[form] if index == shared else index for index in op.inputs]


def _is_table_lookup(model: flatbuffer.Model, graph: Any, op: flatbuffer.Op) -> bool:
    table, ids = (graph.tensors[index] for index in op.inputs[:2])
    values = flatbuffer.constant(model, table)
    return (
        values is not None
        and values.ndim == 2
        and values.dtype == np.float32
        and flatbuffer.type_name(ids) == "INT32"
        and flatbuffer.constant(model, ids) is None
        and op.builtinOptions.axis == 0
        and op.builtinOptions.batchDims == 0
    )


def _add_tensor(graph: Any, like: flatbuffer.Tensor, suffix: str, dims: Sequence[int]) -> int:
    tensor = flatbuffer.schema().TensorT()
    tensor.name = f"{flatbuffer.tensor_name(like)}/{suffix}".encode()
    tensor.type, tensor.shape, tensor.hasRank, tensor.buffer = like.type, list(dims), True, 0
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _make_reshape(
    model: flatbuffer.Model, graph: Any, source: int, target: int, dims: Sequence[int]
) -> Any:
    fb = flatbuffer.schema()
    shape = fb.TensorT()
    shape.name = f"{flatbuffer.tensor_name(graph.tensors[target])}/shape".encode()
    shape.type, shape.shape, shape.hasRank = fb.TensorType.INT32, [len(dims)], True
    flatbuffer.set_constant(model, shape, np.array(dims, np.int32))
    graph.tensors.append(shape)
    op = _make_op(model, "RESHAPE", [source, len(graph.tensors) - 1], target)
    op.builtinOptionsType = fb.BuiltinOptions.ReshapeOptions
    op.builtinOptions = fb.ReshapeOptionsT()
    op.builtinOptions.newShape = list(dims)
    return op


def _make_op(model: flatbuffer.Model, name: str, inputs: Sequence[int], output: int) -> Any:
    op = flatbuffer.schema().OperatorT()
    op.opcodeIndex = flatbuffer.op_code(model, name)
    op.inputs, op.outputs = list(inputs), [output]
    return op
