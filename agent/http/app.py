"""The protocol's paths as an ASGI application: a request in, the agent asked, a response out.

The event loop reads, parses and writes; it never waits for an inference or for a disk. Every
refusal is {"error": "..."} with the status that replies.STATUS gives it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import unquote

import msgspec

from agent.config import Http
from agent.http import describe, oip, origin
from agent.http.body import Body, BodyBudget, Receive
from agent.http.limits import DEFAULT, ConnectionLimits
from agent.http.oip import Headers, TooLarge
from agent.http.replies import Refused, Reply, Send, deliver, document, refusal
from agent.serving.agent import Agent
from agent.serving.requests import Answer
from edge_core.errors import (
    EdgeError,
    InputError,
    Unavailable,
    UnknownModel,
)
from edge_core.package.manifest import PackagedModel

log = logging.getLogger(__name__)
T = TypeVar("T")

OFFLOAD = 256 * 1024  # bytes of JSON, or a sixteenth of it in values, that take more than some ms
OFFLOAD_BINARY = 16 * 1024 * 1024
OFFLOAD_TEXTS = 16 * 1024  # bytes of binary tensors that may be thousands of texts


class App:
    """One per server."""

    def __init__(self, agent: Agent, http: Http, limits: ConnectionLimits) -> None:
        self._agent, self._limits = agent, limits
        self._max_body = int(http.max_body_mb * 1e6)
        self._budget = BodyBudget(max(limits.bodies, 2 * self._max_body))
        self._local = not http.socket and origin.is_local(http.host)
        self._offloading = asyncio.Lock()  # one large document at a time: each takes much memory
        self._loading = asyncio.Lock()
        self._next_load: asyncio.Future[None] | None = None  # has not begun

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request, whatever it is."""
        headers: Headers = scope["headers"]
        body = Body(headers, receive, self._max_body, self._budget, self._limits)
        try:
            try:
                reply = await self._reply(scope, headers, body)
            except EdgeError as error:
                reply = refusal(error)
            except Exception:  # a request's root: the client must hear of it
                log.exception("event=http_failed path=%r", scope["path"])
                reply = refusal(EdgeError("the server failed; its log says why"))
            if not await body.drop():
                reply[1].append((b"connection", b"close"))
            await deliver(reply, send)
        finally:
            body.release()

    async def _reply(self, scope: dict[str, Any], headers: Headers, body: Body) -> Reply:
        self._check_head(scope, headers)
        if self._local:
            origin.check(headers)
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        path = _path(scope["raw_path"])
        if path[:2] == ["v2", "models"] and path[2:] not in ([], ["stats"]):
            return await self._model(method, path[2:], headers, body)
        return await self._server(method, path, body)

    async def _server(self, method: str, path: list[str], body: Body) -> Reply:
        """What concerns no single model."""
        agent = self._agent
        match path:
            case ["v2"]:
                _only("GET", method)
                return document(200, describe.server_metadata())
            case ["v2", "health", "live"]:
                _only("GET", method)
                return document(200, {"live": True})
            case ["v2", "health", "ready"]:
                _only("GET", method)
                ready = agent.ready()
                return document(200 if ready else 503, {"ready": ready})
            case ["v2", "edge", "status"]:
                _only("GET", method)
                return document(200, await asyncio.to_thread(agent.status))
            case ["v2", "models", "stats"]:
                _only("GET", method)
                return document(200, describe.statistics(await asyncio.to_thread(agent.models)))
            case ["v2", "repository", "index"]:
                if method != "GET":  # the protocol says POST
                    _only("POST", method)
                asked = await self._note(body, _Index)
                models = await asyncio.to_thread(agent.models)
                return document(200, describe.repository_index(models, ready=asked.ready))
            case ["v2", "repository", "models", name, "load" | "unload" as verb]:
                _only("POST", method)
                return await self._load(name, verb, await self._note(body, _Load))
        raise Refused(404, f"there is no path {'/'.join(('', *path))!r}"[:200], hint=PATHS)

    async def _model(self, method: str, path: list[str], headers: Headers, body: Body) -> Reply:
        name, version, rest = path[0], "", path[1:]
        if len(rest) >= 2 and rest[0] == "versions":
            version, rest = rest[1], rest[2:]
        verb = "/".join(rest)
        if verb not in ("", "ready", "stats", "infer"):
            raise Refused(404, f"a model has no path {verb!r}"[:200], hint=PATHS)
        _only("POST" if verb == "infer" else "GET", method)
        if verb == "infer":
            return await self._infer(name, version, headers, body)
        model = self._find(name, version)
        if verb == "stats":
            status = await asyncio.to_thread(self._agent.model, name)
            return document(200, describe.statistics((status,)))
        if verb == "ready":
            return document(200, {"name": name, "ready": True})
        return document(200, describe.model_metadata(model))

    def _find(self, name: str, version: str) -> PackagedModel:
        model = self._agent.packaged_model(name)
        if version and version != model.version:
            raise UnknownModel(
                f"'{name}' has no version '{version}'", hint=f"it serves {model.version}"
            )
        return model

    async def _load(self, name: str, verb: str, note: _Load) -> Reply:
        """Serve what is installed now."""
        if verb == "unload" or note.parameters:
            raise InputError(
                f"{verb} with these parameters is not offered: what is installed is served",
                hint="edge-agent install, edge-agent rollback",
            )
        if self._next_load is None:
            self._next_load = asyncio.ensure_future(self._reload())
        await asyncio.shield(self._next_load)
        status = await asyncio.to_thread(self._agent.model, name)
        if status.why:
            raise Unavailable(f"'{name}' cannot be served: {status.why}")
        return document(200, {})

    async def _reload(self) -> None:
        """One at a time; whoever asks before it begins shares it: it takes a thread, and long."""
        async with self._loading:
            self._next_load = None  # what is installed from here on might be missed by this one
            await asyncio.to_thread(self._agent.reload)

    def _check_head(self, scope: dict[str, Any], headers: Headers) -> None:
        size = len(scope["raw_path"]) + len(scope["query_string"])
        size += sum(len(name) + len(value) for name, value in headers)
        if size > self._limits.head or len(headers) > self._limits.headers:
            raise Refused(
                431,
                f"the head has {size} bytes in {len(headers)} headers",
                hint=f"at most {self._limits.head} in {self._limits.headers}",
            )

    async def _note(self, body: Body, kind: type[T]) -> T:
        """A small JSON document; an empty body is the default one."""
        data = await body.read()
        if len(data) > self._limits.note:
            raise TooLarge(f"the body has {len(data)} bytes; limit {self._limits.note}")
        try:
            return msgspec.json.decode(data or b"{}", type=kind)
        except (ValueError, RecursionError) as error:  # MsgspecError is a ValueError
            raise InputError(f"the body is not understood: {error}") from error

    async def _infer(self, name: str, version: str, headers: Headers, body: Body) -> Reply:
        """One inference. The agent counts what it answers and refuses; the rest is counted here."""
        with self._counting_refusals(name):
            model = self._find(name, version)
            request, is_large = await self._read_request(model, headers, body)
        answer = await self._answer(name, request, is_large)
        if version and version != answer.version:
            raise Unavailable(
                f"'{name}' was swapped to {answer.version} meanwhile; not version '{version}'",
                hint="ask again, for the version that is served now or for any",
            )
        as_json = not all(output.binary for output in request.outputs)
        values = sum(
            array.size for array in answer.outputs.values() if as_json or array.dtype == object
        )
        reply_headers, parts = await self._offload(
            values > OFFLOAD // 16, oip.encode, answer, request
        )
        return 200, reply_headers, parts

    @contextmanager
    def _counting_refusals(self, name: str) -> Iterator[None]:
        start = time.perf_counter_ns()
        try:
            yield
        except BaseException as error:
            self._agent.counters.count_error(name, time.perf_counter_ns() - start, error)
            raise

    async def _read_request(
        self, model: PackagedModel, headers: Headers, body: Body
    ) -> tuple[oip.OipRequest, bool]:
        """The request, and whether its arrays are so large that submitting them takes long."""
        for name, value in headers:
            if name == b"content-encoding" and value.lower() not in (b"", b"identity"):
                raise Refused(415, "Content-Encoding is not supported", hint="send it as it is")
        length = oip.json_length(headers)
        data = await body.read(length or 0)
        text_size = len(data) if length is None else length
        has_texts = any(spec.dtype == "string" for spec in model.inputs)
        binary_limit = OFFLOAD_TEXTS if has_texts else OFFLOAD_BINARY
        is_large = text_size > OFFLOAD or len(data) > binary_limit
        request = await self._offload(is_large, oip.parse, data, length, model)
        return request, len(data) > OFFLOAD_BINARY

    async def _answer(self, model: str, request: oip.OipRequest, is_large: bool) -> Answer:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer | EdgeError] = loop.create_future()

        def settle(outcome: Answer | EdgeError) -> None:
            if not future.done():
                future.set_result(outcome)

        def settle_in_loop(outcome: Answer | EdgeError) -> None:
            with suppress(RuntimeError):  # the loop is closed: the server was stopped meanwhile
                loop.call_soon_threadsafe(settle, outcome)

        def submit() -> None:
            self._agent.submit(
                model, request.inputs, settle_in_loop,
                deadline_ms=request.deadline_ms, top=request.top, cache=request.cache, copy=False,
            )  # fmt: skip

        await self._offload(is_large, submit)
        outcome = await future
        if isinstance(outcome, EdgeError):
            raise outcome
        return outcome

    async def _offload(self, is_large: bool, function: Callable[..., T], *arguments: Any) -> T:
        """Call ``function``, on another thread if it would block the event loop."""
        if not is_large:
            return function(*arguments)
        async with self._offloading:
            return await asyncio.to_thread(function, *arguments)


