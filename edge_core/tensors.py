"""Tensors as data: what a model takes and returns, and checking arrays against it."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from edge_core.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]
Feeds = dict[str, Array]  # tensor name -> array

DTYPES = (
    "float32", "float16", "float64", "int8", "uint8", "int16", "uint16",
    "int32", "uint32", "int64", "uint64", "bool", "string",
)  # fmt: skip


class TensorSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """One input or output. A dimension is an int, or a str naming a dynamic one."""

    name: str
    dtype: str  # a NumPy name of DTYPES
    shape: tuple[int | str, ...]
    layout: str = ""  # "NCHW", "NHWC", or "" when it is no image
    scale: float = (
        0.0  # of integers that represent reals: (value - zero_point) * scale; 0.0: not quantised
    )
    zero_point: int = 0

    @property
    def dynamic(self) -> tuple[str, ...]:
        """Names of the dimensions that are not fixed."""
        return tuple(dim for dim in self.shape if isinstance(dim, str))


def check_feeds(
    feeds: Feeds, specs: tuple[TensorSpec, ...], where: str, *, finite: bool = True
) -> Feeds:
    """Return ``feeds`` as contiguous arrays in the dtypes of ``specs``, one for each of them.

    Only safe casts are made (float64 to float32; integers that fit), and reals are quantised
    where a spec has a scale. Without ``finite``, arrays that need no conversion are not searched
    for NaN and infinity: the caller does that. Raises InputError naming ``where`` (a file, a
    request) and the tensor for a missing or unknown name, a wrong shape, a lossy cast, NaN or
    infinity.
    """
    expected = {spec.name: spec for spec in specs}
    if unknown := set(feeds) - set(expected):
        raise InputError(
            f"{where}: no input '{sorted(unknown)[0]}'", hint=f"inputs: {', '.join(expected)}"
        )
    checked: Feeds = {}
    for name, spec in expected.items():
        if name not in feeds:
            raise InputError(
                f"{where}: input '{name}' is missing", hint=f"it has: {', '.join(feeds) or 'none'}"
            )
        array = np.asarray(feeds[name])
        is_usable = not finite and array.shape == spec.shape and spec.dtype != "string"
        if is_usable and array.dtype == spec.dtype and array.flags.c_contiguous:
            checked[name] = array
        else:
            checked[name] = _convert_input(array, spec, where)
    return checked


def quantise(array: Array, spec: TensorSpec) -> Array:
    """Reals as the integers of ``spec``: round(a / scale) + zero_point, clipped to its type.

    Integers, and every array for a tensor that is not quantised, come back as they are.
    """
    if not spec.scale or array.dtype.kind != "f":
        return array
    limits = np.iinfo(spec.dtype)
    steps = np.round(array / np.float32(spec.scale)) + spec.zero_point
    return np.clip(steps, limits.min, limits.max).astype(spec.dtype)


def dequantise(array: Array, spec: TensorSpec) -> Array:
    """The float32 reals that integers of ``spec`` stand for: (a - zero_point) * scale."""
    if not spec.scale or array.dtype.kind == "f":
        return array
    return (array.astype(np.float32) - spec.zero_point) * np.float32(spec.scale)


def _convert_input(array: Array, spec: TensorSpec, where: str) -> Array:
    if not _fits(array.shape, spec.shape):
        expected = "x".join(map(str, spec.shape))
        actual = "x".join(map(str, array.shape)) or "a scalar"
        raise InputError(
            f"{where}: input '{spec.name}' has shape {actual}; the model takes {expected}",
            hint=_suggest_layout(array.shape, spec.shape),
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = "NaN" if np.isnan(array).any() else "infinity"
        raise InputError(f"{where}: input '{spec.name}' contains {bad}")
    if spec.dtype == "string":
        return array
    dtype = np.dtype(spec.dtype)
    if spec.scale and array.dtype.kind == "f":
        return quantise(array, spec)
    if array.dtype == dtype:
        return np.ascontiguousarray(array)
    if array.dtype.kind == dtype.kind == "f" or (array.dtype.kind in "iub" and dtype.kind == "f"):
        return np.ascontiguousarray(array, dtype=dtype)
    if array.dtype.kind in "iub" and dtype.kind in "iu":
        cast = array.astype(dtype)
        if np.array_equal(cast, array):
            return np.ascontiguousarray(cast)
    raise InputError(
        f"{where}: input '{spec.name}' has dtype {array.dtype}; the model takes {spec.dtype}"
    )


def _fits(actual: tuple[int, ...], expected: tuple[int | str, ...]) -> bool:
    return len(actual) == len(expected) and all(
        isinstance(dim, str) or dim == size for dim, size in zip(expected, actual, strict=True)
    )


def _suggest_layout(actual: tuple[int, ...], expected: tuple[int | str, ...]) -> str:
    """A hint for an image whose channels are at the other end."""
    if len(actual) != 4:
        return ""
    rows, *rest = actual
    last_to_front = (rows, rest[2], rest[0], rest[1])
    first_to_back = (rows, rest[1], rest[2], rest[0])
    layout = "NHWC" if expected == first_to_back else "NCHW" if expected == last_to_front else ""
    if not layout:
        return ""
    return f"the model takes images as {layout}: transpose it, or set 'layout' in the image recipe"
