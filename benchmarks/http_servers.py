"""Which server library: one POST of a picture's tensor, and the memory of the server's process.

    python -m benchmarks.http_servers

Bare handlers that read 602,112 bytes and answer 4,000, over kept connections, taking turns. Each
library is installed in an environment of its own. ADR 9 rests on this table.
"""

from __future__ import annotations

import http.client
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.peer_env import PeerEnv, provide
from edge_core import console
from edge_sdk.build.workspace import default_cache

ENV = PeerEnv(
    "http-servers",
    (("uvicorn==0.54.0", "httptools==0.9.0", "aiohttp==3.14.5", "granian==2.8.7",
      "waitress==3.0.2"),),
)  # fmt: skip
BODY, ROUNDS, REQUESTS = b"\0" * 602_112, 20, 50
HANDLERS = """
ANSWER = b"x" * 4000
HEADERS = [(b"content-type", b"application/octet-stream"), (b"content-length", b"4000")]


async def asgi(scope, receive, send):
    if scope["type"] != "http":
        return
    more = True
    while more:
        more = (await receive()).get("more_body")
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": ANSWER})


def wsgi(environ, start):
    environ["wsgi.input"].read()
    start("200 OK", [(k.decode(), v.decode()) for k, v in HEADERS])
    return [ANSWER]
"""
UVICORN = (
    "import uvicorn; uvicorn.run('handlers:asgi', port={port}, http='{http}', log_level='error')"
)
AIOHTTP = """
from aiohttp import web
from handlers import ANSWER

async def answer(request):
    await request.read()
    return web.Response(body=ANSWER)

app = web.Application(client_max_size=10**8)
app.router.add_post("/", answer)
web.run_app(app, host="127.0.0.1", port={port}, access_log=None, print=None)
"""
GRANIAN = """
from granian import Granian
from granian.constants import Interfaces

Granian("handlers:asgi", port={port}, interface=Interfaces.ASGINL, log_enabled=False).serve()
"""
WAITRESS = """
from waitress import serve
from handlers import wsgi

serve(wsgi, host="127.0.0.1", port={port}, inbuf_overflow=10**7, _quiet=True)
"""
SERVERS = {
    "uvicorn 0.54 with httptools": UVICORN.replace("{http}", "httptools"),
    "uvicorn 0.54 with h11": UVICORN.replace("{http}", "h11"),
    "aiohttp 3.14": AIOHTTP,
    "granian 2.8": GRANIAN,
    "waitress 3.0": WAITRESS,
}


def main() -> int:
    python = provide(ENV, default_cache())
    columns = ("p50 ms", "p99 ms", "resident MB")
    table = console.new_table("server", *columns, right=columns)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-bench-")))
        (folder / "handlers.py").write_text(HANDLERS)
        posts = {}
        for name, script in SERVERS.items():
            port = free_port()
            command = [str(python), "-c", script.replace("{port}", str(port))]
            child = stack.enter_context(subprocess.Popen(command, cwd=folder))
            stack.callback(child.terminate)
            posts[name] = child.pid, client(stack, port)
        ms = take_turns({name: post for name, (_, post) in posts.items()})
        for name, (pid, _) in posts.items():
            cuts = statistics.quantiles(ms[name], n=100)
            resident = sum(resident_mb(process) for process in (pid, *children(pid)))
            table.add_row(name, f"{cuts[49]:.2f}", f"{cuts[98]:.2f}", f"{resident:.0f}")
    console.stdout().print(table)
    return 0


def client(stack: ExitStack, port: int) -> Callable[[], None]:
    """A function that posts once over a kept connection, when the server is up."""
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    connection = http.client.HTTPConnection("127.0.0.1", port)
    stack.callback(connection.close)

    def post() -> None:
        connection.request("POST", "/", BODY)
        assert len(connection.getresponse().read()) == 4000

    return post


def take_turns(posts: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Milliseconds of each post, in rounds."""
    ms: dict[str, list[float]] = {name: [] for name in posts}
    for i in range(ROUNDS + 1):
        for name, post in posts.items():
            for _ in range(REQUESTS):
                start = time.perf_counter()
                post()
                if i:  # the first round warms up
                    ms[name].append((time.perf_counter() - start) * 1e3)
    return ms


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def children(pid: int) -> list[int]:
    """Processes that a server started; granian and its worker are two."""
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def resident_mb(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024 / 1e6


if __name__ == "__main__":
    sys.exit(main())
