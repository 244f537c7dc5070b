"""One tensor on the wire: JSON values or little-endian bytes <-> an array. No I/O.

    from_binary(data, datatype, shape, what) -> Array      a view of ``data`` where it can be one
    from_json(text, datatype, shape, what) -> Array
    to_binary(array) -> memoryview | bytes                 a view of ``array`` where it can be one
    to_json(array) -> list

Open Inference Protocol v2, "Tensor Data" and "Tensor Data Types", and the binary tensor data
extension: row-major, no padding, a BOOL is one byte of 0 or 1, a BYTES element has its length in 4
bytes before it. Sizes are checked before an array is made; InputError is the only error.
"""

from __future__ import annotations

import re
import struct
from functools import cache
from itertools import chain
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from edge_core.errors import InputError
from edge_core.tensors import Array

DATATYPES = {
    "FP32": "float32", "FP16": "float16", "FP64": "float64", "INT8": "int8", "UINT8": "uint8",
    "INT16": "int16", "UINT16": "uint16", "INT32": "int32", "UINT32": "uint32",
    "INT64": "int64", "UINT64": "uint64", "BOOL": "bool", "BYTES": "string",
}  # fmt: skip
_NAMES = {dtype: datatype for datatype, dtype in DATATYPES.items()}

MAX_RANK = 32
MAX_ELEMENTS = 2**31 - 1
SLACK = 64  # elements too many in JSON that are counted and told exactly
MAX_STRINGS = 2**20  # an empty one takes 41 bytes of memory and 4 on the wire

_Natural = Annotated[int, Meta(ge=0)]  # the upper bounds of 64 bits are NumPy's to check
Dimension = Annotated[int, Meta(ge=0, le=MAX_ELEMENTS)]
Shape = Annotated[tuple[Dimension, ...], Meta(max_length=MAX_RANK)]


def datatype(dtype: str) -> str:
    """The protocol's name of one of edge_core.tensors.DTYPES."""
    return _NAMES[dtype]


def datatype_of(array: Array) -> str:
    """The protocol's name of an array's type."""
    return datatype("string" if array.dtype.kind in "OUS" else array.dtype.name)


def from_binary(data: memoryview, kind: str, shape: tuple[int, ...], where: str) -> Array:
    """The tensor of datatype ``kind`` that ``data`` holds; BYTES become bytes objects."""
    count, _ = count_elements(kind, shape, where)
    if kind == "BYTES":
        return _read_strings(data, count, where).reshape(shape)
    dtype = np.dtype(DATATYPES[kind]).newbyteorder("<")
    if len(data) != count * dtype.itemsize:
        raise InputError(
            f"{where} has {len(data)} bytes; {kind} of shape {_format(shape)} has "
            f"{count * dtype.itemsize}"
        )
    if not count:
        return np.empty(shape, dtype)
    if kind == "BOOL" and np.frombuffer(data, np.uint8).max() > 1:
        raise InputError(f"{where}: a BOOL is a byte of 0 or 1")
    array = np.frombuffer(data, dtype).reshape(shape)
    return array if array.flags.aligned else array.copy()  # vector units of some processors insist


def from_json(text: bytes, kind: str, shape: tuple[int, ...], where: str) -> Array:
    """The tensor of a JSON array, nested as ``shape`` says or flat; BYTES become str objects."""
    count, span = count_elements(kind, shape, where)
    depth = re.match(rb"[\[ \t\r\n]*", text)[0].count(b"[")  # type: ignore[index]  # matches
    if not 1 <= depth <= max(1, len(shape)):
        raise InputError(f"{where}: 'data' is an array, flat or nested like {_format(shape)}")
    if _count_at_least(text, texts=kind == "BYTES" and count > 0) > 2 * span + SLACK:
        raise InputError(f"{where} has far more elements than shape {_format(shape)}")
    try:
        data = _make_decoder(kind, depth, kind == "BYTES" and count > 0).decode(text)
    except (ValueError, RecursionError) as error:  # MsgspecError is a ValueError
        raise InputError(f"{where}: 'data' is not {kind}: {error}") from error
    flat = _flatten(data, depth, shape if count else (), where)
    if len(flat) != count:
        raise InputError(f"{where} has {len(flat)} elements; shape {_format(shape)} has {count}")
    try:
        with np.errstate(over="ignore"):  # becomes an infinity, and is refused as one
            return np.array(flat, object if kind == "BYTES" else DATATYPES[kind]).reshape(shape)
    except OverflowError as error:
        raise InputError(f"{where}: 'data' is not {kind}: {error}") from error


