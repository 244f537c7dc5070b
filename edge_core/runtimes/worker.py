"""The child process that loads a model and runs it: a crash here is an answer, not a disaster.

One JSON object a line comes in on stdin, one goes out on the original stdout; what the runtime
prints goes to stderr. The parent's side is edge_core.runtimes.child. Commands:

    open   path runtime threads options     -> version load_ms base_mb inputs outputs
    run    feeds out rows                   -> n          (every sample once, outputs as .npz)
    time   feeds runs rows limit_s          -> ms         (a list, one entry an inference)
    memory                                  -> peak_mb
    delegation path runtime threads         -> ops partitions outside slowdown  (xnnpack.Delegation)
    background                              -> nothing

``feeds`` is a folder as feeds.write() makes it. ``rows`` samples are one inference; time takes a
list of such numbers in turn. End of input ends the process, also in the middle of a command, so no
child outlives its parent.
"""

from __future__ import annotations

import json
import math
import os
import queue
import resource
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_core.errors import EdgeError, MeasureError, StorageError
from edge_core.runtimes import registry as runtimes
from edge_core.runtimes import sample_store
from edge_core.runtimes.adapter import Session
from edge_core.tensors import Feeds


def main() -> None:
    """Serve commands until stdin ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a runtime that prints must not break the protocol
    commands: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(commands,), daemon=True).start()
    worker = Worker()
    while True:
        command = json.loads(commands.get())
        try:
            reply = getattr(worker, "do_" + command.pop("do"))(**command)
        except EdgeError as e:
            reply = {"error": e.what, "hint": e.hint, "storage": isinstance(e, StorageError)}
        except MemoryError:
            reply = {"error": "out of memory", "hint": ""}
        out.write(json.dumps(reply) + "\n")
        out.flush()


def _listen(commands: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        commands.put(line)
    os._exit(0)  # the parent is gone, however it went


class Worker:
    """At most one open session."""

    def __init__(self) -> None:
        self._session: Session | None = None

    def do_open(
        self, path: str, runtime: str, threads: int, options: dict[str, str]
    ) -> dict[str, Any]:
        adapter = runtimes.get(runtime)
        version = adapter.version()  # imports the runtime, so that base_mb has it
        base = peak_rss_mb()
        self._session = None
        start = time.perf_counter()
        self._session = adapter.open(Path(path), threads=threads, options=options)
        load_ms = (time.perf_counter() - start) * 1e3
        return {
            "version": version,
            "load_ms": load_ms,
            "base_mb": base,
            "inputs": msgspec.to_builtins(self._session.inputs),
            "outputs": msgspec.to_builtins(self._session.outputs),
        }

    def do_run(self, feeds: str, out: str, rows: int = 1) -> dict[str, Any]:
        source = sample_store.read(Path(feeds))
        batches = (_batch(source, i, rows) for i in range(-(-len(source) // rows)))
        results = [self._open.run(b) for b in batches]
        sample_store.write(Path(out), results)
        return {"n": len(results)}

    def do_time(
        self, feeds: str, runs: int, rows: Sequence[int] = (1,), limit_s: float = math.inf
    ) -> dict[str, Any]:
        session, source = self._open, sample_store.read(Path(feeds))
        ms: list[float] = []
        end = time.perf_counter() + limit_s
        for i in range(runs):
            feed = _batch(source, i, rows[i % len(rows)])
            start = time.perf_counter_ns()
            session.run(feed)
            ms.append((time.perf_counter_ns() - start) / 1e6)
            if len(ms) % len(rows) == 0 and time.perf_counter() >= end:
                break
        return {"ms": ms}

    def do_background(self) -> dict[str, Any]:
        """Give way to what this machine is for: processors now, memory if it runs out."""
        os.nice(10)
        with suppress(OSError):  # not Linux
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
        return {}

    def do_memory(self) -> dict[str, Any]:
        return {"peak_mb": peak_rss_mb()}

    def do_delegation(self, path: str, runtime: str, threads: int) -> dict[str, Any]:
        ask = getattr(runtimes.get(runtime), "delegation", None)
        if ask is None:
            raise MeasureError(f"{runtime} delegates no operators")
        found: dict[str, Any] = msgspec.to_builtins(ask(Path(path), threads))
        return found

    @property
    def _open(self) -> Session:
        if self._session is None:
            raise MeasureError("no model is open")
        return self._session


def _batch(source: Sequence[Feeds], i: int, rows: int) -> Feeds:
    """Samples ``i * rows`` and the following, one after the other along the first dimension."""
    taken = [source[(i * rows + k) % len(source)] for k in range(rows)]
    return {n: np.concatenate([t[n] for t in taken]) for n in taken[0]} if rows > 1 else taken[0]


def peak_rss_mb() -> float:
    """Peak resident set of this process in 10^6 bytes.

    VmHWM where there is /proc: getrusage's figure survives exec() and would be the parent's.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


if __name__ == "__main__":
    main()
