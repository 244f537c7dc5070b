"""The version that each TensorFlow Lite operator needs, by its types, shapes and options.

    for op in operators(model):
        op.code.version = max(op.code.version, needed(op))

The rules are those of TensorFlow's converter: tflite/converter/tools/versioning/op_version.cc of
google-ai-edge/LiteRT at 119ae633cc86. Where measured runtimes know the version that it gives and
are still wrong, the rule here asks for more, and says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from converters.tflite import flatbuffer

BLOCKWISE = 2  # QuantizationDetails of the schema

# builtin -> (which input decides, its type -> version); "INT16q": with a scale.
TYPED: dict[str, tuple[int, dict[str, int]]] = {
    "ABS": (0, {"INT8": 2, "UINT8": 2, "INT16": 4, "INT16q": 3, "INT32": 5}),
    "ADD": (0, {"INT8": 2, "INT16": 5, "INT16q": 3, "INT64": 4, "FLOAT16": 6}),
    "ARG_MAX": (0, {"INT8": 2, "BOOL": 3}),
    "ARG_MIN": (0, {"INT8": 2, "BOOL": 3}),
    "AVERAGE_POOL_2D": (0, {"INT8": 2, "INT16": 3}),
    "BATCH_MATMUL": (0, {"INT8": 2, "INT16": 3}),
    "BATCH_TO_SPACE_ND": (0, {"INT8": 2, "INT16": 4}),
    "CONCATENATION": (0, {"INT8": 2, "INT16": 3, "UINT32": 4, "INT4": 5, "FLOAT16": 6}),
    "COS": (0, {"FLOAT16": 2}),
    "DEPTH_TO_SPACE": (0, {"INT8": 2}),
    "DEQUANTIZE": (0, {"INT8": 2, "INT16": 3, "FLOAT16": 3, "INT4": 6, "INT2": 7, "UINT4": 8}),
    "EQUAL": (0, {"INT8": 2, "STRING": 3, "INT16": 5}),
    "EXP": (0, {"INT8": 2, "INT16": 2}),
    "FILL": (1, {"BOOL": 2, "STRING": 2, "INT8": 3, "INT16": 3, "FLOAT16": 4}),
    "FLOOR_DIV": (0, {"FLOAT32": 2, "INT8": 3, "INT16": 3}),
    "FLOOR_MOD": (0, {"INT8": 2, "INT16": 2}),
    "GATHER": (0, {"INT8": 2, "BOOL": 3, "INT16": 4, "INT4": 7}),
    "GATHER_ND": (0, {"STRING": 2, "INT16": 3, "BOOL": 5}),
    "GELU": (0, {"INT8": 2, "UINT8": 2}),
    "GREATER": (0, {"INT8": 2}),
    "GREATER_EQUAL": (0, {"INT8": 2, "INT16": 3}),
    "L2_NORMALIZATION": (0, {"INT8": 2}),
    "LEAKY_RELU": (0, {"INT16": 2}),
    "LESS": (0, {"INT8": 2, "INT16": 3}),
    "LESS_EQUAL": (0, {"INT8": 2}),
    "LOG": (0, {"INT8": 2, "INT16": 2}),
    "LOGISTIC": (0, {"INT8": 2, "INT16": 3}),
    "LOG_SOFTMAX": (0, {"INT8": 2}),
    "MAXIMUM": (0, {"INT8": 2, "INT16": 4}),
    "MAX_POOL_2D": (0, {"INT8": 2, "INT16": 3}),
    "MEAN": (0, {"INT8": 2, "INT16": 3}),
    "MINIMUM": (0, {"INT8": 2, "INT16": 4}),
    "MIRROR_PAD": (0, {"INT8": 2, "INT16": 3}),
    "MUL": (0, {"INT8": 2, "INT16": 7, "INT16q": 4, "INT64": 5, "UINT32": 7, "FLOAT16": 8}),
    "NOT_EQUAL": (0, {"INT8": 2, "STRING": 3, "INT16": 4}),
    "PACK": (0, {"INT8": 2, "INT16": 3, "UINT32": 4}),
    "PAD": (0, {"INT8": 2, "INT16": 3, "BOOL": 5}),
    "PADV2": (0, {"INT8": 2, "INT16": 3, "BOOL": 5}),
    "RANGE": (0, {"INT64": 2}),
    "REDUCE_MAX": (0, {"INT8": 2, "INT16": 3}),
    "REDUCE_MIN": (0, {"INT8": 2, "INT16": 3}),
    "REDUCE_PROD": (0, {"INT8": 2, "INT16": 2}),
    "RELU": (0, {"INT8": 2, "UINT8": 2, "INT16": 3}),
    "RELU6": (0, {"INT8": 2, "INT16": 3}),
    "RESIZE_BILINEAR": (0, {"INT8": 2, "INT16": 4}),
    "RESIZE_NEAREST_NEIGHBOR": (0, {"INT8": 2, "INT16": 4}),
    "REVERSE_V2": (0, {"BOOL": 2, "INT8": 3}),
    "RSQRT": (0, {"INT8": 2, "INT16": 3}),
    "SELECT": (0, {"INT8": 2, "UINT32": 4}),
    "SELECT_V2": (0, {"UINT32": 2}),
    "SIGN": (0, {"INT32": 2}),
    "SIN": (0, {"FLOAT16": 2}),
    "SLICE": (0, {"INT8": 2, "STRING": 3, "INT16": 4, "UINT32": 6, "INT4": 7, "FLOAT16": 8}),
    "SOFTMAX": (0, {"INT8": 2, "INT16": 3, "FLOAT16": 4}),
    "SPACE_TO_BATCH_ND": (0, {"INT8": 2, "INT16": 4}),
    "SPACE_TO_DEPTH": (0, {"INT8": 2}),
    "SPARSE_TO_DENSE": (2, {"INT64": 2, "INT8": 3, "UINT8": 3}),
    "SPLIT": (1, {"INT8": 2, "INT32": 3, "INT16": 4}),
    "SPLIT_V": (0, {"INT8": 2}),
    "SQRT": (0, {"INT8": 2, "INT16": 2}),
    "SQUARED_DIFFERENCE": (0, {"INT8": 2}),
    "SQUEEZE": (0, {"STRING": 2}),
    "STRIDED_SLICE": (0, {"INT8": 2, "BOOL": 3, "STRING": 5, "UINT32": 7}),
    "SUB": (0, {"INT8": 2, "INT64": 4, "INT16": 5}),
    "SUM": (0, {"INT8": 2}),
    "TANH": (0, {"INT8": 2, "INT16": 3}),
    "TILE": (0, {"STRING": 2, "INT8": 3}),
    "TOPK_V2": (0, {"INT8": 2, "INT16": 3}),
    "TRANSPOSE": (0, {"INT8": 2, "BOOL": 3, "INT16": 5, "INT4": 7, "BFLOAT16": 8, "FLOAT16": 9}),
    "TRANSPOSE_CONV": (1, {"INT8": 2}),
    "UNPACK": (0, {"INT8": 2, "UINT8": 2, "BOOL": 3, "INT16": 4, "FLOAT16": 5, "BFLOAT16": 5}),
    "WHERE": (0, dict.fromkeys(("FLOAT32", "INT32", "INT64", "INT8", "UINT8", "UINT32"), 2)),
}

# builtin -> number of axes from which on -> version; 0: always.
RANKS: dict[str, dict[int, int]] = {
    "BROADCAST_TO": {0: 2},  # version 1 was withdrawn
    "PAD": {5: 4},
    "PADV2": {5: 4},
    "SELECT": {5: 3},
    "SLICE": {5: 5},
    "STRIDED_SLICE": {5: 4},
    "TRANSPOSE": {5: 4, 6: 6, 7: 8},
}


class OpView:
    """One operator with its tensors, as the rules look at it."""

    def __init__(self, model: flatbuffer.Model, subgraph: Any, operator: flatbuffer.Op) -> None:
        self.code = model.operatorCodes[operator.opcodeIndex]
        self.name = flatbuffer.op_name(model, operator)
        self.options = operator.builtinOptions
        self.inputs = [_find_tensor(subgraph, index) for index in _list_indices(operator.inputs)]
        self.outputs = [_find_tensor(subgraph, index) for index in _list_indices(operator.outputs)]

    def type(self, index: int) -> str:
        """ "INT8"; "" where there is no such input."""
        tensor = self.inputs[index] if index < len(self.inputs) else None
        return "" if tensor is None else flatbuffer.type_name(tensor)

    @cached_property
    def types(self) -> tuple[str, str, str]:
        """Of data, weights and result."""
        return self.type(0), self.type(1), flatbuffer.type_name(self.outputs[0])

    def option(self, name: str) -> Any:
        return getattr(self.options, name, None)

    @property
    def rank(self) -> int:
        return max(
            (len(flatbuffer.shape(tensor)) for tensor in self.inputs if tensor is not None),
            default=0,
        )


def _list_indices(indices: Any) -> Any:
    return () if indices is None else indices


def _find_tensor(subgraph: Any, index: int) -> Any:
    return subgraph.tensors[index] if index >= 0 else None


def iter_operators(model: flatbuffer.Model) -> Iterator[OpView]:
    """All operators of all subgraphs."""
    for subgraph, operator in flatbuffer.iter_operators(model):
        yield OpView(model, subgraph, operator)


def find_version(op: OpView) -> int:
    """The highest version that one of the rules asks for; 1 where none does."""
    index, by_type = TYPED.get(op.name, (0, {}))
    quantised = "q" if _has_scale(op, index) else ""
    kind = op.type(index)
    asked = [by_type.get(kind + quantised, by_type.get(kind, 1))]
    asked += [version for rank, version in RANKS.get(op.name, {}).items() if op.rank >= rank]
    special = _SPECIAL_RULES.get(op.name)
    if special:
        asked.append(special(op))
    return max(asked)


def _version_conv(op: OpView) -> int:
    data, weights, _ = op.types
    if (data, weights) == ("INT16", "INT8") and op.option("quantizedBiasType"):
        return 8
    if weights == "INT4":
        return 7 if data == "INT8" else 8  # TensorFlow has no rule for the others; 2.14 knows 7
    if flatbuffer.shape(op.inputs[0])[-1:] != flatbuffer.shape(op.inputs[1])[-1:]:
        return 6  # grouped
    if is_hybrid(op, "INT8"):
        return 5 if count_scales(op) > 1 else 2
    return 3 if op.types == ("INT8", "INT8", "INT8") else 1


def _version_depthwise(op: OpView) -> int:
    if is_hybrid(op, "INT8"):
        return 6 if count_scales(op) > 1 else 4
    if op.types == ("INT8", "INT8", "INT8"):
        return 3
    if op.type(1) == "INT4":
        return 7
    dilated = (op.option("dilationWFactor"), op.option("dilationHFactor")) != (1, 1)
    return 2 if dilated else 1


def _version_fully_connected(op: OpView) -> int:
    data, weights, _ = op.types
    if weights == "INT2" or is_blockwise(op):
        return 14  # below, block scales are read as row scales, or beyond their end
    if (data, weights) == ("INT16", "INT4"):
        return 13
    if is_hybrid(op, "INT8") and count_scales(op) > 1:
        return 12
    if (data, weights) == ("INT16", "INT8") and op.option("quantizedBiasType"):
        return 11
    if (data, weights) == ("INT8", "INT4"):
        return 10
    if is_hybrid(op, "INT8") and op.option("asymmetricQuantizeInputs"):
        return 9
    if op.inputs[1].sparsity is not None:
        return 8
    if (data, weights) == ("INT16", "INT16"):
        return 7
    if len(op.inputs) == 2:
        return 6
    if op.option("keepNumDims"):
        return 5
    if op.types == ("INT8", "INT8", "INT8"):
        return 4
    if is_hybrid(op, "INT8"):
        return 3
    return 2 if op.option("weightsFormat") else 1


def _version_embedding(op: OpView) -> int:
    if op.type(1) == "INT2":
        return 5
    return 4 if op.type(1) == "INT4" or count_scales(op) > 1 else 1


def _version_dequantize(op: OpView) -> int:
    return 5 if op.type(0) == "INT8" and _count_scales(op.inputs[0]) > 1 else 1


def _version_quantize(op: OpView) -> int:
    by_type = {"UINT4": 5, "INT4": 4, "INT16": 2}
    per_channel = 3 if _count_scales(op.outputs[0]) > 1 else 1
    return max(by_type.get(op.type(0), 1), by_type.get(op.types[2], 1), per_channel)


def _version_mul(op: OpView) -> int:
    tensors = (*op.inputs[:2], op.outputs[0])
    if any(tensor is None or not _count_scales(tensor) for tensor in tensors):
        return 1
    first, second, result = (float(tensor.quantization.scale[0]) for tensor in tensors)
    return 3 if result and first * second / result >= 1 else 1


def _version_strided_slice(op: OpView) -> int:
    if op.option("offset"):
        return 8
    return 6 if op.option("ellipsisMask") or op.option("newAxisMask") else 1


def _version_resize(op: OpView) -> int:
    nearest = op.name == "RESIZE_NEAREST_NEIGHBOR" and op.option("alignCorners")
    return 3 if op.option("halfPixelCenters") or nearest else 1


def _version_broadcasting(op: OpView) -> int:
    """TensorFlow asks for it when the shapes differ and one of them has more than four axes."""
    differ = len({flatbuffer.shape(tensor) for tensor in op.inputs[:2] if tensor is not None}) > 1
    return (2 if op.name == "DIV" else 3) if differ and op.rank > 4 else 1


def _version_cast(op: OpView) -> int:
    # fmt: off
    by_type = {"UINT32": 2, "INT8": 3, "UINT16": 4, "FLOAT64": 5, "FLOAT16": 5, "INT4": 6,
               "BFLOAT16": 7, "INT2": 8, "UINT4": 8}
    # fmt: on
    return max(by_type.get(op.type(0), 1), by_type.get(op.types[2], 1))


def _version_gather(op: OpView) -> int:
    if op.type(1) == "INT16":
        return 6
    return 5 if op.option("batchDims") else 1


def _version_gather_nd(op: OpView) -> int:
    return 4 if op.type(1) == "INT16" else 1


def _version_topk(op: OpView) -> int:
    return 3 if op.type(1) == "INT16" else 1


def _version_batch_matmul(op: OpView) -> int:
    return 4 if is_hybrid(op, "INT8") and op.option("asymmetricQuantizeInputs") else 1


def _version_transpose_conv(op: OpView) -> int:
    if op.type(2) == "INT16" and op.option("quantizedBiasType"):
        return 5
    if op.option("fusedActivationFunction"):
        return 4
    return 3 if len(op.inputs) == 4 and op.inputs[3] is not None else 1


def _version_sequence_lstm(op: OpView) -> int:
    if op.option("diagonalRecurrentTensors"):
        return 4
    if op.type(0) == "FLOAT32" and op.type(2) == "INT8":
        return 3 if op.option("asymmetricQuantizeInputs") else 2
    return 5 if op.type(0) == "INT16" and op.type(2) == "INT8" else 1


_SPECIAL_RULES = {
    "BATCH_MATMUL": _version_batch_matmul,
    "CAST": _version_cast,
    "CONV_2D": _version_conv,
    "DEPTHWISE_CONV_2D": _version_depthwise,
    "DEQUANTIZE": _version_dequantize,
    "DIV": _version_broadcasting,
    "EMBEDDING_LOOKUP": _version_embedding,
    "FULLY_CONNECTED": _version_fully_connected,
    "GATHER": _version_gather,
    "GATHER_ND": _version_gather_nd,
    "MAXIMUM": _version_broadcasting,
    "MINIMUM": _version_broadcasting,
    "MUL": _version_mul,
    "QUANTIZE": _version_quantize,
    "RESIZE_BILINEAR": _version_resize,
    "RESIZE_NEAREST_NEIGHBOR": _version_resize,
    "STRIDED_SLICE": _version_strided_slice,
    "SUB": _version_broadcasting,
    "TOPK_V2": _version_topk,
    "TRANSPOSE_CONV": _version_transpose_conv,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _version_sequence_lstm,
}


def is_hybrid(op: OpView, weights: str) -> bool:
    """Float data with integer weights."""
    return op.types == ("FLOAT32", weights, "FLOAT32")


def count_scales(op: OpView) -> int:
    """How many scales the weights have; 0 for float weights and for blocks."""
    return _count_scales(op.inputs[1])


def _count_scales(tensor: Any) -> int:
    quantization = tensor.quantization
    return 0 if quantization is None or quantization.scale is None else len(quantization.scale)


def is_blockwise(op: OpView) -> bool:
    """Do the weights have a scale per block of a row?"""
    quantization = op.inputs[1].quantization
    return quantization is not None and quantization.detailsType == BLOCKWISE


def _has_scale(op: OpView, index: int) -> bool:
    tensor = op.inputs[index] if index < len(op.inputs) else None
    return tensor is not None and _count_scales(tensor) > 0
