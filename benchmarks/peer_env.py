"""Other people's converters: an environment for each, and programs run at a measured cost.

    provide(ONNX2TF, cache) -> Path        its python; a finished environment is used again
    run([python, ...], log=...) -> Cost    seconds and peak memory of the whole process

Their pins exclude one another and ours: onnx2tf wants ai-edge-litert 2.1.2, the quantiser 2.3.0.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from edge_core.errors import MeasureError

INSTALL_TIMEOUT_S = 600.0
RUN_TIMEOUT_S = 900.0
READY = "ready"  # written last: a folder without it was left half made


class PeerEnv(msgspec.Struct, frozen=True):
    """What pip installs, a call each; ``host`` puts our own packages behind them."""

    name: str
    steps: tuple[tuple[str, ...], ...]
    host: bool = False


# It declares Python >= 3.12 and exact pins; with these beside it, it runs on 3.11 too.
_BESIDE_ONNX2TF = (
    "ai-edge-litert==2.3.0", "onnx==1.23.2", "onnxruntime==1.31.1", "onnxsim==0.8.1",
    "sne4onnx==2.0.1", "sng4onnx==2.0.1", "psutil", "h5py", "flatbuffers",
)  # fmt: skip
ONNX2TF = PeerEnv(
    "onnx2tf-2.6.9",
    (_BESIDE_ONNX2TF, ("--no-deps", "--ignore-requires-python", "onnx2tf==2.6.9")),
)
LITERT_TORCH = PeerEnv("litert-torch-0.10.0", (("litert-torch==0.10.0",),), host=True)
TENSORFLOW = PeerEnv("tensorflow-2.21.0", (("tensorflow-cpu==2.21.0",),))


class Cost(msgspec.Struct, frozen=True):
    """Of a process with all that it started and waited for."""

    seconds: float
    peak_mb: float  # resident set of the largest process


def provide(env: PeerEnv, cache: Path, *, offline: bool = False) -> Path:
    """The environment's python, installed if need be; raises MeasureError with pip's reason."""
    here = (env.steps, env.host, sys.version_info[:2], sysconfig.get_platform())
    key = hashlib.sha256(repr(here).encode()).hexdigest()[:12]
    folder = cache / "peers" / f"{env.name}-{key}"
    python = folder / "bin" / "python"
    if (folder / READY).is_file():
        return python
    if offline:
        raise MeasureError("not installed, and --offline was given")
    shutil.rmtree(folder, ignore_errors=True)
    _call([sys.executable, "-m", "venv", str(folder)])
    if env.host:
        site = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
        (site / "host.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for step in env.steps:
        _call([str(python), "-m", "pip", "install", "--quiet", *step])
    (folder / READY).touch()
    return python


def _call(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=INSTALL_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise MeasureError(f"not installed after {INSTALL_TIMEOUT_S:g} s") from error
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise MeasureError(f"cannot be installed: {(errors or ['pip failed'])[-1]}")


# A process counts the memory of the one that it was forked from; this one has next to none.
_LAUNCH = """
import os, sys, time
start = time.perf_counter()
pid = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
told = time.perf_counter() - start, usage.ru_maxrss, os.waitstatus_to_exitcode(status)
with open(sys.argv[1], "w") as f:
    print(*told, file=f)
"""


def run(command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> Cost:
    """Run a program (an absolute path first), its output into ``log``.

    The folder of the program goes first on PATH. Raises MeasureError with its last line if it
    fails, or is not done after RUN_TIMEOUT_S.
    """
    told = log.with_suffix(".cost")
    path = os.pathsep.join((str(Path(command[0]).parent), os.environ.get("PATH", "")))
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LAUNCH, str(told), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "PATH": path, **(env or {})},
            start_new_session=True,
        )
        try:
            child.wait(timeout=RUN_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise MeasureError(f"not done after {RUN_TIMEOUT_S:g} s") from error
        finally:
            if child.poll() is None:  # an interrupt, too, ends the program with us
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    seconds, kilobytes, status = told.read_text().split()
    if int(status) != 0:
        raise MeasureError(f"failed ({status}): {_last_line(log)}")
    return Cost(float(seconds), int(kilobytes) * 1024 / 1e6)


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else "it printed nothing"
