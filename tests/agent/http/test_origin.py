"""Web pages of other hosts, in a browser on this device, are not answered."""

from __future__ import annotations

import http.client
from collections.abc import Iterator

import pytest

from agent import Agent
from agent.config import Config, Http
from agent.http.server import Server
from tests.agent import http_server
from tests.agent.http.test_server import UnixConnection


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    root = tmp_path_factory.mktemp("agent")
    http_server.install(root, http_server.dense(tmp_path_factory.mktemp("package")))
    with Agent(Config(data_dir=str(root))) as agent:
        yield agent


def load(connection: http.client.HTTPConnection, *headers: tuple[str, str]) -> int:
    """A request that changes something: its status."""
    try:
        connection.putrequest("POST", "/v2/repository/models/dense/load", skip_host=True)
        for name, value in headers:
            connection.putheader(name, value)
        connection.putheader("Content-Length", "0")
        connection.endheaders()
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def tcp(address: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)


HERE = ("Host", "localhost")
OURS = [
    [("Host", host)]
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8000", "[::1]", "[::1]:8000")
] + [
    [HERE, ("Origin", "http://localhost:3000")],
    [HERE, ("Origin", "http://127.0.0.1")],
    [HERE, ("Origin", "https://[::1]:8443")],
]
OTHERS = [
    [("Host", host)]
    for host in (
        "example.org", "example.org:8000", "localhost.example.org", "127.0.0.1.example.org",
        "192.0.2.1", "[2001:db8::1]", "user@localhost", "localhost:80:80", "127.1", "",
    )
] + [
    [HERE, ("Origin", "https://example.org")],
    [HERE, ("Origin", "https://localhost.example.org")],
    [HERE, ("Origin", "null")],
    [HERE, ("Origin", "http://localhost"), ("Origin", "https://example.org")],
]  # fmt: skip


@pytest.fixture(scope="module")
def address(agent: Agent) -> Iterator[str]:
    with Server(agent, Http(port=0)) as server:
        yield server.start()


@pytest.mark.parametrize("headers", OURS)
def test_a_request_under_a_name_of_this_device_is_answered(address, headers):
    assert load(tcp(address), *headers) == 200


@pytest.mark.parametrize("headers", OTHERS)
def test_a_request_under_another_name_or_from_another_site_is_refused(address, headers):
    assert load(tcp(address), *headers) == 403


def test_a_socket_and_a_server_for_other_machines_answer_under_any_name(agent, tmp_path):
    path = tmp_path / "agent.sock"
    with Server(agent, Http(socket=str(path))) as server:
        server.start()
        assert load(UnixConnection(path), ("Host", "example.org")) == 200
    with Server(agent, Http(host="0.0.0.0", port=0)) as server:
        port = server.start().rsplit(":", 1)[1]
        assert load(tcp(f"127.0.0.1:{port}"), ("Host", "example.org")) == 200
