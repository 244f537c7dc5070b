"""The server's life: where it listens, how it stops, and that h11 does in place of httptools."""

from __future__ import annotations

import http.client
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent import Agent
from agent.config import Config, Http
from agent.http.server import Server
from edge_core.errors import InputError
from tests.agent import http_server
from tests.cases import ROOT

DOCUMENT = json.dumps(
    {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [0]}]}
).encode()


class UnixConnection(http.client.HTTPConnection):
    """http.client over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(self._path))


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    root = tmp_path_factory.mktemp("agent")
    http_server.install(root, http_server.slow(tmp_path_factory.mktemp("package")))
    with Agent(Config(data_dir=str(root))) as agent:
        yield agent


def get(connection: http.client.HTTPConnection, path: str) -> int:
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def tcp(address: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)


def test_the_address_is_told_and_free_again_after_the_stop(agent):
    with Server(agent, Http(port=0)) as server:
        address = server.start()
        assert server.alive
        assert get(tcp(address), "/v2/health/live") == 200
    assert not server.alive
    port = int(address.rsplit(":", 1)[1])
    with Server(agent, Http(port=port)) as again:
        assert again.start() == address
        assert get(tcp(address), "/v2/health/live") == 200
    again.stop()


def test_a_port_that_is_taken_is_refused_with_a_hint(agent):
    with Server(agent, Http(port=0)) as server:
        port = int(server.start().rsplit(":", 1)[1])
        with pytest.raises(InputError, match=rf"cannot listen on 127.0.0.1:{port}") as caught:
            Server(agent, Http(port=port)).start()
    assert "http.port" in caught.value.hint


@pytest.mark.parametrize("host", ["a..b", "x" * 300, "203.0.113.9"])
def test_a_host_that_is_none_of_ours_is_refused(agent, host):
    with pytest.raises(InputError, match=r"http\.host|cannot listen"):
        Server(agent, Http(host=host, port=0)).start()


def test_ipv6_works_where_the_machine_has_it(agent):
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        with pytest.raises(InputError):
            Server(agent, Http(host="::1", port=0)).start()
        return
    with Server(agent, Http(host="::1", port=0)) as server:
        address = server.start()
        assert address.startswith("http://[::1]:")
        assert get(tcp(address), "/v2/health/live") == 200


def test_a_unix_socket_is_for_this_user_only_and_goes_with_the_server(agent, tmp_path):
    path = tmp_path / "agent.sock"
    before = os.umask(0)
    try:
        with Server(agent, Http(socket=str(path))) as server:
            assert server.start() == f"unix:{path}"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert get(UnixConnection(path), "/v2/health/ready") == 200
    finally:
        os.umask(before)
    assert not path.exists()


def test_a_socket_that_a_crash_left_behind_is_replaced(agent, tmp_path):
    path = tmp_path / "agent.sock"
    left = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    left.bind(str(path))
    left.close()
    with Server(agent, Http(socket=str(path))) as server:
        server.start()
        assert get(UnixConnection(path), "/v2/health/live") == 200


def test_a_socket_in_use_and_a_file_are_left_alone(agent, tmp_path):
    path = tmp_path / "agent.sock"
    with Server(agent, Http(socket=str(path))) as server:
        server.start()
        with pytest.raises(InputError, match="another process listens"):
            Server(agent, Http(socket=str(path))).start()
        assert get(UnixConnection(path), "/v2/health/live") == 200
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    with pytest.raises(InputError, match="is no socket"):
        Server(agent, Http(socket=str(file))).start()
    assert file.read_text() == "mine"


@pytest.mark.parametrize("path", ["/no/such/folder/agent.sock", "/tmp/" + "a" * 120])
def test_a_socket_that_cannot_be_made_is_refused(agent, path):
    with pytest.raises(InputError, match="cannot listen on"):
        Server(agent, Http(socket=path)).start()


def test_a_request_that_was_begun_is_answered_before_the_server_ends(agent):
    server = Server(agent, Http(port=0))
    address = server.start()

    def infer() -> int:
        connection = tcp(address)
        connection.request("POST", "/v2/models/slow/infer", DOCUMENT)
        response = connection.getresponse()
        response.read()
        connection.close()
        return response.status

    idle = socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])))
    with idle, ThreadPoolExecutor() as threads:
        asked = threads.submit(infer)
        while not agent.model("slow").requests:
            assert not asked.done()
        start = time.monotonic()
        server.stop()
        assert asked.result() == 200
        assert time.monotonic() - start < 5
    assert "http" not in [thread.name for thread in threading.enumerate()]


FALLBACK = """
import sys
sys.modules["httptools"] = None  # as on a machine without a wheel of it
import tempfile
from pathlib import Path
import numpy as np
import tritonclient.http as triton
from tests.agent import http_server; from tests.agent.http import test_limits as limits
folder = Path(tempfile.mkdtemp())
root = folder / "agent"
for make in (http_server.dense, http_server.echo):
    http_server.install(root, make(folder))
rng = np.random.default_rng(1)
with http_server.serving(root, limits=limits.QUICK) as (_, address):
    assert "h11" in sys.modules and "uvicorn.protocols.http.httptools_impl" not in sys.modules
    with triton.InferenceServerClient(address) as client:
        inputs = []
        for d in http_server.ONNX_TYPES:
            a = np.zeros((40_000 if d == "float32" else 0, 2), object if d == "string" else d)
            if d == "float32":
                a = rng.normal(size=a.shape).astype(d)
                sent = a
            i = triton.InferInput("in_" + d, list(a.shape), limits.datatype(d))
            inputs.append(i.set_data_from_numpy(a))
        assert np.array_equal(client.infer("echo", inputs).as_numpy("out_float32"), sent)
    with limits.connect(address) as s:
        assert limits.exchange(s, limits.VALID)[0] == 200
        s.sendall(b"GET /v2")
        assert limits.seconds_to_the_end(s) < 4
    with limits.connect(address) as s:
        s.sendall(b"GET /v2 HTTP/1.1\\r\\nA: ")
        assert limits.send_pieces(s, [b"a" * 4096] * 1000) < 1000
    with limits.connect(address) as s:
        raw = limits.INFER + "Content-Length: 1" + "0" * 12 + "\\r\\n\\r\\n"
        assert limits.exchange(s, raw.encode())[0] == 413
    with limits.connect(address) as s:
        assert limits.exchange(s, limits.VALID)[0] == 200
print("fine")
"""


def test_h11_serves_the_same_where_httptools_is_not_installed(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FALLBACK],
        cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert done.stdout == "fine\n", done.stderr
