"""What one client may cost the server. Sizes of requests are in the configuration ([http])."""

from __future__ import annotations

import msgspec


class ConnectionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds and bytes."""

    head_s: float = 10.0  # from a connection, or a request's first byte, to the end of its head
    body_s: float = 60.0  # for a whole body; 64 MB at 9 Mbit/s
    drop_s: float = 2.0  # for what is left of a refused body
    stuck_s: float = 30.0  # until a client reads on
    keep_alive_s: int = 75  # between two requests
    grace_s: int = 10  # for answers that are under way when the server stops
    head: int = 32 * 1024  # bytes of request line and headers
    headers: int = 100
    note: int = 64 * 1024  # bytes of a body that is no inference request
    bodies: int = 128_000_000  # bytes of all bodies together, if twice the largest one is less
    spare: int = 32  # connections beyond the limit that are told 503; any more are cut


DEFAULT = ConnectionLimits()
