"""Damaged requests to a live server: never a crash, never a 500, and it answers afterwards.

EDGE_FUZZ_S is for how many seconds, EDGE_FUZZ_SEED for other cases.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import select
import socket
import struct
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton

from agent.http.limits import ConnectionLimits
from agent.http.wire import datatype
from tests.agent import http_server
from tests.agent.fuzz import SEED, Fuzzer

ROW = np.array([[0.5, -1.0, 2.0, 0.25]], np.float32)
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
EXPECTED = {200, 400, 403, 404, 405, 408, 413, 415, 429, 431, 503, 504}
HEADERS = (
    "Content-Length: 5", "Content-Length: -1", "Content-Length: 99999999999999999999",
    "Transfer-Encoding: chunked", "Transfer-Encoding: gzip", "Inference-Header-Content-Length: 0",
    "Inference-Header-Content-Length: 18446744073709551617", "Content-Encoding: gzip",
    "Expect: 100-continue", "Connection: close", "Connection: Upgrade\r\nUpgrade: h2c",
    "Host: a\r\nHost: b", ": empty", "No colon", "A: " + "a" * 50_000, "A: b\r\n" * 150 + "A: b",
    "A: \xff\x00",
)  # fmt: skip
Case = tuple[str, str, bytes, bytes]  # method, path, JSON part, binary part


def infer(model: str, document: dict[str, object], tail: bytes = b"") -> Case:
    return "POST", f"/v2/models/{model}/infer", json.dumps(document).encode(), tail


def cases() -> list[Case]:
    """Requests that are answered as they are."""
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32"}
    binary = {**tensor, "parameters": {"binary_data_size": 16}}
    classes = [{"name": "y", "parameters": {"classification": 2, "binary_data": True}}]
    echoed, tail = [], b""
    for datatype_name in http_server.ONNX_TYPES:
        array = np.ones((2, 2), object if datatype_name == "string" else datatype_name)
        if datatype_name == "string":
            array[:] = "text"
        tensor_input = triton.InferInput(
            f"in_{datatype_name}", [2, 2], datatype(datatype_name)
        ).set_data_from_numpy(array)
        echoed.append(tensor_input._get_tensor())
        tail += tensor_input._get_binary_data()
    picture = {
        "name": "pixels", "shape": [1], "datatype": "BYTES",
        "parameters": {"binary_data_size": len(PNG) + 4},
    }  # fmt: skip
    return [
        infer(
            "dense",
            {"id": "a", "inputs": [{**tensor, "data": [[1, 2.5, 3, 4]]}], "outputs": classes},
        ),
        infer("dense", {"inputs": [binary], "parameters": {"top": 2, "timeout": 10**6}}, bytes(16)),
        infer("echo", {"inputs": echoed, "parameters": {"binary_data_output": True}}, tail),
        infer("picture", {"inputs": [picture]}, struct.pack("<I", len(PNG)) + PNG),
        ("POST", "/v2/repository/index", b'{"ready": true}', b""),
        ("POST", "/v2/repository/models/dense/load", b'{"parameters": {}}', b""),
        ("GET", "/v2/models/dense/versions/1.0.0/stats", b"", b""),
        ("GET", "/v2/edge/status", b"", b""),
    ]


def raw(fuzz: Fuzzer, case: Case) -> bytes:
    """The bytes of one request, with damage of one kind somewhere."""
    method, path, text, tail = case
    length, headers, chunked = len(text), [], False
    size: int | None = None
    kind = fuzz.randint(0, 9)
    if kind <= 1 and text:
        text = json.dumps(fuzz.change(json.loads(text)), ensure_ascii=False).encode()
        length = len(text)
    elif kind == 2:
        text = fuzz.damage(text)
        length = len(text)
    elif kind == 3:
        tail = fuzz.damage(tail)
    elif kind == 4:
        length = fuzz.choice((0, 1, length - 1, length + 1, length + len(tail) + 1, 10**9))
    elif kind == 5:
        size = fuzz.choice((0, 1, len(text) + len(tail) - 1, len(text) + 1, 10**9, 10**25))
    elif kind == 6:
        headers = [fuzz.choice(HEADERS) for _ in range(fuzz.randint(1, 2))]
    elif kind == 7:
        path = fuzz.damage(path.encode()).decode("latin-1")
        method = fuzz.choice((method, "GET", "POST", "HEAD", "OPTIONS", "CONNECT", "get", ""))
    elif kind == 8:
        chunked = True
    body = text + tail
    if tail or kind == 4:
        headers.append(f"Inference-Header-Content-Length: {length}")
    if chunked:
        headers.append("Transfer-Encoding: chunked")
        body = in_chunks(fuzz, body)
    elif body or size is not None:
        headers.append(f"Content-Length: {len(body) if size is None else size}")
    head = "\r\n".join((f"{method} {path} HTTP/1.1", "Host: localhost", *headers))
    whole = head.encode("latin-1") + b"\r\n\r\n" + body
    return fuzz.damage(whole) if kind == 9 else whole


def in_chunks(fuzz: Fuzzer, body: bytes) -> bytes:
    out, at = b"", 0
    while at < len(body):
        size = fuzz.randint(1, 400)
        piece = body[at : at + size]
        out += b"%x%s\r\n%s\r\n" % (len(piece), fuzz.choice((b"", b"", b";a=b")), piece)
        at += size
    out += b"0\r\n\r\n"
    return fuzz.damage(out) if fuzz.random() < 0.5 else out


def status_of(address: str, request: bytes, fuzz: Fuzzer) -> int | None:
    """The status of the first answer; None if there is none, for the request may be unfinished."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        linger = struct.pack("ii", 1, 0)  # leave no trace
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        cut = fuzz.randint(0, len(request)) if fuzz.random() < 0.2 else len(request)
        answer = b""
        try:
            sock.sendall(request[:cut])
            sock.sendall(request[cut:])
            while len(answer) < 12 and select.select([sock], [], [], 0.1)[0]:
                piece = sock.recv(65536)
                if not piece:
                    break
                answer += piece
        except ConnectionError:
            return None
    answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    if not answer:
        return None
    status_line = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
    assert status_line, answer
    return int(status_line[1])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("agent")
    for make in (http_server.dense, http_server.echo, http_server.picture):
        http_server.install(root, make(tmp_path_factory.mktemp("package")))
    return root


