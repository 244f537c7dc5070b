"""Arrays in a .npz that is the same for the same arrays, and is read without evaluating anything.

numpy.savez writes the time of day, and numpy.load evaluates headers and allocates what they claim.
Here members are stored uncompressed, with one form of header, in the order given.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Mapping

import numpy as np

from edge_core.errors import PackageError
from edge_core.tensors import DTYPES, Array

_TIME = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold
_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    rb"\{'descr': '([<|][fiub]\d)', 'fortran_order': False, "
    rb"'shape': \(((?:\d{1,13},)?|\d{1,13}(?:, \d{1,13}){1,31})\), \} *\n"
)


def dumps(arrays: Mapping[str, Array]) -> bytes:
    """A .npz of number and bool arrays; names are plain ASCII."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", _TIME)
            info.create_system, info.external_attr = 3, 0o644 << 16  # on every system
            little = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)
            archive.writestr(info, _header(little) + little.tobytes())
    return out.getvalue()


def loads(raw: bytes, what: str) -> dict[str, Array]:
    """The arrays of dumps(), in memory of about twice ``raw``; raises PackageError."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > len(raw):
                raise ValueError("members are compressed or overlap")
            return {
                member.filename.removesuffix(".npy"): _array(archive.read(member))
                for member in members
            }
    except Exception as error:  # zipfile and NumPy raise a dozen unrelated types on damaged bytes
        raise PackageError(f"{what} is not readable: {error}") from error


def _array(data: bytes) -> Array:
    start = len(_MAGIC) + 2
    end = start + int.from_bytes(data[start - 2 : start], "little")
    header = _HEADER.fullmatch(data, start, end)
    if header is None or not data.startswith(_MAGIC):
        raise ValueError("a member has no plain .npy header")
    dtype = np.dtype(header[1].decode())
    shape = tuple(int(digits) for digits in header[2].decode().split(",") if digits.strip())
    if dtype.name not in DTYPES or math.prod(shape) * dtype.itemsize != len(data) - end:
        raise ValueError(f"a member of {len(data) - end} bytes claims to be {dtype.name} {shape}")
    return np.frombuffer(data, dtype, offset=end).reshape(shape).copy()


def _header(array: Array) -> bytes:
    """Version 1.0 of the .npy format, padded to 64 bytes as NumPy does."""
    text = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {array.shape}, }}"
    used = len(_MAGIC) + 2 + len(text) + 1
    text += " " * (-used % 64) + "\n"
    return _MAGIC + len(text).to_bytes(2, "little") + text.encode()
