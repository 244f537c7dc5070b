"""What goes out: documents, refusals with their status, and the sending of both."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from agent.http.body import TooSlow
from agent.http.oip import Headers, Part, TooLarge
from edge_core.errors import (
    DeadlineExceeded,
    EdgeError,
    InputError,
    MissingExtra,
    Overloaded,
    StorageError,
    Unavailable,
    UnknownModel,
)

Send = Callable[[dict[str, Any]], Awaitable[None]]
Reply = tuple[int, Headers, list[Part]]

JOIN = 64 * 1024  # bytes; a smaller response is one write


class Refused(InputError):
    """A request that is no part of the protocol, with its status."""

    def __init__(self, status: int, what: str, *, hint: str = "", allow: str = "") -> None:
        super().__init__(what, hint=hint)
        self.status, self.allow = status, allow


# The first that fits; anything else is a failure of ours, 500.
STATUS: tuple[tuple[type[EdgeError], int], ...] = (
    (UnknownModel, 404),
    (TooLarge, 413),
    (TooSlow, 408),
    (InputError, 400),
    (Overloaded, 429),
    (Unavailable, 503),
    (MissingExtra, 503),
    (StorageError, 503),
    (DeadlineExceeded, 504),
)


def document(status: int, value: object) -> Reply:
    """A value as JSON."""
    raw = msgspec.json.encode(value)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(raw))]
    return status, headers, [raw]


def refusal(error: EdgeError) -> Reply:
    """The response that tells an error."""
    status = next((s for kind, s in STATUS if isinstance(error, kind)), 500)
    reply = document(
        error.status if isinstance(error, Refused) else status,
        {"error": f"{error.what}; {error.hint}" if error.hint else error.what},
    )
    if isinstance(error, Refused) and error.allow:
        reply[1].append((b"allow", error.allow.encode()))
    elif status in (429, 503):
        reply[1].append((b"retry-after", b"1"))
    return reply


async def deliver(reply: Reply, send: Send) -> None:
    """Hand a reply to the server, large parts one by one."""
    status, headers, parts = reply
    await send({"type": "http.response.start", "status": status, "headers": headers})
    if sum(map(len, parts)) <= JOIN:
        parts = [b"".join(parts)]
    for part in parts[:-1]:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": parts[-1]})