def test_the_cases_are_answered_as_long_as_they_are_whole(root):
    with http_server.serving(root) as (_, address):
        for method, path, text, tail in cases():
            length = f"Inference-Header-Content-Length: {len(text)}\r\n" if tail else ""
            head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{length}"
            head += f"Content-Length: {len(text + tail)}\r\n\r\n"
            assert status_of(address, head.encode() + text + tail, Fuzzer(0)) == 200, path


def test_damaged_requests_are_refused_and_the_server_goes_on(root, caplog):
    fuzz, known = Fuzzer(SEED), cases()
    status_counts: dict[int | None, int] = {}
    limits = ConnectionLimits(head_s=1, body_s=1, drop_s=0.05, bodies=1)  # a leak would show as 503
    with (
        caplog.at_level(logging.ERROR),
        http_server.serving(root, limits=limits, max_body_mb=0.1) as (agent, address),
        triton.InferenceServerClient(address) as client,
    ):
        inputs = [triton.InferInput("x", [1, 4], "FP32").set_data_from_numpy(ROW)]
        expected = agent.infer("dense", {"x": ROW}).outputs["y"]
        for case in fuzz.cases():
            whole = fuzz.random() > 0.05
            request = raw(fuzz, fuzz.choice(known)) if whole else fuzz.randbytes(300)
            status = status_of(address, request, fuzz)
            assert status in EXPECTED or status is None, (case, request[:2000])
            status_counts[status] = status_counts.get(status, 0) + 1
            if case % 25 == 0:
                assert np.array_equal(client.infer("dense", inputs).as_numpy("y"), expected)
        assert np.array_equal(client.infer("dense", inputs).as_numpy("y"), expected)
        assert client.is_server_ready()
    assert {200, 400, 404} <= status_counts.keys()
    assert [record.getMessage() for record in caplog.records] == []
