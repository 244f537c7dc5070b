"""What the service manager hears, on real datagram sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.service.systemd import MAX_STATUS, Notifier


@contextmanager
def manager(address: str) -> Iterator[socket.socket]:
    """The service manager's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(5)
        yield listener


def receive_message(listener: socket.socket) -> dict[str, str]:
    return dict(line.split("=", 1) for line in listener.recv(4096).decode().splitlines())


@pytest.mark.parametrize("kind", ["file", "abstract"])
def test_every_message_reaches_the_manager(kind: str, tmp_path: Path):
    name = f"edge-agent-test-{os.getpid()}"
    path = str(tmp_path / "notify") if kind == "file" else f"@{name}"
    with manager(path if kind == "file" else f"\0{name}") as listener:
        notifier = Notifier({"NOTIFY_SOCKET": path})
        assert notifier.has_listener
        notifier.ready("serving 2 models")
        assert receive_message(listener) == {"READY": "1", "STATUS": "serving 2 models"}
        notifier.status("busy")
        assert receive_message(listener) == {"STATUS": "busy"}
        notifier.reloading()
        message = receive_message(listener)
        assert message.pop("RELOADING") == "1"
        assert int(message["MONOTONIC_USEC"]) > 0
        notifier.alive()
        assert receive_message(listener) == {"WATCHDOG": "1"}
        notifier.stopping()
        assert receive_message(listener)["STOPPING"] == "1"


def test_a_status_is_one_line_and_cannot_add_a_field(tmp_path: Path):
    with manager(str(tmp_path / "s")) as listener:
        Notifier({"NOTIFY_SOCKET": str(tmp_path / "s")}).status("a\nMAINPID=1\n" + "b" * 999)
        (line,) = listener.recv(4096).decode().splitlines()
        assert line.startswith("STATUS=a MAINPID=1 bbb")
        assert len(line) == len("STATUS=") + MAX_STATUS


def test_without_a_manager_nothing_is_sent_and_nothing_is_expected():
    notifier = Notifier({})
    notifier.ready("")
    assert (notifier.has_listener, notifier.watchdog_s) == (False, 0.0)


def test_a_manager_that_went_away_does_not_stop_the_agent(tmp_path: Path):
    path = str(tmp_path / "s")
    notifier = Notifier({"NOTIFY_SOCKET": path})
    with manager(path) as listener:
        notifier.alive()
        assert receive_message(listener) == {"WATCHDOG": "1"}
    notifier.alive()  # nobody listens
    Path(path).unlink()
    notifier.alive()  # nothing is there


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, 0.0),  # meant for another process
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({}, 0.0),
    ],
)
def test_the_watchdog_is_as_the_manager_says(environ: dict[str, str], seconds: float):
    assert Notifier(environ).watchdog_s == seconds
