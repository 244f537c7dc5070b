"""What one connection may cost: uvicorn's protocol with bounds that it does not have.

uvicorn waits for ever for a request's head, keeps whatever its parser keeps of it, and writes to a
client that does not read until it does. A ConnectionGuard closes such connections; the App sees
whole heads only, and bounds bodies itself.
"""

from __future__ import annotations

import asyncio
from typing import Any

from agent.http.app import refuse_connection
from agent.http.body_buffer import BodyBuffer
from agent.http.limits import ConnectionLimits

GATHER = 1_000_000  # bytes of a body that come together before the application is woken ...
GATHER_ALL = 32_000_000  # ... and of all connections


class ConnectionGuard(asyncio.Protocol):
    """Mixed into one of uvicorn's HTTP protocols, which has these attributes."""

    limits: ConnectionLimits
    max_connections: int  # that are served
    max_body: int  # bytes
    app: Any  # called with each request
    connections: set[Any]
    cycle: Any  # the request in progress, or the last one

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection, refuse it or cut it."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._since: float | None = self._loop.time()  # a head is awaited
        self._head_size = 0  # bytes of a head
        self._unsent, self._moved = 0, 0.0  # bytes to be written, and since when so many
        super().connection_made(transport)
        if len(self.connections) > self.max_connections + self.limits.spare:
            transport.abort()
        elif len(self.connections) > self.max_connections:
            self.app = refuse_connection

    def data_received(self, data: bytes) -> None:
        """Pass bytes on, unless they are part of an endless head."""
        if self._since is None and self._idle:
            self._since = self._loop.time()
        super().data_received(data)
        if not self._idle:
            self._since, self._head_size = None, 0
            return
        self._head_size += len(data)
        if self._head_size > 2 * self.limits.head:  # the application refuses whole ones
            self._transport.abort()

    def on_body(self, body: bytes) -> None:
        """httptools found a piece of a body: keep it until there are enough of them.

        600 KB come in four pieces; waking the application for each of them, and copying each
        twice, costs 0.1 ms.
        """
        cycle = self.cycle
        share = min(GATHER, GATHER_ALL // max(1, len(self.connections)), self.max_body)
        if len(cycle.body) + len(body) > share:
            super().on_body(body)  # type: ignore[misc]  # with h11 nobody calls this
        elif not cycle.response_complete:
            if not cycle.body:
                cycle.body = BodyBuffer()
            cycle.body += body

    def check(self, now: float) -> None:
        """Cut the connection if it has taken too long; called every second or so."""
        unsent = self._transport.get_write_buffer_size()
        if unsent != self._unsent:
            self._unsent, self._moved = unsent, now
        late = self._since is not None and now - self._since > self.limits.head_s
        if late or (unsent and now - self._moved > self.limits.stuck_s):
            self._transport.abort()

    @property
    def _idle(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)
