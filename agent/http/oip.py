"""The Open Inference Protocol v2: request bytes -> Request, Answer -> response bytes. No I/O.

    json_length(headers) -> int | None       where the binary tensors begin in the body
    parse(body, length, manifest) -> Request
    encode(answer, request) -> (headers, parts)

With the extensions that Triton calls binary_tensor_data and classification, and parameters of ours
(docs/serving.md). Everything is checked before an array is made of it; a field that is not known is
refused, except beside the protocol's own at the top, where clients put notes. Arrays are views of
the body, parts are views of the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import UNSET, Meta, UnsetType

from agent.http import classification, validate, wire
from agent.serving.loaded_model import EncodedImage, Inputs
from agent.serving.requests import Answer
from edge_core.errors import InputError, Unavailable
from edge_core.package.manifest import Manifest
from edge_core.package.run import MAX_TOP
from edge_core.tensors import Array, Feeds

Headers = list[tuple[bytes, bytes]]
Part = bytes | memoryview

LENGTH = b"inference-header-content-length"
MAX_JSON = 8 * 1024 * 1024  # bytes; as Python objects they may take twenty times that
MAX_DEADLINE_MS = 86_400_000
TOP = "labels"  # the output that the parameter `top` adds

Name = Annotated[str, Meta(max_length=1024)]


class TooLarge(InputError):
    """More bytes than are read."""


class Wanted(msgspec.Struct, frozen=True):
    """One output of the answer."""

    name: str
    binary: bool
    classes: int = 0  # so many best ones instead of the tensor


class OipRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks of one model."""

    inputs: Inputs
    wanted: tuple[Wanted, ...]
    id: str = ""
    deadline_ms: float | None = None
    top: int = 0
    top_binary: bool = False
    cache: bool = True
    version: str = ""  # of the model that it was parsed for
    labels: tuple[str, ...] = ()  # of that model


class _Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    binary_data_output: bool = False
    timeout: Annotated[int, Meta(ge=0, le=MAX_DEADLINE_MS * 1000)] = 0  # us, as Triton's
    deadline_ms: Annotated[float, Meta(ge=0, le=MAX_DEADLINE_MS)] = 0.0
    top: Annotated[int, Meta(ge=0, le=MAX_TOP)] = 0
    cache: bool = True


class _InputParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    binary_data_size: Annotated[int, Meta(ge=0)] | UnsetType = UNSET


class _OutputParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    binary_data: bool | UnsetType = UNSET
    classification: Annotated[int, Meta(ge=0, le=MAX_TOP)] = 0


class _Input(msgspec.Struct, frozen=True):
    name: Name
    shape: wire.Shape
    datatype: Annotated[str, Meta(max_length=32)]
    parameters: _InputParameters = _InputParameters()
    data: msgspec.Raw | UnsetType = UNSET


class _Output(msgspec.Struct, frozen=True):
    name: Name
    parameters: _OutputParameters = _OutputParameters()


class _Body(msgspec.Struct, frozen=True):
    inputs: Annotated[tuple[_Input, ...], Meta(max_length=1024)]
    outputs: Annotated[tuple[_Output, ...], Meta(max_length=1024)] = ()
    id: Name = ""
    parameters: _Parameters = _Parameters()


