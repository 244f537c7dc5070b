"""The Open Inference Protocol v2: request bytes -> Request, Answer -> response bytes. No I/O.

    json_length(headers) -> int | None       where the binary tensors begin in the body
    parse(body, length, model) -> Request
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
from agent.serving.backend import EncodedImage, Inputs
from agent.serving.requests import Answer
from edge_core.errors import InputError, Unavailable
from edge_core.package.manifest import PackagedModel
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


class RequestedOutput(msgspec.Struct, frozen=True):
    """One output of the answer."""

    name: str
    binary: bool
    classes: int = 0  # so many best ones instead of the tensor


class OipRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks of one model."""

    inputs: Inputs
    outputs: tuple[RequestedOutput, ...]
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


class _OutputDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    """One output in a response."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, int] = {}
    data: list[Any] | UnsetType = UNSET


class _Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    model_name: str
    model_version: str
    outputs: list[_OutputDocument]
    id: str = ""
    parameters: dict[str, str] = {}


_decoder = msgspec.json.Decoder(_Body)
_encoder = msgspec.json.Encoder()


def json_length(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """Bytes of JSON at the start of the body; None: all of it. Raises InputError."""
    lengths = [value for name, value in headers if name == LENGTH]
    if not lengths:
        return None
    if len(lengths) > 1 or not re.fullmatch(rb"[0-9]{1,12}", lengths[0]):
        raise InputError("Inference-Header-Content-Length is not one number of bytes")
    if int(lengths[0]) > MAX_JSON:
        raise TooLarge(f"the JSON part has {int(lengths[0])} bytes; limit {MAX_JSON}")
    return int(lengths[0])


def parse(body: memoryview, length: int | None, model: PackagedModel) -> OipRequest:
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
        document = _decoder.decode(text)
    except (ValueError, RecursionError) as error:  # MsgspecError is a ValueError
        raise InputError(f"this is no inference request: {error}") from error
    arrays = _read_arrays(document.inputs, body[len(text) :], model)
    parameters = document.parameters
    limits = [ms for ms in (parameters.timeout / 1000, parameters.deadline_ms) if ms]
    return OipRequest(
        inputs=_to_inputs(arrays, model),
        outputs=_read_outputs(document, model),
        id=document.id,
        deadline_ms=min(limits, default=None),
        top=_check_top(parameters.top, model),
        top_binary=parameters.binary_data_output,
        cache=parameters.cache,
        version=model.version,
        labels=model.labels,
    )


def encode(answer: Answer, request: OipRequest) -> tuple[Headers, list[Part]]:
    """The response's headers and the parts of its body, in order.

    Raises Unavailable when the model was swapped meanwhile for one that does not give what was
    asked for.
    """
    documents: list[_OutputDocument] = []
    tail: list[Part] = []
    for output in request.outputs:
        array = answer.outputs.get(output.name)
        if array is None or (output.classes and not classification.is_scores(array)):
            raise Unavailable(
                f"{answer.model} was swapped to {answer.version} meanwhile, whose outputs differ"
            )
        if output.classes:
            array = classification.classify_rows(array, output.classes, _labels(answer, request))
        documents.append(_describe_output(output.name, array, output.binary, tail))
    if request.top:
        documents.append(
            _describe_output(TOP, _classify(answer, request), request.top_binary, tail)
        )
    head = _encoder.encode(
        _Reply(
            answer.model,
            answer.version,
            documents,
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
    return headers, [head, *(part for part in tail if len(part))]


def _read_arrays(inputs: tuple[_Input, ...], tail: memoryview, model: PackagedModel) -> Feeds:
    arrays: Feeds = {}
    start = 0
    for described in inputs:
        name, datatype, shape = described.name, described.datatype, described.shape
        what = f"input '{name}'"
        if name in arrays:
            raise InputError(f"{what} is given twice")
        size = described.parameters.binary_data_size
        if (size is UNSET) == (described.data is UNSET):
            raise InputError(f"{what} needs either 'data' or the parameter 'binary_data_size'")
        is_binary = described.data is UNSET
        validate.check_input(name, datatype, shape, is_binary=is_binary, model=model)
        if isinstance(described.data, msgspec.Raw):
            arrays[name] = wire.from_json(bytes(described.data), datatype, shape, what)
            continue
        assert isinstance(size, int)
        if size > len(tail) - start:
            raise InputError(f"{what} has {size} bytes; {len(tail) - start} remain in the body")
        arrays[name] = wire.from_binary(tail[start : start + size], datatype, shape, what)
        start += size
    if start != len(tail):
        raise InputError(f"the body has {len(tail) - start} bytes that belong to no input")
    return arrays


def _to_inputs(arrays: Feeds, model: PackagedModel) -> Inputs:
    """The arrays as the agent takes them: a picture, or feeds with strings as str."""
    kinds = {spec.name: spec.dtype for spec in model.inputs}
    feeds: Feeds = {}
    for name, array in arrays.items():
        if array.dtype != object:
            feeds[name] = array
        elif kinds[name] == "string":
            feeds[name] = _decode_texts(array, name)
        else:
            return EncodedImage(array.flat[0])
    return feeds


def _decode_texts(array: Array, name: str) -> Array:
    texts = np.empty(array.size, object)
    try:
        for i, text in enumerate(array.reshape(-1)):
            texts[i] = text if isinstance(text, str) else text.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"input '{name}': element {i} is not UTF-8: {error.reason}") from error
    return texts.reshape(array.shape)


def _read_outputs(document: _Body, model: PackagedModel) -> tuple[RequestedOutput, ...]:
    specs = {spec.name: spec for spec in model.outputs}
    default = document.parameters.binary_data_output
    if not document.outputs:
        return tuple(RequestedOutput(name, default) for name in specs)
    requested: dict[str, RequestedOutput] = {}
    for output in document.outputs:
        if output.name not in specs:
            raise InputError(
                f"the model has no output '{output.name}'", hint=f"outputs: {', '.join(specs)}"
            )
        if output.name in requested:
            raise InputError(f"output '{output.name}' is asked for twice")
        parameters = output.parameters
        if parameters.classification and not classification.may_be_scores(specs[output.name]):
            raise InputError(f"output '{output.name}' has no rows of class scores")
        binary = default if parameters.binary_data is UNSET else bool(parameters.binary_data)
        requested[output.name] = RequestedOutput(output.name, binary, parameters.classification)
    return tuple(requested.values())


def _check_top(top: int, model: PackagedModel) -> int:
    if top and not model.class_scores:
        raise InputError(f"'top' is {top}; {model.name} gives no class scores")
    if top and any(spec.name == TOP for spec in model.outputs):
        raise InputError(
            f"the model has an output '{TOP}' of its own",
            hint="ask for the parameter 'classification' of an output instead of 'top'",
        )
    return top


def _classify(answer: Answer, request: OipRequest) -> Array:
    """What `top` asks for: of the one row of scores, else of each."""
    scores = next(iter(answer.outputs.values()))
    if answer.top or not classification.is_scores(scores):
        return classification.format_top(answer)
    return classification.classify_rows(scores, request.top, _labels(answer, request))


def _labels(answer: Answer, request: OipRequest) -> tuple[str, ...]:
    """The labels of the request's version; none if another version answered."""
    return request.labels if request.version == answer.version else ()


def _describe_output(name: str, array: Array, is_binary: bool, tail: list[Part]) -> _OutputDocument:
    """Describe an output; its bytes, if it has a binary part, are appended to ``tail``."""
    if not is_binary:
        return _OutputDocument(name, wire.datatype_of(array), array.shape, data=wire.to_json(array))
    raw = wire.to_binary(array)
    tail.append(raw)
    size = {"binary_data_size": len(raw)}
    return _OutputDocument(name, wire.datatype_of(array), array.shape, size)