async def refuse_connection(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """The application of a connection beyond the limit."""
    reply = refusal(
        Unavailable("too many connections", hint="close some, or raise http.max_connections")
    )
    reply[1].append((b"connection", b"close"))
    await Body(scope["headers"], receive, 0, BodyBudget(0), DEFAULT).drop()
    await deliver(reply, send)


class _Index(msgspec.Struct, frozen=True):
    ready: bool = False


class _Load(msgspec.Struct, frozen=True):
    parameters: dict[str, msgspec.Raw] = {}


PATHS = (
    "/v2, /v2/health/live, /v2/health/ready, /v2/models/NAME[/versions/VERSION][/ready, /stats or "
    "/infer], /v2/models/stats, /v2/repository/index, /v2/repository/models/NAME/load, "
    "/v2/edge/status"
)


def _path(raw: bytes) -> list[str]:
    """The decoded segments of a path; a slash within one does not part it."""
    try:
        segments = [
            unquote(segment, errors="strict") for segment in raw.decode("ascii").split("/")[1:]
        ]
    except UnicodeDecodeError as error:
        raise Refused(404, "the path is not UTF-8") from error
    return segments[:-1] if segments[-1:] == [""] else segments


def _only(allowed: str, method: str) -> None:
    if method != allowed:
        raise Refused(405, f"this path takes {allowed}", allow=allowed)
