"""Weights stored as float16, each behind a DEQUANTIZE: computed in float32 on every runtime.

It halves the file, not the memory: runtimes unpack the weights when they load the model. Ops with
float16 inputs of their own, as other tools write, stop the builtin kernels and overflow.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from converters.tflite import flatbuffer
from converters.tflite.result import Result, write_smaller
from edge_core.errors import ConvertError
from edge_core.tensors import Array

# A smaller tensor saves hardly more than the DEQUANTIZE takes, and biases are better exact.
MIN_ELEMENTS = 1024
LARGEST = 65504.0  # of float16
# Where an operator's bias is among its inputs.
BIAS = {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 2, "FULLY_CONNECTED": 2, "TRANSPOSE_CONV": 3}


def write(float_path: Path, out: Path) -> Result:
    """Write the model with float16 weights.

    Raises ConvertError for a value that float16 cannot hold, or if hardly any weight is float.
    """
    original, model = flatbuffer.read(float_path), flatbuffer.read(float_path)
    changed = _halve(model)
    return write_smaller(
        model, original, float_path, out, notes=(f"{changed} weights stored as float16",)
    )


def _halve(model: flatbuffer.Model) -> int:
    """Change the model in place; returns the number of tensors that became float16."""
    graph = model.subgraphs[0]
    code = flatbuffer.op_code(model, "DEQUANTIZE")
    # Version 3 takes float16. The table's entry serves the model's other DEQUANTIZEs as well.
    model.operatorCodes[code].version = max(model.operatorCodes[code].version, 3)
    first = []
    changed = 0
    for tensors in _find_weights(model).values():
        values = flatbuffer.constant(model, graph.tensors[tensors[0]])
        assert values is not None
        half = _to_half(values, flatbuffer.tensor_name(graph.tensors[tensors[0]]))
        graph.tensors.append(_make_half_tensor(model, graph.tensors[tensors[0]], half))
        for index in tensors:
            graph.tensors[index].buffer = 0
            first.append(_make_dequantise(code, len(graph.tensors) - 1, index))
        changed += len(tensors)
    graph.operators[:0] = first
    return changed


def _find_weights(model: flatbuffer.Model) -> dict[int, list[int]]:
    """Float32 tensors of the first subgraph that are worth it, by the buffer they share."""
    graph = model.subgraphs[0]
    used = {index for op in graph.operators for index in op.inputs}
    biases = _find_biases(model)
    by_buffer: dict[int, list[int]] = defaultdict(list)
    shared: set[int] = {tensor.buffer for graph in model.subgraphs[1:] for tensor in graph.tensors}
    for index, tensor in enumerate(graph.tensors):
        values = (
            flatbuffer.constant(model, tensor)
            if flatbuffer.type_name(tensor) == "FLOAT32"
            else None
        )
        if values is None or tensor.buffer in shared:
            continue
        same = not by_buffer[tensor.buffer] or (
            flatbuffer.shape(graph.tensors[by_buffer[tensor.buffer][0]]) == flatbuffer.shape(tensor)
        )
        worth = values.size >= MIN_ELEMENTS or index in biases
        if index in used and worth and tensor.sparsity is None and same:
            by_buffer[tensor.buffer].append(index)
    return {buffer: tensors for buffer, tensors in by_buffer.items() if tensors}


def _find_biases(model: flatbuffer.Model) -> set[int]:
    """Biases of the operators whose weights become float16.

    XNNPACK in tflite-runtime-nightly 2.20 and ai-edge-litert 1.1 and 1.2 takes a float32 bias
    beside float16 weights for a float16 one: NaN.
    """
    graph, biases = model.subgraphs[0], set()
    for op in graph.operators:
        place = BIAS.get(flatbuffer.op_name(model, op), 0)
        if place and len(op.inputs) > place and op.inputs[place] >= 0:
            weights = flatbuffer.constant(model, graph.tensors[op.inputs[1]])
            if weights is not None and weights.size >= MIN_ELEMENTS:
                biases.add(int(op.inputs[place]))
    return biases


def _to_half(values: Array, name: str) -> Array:
    finite = values[np.isfinite(values)]
    largest = float(np.abs(finite).max(initial=0.0))
    if largest > LARGEST:
        raise ConvertError(
            f"'{name}' holds {largest:g}; float16 holds up to {LARGEST:g}",
            hint="keep float32, or take an int8 recipe",
        )
    return values.astype(np.float16)


def _make_half_tensor(
    model: flatbuffer.Model, like: flatbuffer.Tensor, values: Array
) -> flatbuffer.Tensor:
    fb = flatbuffer.schema()
    tensor = fb.TensorT()
    tensor.name = (flatbuffer.tensor_name(like) + "_float16").encode()
    tensor.type = fb.TensorType.FLOAT16
    tensor.shape = list(values.shape)
    tensor.hasRank = True
    tensor.buffer = 0
    flatbuffer.set_constant(model, tensor, values)
    return tensor


def _make_dequantise(code: int, source: int, target: int) -> Any:
    op = flatbuffer.schema().OperatorT()
    op.opcodeIndex = code
    op.inputs, op.outputs = [source], [target]
    return op
