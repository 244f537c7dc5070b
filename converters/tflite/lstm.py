"""Weights of the LSTM operator in int8, which ai-edge-quantizer leaves alone.

The hybrid kernel takes int8 weights with one scale each and float states: sums in integers, gates
in float (TensorFlow Lite, kernels/lstm_eval.cc). All weights of an operator must have one type.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from converters.tflite import flatbuffer
from edge_core.tensors import Array

LSTM = "UNIDIRECTIONAL_SEQUENCE_LSTM"
# Among its 24 inputs: input to gates, recurrent to gates, cell to gates (peepholes), projection.
WEIGHTS = (*range(1, 12), 16)
LARGEST = 127


def count_lstms(model: flatbuffer.Model) -> int:
    """How many LSTM operators have float weights."""
    return len(list(_iter_float_weights(model)))


def quantise_lstms(model: flatbuffer.Model) -> None:
    """Store the float weights of every LSTM as int8, in place."""
    for weights in list(_iter_float_weights(model)):
        for tensor in weights:
            _store_int8(model, tensor)


def _iter_float_weights(model: flatbuffer.Model) -> Iterator[list[flatbuffer.Tensor]]:
    for graph, op in flatbuffer.iter_operators(model):
        if flatbuffer.op_name(model, op) == LSTM:
            tensors = [
                graph.tensors[index] for place in WEIGHTS if (index := op.inputs[place]) >= 0
            ]
            kinds = {flatbuffer.type_name(tensor) for tensor in tensors}
            if kinds == {"FLOAT32"} and all(
                flatbuffer.constant(model, tensor) is not None for tensor in tensors
            ):
                yield tensors


def _store_int8(model: flatbuffer.Model, tensor: flatbuffer.Tensor) -> None:
    values: Array | None = flatbuffer.constant(model, tensor)
    assert values is not None
    scale = max(float(np.abs(values).max()) / LARGEST, float(np.finfo(np.float32).tiny))
    schema = flatbuffer.schema()
    tensor.type = schema.TensorType.INT8
    flatbuffer.set_constant(model, tensor, np.round(values / scale).astype(np.int8))
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale = np.array([scale], np.float32)
    tensor.quantization.zeroPoint = np.array([0], np.int64)
