"""Tensors as data: what a model takes and gives."""

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
    scale: float = 0.0  # of an integer tensor that stands for reals; 0.0 = not quantised
    zero_point: int = 0

    @property
    def dynamic(self) -> tuple[str, ...]:
        """Names of the dimensions that are not fixed."""
        return tuple(d for d in self.shape if isinstance(d, str))


def check_feeds(
    feeds: Feeds, specs: tuple[TensorSpec, ...], where: str, *, finite: bool = True
) -> Feeds:
    """Return ``feeds`` with the dtypes that ``specs`` want.

    Only safe casts are made (float64 to float32; integers that fit), and reals are quantised
    where ``spec`` has a scale. Without ``finite``, arrays that are used as they are may hold NaN
    and infinity: the caller looks. Raises InputError naming
    ``where`` and the tensor for a missing or unknown name, a wrong shape, a lossy dtype, NaN or
    infinity.
    """
    wanted = {s.name: s for s in specs}
    if unknown := set(feeds) - set(wanted):
        raise InputError(
            f"{where}: no input '{sorted(unknown)[0]}'", hint=f"inputs: {', '.join(wanted)}"
        )
    out: Feeds = {}
    for name, spec in wanted.items():
        if name not in feeds:
            raise InputError(
                f"{where}: input '{name}' is missing", hint=f"it has: {', '.join(feeds) or 'none'}"
            )
        a = np.asarray(feeds[name])
        as_it_is = not finite and a.shape == spec.shape and spec.dtype != "string"
        if as_it_is and a.dtype == spec.dtype and a.flags.c_contiguous:
            out[name] = a
        else:
            out[name] = _fit(a, spec, where)
    return out


def quantise(a: Array, spec: TensorSpec) -> Array:
    """Reals as the integers of ``spec``: round(a / scale) + zero_point, clipped to its type.

    Integers, and every array for a tensor that is not quantised, come back as they are.
    """
    if not spec.scale or a.dtype.kind != "f":
        return a
    limits = np.iinfo(spec.dtype)
    steps = np.round(a / np.float32(spec.scale)) + spec.zero_point
    return np.clip(steps, limits.min, limits.max).astype(spec.dtype)


def dequantise(a: Array, spec: TensorSpec) -> Array:
    """The float32 reals that integers of ``spec`` stand for: (a - zero_point) * scale."""
    if not spec.scale or a.dtype.kind == "f":
        return a
    return (a.astype(np.float32) - spec.zero_point) * np.float32(spec.scale)


def _fit(a: Array, spec: TensorSpec, where: str) -> Array:
    shape_ok = len(a.shape) == len(spec.shape) and all(
        isinstance(want, str) or want == have
        for want, have in zip(spec.shape, a.shape, strict=True)
    )
    if not shape_ok:
        want = "x".join(map(str, spec.shape))
        have = "x".join(map(str, a.shape)) or "a scalar"
        raise InputError(
            f"{where}: input '{spec.name}' has shape {have}; the model takes {want}",
            hint=_turned(a.shape, spec.shape),
        )
    if a.dtype.kind == "f" and not np.isfinite(a).all():
        bad = "NaN" if np.isnan(a).any() else "infinity"
        raise InputError(f"{where}: input '{spec.name}' contains {bad}")
    if spec.dtype == "string":
        return a
    dtype = np.dtype(spec.dtype)
    if spec.scale and a.dtype.kind == "f":
        return quantise(a, spec)
    if a.dtype == dtype:
        return np.ascontiguousarray(a)
    if a.dtype.kind == dtype.kind == "f" or (a.dtype.kind in "iub" and dtype.kind == "f"):
        return np.ascontiguousarray(a, dtype=dtype)
    if a.dtype.kind in "iub" and dtype.kind in "iu":
        cast = a.astype(dtype)
        if np.array_equal(cast, a):
            return np.ascontiguousarray(cast)
    raise InputError(
        f"{where}: input '{spec.name}' has dtype {a.dtype}; the model takes {spec.dtype}"
    )


def _turned(have: tuple[int, ...], want: tuple[int | str, ...]) -> str:
    """A way out for an image whose channels are at the other end."""
    if len(have) != 4:
        return ""
    n, a, b, c = have
    layout = "NHWC" if want == (n, b, c, a) else "NCHW" if want == (n, c, a, b) else ""
    if not layout:
        return ""
    return f"the model takes images as {layout}: transpose it, or set 'layout' in the image recipe"