class _Told(msgspec.Struct, frozen=True, omit_defaults=True):
    """One output in a response."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, int] = {}
    data: list[Any] | UnsetType = UNSET


class _Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    model_name: str
    model_version: str
    outputs: list[_Told]
    id: str = ""
    parameters: dict[str, str] = {}


_decoder = msgspec.json.Decoder(_Body)
_encoder = msgspec.json.Encoder()


def json_length(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """Bytes of JSON at the start of the body; None: all of it. Raises InputError."""
    found = [value for name, value in headers if name == LENGTH]
    if not found:
        return None
    if len(found) > 1 or not re.fullmatch(rb"[0-9]{1,12}", found[0]):
        raise InputError("Inference-Header-Content-Length is not one number of bytes")
    if int(found[0]) > MAX_JSON:
        raise TooLarge(f"the JSON part has {int(found[0])} bytes; limit {MAX_JSON}")
    return int(found[0])


def parse(body: memoryview, length: int | None, manifest: Manifest) -> OipRequest:
    """The request in ``body``; raises InputError, which names the field."""
    text = body if length is None else body[:length]
    if length is not None and length > len(body):
        raise InputError(
            f"Inference-Header-Content-Length is {length}; the body has {len(body)} bytes"
        )
    if len(text) > MAX_JSON:
        raise TooLarge(
            f"the JSON part has {len(text)} bytes; limit {MAX_JSON}",
            hint="send large tensors as binary data",
        )
    try:
        asked = _decoder.decode(text)
    except (ValueError, RecursionError) as e:  # MsgspecError is a ValueError
        raise InputError(f"this is no inference request: {e}") from e
    arrays = _arrays(asked.inputs, body[len(text) :], manifest)
    given = asked.parameters
    limits = [ms for ms in (given.timeout / 1000, given.deadline_ms) if ms]
    return OipRequest(
        inputs=_inputs(arrays, manifest),
        wanted=_wanted(asked, manifest),
        id=asked.id,
        deadline_ms=min(limits, default=None),
        top=_top(given.top, manifest),
        top_binary=given.binary_data_output,
        cache=given.cache,
        version=manifest.version,
        labels=manifest.labels,
    )


def encode(answer: Answer, request: OipRequest) -> tuple[Headers, list[Part]]:
    """The response's headers and the parts of its body, in order.

    Raises Unavailable when the model was swapped meanwhile for one that does not give what was
    asked for.
    """
    told: list[_Told] = []
    tail: list[Part] = []
    for want in request.wanted:
        a = answer.outputs.get(want.name)
        if a is None or (want.classes and not classification.fit(a)):
            raise Unavailable(
                f"{answer.model} {answer.version} came meanwhile; its outputs are others"
            )
        if want.classes:
            known = request.version == answer.version
            a = classification.of_rows(a, want.classes, request.labels if known else ())
        told.append(_tell(want.name, a, want.binary, tail))
    if request.top:
        told.append(_tell(TOP, _labels(answer, request), request.top_binary, tail))
    head = _encoder.encode(
        _Reply(
            answer.model,
            answer.version,
            told,
            id=request.id,
            parameters={"cached": answer.cached} if answer.cached else {},
        )
    )
    size = len(head) + sum(map(len, tail))
    headers = [
        (b"content-type", b"application/octet-stream" if tail else b"application/json"),
        (b"content-length", b"%d" % size),
    ]
    if tail:
        headers.append((LENGTH, b"%d" % len(head)))
    return headers, [head, *(t for t in tail if len(t))]


def _arrays(inputs: tuple[_Input, ...], tail: memoryview, manifest: Manifest) -> Feeds:
    arrays: Feeds = {}
    at = 0
    for i in inputs:
        what = f"input '{i.name}'"
        if i.name in arrays:
            raise InputError(f"{what} is given twice")
        size = i.parameters.binary_data_size
        if (size is UNSET) == (i.data is UNSET):
            raise InputError(f"{what} needs either 'data' or the parameter 'binary_data_size'")
        validate.check(i.name, i.datatype, i.shape, binary=i.data is UNSET, of=manifest)
        if isinstance(i.data, msgspec.Raw):
            arrays[i.name] = wire.from_json(bytes(i.data), i.datatype, i.shape, what)
            continue
        assert isinstance(size, int)
        if size > len(tail) - at:
            raise InputError(f"{what} has {size} bytes; {len(tail) - at} are left in the body")
        arrays[i.name] = wire.from_binary(tail[at : at + size], i.datatype, i.shape, what)
        at += size
    if at != len(tail):
        raise InputError(f"the body has {len(tail) - at} bytes that belong to no input")
    return arrays


def _inputs(arrays: Feeds, manifest: Manifest) -> Inputs:
    """The arrays as the agent takes them: a picture, or feeds with strings as str."""
    kinds = {s.name: s.dtype for s in manifest.inputs}
    feeds: Feeds = {}
    for name, a in arrays.items():
        if a.dtype != object:
            feeds[name] = a
        elif kinds[name] == "string":
            feeds[name] = _texts(a, name)
        else:
            return EncodedImage(a.flat[0])
    return feeds


def _texts(a: Array, name: str) -> Array:
    out = np.empty(a.size, object)
    try:
        for i, text in enumerate(a.reshape(-1)):
            out[i] = text if isinstance(text, str) else text.decode()
    except UnicodeDecodeError as e:
        raise InputError(f"input '{name}': element {i} is not UTF-8: {e.reason}") from e
    return out.reshape(a.shape)


def _wanted(asked: _Body, manifest: Manifest) -> tuple[Wanted, ...]:
    specs = {s.name: s for s in manifest.outputs}
    default = asked.parameters.binary_data_output
    if not asked.outputs:
        return tuple(Wanted(name, default) for name in specs)
    found: dict[str, Wanted] = {}
    for o in asked.outputs:
        if o.name not in specs:
            raise InputError(
                f"the model has no output '{o.name}'", hint=f"outputs: {', '.join(specs)}"
            )
        if o.name in found:
            raise InputError(f"output '{o.name}' is asked for twice")
        p = o.parameters
        if p.classification and not classification.may_fit(specs[o.name]):
            raise InputError(f"output '{o.name}' has no rows of class scores")
        binary = default if p.binary_data is UNSET else bool(p.binary_data)
        found[o.name] = Wanted(o.name, binary, p.classification)
    return tuple(found.values())


def _top(top: int, manifest: Manifest) -> int:
    if top and not manifest.class_scores:
        raise InputError(f"'top' is {top}; {manifest.name} gives no class scores")
    if top and any(s.name == TOP for s in manifest.outputs):
        raise InputError(
            f"the model has an output '{TOP}' of its own",
            hint="ask for the parameter 'classification' of an output instead of 'top'",
        )
    return top


def _labels(answer: Answer, request: OipRequest) -> Array:
    """What `top` asks for: of the one row of scores, else of each."""
    scores = next(iter(answer.outputs.values()))
    if answer.top or not classification.fit(scores):
        return classification.of_answer(answer)
    known = request.version == answer.version
    return classification.of_rows(scores, request.top, request.labels if known else ())


def _tell(name: str, a: Array, binary: bool, tail: list[Part]) -> _Told:
    """Describe an output; its bytes, if it has a binary part, are appended to ``tail``."""
    if not binary:
        return _Told(name, wire.datatype_of(a), a.shape, data=wire.to_json(a))
    raw = wire.to_binary(a)
    tail.append(raw)
    return _Told(name, wire.datatype_of(a), a.shape, {"binary_data_size": len(raw)})
