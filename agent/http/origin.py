"""Who asks? A server for this device alone answers no web page of another host. No I/O.

A page that a browser on this device shows may send requests to 127.0.0.1: across sites, with its
own name in Origin, or under a name of its own that it lets point here (DNS rebinding), with that
name in Host. https://fetch.spec.whatwg.org/#origin-header, RFC 9110 section 7.2.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from agent.http.replies import Refused

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:/@]+)(:[0-9]*)?")


def is_local(host: str) -> bool:
    """Is it a name or an address of this device for itself?"""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raise Refused (403) for a Host or an Origin that is not this device."""
    for name, value in headers:
        if name == b"host":
            host = value.decode("latin-1")
        elif name == b"origin":
            host = value.decode("latin-1").partition("://")[2]  # "null" has none
        else:
            continue
        match = _HOST.fullmatch(host)
        if not match or not is_local(match[1]):
            raise Refused(
                403,
                f"{name.decode().capitalize()} is {value.decode('latin-1')!r}"[:200],
                hint="here only localhost and its addresses are served; http.host says where",
            )
