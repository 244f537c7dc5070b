"""Asks the agent that runs on this device, over its own HTTP server.

    is_live(instance), is_ready(instance)      does it answer, does every model answer
    status(instance) -> dict                   as Agent.status()
    reload(instance, name) -> dict             serve what is installed now; that model's status
    infer(instance, model, source, top=5)   one input, answered by the agent

The standard library's client is enough for one request, on TCP or on a unix socket. Errors are the
agent's own: Overloaded, InputError, ...; Unavailable if it does not answer.
"""

from __future__ import annotations

import http.client
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec
import numpy as np

from agent.http import wire
from agent.http.oip import LENGTH, TOP
from agent.service.instance_lock import Instance
from edge_core.errors import (
    DeadlineExceeded,
    EdgeError,
    InputError,
    Overloaded,
    Unavailable,
    UnknownModel,
)
from edge_core.files import read_limited
from edge_core.package import run
from edge_core.package.manifest import PackagedModel
from edge_core.package.preprocess import IMAGE_SUFFIXES, MAX_IMAGE_BYTES
from edge_core.tensors import Feeds

TIMEOUT_S = 10.0
LOAD_S = 300.0  # loading a model on a small device
INFER_S = 300.0
MAX_REPLY = 256 * 1024 * 1024  # bytes
ERRORS: dict[int, type[EdgeError]] = {
    400: InputError,
    404: UnknownModel,
    413: InputError,
    429: Overloaded,
    503: Unavailable,
    504: DeadlineExceeded,
}
Document = dict[str, Any]


def is_live(instance: Instance, timeout_s: float = TIMEOUT_S) -> bool:
    """Does the server answer at all? A refusal is an answer.

    So is a connection that is cut after it was made: the server does that when there are too many.
    A server that hangs does neither, and this waits for ``timeout_s``.
    """
    try:
        _exchange(instance, "GET", "/v2/health/live", timeout_s=timeout_s)
    except Unavailable as error:
        return isinstance(error.__cause__, ConnectionResetError | BrokenPipeError)
    return True


def is_ready(instance: Instance) -> bool:
    """Does every installed model answer?"""
    return _exchange(instance, "GET", "/v2/health/ready")[0] == 200


def status(instance: Instance) -> Document:
    """Everything that the agent knows about itself."""
    return _ask(instance, "GET", "/v2/edge/status")


def reload(instance: Instance, name: str) -> Document:
    """Let the agent serve what is installed of ``name`` now; returns that model's status.

    Raises Unavailable with the reason if it cannot be served.
    """
    path = f"/v2/repository/models/{quote(name, safe='')}/load"
    _ask(instance, "POST", path, timeout_s=LOAD_S)
    models: list[Document] = status(instance)["models"]
    return next(model for model in models if model["name"] == name)


def infer(instance: Instance, model: PackagedModel, source: Path, *, top: int = 5) -> run.Answer:
    """The agent's answer to one input; ``ms`` is the whole request."""
    top = top if model.class_scores and all(spec.name != TOP for spec in model.outputs) else 0
    head, tail = _to_inputs(model, source)
    text = msgspec.json.encode({"inputs": head, "parameters": {"top": top}})
    headers = {"Content-Type": "application/octet-stream", LENGTH.decode(): str(len(text))}
    path = f"/v2/models/{quote(model.name, safe='')}/infer"
    start = time.perf_counter()
    reply = _ask(
        instance, "POST", path, body=b"".join([text, *tail]), headers=headers, timeout_s=INFER_S
    )
    ms = (time.perf_counter() - start) * 1e3
    outputs = {output["name"]: output for output in reply["outputs"]}
    labels_output = outputs.pop(TOP) if top else {"shape": [], "data": []}
    labels = (
        labels_output["data"] if len(labels_output["shape"]) == 1 else []
    )  # else of several rows
    return run.Answer(
        outputs={
            name: np.reshape(np.array(output["data"], object), output["shape"]).tolist()
            for name, output in outputs.items()
        },
        top=tuple(_parse_scored(text) for text in labels),
        ms=ms,
    )


def _to_inputs(model: PackagedModel, source: Path) -> tuple[list[Document], list[bytes]]:
    """A picture goes as it is: the agent prepares it. Tensors go as the model takes them."""
    if source.suffix.lower() in IMAGE_SUFFIXES and model.preprocess and source.is_file():
        feeds: Feeds = {model.inputs[0].name: np.empty(1, object)}
        feeds[model.inputs[0].name][0] = read_limited(source, MAX_IMAGE_BYTES)
    else:
        feeds = run.read_input(source, model)
    head, tail = [], []
    for name, array in feeds.items():
        tail.append(bytes(wire.to_binary(array)))
        size = {"binary_data_size": len(tail[-1])}
        datatype = wire.datatype_of(array)
        head.append({"name": name, "shape": array.shape, "datatype": datatype, "parameters": size})
    return head, tail


def _parse_scored(text: str) -> run.Scored:
    """ "9.36:19:chickadee", or "9.36:19" of a model without labels."""
    score, index, *label = text.split(":", 2)
    return run.Scored(int(index), label[0] if label else index, float(score))


def _ask(instance: Instance, method: str, path: str, **more: Any) -> Document:
    """The document of a reply; a refusal is raised as what it is."""
    code, document = _exchange(instance, method, path, **more)
    if code != 200:
        raise ERRORS.get(code, EdgeError)(str(document.get("error", f"HTTP status {code}")))
    return document


def _exchange(
    instance: Instance,
    method: str,
    path: str,
    *,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> tuple[int, Document]:
    """Status and document of a reply; raises Unavailable if there is none."""
    connection = _connection(instance, timeout_s)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        reply = connection.getresponse()
        return reply.status, msgspec.json.decode(reply.read(MAX_REPLY), type=Document)
    except (OSError, http.client.HTTPException, msgspec.MsgspecError) as error:
        raise Unavailable(
            f"the agent (process {instance.pid}) does not answer at {instance.address}: {error}"
        ) from error
    finally:
        connection.close()


def _connection(instance: Instance, timeout_s: float) -> http.client.HTTPConnection:
    if not instance.address:
        raise Unavailable(f"the agent (process {instance.pid}) serves without HTTP")
    if instance.address.startswith("unix:"):
        return _Unix(instance.address.removeprefix("unix:"), timeout_s)
    parts = urlsplit(instance.address)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)


class _Unix(http.client.HTTPConnection):
    """HTTP on a unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket instead of to host and port."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
