"""Which ops of a float model compute in integers. Pure.

Ops with weights do. An op without weights joins where everything it takes comes from such ops and
something that takes its result computes in integers too; elsewhere it would only round. Normalising
layers and attention stay float that way: quantised as well, MiniLM's embeddings are of no use.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from converters.tflite import flatbuffer

COMPUTE = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
# Ops with integer kernels in ai-edge-quantizer's policy, whose range is that of their inputs or is
# calibrated. Not among them: SOFTMAX, RSQRT, DIV and the like, which need more than eight bits.
PASSIVE = (
    "ADD", "AVERAGE_POOL_2D", "CONCATENATION", "LOGISTIC", "MAXIMUM", "MAX_POOL_2D", "MEAN",
    "MIRROR_PAD", "MUL", "PACK", "PAD", "RELU", "RESHAPE", "RESIZE_BILINEAR",
    "RESIZE_NEAREST_NEIGHBOR", "SLICE", "SPLIT", "STRIDED_SLICE", "SUB", "TANH", "TRANSPOSE",
    "UNPACK", "GELU",
)  # fmt: skip
ONLY_8 = ("HARD_SWISH", "SPACE_TO_DEPTH")  # no kernel for 16-bit activations


def find_integer_ops(
    model: flatbuffer.Model, bits: int, *, integer_io: bool = False, kept: Collection[str] = ()
) -> list[int]:
    """Positions of the first subgraph's ops that compute in integers with ``bits`` activations.

    ``kept`` names outputs of ops that stay float. With ``integer_io`` inputs and outputs are
    integers, so what joins them to the rest is as well.
    """
    graph = model.subgraphs[0]
    joining = PASSIVE + (ONLY_8 if bits == 8 else ())
    integer = set(graph.inputs) if integer_io else set()
    candidates = []
    for position, op in enumerate(graph.operators):
        kind = flatbuffer.op_name(model, op)
        if flatbuffer.tensor_name(graph.tensors[op.outputs[0]]) in kept or not _is_float(graph, op):
            continue
        if (kind in COMPUTE and _has_weights(model, graph, op)) or (
            kind in joining and _can_join(model, graph, op, integer)
        ):
            candidates.append(position)
            integer.update(op.outputs)
    needed = set(graph.outputs) if integer_io else set()
    integer_positions = []
    for position in reversed(candidates):
        op = graph.operators[position]
        if flatbuffer.op_name(model, op) in COMPUTE or needed.intersection(op.outputs):
            integer_positions.append(position)
            needed.update(op.inputs)
    return integer_positions[::-1]


def find_float_tail(model: flatbuffer.Model, positions: Collection[int]) -> list[int]:
    """Those FULLY_CONNECTED ops of ``positions`` whose results no integer op takes."""
    graph = model.subgraphs[0]
    read = {index for position in positions for index in graph.operators[position].inputs}
    return [
        position
        for position in positions
        if flatbuffer.op_name(model, graph.operators[position]) == "FULLY_CONNECTED"
        and not read.intersection(graph.operators[position].outputs)
    ]


def _is_float(graph: Any, op: flatbuffer.Op) -> bool:
    return all(flatbuffer.type_name(graph.tensors[index]) == "FLOAT32" for index in op.outputs)


def _has_weights(model: flatbuffer.Model, graph: Any, op: flatbuffer.Op) -> bool:
    return flatbuffer.constant(model, graph.tensors[op.inputs[1]]) is not None


def _can_join(
    model: flatbuffer.Model, graph: Any, op: flatbuffer.Op, integer: Collection[int]
) -> bool:
    """Whether all it computes with is integer or constant, and something is not constant."""
    floats = [
        index
        for index in op.inputs
        if index >= 0 and flatbuffer.type_name(graph.tensors[index]) == "FLOAT32"
    ]
    computed = [
        index for index in floats if flatbuffer.constant(model, graph.tensors[index]) is None
    ]
    return bool(computed) and all(index in integer for index in computed)
