"""Does what a request says of an input fit the model? Asked before its data is read. No I/O."""

from __future__ import annotations

import math

import numpy as np

from agent.http import wire
from edge_core.errors import InputError
from edge_core.package.manifest import Manifest
from edge_core.tensors import TensorSpec


def shown(spec: TensorSpec) -> str:
    """The datatype that clients see: a quantised tensor stands for reals."""
    return wire.datatype("float32" if spec.scale else spec.dtype)


def check(name: str, kind: str, shape: tuple[int, ...], *, binary: bool, of: Manifest) -> None:
    """Raise InputError unless the model has such an input of that datatype and shape."""
    spec = next((s for s in of.inputs if s.name == name), None)
    what = f"input '{name}'"
    if spec is None:
        known = ", ".join(s.name for s in of.inputs)
        raise InputError(f"the model has no {what}", hint=f"inputs: {known}")
    wire.elements(kind, shape, what)
    if kind == "BYTES" and spec.dtype != "string":
        _check_picture(spec, shape, binary, of)
        return
    if not _casts(kind, spec):
        raise InputError(f"{of.name}: {what} has datatype {kind}; the model takes {shown(spec)}")
    if len(shape) != len(spec.shape) or any(
        isinstance(want, int) and want != have for want, have in zip(spec.shape, shape, strict=True)
    ):
        want = "x".join(map(str, spec.shape)) or "a scalar"
        have = "x".join(map(str, shape)) or "a scalar"
        raise InputError(f"{of.name}: {what} has shape {have}; the model takes {want}")


def _check_picture(spec: TensorSpec, shape: tuple[int, ...], binary: bool, of: Manifest) -> None:
    if of.preprocess is None or len(of.inputs) != 1:
        raise InputError(
            f"input '{spec.name}' takes {spec.dtype}; BYTES would be a picture, and this package "
            "has no preprocessing recipe for one"
        )
    if math.prod(shape) != 1 or not binary:
        raise InputError(
            f"input '{spec.name}': a picture is one BYTES element, sent as binary data"
        )


def _casts(kind: str, spec: TensorSpec) -> bool:
    """Can values of a datatype be cast, as check_feeds() does, if none is lost?"""
    if "string" in (wire.DATATYPES[kind], spec.dtype):
        return wire.DATATYPES[kind] == spec.dtype
    given, wanted = np.dtype(wire.DATATYPES[kind]).kind, np.dtype(spec.dtype).kind
    if wanted == "b":
        return given == "b"
    return given != "f" or wanted == "f" or bool(spec.scale)
