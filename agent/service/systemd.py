"""Telling systemd what the agent does: one datagram a message, as sd_notify(3) describes.

    notifier = Notifier(os.environ)
    notifier.ready("serving 2 models")       notifier.alive()       notifier.stopping()

Without NOTIFY_SOCKET every message goes nowhere. A socket that went away is not an error: the
service manager is restarting, and the next message reaches it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress

MAX_STATUS = 200  # characters


class Notifier:
    """The service manager's socket, if there is one."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self.watchdog_s = _watchdog_s(environ)  # 0.0: no pings are expected

    @property
    def has_listener(self) -> bool:
        """Was the process started by a service manager that wants to know?"""
        return bool(self._address)

    def ready(self, status: str) -> None:
        """The start, or a reload, is done."""
        self._send("READY=1", _status(status))

    def status(self, status: str) -> None:
        """One line for `systemctl status`."""
        self._send(_status(status))

    def reloading(self) -> None:
        """A reload begins; ready() ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The stop begins."""
        self._send("STOPPING=1", _status("finishing requests"))

    def alive(self) -> None:
        """The watchdog's ping; due every ``watchdog_s`` at the latest."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        # "@name" is an abstract socket: its address starts with a zero byte.
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify_socket, suppress(OSError):
            notify_socket.settimeout(1.0)  # a full queue must not stop the agent
            notify_socket.sendto("\n".join(lines).encode(), address)


def _status(text: str) -> str:
    return f"STATUS={' '.join(text.split())[:MAX_STATUS]}"


def _watchdog_s(environ: Mapping[str, str]) -> float:
    """Seconds after which the service manager gives this process up; 0.0: never."""
    microseconds, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or pid not in ("", str(os.getpid())):
        return 0.0
    return int(microseconds) / 1e6
