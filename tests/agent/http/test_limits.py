"""What a bad client can do to the server: nothing that lasts."""

from __future__ import annotations

import http.client
import json
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from agent import Agent
from agent.http.limits import ConnectionLimits
from agent.http.wire import datatype
from agent.service import client
from agent.service.instance_lock import Instance
from tests.agent import http_server

QUICK = ConnectionLimits(head_s=0.5, body_s=0.5, drop_s=0.5, stuck_s=0.5, keep_alive_s=1)
LIMIT_MB = 0.4
LIMIT = 400_000
INFER = "POST /v2/models/dense/infer HTTP/1.1\r\nHost: localhost\r\n"
DOCUMENT = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
).encode()
VALID = INFER.encode() + b"Content-Length: %d\r\n\r\n" % len(DOCUMENT) + DOCUMENT


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("agent")
    for make in (http_server.dense, http_server.echo, http_server.slow):
        http_server.install(root, make(tmp_path_factory.mktemp("package")))
    return root


@pytest.fixture(scope="module")
def agent_and_address(root: Path) -> Iterator[tuple[Agent, str]]:
    """A server with little patience; it must be well after every test."""
    with http_server.serving(root, limits=QUICK, max_body_mb=LIMIT_MB, max_connections=4) as both:
        yield both


@pytest.fixture
def address(agent_and_address: tuple[Agent, str]) -> Iterator[str]:
    yield agent_and_address[1]
    with connect(agent_and_address[1]) as sock:
        assert exchange(sock, VALID)[0] == 200


