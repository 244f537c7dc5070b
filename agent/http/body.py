"""The body of one HTTP request, read within bounds of bytes and time.

body = Body(headers, receive, limit, held)
data = await body.read(lead)      one buffer; the byte at ``lead`` has an aligned address
await body.drop()                 so that a refused client can read why
body.free()                       the caller needs the bytes no more
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from agent.http.oip import Headers, TooLarge
from edge_core.errors import EdgeError, InputError, Unavailable

Receive = Callable[[], Awaitable[dict[str, Any]]]

READ_S = 60.0  # for a whole body; 64 MB at 9 Mbit/s
DROP_S = 2.0  # for what is left of a refused one
ALIGNMENT = 64  # bytes; of the widest vector registers


class Gone(EdgeError):
    """The client closed the connection before its request was complete."""


class TooSlow(InputError):
    """The body did not come in time."""


class Held:
    """Bytes of all bodies that are in memory at this moment."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.now = 0

    def take(self, size: int) -> None:
        """Count bytes in; raises Unavailable when they would be too many."""
        if self.now + size > self.most:
            raise Unavailable(f"other requests hold {self.now} of {self.most} bytes for bodies")
        self.now += size


class Body:
    """One request's body. Raises TooLarge at once if the headers announce more than ``limit``."""

    def __init__(self, headers: Headers, receive: Receive, limit: int, held: Held) -> None:
        self._receive, self._limit, self._held = receive, limit, held
        self._size = 0  # bytes counted in ``held``
        self._parts: list[bytes] = []
        names = dict(headers)
        self._length = int(names.get(b"content-length", b"0"))
        self._ended = not self._length and b"transfer-encoding" not in names
        self._announced = b"expect" in names

    async def read(self, lead: int = 0) -> memoryview:
        """The whole body. Raises TooLarge, TooSlow, Unavailable, Gone."""
        if self._length > self._limit:
            raise self._too_large(self._length)
        try:
            await asyncio.wait_for(self._collect(), READ_S)
        except asyncio.TimeoutError:
            raise TooSlow(f"{self._size} bytes of the body came in {READ_S:.0f} s") from None
        return joined(self._parts, self._size, lead)

    async def drop(self) -> bool:
        """Read and forget the rest, for a moment; has all of it come?

        Closing a connection with unread bytes would take the answer away from the client.
        """
        self.free()
        if self._announced and not self._size:
            return self._ended  # it waits for our word before it sends
        try:
            await asyncio.wait_for(self._forget(), DROP_S)
        except (asyncio.TimeoutError, Gone):
            return False
        return True

    def free(self) -> None:
        """Forget what was read; its arrays may live on for a while."""
        self._parts.clear()
        self._held.now -= self._size
        self._size = 0

    async def _collect(self) -> None:
        while not self._ended:
            part = await self._next()
            if self._size + len(part) > self._limit:
                raise self._too_large(self._size + len(part))
            self._held.take(len(part))
            self._size += len(part)
            self._parts.append(part)

    async def _forget(self) -> None:
        while not self._ended:
            await self._next()

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] != "http.request":
            raise Gone("the client went away")
        self._ended = not message.get("more_body", False)
        part: bytes = message.get("body", b"")
        return part

    def _too_large(self, size: int) -> TooLarge:
        return TooLarge(
            f"the body has {size} bytes or more; limit {self._limit}",
            hint="send less at once, or raise http.max_body_mb",
        )


def joined(parts: list[bytes], size: int, lead: int) -> memoryview:
    """All parts in one buffer; the byte at ``lead`` lies at a multiple of ALIGNMENT."""
    space = np.empty(size + ALIGNMENT, np.uint8)
    start = -(space.__array_interface__["data"][0] + lead) % ALIGNMENT
    data = space[start : start + size].data
    at = 0
    for part in parts:
        data[at : at + len(part)] = part
        at += len(part)
    return data
