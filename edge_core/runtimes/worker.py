"""The measuring worker: a child process that loads a model and runs it.

A crash here is an answer for its parent, no disaster. command_loop has the protocol, child.Child
the parent's side. Commands:

    open        path runtime threads options     -> version load_ms base_mb inputs outputs
    run         feeds out rows                   -> n     (every sample once, outputs as .npz)
    time        feeds runs rows limit_s          -> ms    (a list, one entry an inference)
    memory                                       -> peak_mb
    delegation  path runtime threads             -> ops partitions outside slowdown
    background                                   -> nothing

``feeds`` is a folder as sample_store.write() makes it. ``rows`` samples are one inference; time
takes a list of such numbers in turn.
"""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import msgspec
import numpy as np

from edge_core.errors import MeasureError
from edge_core.runtimes import command_loop, sample_store
from edge_core.runtimes import registry as runtimes
from edge_core.runtimes.adapter import Session
from edge_core.runtimes.command_loop import Reply
from edge_core.tensors import Feeds


def main() -> NoReturn:
    """Serve commands until the input ends."""
    worker = Worker()
    command_loop.serve(
        {
            "open": worker.open,
            "run": worker.run,
            "time": worker.time,
            "memory": worker.memory,
            "delegation": worker.delegation,
            "background": worker.background,
        }
    )


class Worker:
    """The commands, on at most one open session."""

    def __init__(self) -> None:
        self._session: Session | None = None

    def open(self, path: str, runtime: str, threads: int, options: dict[str, str]) -> Reply:
        """Load a model in place of the one that was open."""
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

    def run(self, feeds: str, out: str, rows: int = 1) -> Reply:
        """Write the outputs for every sample as the folder ``out``."""
        source, session = sample_store.read(Path(feeds)), self._require_session()
        batches = (_take_batch(source, i, rows) for i in range(-(-len(source) // rows)))
        results = [session.run(batch) for batch in batches]
        sample_store.write(Path(out), results)
        return {"n": len(results)}

    def time(
        self, feeds: str, runs: int, rows: Sequence[int] = (1,), limit_s: float = math.inf
    ) -> Reply:
        """Time inferences one by one, up to ``runs`` and, round by round, ``limit_s`` seconds."""
        session, source = self._require_session(), sample_store.read(Path(feeds))
        times_ms: list[float] = []
        end = time.perf_counter() + limit_s
        for i in range(runs):
            batch = _take_batch(source, i, rows[i % len(rows)])
            start = time.perf_counter_ns()
            session.run(batch)
            times_ms.append((time.perf_counter_ns() - start) / 1e6)
            if len(times_ms) % len(rows) == 0 and time.perf_counter() >= end:
                break
        return {"ms": times_ms}

    def background(self) -> Reply:
        """Give way to what this machine is for: processors now, memory if it runs out."""
        os.nice(10)
        with suppress(OSError):  # not Linux
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
        return {}

    def memory(self) -> Reply:
        """The peak memory of this process so far."""
        return {"peak_mb": peak_rss_mb()}

    def delegation(self, path: str, runtime: str, threads: int) -> Reply:
        """An xnnpack.Delegation, of a runtime that has a delegate."""
        measure = getattr(runtimes.get(runtime), "delegation", None)
        if measure is None:
            raise MeasureError(f"{runtime} delegates no operators")
        reply: Reply = msgspec.to_builtins(measure(Path(path), threads))
        return reply

    def _require_session(self) -> Session:
        if self._session is None:
            raise MeasureError("no model is open")
        return self._session


def _take_batch(source: Sequence[Feeds], index: int, rows: int) -> Feeds:
    """The ``i``-th group of ``rows`` samples, concatenated along the first dimension.

    Past the last sample it starts again with the first one.
    """
    samples = [source[(index * rows + k) % len(source)] for k in range(rows)]
    if rows == 1:
        return samples[0]
    return {name: np.concatenate([feeds[name] for feeds in samples]) for name in samples[0]}


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
