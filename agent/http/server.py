"""The HTTP server in a thread of this process, on localhost TCP or on a unix socket.

    server = Server(agent, config.http)
    address = server.start()      # "http://127.0.0.1:8000" or "unix:/run/edge-agent.sock"
    server.stop()                 # answers what it has begun; the agent goes on

uvicorn is the server library: with httptools where that is installed, else with h11.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from agent.config import Http
from agent.http.app import App
from agent.http.connection_guard import ConnectionGuard
from agent.http.limits import DEFAULT, ConnectionLimits
from agent.serving.agent import Agent
from edge_core.errors import EdgeError, InputError, Unavailable

BACKLOG = 128
START_S = 30.0


class Server:
    """Serves one agent from start() to stop(). Not restartable."""

    def __init__(self, agent: Agent, http: Http, limits: ConnectionLimits = DEFAULT) -> None:
        self._http = http
        self._uvicorn = _Uvicorn(App(agent, http, limits), http, limits)
        self._thread: threading.Thread | None = None
        self._path: Path | None = None

    @property
    def alive(self) -> bool:
        """Is its thread running?"""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> str:
        """Listen and return the address. Raises InputError if that is not possible."""
        http = self._http
        listener = (
            _listen_unix(Path(http.socket)) if http.socket else _listen_tcp(http.host, http.port)
        )
        self._thread = threading.Thread(
            target=self._uvicorn.run, args=([listener],), name="http", daemon=True
        )
        self._thread.start()
        if not self._uvicorn.up.wait(START_S):
            raise Unavailable("the HTTP server did not start")
        if http.socket:
            self._path = Path(http.socket)
            return f"unix:{http.socket}"
        host, port = listener.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def stop(self) -> None:
        """Refuse new connections, answer what was begun, end; may be called twice."""
        self._uvicorn.should_exit = True
        if self._thread is not None:
            self._thread.join()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Uvicorn(uvicorn.Server):
    """uvicorn with a ConnectionGuard for every connection, and an event when it is up."""

    def __init__(self, app: App, http: Http, limits: ConnectionLimits) -> None:
        bounds = {
            "limits": limits,
            "max_connections": http.max_connections,
            "max_body": int(http.max_body_mb * 1e6),
        }
        # The protocol is a variable there, so the class is made at run time.
        connection: Any = type("Connection", (ConnectionGuard, AutoHTTPProtocol), bounds)
        config = uvicorn.Config(
            app,
            http=connection,
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",  # not a line for each malformed request
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=limits.keep_alive_s,
            timeout_graceful_shutdown=limits.grace_s,
            timeout_notify=0,
            callback_notify=self._check,
        )
        super().__init__(config)
        self.up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):  # the grace is over
            connection.transport.abort()
        await asyncio.sleep(0)  # they notice

    async def _check(self) -> None:
        now = asyncio.get_running_loop().time()
        for connection in list(self.server_state.connections):
            connection.check(now)  # type: ignore[union-attr]  # a ConnectionGuard


def _listen_tcp(host: str, port: int) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:  # no name, or none that could be one
        raise InputError(f"http.host '{host}' is no address: {error}") from error
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _to_input_error(f"{host}:{port}", error) from error
    return listener


def _listen_unix(path: Path) -> socket.socket:
    """A socket that only this user may connect to; one that a crash left behind is replaced."""
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)  # nobody can connect before listen()
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _to_input_error(str(path), error) from error
    return listener


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise InputError(f"http.socket: {path} exists and is no socket")
    except OSError:
        return  # there is nothing, or bind() will say what is wrong
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError:
            return
    raise InputError(f"http.socket: another process listens on {path}")


def _to_input_error(where: str, error: OSError) -> EdgeError:
    hint = ""
    if error.errno == errno.EADDRINUSE:
        hint = "another process uses it; set http.port, or stop that one"
    elif error.errno == errno.EACCES:
        hint = "ports below 1024 and other users' folders need rights"
    return InputError(f"cannot listen on {where}: {error.strerror or error}", hint=hint)
