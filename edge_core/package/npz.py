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
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as z:
        for name, a in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", _TIME)
            info.create_system, info.external_attr = 3, 0o644 << 16  # on every system
            little = np.ascontiguousarray(a, a.dtype.newbyteorder("<")).reshape(a.shape)
            z.writestr(info, _header(little) + little.tobytes())
    return out.getvalue()


def loads(raw: bytes, what: str) -> dict[str, Array]:
    """The arrays of dumps(), in memory of about twice ``raw``; raises PackageError."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as z:
            members = z.infolist()
            if sum(m.file_size for m in members) > len(raw):
                raise ValueError("members are compressed or overlap")
            return {m.filename.removesuffix(".npy"): _array(z.read(m)) for m in members}
    except Exception as e:  # zipfile and NumPy raise a dozen unrelated types on damaged bytes
        raise PackageError(f"{what} is not readable: {e}") from e


def _array(data: bytes) -> Array:
    start = len(_MAGIC) + 2
    end = start + int.from_bytes(data[start - 2 : start], "little")
    found = _HEADER.fullmatch(data, start, end)
    if found is None or not data.startswith(_MAGIC):
        raise ValueError("a member has no plain .npy header")
    dtype = np.dtype(found[1].decode())
    shape = tuple(int(d) for d in found[2].decode().split(",") if d.strip())
    if dtype.name not in DTYPES or math.prod(shape) * dtype.itemsize != len(data) - end:
        raise ValueError(f"a member of {len(data) - end} bytes claims to be {dtype.name} {shape}")
    return np.frombuffer(data, dtype, offset=end).reshape(shape).copy()


def _header(a: Array) -> bytes:
    """Version 1.0 of the .npy format, padded to 64 bytes as NumPy does."""
    text = f"{{'descr': '{a.dtype.str}', 'fortran_order': False, 'shape': {a.shape}, }}"
    used = len(_MAGIC) + 2 + len(text) + 1
    text += " " * (-used % 64) + "\n"
    return _MAGIC + len(text).to_bytes(2, "little") + text.encode()