def connect(address: str) -> socket.socket:
    host, port = address.rsplit(":", 1)
    sock = socket.create_connection((host, int(port)), timeout=10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def answer(sock: socket.socket) -> tuple[int, dict[str, str], bytes]:
    response = http.client.HTTPResponse(sock)
    response.begin()
    with response:
        return (
            response.status,
            {name.lower(): value for name, value in response.getheaders()},
            response.read(),
        )


def exchange(sock: socket.socket, raw: bytes) -> tuple[int, dict[str, str], bytes]:
    sock.sendall(raw)
    return answer(sock)


def send_pieces(sock: socket.socket, pieces: list[bytes], pause_s: float = 0.0) -> int:
    """How many pieces could be sent before the server cut the connection."""
    done = 0
    with suppress(ConnectionError):
        for piece in pieces:
            sock.sendall(piece)
            done += 1
            time.sleep(pause_s)
    return done


def count_received(sock: socket.socket) -> int:
    """How many bytes come until the server closes the connection, in whatever way."""
    byte_count = 0
    with suppress(ConnectionError):
        while piece := sock.recv(1 << 20):
            byte_count += len(piece)
    return byte_count


def seconds_to_the_end(sock: socket.socket) -> float:
    """How long until the server closes the connection."""
    start = time.monotonic()
    count_received(sock)
    return time.monotonic() - start


def test_nobody_but_this_machine_is_served_by_default(address):
    host, port = address.split(":")
    assert host == "127.0.0.1"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", int(port)), timeout=5)


def test_a_body_that_is_announced_too_large_is_refused_before_it_comes(address):
    with connect(address) as sock:
        start = time.monotonic()
        status, headers, body = exchange(
            sock, f"{INFER}Content-Length: 1{'0' * 12}\r\n\r\n".encode()
        )
        assert time.monotonic() - start < 2
    assert (status, headers["connection"]) == (413, "close")
    assert f"limit {LIMIT}" in json.loads(body)["error"]


def test_a_client_that_sends_too_much_all_the_same_reads_why(address):
    pixels = np.zeros((1, 150_528), np.float32)
    with triton.InferenceServerClient(address) as client:
        tensor_input = triton.InferInput("x", list(pixels.shape), "FP32").set_data_from_numpy(
            pixels
        )
        with pytest.raises(InferenceServerException, match=r"\[413\].*limit 400000"):
            client.infer("dense", [tensor_input])


def test_a_client_that_asks_before_it_sends_is_refused_at_once(address):
    head = f"{INFER}Content-Length: {LIMIT + 1}\r\nExpect: 100-continue\r\n\r\n"
    with connect(address) as sock:
        sock.sendall(head.encode())
        assert sock.recv(12) == b"HTTP/1.1 413"
    head = f"{INFER}Content-Length: {len(DOCUMENT)}\r\nExpect: 100-continue\r\n\r\n"
    with connect(address) as sock:
        sock.sendall(head.encode())
        assert sock.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert exchange(sock, DOCUMENT)[0] == 200


def test_a_chunked_body_is_counted_while_it_comes(address):
    chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    with connect(address) as sock:
        sock.sendall(f"{INFER}Transfer-Encoding: chunked\r\n\r\n".encode())
        sock.sendall(chunk * (LIMIT // 0x8000 + 2))
        assert answer(sock)[0] == 413
    whole = b"%x\r\n%s\r\n0\r\n\r\n" % (len(DOCUMENT), DOCUMENT)
    with connect(address) as sock:
        assert (
            exchange(sock, f"{INFER}Transfer-Encoding: chunked\r\n\r\n".encode() + whole)[0] == 200
        )


def test_all_bodies_together_are_bounded(root):
    """Of four bodies of 3 MB, of which 0.1 MB are missing, some do not fit in 6 MB."""
    size = 3_000_000
    limits = ConnectionLimits(bodies=1, drop_s=0.1)  # twice the largest body counts
    with http_server.serving(root, limits=limits, max_body_mb=3) as (_, address):
        with ExitStack() as stack:
            clients = [stack.enter_context(connect(address)) for _ in range(4)]
            for sock in clients:
                sock.sendall(
                    f"{INFER}Content-Length: {size}\r\n\r\n".encode() + b" " * (size - 10**5)
                )
            readable, _, _ = select.select(clients, [], [], 5)
            status, headers, body = answer(readable[0])
            assert (status, headers["retry-after"]) == (503, "1")
            assert "bytes for bodies" in json.loads(body)["error"]
            assert len(readable) < 4
        with connect(address) as sock:
            assert exchange(sock, VALID)[0] == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (f"GET /v2 HTTP/1.1\r\nA: {'a' * 40_000}\r\n\r\n", 431),
        (f"GET /v2/{'a' * 40_000} HTTP/1.1\r\n\r\n", 431),
        (f"GET /v2?{'a' * 40_000} HTTP/1.1\r\n\r\n", 431),
        ("GET /v2 HTTP/1.1\r\n" + "A: b\r\n" * 101 + "\r\n", 431),
        (f"GET /v2 HTTP/1.1\r\nA: {'a' * 20_000}\r\n\r\n", 200),
    ],
)
def test_a_large_head_is_refused(address, head, status):
    with connect(address) as sock:
        assert exchange(sock, head.encode())[0] == status


@pytest.mark.parametrize("piece", [b"A: b\r\n", b"a"])
def test_an_endless_head_is_cut_before_it_fills_the_memory(address, piece):
    with connect(address) as sock:
        sock.sendall(b"GET /v2 HTTP/1.1\r\nA: ")
        assert send_pieces(sock, [piece * (4096 // len(piece))] * 1000) < 1000


def test_a_head_that_trickles_in_is_cut_after_its_time(address):
    with connect(address) as sock:
        start = time.monotonic()
        letters = [bytes([byte]) for byte in b"GET /v2 HTTP/1.1\r\nA: " + b"a" * 1000]
        assert send_pieces(sock, letters, pause_s=0.05) < 1000
    assert QUICK.head_s <= time.monotonic() - start < QUICK.head_s + 3


def test_a_second_head_on_a_kept_connection_has_no_more_time(address):
    with connect(address) as sock:
        assert exchange(sock, VALID)[0] == 200
        sock.sendall(b"GET /v2")
        assert seconds_to_the_end(sock) < QUICK.head_s + 3


def test_a_connection_that_says_nothing_is_closed(address):
    with connect(address) as sock:
        assert seconds_to_the_end(sock) < QUICK.head_s + 3
    with connect(address) as sock:
        assert exchange(sock, VALID)[0] == 200
        assert seconds_to_the_end(sock) < QUICK.keep_alive_s + 3


def test_a_body_that_trickles_in_gets_408(address):
    with connect(address) as sock:
        sock.sendall(f"{INFER}Content-Length: 1000\r\n\r\n".encode())
        for _ in range(4):
            sock.sendall(b" ")
            time.sleep(0.05)
        start = time.monotonic()
        status, headers, _ = answer(sock)
        assert time.monotonic() - start < QUICK.body_s + QUICK.drop_s + 2
    assert (status, headers["connection"]) == (408, "close")


def test_a_client_that_does_not_read_its_answer_is_cut(root):
    """16 MB of it, which no buffer of a socket holds."""
    rows = 2_000_000
    inputs, tail = [], b""
    for dtype in http_server.ONNX_TYPES:
        row_count = rows if dtype == "float32" else 0
        size = row_count * 2 * 4
        inputs.append(
            {"name": f"in_{dtype}", "shape": [row_count, 2],
             "datatype": datatype(dtype), "parameters": {"binary_data_size": size}}
        )  # fmt: skip
        tail += b"\0" * size
    document = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    head = (
        f"POST /v2/models/echo/infer HTTP/1.1\r\nHost: localhost\r\n"
        f"Inference-Header-Content-Length: {len(document)}\r\n"
        f"Content-Length: {len(document) + len(tail)}\r\n\r\n"
    )
    limits = ConnectionLimits(stuck_s=0.5)
    with http_server.serving(root, limits=limits) as (_, address):
        with connect(address) as sock:
            sock.sendall(head.encode() + document + tail)
            time.sleep(4)
            assert sock.recv(12) == b"HTTP/1.1 200"
            assert count_received(sock) < len(tail)
        with connect(address) as sock:  # whoever reads gets everything
            status, _, body = exchange(sock, head.encode() + document + tail)
            assert status == 200
            assert len(body) > len(tail)


def test_more_connections_than_allowed_get_503_and_the_others_go_on(address):
    with ExitStack() as stack:
        first = [stack.enter_context(connect(address)) for _ in range(4)]
        assert [exchange(sock, VALID)[0] for sock in first] == [200] * 4
        fifth = stack.enter_context(connect(address))
        status, headers, body = exchange(fifth, VALID)
        assert (status, headers["connection"]) == (503, "close")
        assert "too many connections" in json.loads(body)["error"]
        assert [exchange(sock, VALID)[0] for sock in first] == [200] * 4
    with connect(address) as sock:
        assert exchange(sock, VALID)[0] == 200


def test_a_flood_of_connections_is_cut_and_does_not_take_the_served_ones_down(address):
    with ExitStack() as stack:
        first = stack.enter_context(connect(address))
        assert exchange(first, VALID)[0] == 200
        flood = [stack.enter_context(connect(address)) for _ in range(60)]
        time.sleep(0.2)
        cut = 0
        for sock in flood:
            sock.setblocking(False)
            try:
                cut += sock.recv(1) == b""
            except BlockingIOError:
                pass
            except ConnectionError:
                cut += 1
        assert cut >= 60 - QUICK.spare - 4
        assert exchange(first, VALID)[0] == 200


def running(address: str) -> Instance:
    return Instance(pid=os.getpid(), address=address, since=0.0)


def test_the_watchdogs_question_is_answered_however_many_connections_there_are(agent_and_address):
    _, where = agent_and_address
    here = running(f"http://{where}")
    for more in (4, 4 + QUICK.spare, 160):  # served, told 503, cut
        with ExitStack() as stack:
            flood = [stack.enter_context(connect(where)) for _ in range(more)]
            assert client.is_live(here, 2), len(flood)


def test_a_server_that_takes_no_connection_is_not_alive():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        host, port = listener.getsockname()
        assert not client.is_live(running(f"http://{host}:{port}"), 0.3)  # refused
        listener.listen(8)  # the system takes connections; nobody answers
        assert not client.is_live(running(f"http://{host}:{port}"), 0.3)


def test_a_million_texts_do_not_hold_the_event_loop_up(root):
    rows = 2**19
    inputs, tail = [], b""
    for dtype in http_server.ONNX_TYPES:
        row_count = rows if dtype == "string" else 0
        size = {"binary_data_size": row_count * 2 * 4}
        inputs.append(
            {
                "name": f"in_{dtype}",
                "shape": [row_count, 2],
                "datatype": datatype(dtype),
                "parameters": size,
            }
        )
        tail += b"\0" * size["binary_data_size"]
    document = json.dumps(
        {"inputs": inputs, "outputs": [{"name": "out_string", "parameters": {"binary_data": True}}]}
    ).encode()
    head = INFER.replace("dense", "echo") + (
        f"Inference-Header-Content-Length: {len(document)}\r\n"
        f"Content-Length: {len(document) + len(tail)}\r\n\r\n"
    )
    waits = []
    with (
        http_server.serving(root) as (_, address),
        connect(address) as sock,
        ThreadPoolExecutor() as threads,
    ):
        start = time.monotonic()
        asked = threads.submit(exchange, sock, head.encode() + document + tail)
        while not asked.done():
            before = time.monotonic()
            with connect(address) as other:
                assert exchange(other, VALID)[0] == 200
            waits.append(time.monotonic() - before)
        whole = time.monotonic() - start
        assert asked.result()[0] == 200
    assert max(waits) < whole / 3, (max(waits), whole)


@pytest.mark.parametrize(
    "name",
    ["..", ".", "%2e%2e", "..%2f..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd", "dense%00", "dense%2f",
     "....//....//etc", "~root", "dense%0d%0aA: b", "%F0%9F%90%8D", "dense.", "DENSE", "-rf", ""],
)  # fmt: skip
@pytest.mark.parametrize("what", ["GET /v2/models/{}", "POST /v2/models/{}/infer",
                                  "POST /v2/repository/models/{}/load"])  # fmt: skip
def test_a_models_name_is_no_path(address, what, name):
    with connect(address) as sock:
        status, _, body = exchange(
            sock, f"{what.format(name)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        )
    assert status in (400, 404, 405)
    assert b"root:" not in body


def test_clients_that_leave_early_are_no_harm(agent_and_address, address):
    agent, _ = agent_and_address
    document = DOCUMENT.replace(b"[1, 4]", b"[1]").replace(b"[1, 2, 3, 4]", b"[0]")
    whole = VALID.split(b"\r\n\r\n")[0].replace(b"dense", b"slow")
    whole = whole.replace(b"%d" % len(DOCUMENT), b"%d" % len(document)) + b"\r\n\r\n" + document
    for raw in (whole, whole[:-5], whole[:60], VALID + VALID[:-1]):
        for reset in (False, True):
            sock = connect(address)
            if reset:  # close() sends RST
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.sendall(raw)
            time.sleep(0.02)
            sock.close()
    end = time.monotonic() + 20
    while agent.model("slow").requests or agent.model("dense").requests:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_pipelined_requests_are_answered_in_order(address):
    other = VALID.replace(b"dense/infer", b"nopes/infer")
    with connect(address) as sock:
        sock.sendall(VALID + other + VALID)
        file = sock.makefile("rb")
        statuses = []
        for _ in range(3):
            statuses.append(int(file.readline().split()[1]))
            length = 0
            while (line := file.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length"):
                    length = int(line.split(b":")[1])
            file.read(length)
        file.close()
    assert statuses == [200, 404, 200]


def test_an_upgrade_to_another_protocol_is_not_made(address):
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\n\r\n"
    with connect(address) as sock:
        status, _, _ = exchange(sock, f"GET /v2 HTTP/1.1\r\nHost: localhost\r\n{upgrade}".encode())
    assert status == 200
