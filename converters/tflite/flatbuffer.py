"""The flatbuffer of a .tflite file as objects: read, look at, write.

read(path) -> model, write(model, path)      from_bytes(), to_bytes() for the same in memory
constant(model, tensor) -> array or None     set_constant() stores another one
quantised_share(model)                       how much of the weights is stored in 8 bits or fewer

A model is the schema's ModelT with its buffers inline. What the schema's own packer writes depends
on nothing but the objects, so the same model gives the same bytes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from converters.foreign_errors import translate_foreign_errors
from edge_core.errors import ConvertError, InputError
from edge_core.extras import need
from edge_core.files import read_limited, write_atomic
from edge_core.tensors import Array

Model = Any  # generated classes without types: ModelT, TensorT, OperatorT, SubGraphT
Tensor = Any
Op = Any

IDENTIFIER = b"TFL3"
MAX_BYTES = 2**31 - 1  # offsets in a flatbuffer are 32 bits, signed
ALIGN = 16  # bytes; the schema's force_align of Buffer.data, which its Python packer ignores

_DTYPES = {
    "FLOAT64": "<f8", "FLOAT32": "<f4", "FLOAT16": "<f2", "BOOL": "?",
    "INT64": "<i8", "INT32": "<i4", "INT16": "<i2", "INT8": "i1",
    "UINT64": "<u8", "UINT32": "<u4", "UINT16": "<u2", "UINT8": "u1",
}  # fmt: skip
FLOATS = ("FLOAT32", "FLOAT16", "BFLOAT16", "FLOAT64")
SMALL = ("INT8", "UINT8", "INT4", "INT2")  # 8 bits or fewer


def schema() -> Any:
    """The generated classes of the flatbuffer schema."""
    return need("ai_edge_litert.schema_py_generated", "tflite")


def read(path: Path) -> Model:
    """The model in ``path``; raises InputError for a file that is no TFLite model."""
    return from_bytes(read_limited(path, MAX_BYTES), path.name)


def from_bytes(data: bytes, name: str = "the model") -> Model:
    """The model in ``data``; raises InputError naming ``name`` if it is none."""
    if bytes(data[4:8]) != IDENTIFIER:
        raise InputError(f"{name} is not a TFLite file", hint="it starts without 'TFL3'")
    with translate_foreign_errors(f"{name} is damaged"):
        model = _tools().read_model_from_bytearray(data)
        _check_references(model)
        return model


def _check_references(model: Model) -> None:
    """Look at what every index and name refers to: in a damaged file one of them is wrong."""
    for graph in model.subgraphs:
        operators = graph.operators or ()
        for tensor in graph.tensors:
            _ = model.buffers[tensor.buffer], tensor_name(tensor), type_name(tensor)
        for op in operators:
            op_name(model, op)
        uses = [indices for each in (graph, *operators) for indices in (each.inputs, each.outputs)]
        for index in chain.from_iterable(indices for indices in uses if indices is not None):
            _ = graph.tensors[index]
    for signature in model.signatureDefs or ():
        for entry in chain(signature.inputs, signature.outputs):
            entry.name.decode()


def write(model: Model, path: Path) -> None:
    """Write the file, whole or not at all."""
    write_atomic(path, to_bytes(model))


def to_bytes(model: Model) -> bytes:
    """The file's bytes: buffers inline, each at a multiple of 16; data that nothing uses is left
    out."""
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    used |= {entry.buffer for entry in model.metadata or ()}
    data = [buffer.data if index in used else None for index, buffer in enumerate(model.buffers)]
    packed = copy.copy(model)
    packed.buffers = [_Aligned(dim) for dim in data]
    size = sum(len(dim) for dim in data if dim is not None)
    if size > MAX_BYTES:
        raise ConvertError(f"{size} bytes of weights; a TFLite file holds up to {MAX_BYTES}")
    builder = need("flatbuffers", "tflite").Builder(size + 1024 * 1024)
    builder.Finish(packed.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


class _Aligned:
    """A buffer that packs itself at a multiple of ALIGN, as the runtime's kernels expect."""

    def __init__(self, data: Any) -> None:
        self._data = b"" if data is None else bytes(data)

    def Pack(self, builder: Any) -> int:  # noqa: N802  # the schema's name
        fb = schema()
        at = None
        if self._data:
            builder.StartVector(1, len(self._data), ALIGN)
            builder.head -= len(self._data)
            builder.Bytes[builder.head : builder.head + len(self._data)] = self._data
            at = builder.EndVector()
        fb.BufferStart(builder)
        if at is not None:
            fb.BufferAddData(builder, at)
        packed: int = fb.BufferEnd(builder)
        return packed


def op_name(model: Model, op: Op) -> str:
    """The builtin's name, as "CONV_2D", or the custom op's own."""
    code = model.operatorCodes[op.opcodeIndex]
    builtin = _list_names("BuiltinOperator")[max(code.builtinCode, code.deprecatedBuiltinCode)]
    return code.customCode.decode() if builtin == "CUSTOM" else builtin


