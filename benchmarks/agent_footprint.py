"""What the agent costs a device: memory, the time to its first answer, disk.

    python -m benchmarks.agent_footprint [--starts 5] [--no-sizes]

The daemon is started as its systemd unit starts it. Memory is what the kernel counts for the
process (Rss, and Pss, which shares pages with others) after the last answer. Sizes are those of
fresh environments without pip, from a wheel of this tree. Held to: 60 MB idle, 120 MB with LiteRT
and EfficientNet-Lite0 INT8, 2 s to ready.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np
import tomli_w

from agent.config import Config, Http
from agent.packages.install import install
from agent.service import client, instance_lock
from benchmarks import agent_packages
from benchmarks.agent_packages import read_golden
from edge_core import console
from edge_core.package import format as package

ROOT = Path(__file__).resolve().parent.parent
IDLE_MB, SERVING_MB, READY_S = 60.0, 120.0, 2.0
EXTRAS = ("", "rt-tflite", "rt-onnx")
NOT_SOURCE = (".*", "build", "dist", "out", "*.egg-info", "__pycache__", "examples", "tests")


class Memory(msgspec.Struct, frozen=True):
    """Of one process, 10^6 bytes."""

    rss_mb: float
    pss_mb: float


class Start(msgspec.Struct, frozen=True):
    """One start of the daemon; seconds from its execve."""

    ready_s: float
    answer_s: float | None
    memory: Memory


def memory(pid: int) -> Memory:
    """What the kernel counts for a process now."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    rows = dict(line.split(":", 1) for line in text.splitlines()[1:])
    rss, pss = (int(rows[key].split()[0]) * 1024 / 1e6 for key in ("Rss", "Pss"))
    return Memory(rss, pss)


def start(config: Config, ask: Path | None) -> Start:
    """Start the daemon, answer ``ask`` with its only model, measure, stop."""
    settings = config.root.parent / "config.toml"
    settings.write_bytes(tomli_w.dumps(msgspec.to_builtins(config)).encode())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(config.root.parent / "notify"))
        manager.settimeout(60)
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-I", "-m", "agent.service.daemon", "--config", str(settings)],
            env={**os.environ, "NOTIFY_SOCKET": manager.getsockname()},
        )
        try:
            assert manager.recv(4096).startswith(b"READY=1")
            ready = time.perf_counter() - began
            answer = _ask(config, ask, began) if ask else None
            found = memory(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    (config.root.parent / "notify").unlink()
    return Start(ready, answer, found)


def _ask(config: Config, ask: Path, began: float) -> float:
    """Seconds from the start to the first answer; some more follow, for the memory."""
    here = instance_lock.find_instance(config.root)
    assert here
    manifest = package.open(ask).manifest
    model = manifest.model(manifest.variants[0])
    source = config.root.parent / "input.npz"
    client.infer(here, model, source)
    first = time.perf_counter() - began
    for _ in range(20):
        client.infer(here, model, source)
    return first


def serve_once(ask: Path | None, starts: int) -> tuple[Start, ...]:
    """The daemon with one package, or with none, started some times."""
    with tempfile.TemporaryDirectory(prefix="edge-footprint-") as name:
        folder = Path(name)
        config = Config(
            data_dir=str(folder / "data"),
            http=Http(socket=str(folder / "http.sock")),
            log_level="warning",
        )
        config.root.mkdir(mode=0o700)
        if ask:
            install(config, ask)
            vectors = read_golden(package.open(ask))
            np.savez(folder / "input.npz", **vectors.inputs[0])  # type: ignore[arg-type]  # names
        return tuple(start(config, ask) for _ in range(starts))


def sizes(extras: Iterable[str]) -> dict[str, float]:
    """MB of a fresh environment a set of extras, without pip."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="edge-sizes-") as name:
        wheel = _wheel(Path(name))
        for extra in extras:
            folder = Path(name, extra or "base")
            venv.create(folder, with_pip=True)
            python = folder / "bin" / "python"
            wanted = f"{wheel}[{extra}]" if extra else str(wheel)
            _pip(python, "install", wanted)
            _pip(python, "uninstall", "--yes", "pip", "setuptools")
            found[extra] = sum(path.lstat().st_size for path in folder.rglob("*")) / 1e6
    return found


def _wheel(work: Path) -> Path:
    shutil.copytree(ROOT, work / "source", ignore=shutil.ignore_patterns(*NOT_SOURCE, "shared"))
    _pip(
        Path(sys.executable), "wheel", "--no-deps", "--no-build-isolation",
        "--wheel-dir", str(work), str(work / "source"),
    )  # fmt: skip
    return next(work.glob("*.whl"))


def _pip(python: Path, *words: str) -> None:
    subprocess.run([python, "-m", "pip", "--quiet", *words], check=True, stderr=subprocess.DEVNULL)


def show(rows: dict[str, tuple[Start, ...]]) -> None:
    """The table of memory and times; medians."""
    right = ("Rss MB", "Pss MB", "ready s", "first answer s")
    table = console.new_table("the daemon", *right, right=right)
    for what, starts in rows.items():
        answers = [start.answer_s for start in starts if start.answer_s is not None]
        table.add_row(
            what,
            f"{statistics.median(start.memory.rss_mb for start in starts):.1f}",
            f"{statistics.median(start.memory.pss_mb for start in starts):.1f}",
            f"{statistics.median(start.ready_s for start in starts):.2f}",
            f"{statistics.median(answers):.2f}" if answers else "",
        )
    console.stdout().print(table)


def main(starts: int, *, with_sizes: bool) -> int:
    """Measure, show, compare; returns the exit code."""
    tflite = agent_packages.lite0("tflite-int8-static")
    rows = {
        "idle, no model": serve_once(None, starts),
        "LiteRT, EfficientNet-Lite0 INT8": serve_once(tflite, starts),
        "ONNX Runtime, EfficientNet-Lite0 INT8": serve_once(agent_packages.lite0(), starts),
    }
    show(rows)
    if with_sizes:
        table = console.new_table("installed", "MB", right=("MB",))
        for extra, mb in sizes(EXTRAS).items():
            table.add_row(f"base + {extra}" if extra else "base", f"{mb:.0f}")
        console.stdout().print(table)
    idle, litert, _ = rows.values()
    held = (
        ("idle Rss MB", statistics.median(start.memory.rss_mb for start in idle), IDLE_MB),
        ("LiteRT Rss MB", statistics.median(start.memory.rss_mb for start in litert), SERVING_MB),
        ("ready s", statistics.median(start.ready_s for start in litert), READY_S),
    )
    for what, value, limit in held:
        print(f"{'met    ' if value < limit else 'NOT MET'} {what} {value:.2f} (under {limit:g})")
    return 0 if all(value < limit for _, value, limit in held) else 2


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--no-sizes", action="store_true")
    given = parser.parse_args()
    sys.exit(main(given.starts, with_sizes=not given.no_sizes))
