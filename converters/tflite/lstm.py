"""Weights of the LSTM operator in int8, which ai-edge-quantizer leaves alone.

The hybrid kernel takes int8 weights with one scale each and float states: sums in integers, gates
in float (TensorFlow Lite, kernels/lstm_eval.cc). All weights of an operator must have one type.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from converters.tflite import flat
from edge_core.tensors import Array

LSTM = "UNIDIRECTIONAL_SEQUENCE_LSTM"
# Among its 24 inputs: input to gates, recurrent to gates, cell to gates (peepholes), projection.
WEIGHTS = (*range(1, 12), 16)
LARGEST = 127


def count(model: flat.Model) -> int:
    """How many LSTM operators have float weights."""
    return len(list(_float_weights(model)))


def quantise(model: flat.Model) -> None:
    """Store the float weights of every LSTM as int8, in place."""
    for weights in list(_float_weights(model)):
        for tensor in weights:
            _store(model, tensor)


def _float_weights(model: flat.Model) -> Iterator[list[flat.Tensor]]:
    for graph, op in flat.operators(model):
        if flat.op_name(model, op) == LSTM:
            tensors = [graph.tensors[i] for p in WEIGHTS if (i := op.inputs[p]) >= 0]
            kinds = {flat.type_name(t) for t in tensors}
            if kinds == {"FLOAT32"} and all(flat.constant(model, t) is not None for t in tensors):
                yield tensors


def _store(model: flat.Model, tensor: flat.Tensor) -> None:
    values: Array | None = flat.constant(model, tensor)
    assert values is not None
    scale = max(float(np.abs(values).max()) / LARGEST, float(np.finfo(np.float32).tiny))
    schema = flat.schema()
    tensor.type = schema.TensorType.INT8
    flat.set_constant(model, tensor, np.round(values / scale).astype(np.int8))
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale = np.array([scale], np.float32)
    tensor.quantization.zeroPoint = np.array([0], np.int64)
