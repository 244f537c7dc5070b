"""The agent as a process, and commands beside it, for the tests of its life."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import onnx
import pytest
import tomli_w
from onnx import TensorProto, helper

from agent.commands import app
from agent.config import Config
from agent.service import client, instance_lock
from agent.service.instance_lock import Instance
from tests.agent.conftest import write_package
from tests.cases import ROOT

PYTHON = sys.executable
FOR_EVER = 10**12  # turns of turner(); a microsecond each


def settings(config: Config) -> Path:
    """The settings as a file beside the data directory."""
    path = config.root.parent / "config.toml"
    path.write_bytes(tomli_w.dumps(msgspec.to_builtins(config)).encode())
    return path


def until(true: Callable[[], object], seconds: float = 30.0) -> float:
    """Wait until ``true()`` is; how long it took."""
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < seconds, "it did not come true"
        time.sleep(0.02)
    return time.monotonic() - start


class Service:
    """`edge-agent run`, ready to answer; ``prefix`` are the words before the command."""

    def __init__(self, config: Config, *prefix: object, ready: bool = True, **environment: str):
        self.config, self._prefix = config, tuple(map(str, prefix))
        self.path = settings(config)
        self.log = config.root.parent / "log"
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [*self._prefix, PYTHON, "-m", "agent", "run", "--config", str(self.path)],
                cwd=ROOT, stdout=output, stderr=output, env={**os.environ, **environment},
            )  # fmt: skip
        if ready:
            until(
                lambda: self.process.poll() is not None or instance_lock.find_instance(config.root)
            )
            assert self.process.poll() is None, self.log.read_text()

    @property
    def here(self) -> Instance:
        """What the process announces."""
        instance = instance_lock.find_instance(self.config.root)
        assert instance
        return instance

    def digest(self, name: str) -> str:
        """What it serves for a model."""
        models = {model["name"]: model for model in client.status(self.here)["models"]}
        return str(models[name]["digest"])

    def command(self, *words: object) -> str:
        """Run another `edge-agent` command beside it, a process of its own; returns stdout."""
        done = subprocess.run(
            [*self._prefix, PYTHON, "-m", "agent", *map(str, words), "--config", str(self.path)],
            cwd=ROOT, env={**os.environ, "COLUMNS": "250"}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def end(self, number: int = signal.SIGTERM, timeout: float = 30) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Said(NamedTuple):
    """What a command printed."""

    stdout: str
    stderr: str


def edge_agent(*words: object, config: Path | None = None, ok: int = 0) -> Said:
    """A command as a user types it, but in this process; asserts its exit code."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["edge-agent", *map(str, words)])
        patch.setenv("COLUMNS", "250")
        patch.setenv("EDGE_AGENT_CONFIG", str(config or ""))
        mask = os.umask(0o022)
        try:
            with pytest.raises(SystemExit) as ended:
                app.main()
        finally:
            os.umask(mask)
    assert ended.value.code == ok, f"exit {ended.value.code}\n{out.getvalue()}\n{err.getvalue()}"
    return Said(out.getvalue(), err.getvalue())


def open_folders(*folders: Path) -> list[str]:
    """Shell commands for a mount namespace: every user may reach these folders.

    They may lie below one that only root may enter, such as /root: an open one takes its place.
    """
    aside = {path: f"/mnt/{i}" for i, path in enumerate(folders)}
    closed = {
        next((parent for parent in reversed(folder.parents) if not parent.stat().st_mode & 1), None)
        for folder in aside
    }
    return [
        "mount -t tmpfs tmpfs /mnt",
        *(f"mkdir {mnt} && mount --bind {path} {mnt}" for path, mnt in aside.items()),
        *(f"mount -t tmpfs -o mode=755 tmpfs {path}" for path in closed if path),
        *(f"mkdir -p {path} && mount --bind {mnt} {path}" for path, mnt in aside.items()),
    ]


def numbers(folder: Path, **arrays: object) -> Path:
    """An input file."""
    path = folder / "input.npz"
    np.savez(path, **{name: np.asarray(array) for name, array in arrays.items()})
    return path


def clips(folder: Path) -> Path:
    """A hundred clips of four inputs, near one another, for the model with four inputs."""
    rng = np.random.default_rng(1)
    for clip in range(100):
        (folder / f"{clip:03}").mkdir(parents=True)
        for frame in range(4):
            row = 4 * np.eye(4)[clip % 3] + rng.normal(0, 0.01, 4)
            np.savez(folder / f"{clip:03}" / f"{frame}.npz", x=row[None].astype(np.float32))
    return folder


def turner(folder: Path, *, version: str = "1.0", step: int = 1) -> Path:
    """A package whose inference takes as long as its input says: n turns of a loop."""
    number = helper.make_tensor_value_info
    scalar: tuple[int, ...] = ()
    turn = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["go_on_after"]),
            helper.make_node("Add", ["v", "step"], ["v_after"]),
        ],
        "turn",
        [
            number("i", TensorProto.INT64, scalar),
            number("go_on", TensorProto.BOOL, scalar),
            number("v", TensorProto.INT64, (1,)),
        ],
        [
            number("go_on_after", TensorProto.BOOL, scalar),
            number("v_after", TensorProto.INT64, (1,)),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["n", "", "zero"], ["turned"], body=turn)],
        "turner",
        [number("n", TensorProto.INT64, (1,))],
        [number("turned", TensorProto.INT64, (1,))],
        [
            helper.make_tensor("zero", TensorProto.INT64, (1,), [0]),
            helper.make_tensor("step", TensorProto.INT64, (1,), [step]),
        ],
    )
    model = folder / f"turner-{version}.onnx"
    model_proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(model_proto, model)
    feeds = [{"n": np.array([count], np.int64)} for count in (1, 5)]
    out = folder / f"turner-{version}.edgepkg"
    return write_package(out, model, feeds, name="turner", version=version, class_scores=False)
