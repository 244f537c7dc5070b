"""Checks what a request says about an input against the model, before its data is read. No I/O."""

from __future__ import annotations

import math

import numpy as np

from agent.http import wire
from edge_core.errors import InputError
from edge_core.package.manifest import PackagedModel
from edge_core.tensors import TensorSpec


def client_datatype(spec: TensorSpec) -> str:
    """The datatype that clients see: a quantised tensor stands for reals."""
    return wire.datatype("float32" if spec.scale else spec.dtype)


def check_input(
    name: str, kind: str, shape: tuple[int, ...], *, is_binary: bool, model: PackagedModel
) -> None:
    """Raise InputError unless the model has such an input of that datatype and shape."""
    spec = next((spec for spec in model.inputs if spec.name == name), None)
    what = f"input '{name}'"
    if spec is None:
        known = ", ".join(spec.name for spec in model.inputs)
        raise InputError(f"the model has no {what}", hint=f"inputs: {known}")
    wire.count_elements(kind, shape, what)
    if kind == "BYTES" and spec.dtype != "string":
        _check_picture(spec, shape, is_binary, model)
        return
    if not _can_cast(kind, spec):
        raise InputError(
            f"{model.name}: {what} has datatype {kind}; the model takes {client_datatype(spec)}"
        )
    if len(shape) != len(spec.shape) or any(
        isinstance(expected, int) and expected != size
        for expected, size in zip(spec.shape, shape, strict=True)
    ):
        expected_shape = "x".join(map(str, spec.shape)) or "a scalar"
        actual_shape = "x".join(map(str, shape)) or "a scalar"
        raise InputError(
            f"{model.name}: {what} has shape {actual_shape}; the model takes {expected_shape}"
        )


def _check_picture(
    spec: TensorSpec, shape: tuple[int, ...], is_binary: bool, model: PackagedModel
) -> None:
    if model.preprocess is None or len(model.inputs) != 1:
        raise InputError(
            f"input '{spec.name}' takes {spec.dtype}; BYTES would be a picture, and this package "
            "has no preprocessing recipe for one"
        )
    if math.prod(shape) != 1 or not is_binary:
        raise InputError(
            f"input '{spec.name}': a picture is one BYTES element, sent as binary data"
        )


def _can_cast(kind: str, spec: TensorSpec) -> bool:
    """Can values of a datatype be cast, as check_feeds() does, if none is lost?"""
    if "string" in (wire.DATATYPES[kind], spec.dtype):
        return wire.DATATYPES[kind] == spec.dtype
    source, target = np.dtype(wire.DATATYPES[kind]).kind, np.dtype(spec.dtype).kind
    if target == "b":
        return source == "b"
    return source != "f" or target == "f" or bool(spec.scale)
