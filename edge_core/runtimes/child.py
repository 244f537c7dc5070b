"""The parent's side of the protocol: start a child process, ask it, survive its death.

    with Child(site=private_env) as child:
        reply = child.ask("open", path=..., runtime="onnxruntime", threads=1, options={})

A child is a module with a main() that calls command_loop.serve(), where the protocol is described.
It is a crash barrier: a converter or a runtime may abort, hang, print or leave programs behind.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from edge_core.errors import EdgeError, MeasureError, StorageError

# A private runtime folder goes first on the path; everything else is this interpreter's own.
# Not "python -m": runpy warns when the module's package has imported it already.
_BOOT = (
    "import sys; from importlib import import_module; module, *site = sys.argv[1:]; "
    "sys.path[:0] = site; import_module(module).main()"
)
MAX_REPLY = 16 * 1024 * 1024  # bytes
POLL_S = 1.0  # how late the end of a process is seen if a fork of it holds its pipes open


class Child:
    """One child process: ``python -c module.main()`` with a pipe each way.

    Its errors, a crash, a timeout and a reply that is too long raise ``failure``; a full disk
    raises StorageError.

    module       what the child runs
    name         what messages call it
    failure      what they are raised as
    site         a folder that goes first on its path
    stderr       a file for what it prints; the last line becomes part of the message
    environment  variables that are set on top of this process's own
    """

    def __init__(
        self,
        module: str = "edge_core.runtimes.worker",
        *,
        name: str = "the model's process",
        failure: type[EdgeError] = MeasureError,
        site: Path | None = None,
        stderr: IO[bytes] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._name, self._failure, self._stderr = name, failure, stderr
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, module, *([str(site)] if site else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr or subprocess.DEVNULL,
            env=_environment(environment or {}),
            start_new_session=True,  # Ctrl-C reaches the parent, which ends its children
        )
        self._buffer = b""
        self._lock = threading.Lock()
        self._closed = False

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def ask(self, command: str, *, timeout_s: float = 600, **arguments: Any) -> dict[str, Any]:
        """Send one command and return its reply; arguments and reply are JSON objects."""
        with self._lock:
            if self._closed:
                raise self._failure(f"{self._name} was ended before '{command}'")
            line = json.dumps({"command": command, **arguments}) + "\n"
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(line.encode())
                self._process.stdin.flush()
            except BrokenPipeError as e:
                raise self._death(f"before '{command}'") from e
            reply: dict[str, Any] = json.loads(self._read_line(command, timeout_s))
        if "error" in reply:
            storage = reply["kind"] == StorageError.__name__
            raise (StorageError if storage else self._failure)(reply["error"], hint=reply["hint"])
        return reply

    def _read_line(self, command: str, timeout_s: float) -> bytes:
        deadline = time.monotonic() + timeout_s
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                self.close()
                raise self._failure(
                    f"{self._name} did not finish '{command}' in time ({timeout_s:g} s)"
                )
            ended = self._process.poll() is not None
            if not select.select([pipe], [], [], 0 if ended else min(remaining_s, POLL_S))[0]:
                if ended:  # a fork of it holds the pipe open
                    raise self._death(f"during '{command}'")
                continue
            chunk = os.read(pipe, 65536)
            if not chunk:
                raise self._death(f"during '{command}'")
            self._buffer += chunk
            if len(self._buffer) > MAX_REPLY:
                self.close()
                raise self._failure(f"the reply to '{command}' exceeds {MAX_REPLY} bytes")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _death(self, when: str) -> EdgeError:
        """The error for a process that ended by itself."""
        try:
            status = self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:  # its pipe is closed, and yet it hangs
            self.kill()
            status = self._process.wait()
        if status < 0:
            hint = "the kernel does that when memory runs out" if status == -signal.SIGKILL else ""
            name = signal.Signals(-status).name
            return self._failure(f"{self._name} crashed with {name} {when}", hint=hint)
        last_line = _last_line(self._stderr) if self._stderr else ""
        reason = f": {last_line}" if last_line else ""
        return self._failure(f"{self._name} ended with exit status {status} {when}{reason}")

    def kill(self) -> None:
        """End the process and all that it started; another thread than ask()'s may call it."""
        if not self._closed:
            with suppress(ProcessLookupError, PermissionError):  # all of its group have ended
                os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the process and give its pipes back."""
        self.kill()
        self._closed = True
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with suppress(BrokenPipeError):  # bytes that a dead child never read
                    pipe.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


def _environment(changes: Mapping[str, str]) -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    # Converters iterate over sets of names, and sums in another order are other bytes.
    return {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0", **changes}


def _last_line(file: IO[bytes]) -> str:
    file.seek(0)
    lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""
