"""The body of one HTTP request, read within bounds of bytes and time.

body = Body(headers, receive, max_bytes, budget, limits)
data = await body.read(offset)    one buffer; the byte at ``offset`` has an aligned address
await body.drop()                 so that a refused client can read why
body.release()                     the caller needs the bytes no longer
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from agent.http.body_buffer import BodyBuffer
from agent.http.limits import ConnectionLimits
from agent.http.oip import Headers, TooLarge
from edge_core.errors import EdgeError, InputError, Unavailable

Receive = Callable[[], Awaitable[dict[str, Any]]]


class ClientGone(EdgeError):
    """The client closed the connection before its request was complete."""


class TooSlow(InputError):
    """The body did not arrive in time."""


class BodyBudget:
    """Bytes of all bodies that are in memory at this moment."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used = 0

    def reserve(self, size: int) -> None:
        """Count bytes in; raises Unavailable when they would be too many."""
        if self.used + size > self.max_bytes:
            raise Unavailable(
                f"other requests hold {self.used} of {self.max_bytes} bytes for bodies"
            )
        self.used += size


class Body:
    """One request's body of at most ``max_bytes`` bytes."""

    def __init__(
        self,
        headers: Headers,
        receive: Receive,
        max_bytes: int,
        budget: BodyBudget,
        limits: ConnectionLimits,
    ) -> None:
        self._receive, self._max_bytes, self._budget, self._limits = (
            receive,
            max_bytes,
            budget,
            limits,
        )
        self._buffer = BodyBuffer()
        self._counted = 0  # bytes in the budget
        names = dict(headers)
        length = names.get(b"content-length", b"")
        self._length = int(length) if length.isdigit() else 0  # the parser refuses others
        self._ended = not self._length and b"transfer-encoding" not in names
        self._waits_for_continue = b"expect" in names

    async def read(self, aligned_offset: int = 0) -> memoryview:
        """The whole body. Raises TooLarge, TooSlow, Unavailable, ClientGone."""
        if self._length > self._max_bytes:
            raise self._too_large(self._length)
        async with _Timer(self._limits.body_s) as timer:
            await self._collect()
        if timer.expired:
            raise TooSlow(f"{self._counted} bytes of the body arrived in {self._limits.body_s:g} s")
        data = self._buffer.join(aligned_offset)
        self._buffer.clear()
        return data

    async def drop(self) -> bool:
        """Read and discard the rest, for a moment; has all of it arrived?

        Closing a connection with unread bytes would take the answer away from the client.
        """
        if self._ended:
            return True
        if self._waits_for_continue and not self._counted:
            return False  # it sends nothing before we ask for it
        self.release()
        with suppress(ClientGone):
            async with _Timer(self._limits.drop_s):
                await self._discard()
        return self._ended

    def release(self) -> None:
        """Forget what was read; its arrays may live on for a while."""
        self._buffer.clear()
        self._budget.used -= self._counted
        self._counted = 0

    async def _collect(self) -> None:
        while not self._ended:
            part = await self._next()
            if self._counted + len(part) > self._max_bytes:
                raise self._too_large(self._counted + len(part))
            self._budget.reserve(len(part))
            self._counted += len(part)
            self._buffer += part

    async def _discard(self) -> None:
        while not self._ended:
            await self._next()

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] != "http.request":
            raise ClientGone("the client went away")
        self._ended = not message.get("more_body", False)
        part: bytes = message.get("body", b"")
        return part

    def _too_large(self, size: int) -> TooLarge:
        return TooLarge(
            f"the body has {size} bytes or more; limit {self._max_bytes}",
            hint="send less at once, or raise http.max_body_mb",
        )


class _Timer:
    """Ends its block after some seconds. asyncio.timeout() is not in Python 3.10, and wait_for()
    makes a task, which costs 30 us a request.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.expired = False

    async def __aenter__(self) -> _Timer:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._handle = asyncio.get_running_loop().call_later(self._seconds, self._expire)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self._handle.cancel()
        if not self.expired or kind is not asyncio.CancelledError:
            return False
        if hasattr(self._task, "uncancel"):  # Python 3.11
            return bool(self._task.uncancel() == 0)  # else somebody else cancels too
        return True

    def _expire(self) -> None:
        self.expired = True
        self._task.cancel()