def to_binary(array: Array) -> memoryview | bytes:
    """The tensor's bytes."""
    if array.dtype.kind in "OUS":
        texts = [_to_bytes(text) for text in array.reshape(-1)]
        return b"".join(chain.from_iterable((struct.pack("<I", len(text)), text) for text in texts))
    if not array.size:
        return b""
    flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1)
    return flat.view(np.uint8).data


def to_json(array: Array) -> list[Any]:
    """The tensor's values, flat. What is no finite number becomes null: JSON has no word for it."""
    if array.dtype.kind in "OUS":
        return [
            text.decode("utf-8", "replace") if isinstance(text, bytes) else text
            for text in array.reshape(-1)
        ]
    values: list[Any] = array.reshape(-1).tolist()
    return values


def count_elements(kind: str, shape: tuple[int, ...], where: str) -> tuple[int, int]:
    """How many elements the tensor has, and how many if no dimension were 0.

    Raises InputError for an unknown type or too many.
    """
    if kind not in DATATYPES:
        raise InputError(f"{where} has datatype '{kind}'", hint=f"one of: {', '.join(DATATYPES)}")
    count = span = 1
    for size in shape:
        count *= size
        span *= size or 1  # NumPy multiplies the dimensions of an empty array too
    most = MAX_STRINGS if kind == "BYTES" else MAX_ELEMENTS
    if span > most:
        raise InputError(f"{where} has shape {_format(shape)}; at most {most} elements are read")
    return count, span


def _count_at_least(text: bytes, *, texts: bool) -> int:
    """So many elements, or lists without any, JSON arrays have at the least; costs no memory."""
    if texts:  # a quote of which a backslash comes first may or may not be the end of a text
        return (text.count(b'"') - text.count(b'\\"')) // 2
    return text.count(b",")


def _read_strings(data: memoryview, count: int, where: str) -> Array:
    if 4 * count > len(data):
        raise InputError(
            f"{where}: {len(data)} bytes hold {len(data) // 4} BYTES elements, not {count}"
        )
    texts = np.empty(count, object)
    start = 0
    for i in range(count):
        end = start + 4
        if end <= len(data):
            end += int.from_bytes(data[start : start + 4], "little")
        if end > len(data):
            raise InputError(f"{where}: {len(data)} bytes hold {i} BYTES elements, not {count}")
        texts[i] = bytes(data[start + 4 : end])
        start = end
    if start != len(data):
        raise InputError(f"{where} has {len(data) - start} bytes after its {count} BYTES elements")
    return texts


@cache
def _make_decoder(kind: str, depth: int, filled: bool) -> msgspec.json.Decoder[Any]:
    """Of a JSON array with that many levels; strict: 1.0 is no integer and true is no number.

    ``filled``: none of its lists is empty.
    """
    leaf: Any = {"BYTES": str, "BOOL": bool, "UINT64": _Natural}.get(kind, float)
    if kind.startswith(("INT", "UINT")) and not kind.endswith("64"):
        limits = np.iinfo(DATATYPES[kind])
        leaf = Annotated[int, Meta(ge=int(limits.min), le=int(limits.max))]
    elif kind == "INT64":
        leaf = int
    for _ in range(depth):
        leaf = Annotated[list[leaf], Meta(min_length=int(filled))]
    return msgspec.json.Decoder(leaf)


def _flatten(data: list[Any], depth: int, shape: tuple[int, ...], where: str) -> list[Any]:
    """The elements of nested lists, which must be nested as ``shape`` says; () for an empty one."""
    if depth > 1 and shape and depth != len(shape):
        raise InputError(f"{where}: 'data' is nested {depth} deep; its shape is {_format(shape)}")
    level = [data]
    for axis in range(depth):
        if depth > 1 and shape and any(len(part) != shape[axis] for part in level):
            raise InputError(f"{where}: 'data' is not nested like its shape {_format(shape)}")
        level = list(chain.from_iterable(level))
    return level


def _to_bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else bytes(text)


def _format(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"
