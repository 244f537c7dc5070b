"""The parent's side of edge_core.runtimes.worker: start a child, ask it, survive its death.

with Child(site=private_env, log=path) as child:
    reply = child.ask("open", path=..., runtime="onnxruntime", threads=1, options={})
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
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from edge_core.errors import MeasureError, StorageError

# A private runtime folder goes first on the path; everything else is this interpreter's own.
_BOOT = (
    "import sys; sys.path[:0] = sys.argv[1:]; from edge_core.runtimes.worker import main; main()"
)
MAX_REPLY = 16 * 1024 * 1024  # bytes


class Child:
    """One worker process. An error, a crash and a timeout raise MeasureError, a full disk
    StorageError."""

    def __init__(self, *, site: Path | None = None, log: Path | None = None) -> None:
        self._log = log.open("ab") if log else subprocess.DEVNULL
        root = str(Path(__file__).resolve().parents[2])
        env = {**os.environ, "PYTHONHASHSEED": "0"}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, env.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, *([str(site)] if site else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=env,
            start_new_session=True,  # Ctrl-C reaches the parent, which ends its children
        )
        self._buffer = b""
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def ask(self, do: str, *, timeout_s: float = 600, **arguments: Any) -> dict[str, Any]:
        """Send one command and wait for its reply."""
        with self._lock:
            line = json.dumps({"do": do, **arguments}) + "\n"
            assert self._process.stdin is not None
            if self._process.stdin.closed:
                raise MeasureError(f"the model's process was ended before '{do}'")
            try:
                self._process.stdin.write(line.encode())
                self._process.stdin.flush()
                reply: dict[str, Any] = json.loads(self._line(time.monotonic() + timeout_s, do))
            except BrokenPipeError as e:
                raise self._died(f"before '{do}'") from e
        if "error" in reply:
            kind = StorageError if reply.get("storage") else MeasureError
            raise kind(reply["error"], hint=reply.get("hint", ""))
        return reply

    def _line(self, deadline: float, do: str) -> bytes:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                self.close()
                raise MeasureError(f"the model's process did not finish '{do}' in time")
            chunk = os.read(fd, 65536)
            if not chunk:
                raise self._died(f"during '{do}'")
            self._buffer += chunk
            if len(self._buffer) > MAX_REPLY:
                self.close()
                raise MeasureError(f"the reply to '{do}' exceeds {MAX_REPLY} bytes")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _died(self, when: str) -> MeasureError:
        try:
            code = self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:  # its pipe is closed, and yet it hangs
            self.kill()
            code = self._process.wait()
        how = (
            f"crashed with {signal.Signals(-code).name}"
            if code < 0
            else f"ended with exit status {code}"
        )
        hint = "the kernel does that when memory runs out" if code == -signal.SIGKILL else ""
        return MeasureError(f"the model's process {how} {when}", hint=hint)

    def kill(self) -> None:
        """End the process at once; may be called from another thread than ask()."""
        if self._process.poll() is None:
            self._process.kill()

    def close(self) -> None:
        """End the process and give its pipes back."""
        self.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with suppress(BrokenPipeError):  # bytes that a dead child never read
                    pipe.close()
        if not isinstance(self._log, int):
            self._log.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()
