"""Closed loops: a client sends its next request when it has its answer.

    run(address, request, clients=8, seconds=5.0) -> Load    over HTTP
    threads(call, clients=8, seconds=5.0) -> Load            in this process, a thread each

HTTP clients are another process with one thread, and keep their connections. All servers get the
same clients; only the bytes of the request differ.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httptools
import msgspec
import numpy as np

WARM_UP_S = 0.5
STUCK_S = 60.0  # without any answer


class Load(msgspec.Struct, frozen=True):
    """What the clients saw."""

    clients: int
    seconds: float
    ms: tuple[float, ...]  # of each request that was answered with 200
    failed: int

    @property
    def per_s(self) -> float:
        return len(self.ms) / self.seconds

    def quantile(self, share: float) -> float:
        """Milliseconds; infinite if nothing was answered."""
        return float(np.quantile(self.ms, share)) if self.ms else float("inf")


def pool_loads(loads: list[Load]) -> Load:
    """Several rounds of the same load as one."""
    return Load(
        loads[0].clients,
        sum(load.seconds for load in loads),
        tuple(ms for load in loads for ms in load.ms),
        sum(load.failed for load in loads),
    )


def post(url: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """One request as it goes over the wire; HTTP/1.1 keeps the connection."""
    parts = urlsplit(url)
    lines = {
        "Host": parts.netloc,
        "Accept": "*/*",
        **headers,
        "Content-Length": str(len(body)),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {parts.path} HTTP/1.1\r\n{head}\r\n".encode() + body


def run(address: tuple[str, int], request: bytes, *, clients: int, seconds: float) -> Load:
    """Put a load on a server from another process."""
    host, port = address
    with tempfile.NamedTemporaryFile(prefix="edge-load-") as file:
        file.write(request)
        file.flush()
        what = [host, str(port), file.name, str(clients), str(seconds)]
        command = [sys.executable, "-m", "benchmarks.load", *what]
        done = subprocess.run(
            command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        raise SystemExit(f"the clients failed:\n{done.stderr}")
    return msgspec.json.decode(done.stdout, type=Load)


def threads(call: Callable[[], object], *, clients: int, seconds: float) -> Load:
    """Put a load on a function; what it raises ends the load and is raised here."""
    start = time.perf_counter_ns() + int(WARM_UP_S * 1e9)
    end = start + int(seconds * 1e9)

    def client() -> list[float]:
        ms: list[float] = []
        while (since := time.perf_counter_ns()) < end:
            call()
            now = time.perf_counter_ns()
            if start <= now <= end:
                ms.append((now - since) / 1e6)
        return ms

    with ThreadPoolExecutor(clients) as pool:
        found = [pool.submit(client) for _ in range(clients)]
        return Load(clients, seconds, tuple(ms for future in found for ms in future.result()), 0)


class Client:
    """One connection; the selector's key."""

    def __init__(self, address: tuple[str, int], request: bytes) -> None:
        self._address, self._request = address, memoryview(request)
        self.connect()

    def connect(self) -> None:
        self.socket = socket.create_connection(self._address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self._parser = httptools.HttpResponseParser(self)

    def begin(self, now: int) -> None:
        self.since, self.complete = now, False
        self._left = self._request

    def send(self) -> bool:
        """Is all of the request sent?"""
        while self._left:
            try:
                self._left = self._left[self.socket.send(self._left) :]
            except BlockingIOError:
                return False
        return True

    def receive(self) -> bool:
        """Is the answer complete? Raises ConnectionError if the server hung up."""
        try:
            data = self.socket.recv(262_144)
        except BlockingIOError:
            return False
        if not data:
            raise ConnectionResetError("the server closed the connection")
        self._parser.feed_data(data)
        return self.complete

    @property
    def status(self) -> int:
        return int(self._parser.get_status_code())

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self.complete = True


def run_closed_loop(
    address: tuple[str, int], request: bytes, *, clients: int, seconds: float
) -> Load:
    """Run the clients in this process."""
    selector = selectors.DefaultSelector()
    ms: list[float] = []
    failed = 0
    start = time.perf_counter_ns() + int(WARM_UP_S * 1e9)
    end = start + int(seconds * 1e9)

    def begin(client: Client) -> None:
        client.begin(time.perf_counter_ns())
        watch(client)

    def watch(client: Client) -> None:
        sent = client.send()
        wanted = selectors.EVENT_READ | (0 if sent else selectors.EVENT_WRITE)
        if selector.get_key(client.socket).events != wanted:
            selector.modify(client.socket, wanted, client)

    all_clients = [Client(address, request) for _ in range(clients)]
    for client in all_clients:
        selector.register(client.socket, selectors.EVENT_READ, client)
        begin(client)
    while (now := time.perf_counter_ns()) < end:
        ready = selector.select(timeout=STUCK_S)
        if not ready:
            raise SystemExit(f"no answer within {STUCK_S:g} s")
        for key, events in ready:
            client = key.data
            try:
                if events & selectors.EVENT_WRITE:
                    watch(client)
                if not events & selectors.EVENT_READ or not client.receive():
                    continue
                now = time.perf_counter_ns()
                if start <= now <= end:
                    if client.status == 200:
                        ms.append((now - client.since) / 1e6)
                    else:
                        failed += 1
            except ConnectionError:
                failed += 1
                selector.unregister(client.socket)
                client.socket.close()
                client.connect()
                selector.register(client.socket, selectors.EVENT_READ, client)
            begin(client)
    for client in all_clients:
        client.socket.close()
    selector.close()
    return Load(clients, seconds, tuple(ms), failed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("request", type=Path, help="the bytes of one request")
    parser.add_argument("clients", type=int)
    parser.add_argument("seconds", type=float)
    given = parser.parse_args()
    load = run_closed_loop(
        (given.host, given.port), given.request.read_bytes(),
        clients=given.clients, seconds=given.seconds,
    )  # fmt: skip
    json.dump(msgspec.to_builtins(load), sys.stdout)


if __name__ == "__main__":
    main()