def op_code(model: Model, name: str) -> int:
    """The index of a builtin in the model's table of operators, which gets it if it lacks it."""
    fb = schema()
    builtin: int = getattr(fb.BuiltinOperator, name)
    for index, have in enumerate(model.operatorCodes):
        if max(have.builtinCode, have.deprecatedBuiltinCode) == builtin:
            return index
    code = fb.OperatorCodeT()
    code.builtinCode = builtin
    code.deprecatedBuiltinCode = min(builtin, 127)  # 127 sends readers to the wider field
    code.version = 1
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def tensor_name(tensor: Tensor) -> str:
    """The tensor's name; "" when it has none."""
    return tensor.name.decode() if tensor.name else ""


def type_name(tensor: Tensor) -> str:
    """The tensor's type in the schema's words: "FLOAT32", "INT4"."""
    return _list_names("TensorType")[tensor.type]


def shape(tensor: Tensor) -> tuple[int, ...]:
    """The dimensions as stored; () for a scalar."""
    return tuple(int(dim) for dim in tensor.shape) if tensor.shape is not None else ()


def constant(model: Model, tensor: Tensor) -> Array | None:
    """What is stored for the tensor (int4 as int8), or None if it is computed.

    Raises ConvertError for types that NumPy has not: strings, bfloat16.
    """
    data = model.buffers[tensor.buffer].data
    if data is None or len(data) == 0:
        return None
    kind, dims = type_name(tensor), shape(tensor)
    if kind == "INT4":
        return _unpack_int4(np.frombuffer(data, np.uint8), int(np.prod(dims))).reshape(dims)
    if kind not in _DTYPES:
        raise ConvertError(f"constant '{tensor_name(tensor)}' is of type {kind}")
    return np.frombuffer(data, _DTYPES[kind]).reshape(dims)


def set_constant(model: Model, tensor: Tensor, array: Array) -> None:
    """Store ``array`` for the tensor, whose type stays, in a buffer of its own."""
    kind = type_name(tensor)
    data = _pack_int4(array) if kind == "INT4" else array.astype(_DTYPES[kind])
    buffer = schema().BufferT()
    buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
    shared = sum(t.buffer == tensor.buffer for graph in model.subgraphs for t in graph.tensors)
    if tensor.buffer and shared == 1:
        model.buffers[tensor.buffer] = buffer
        return
    model.buffers.append(buffer)
    tensor.buffer = len(model.buffers) - 1


def iter_operators(model: Model) -> Iterator[tuple[Any, Op]]:
    """Every operator with its subgraph, in order."""
    for graph in model.subgraphs:
        for op in graph.operators:
            yield graph, op


def iter_weights(model: Model) -> Iterator[Tensor]:
    """Constants that ops take: floats, integers of at most 8 bits, integer biases; each once.

    Shapes, axes and indices are integers without a scale. Scales of blocks are no op's input.
    """
    seen: set[int] = set()
    for graph, op in iter_operators(model):
        for index in op.inputs if op.inputs is not None else ():
            if index < 0:
                continue
            tensor = graph.tensors[index]
            data = model.buffers[tensor.buffer].data
            if data is None or not len(data) or tensor.buffer in seen:
                continue
            if type_name(tensor) in (*FLOATS, *SMALL) or has_scale(tensor):
                seen.add(tensor.buffer)
                yield tensor


def has_scale(tensor: Tensor) -> bool:
    """Whether the tensor stands for reals by a scale."""
    quantization = tensor.quantization
    return quantization is not None and (
        quantization.details is not None
        or (quantization.scale is not None and len(quantization.scale) > 0)
    )


def count_weight_bytes(model: Model) -> tuple[int, int]:
    """Stored bytes of weights in at most 8 bits (two int4 in one byte), and in more."""
    small = large = 0
    for tensor in iter_weights(model):
        size = len(model.buffers[tensor.buffer].data)
        if type_name(tensor) in SMALL:
            small += size
        else:
            large += size
    return small, large


def compute_quantised_share(model: Model) -> float:
    """Share of the weight bytes, as stored, that is in integers of 8 bits or fewer, 0 to 1."""
    small, large = count_weight_bytes(model)
    return small / (small + large) if small else 0.0


def _unpack_int4(data: Array, count: int) -> Array:
    """Four-bit integers, the low half of each byte first."""
    both = np.stack([data << 4, data], axis=-1).view(np.int8) >> 4
    return both.reshape(-1)[:count]


def _pack_int4(values: Array) -> Array:
    flat = values.astype(np.int8).reshape(-1)
    flat = np.append(flat, np.zeros(len(flat) % 2, np.int8)).view(np.uint8)
    return (flat[0::2] & 15) | (flat[1::2] << 4)


def _tools() -> Any:
    return need("ai_edge_litert.tools.flatbuffer_utils", "tflite")


@cache
def _list_names(enum: str) -> dict[int, str]:
    members = vars(getattr(schema(), enum)).items()
    return {value: name for name, value in members if isinstance(value, int)}
