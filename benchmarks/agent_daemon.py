"""An agent for a benchmark: packages installed in a folder of its own, in process or as a daemon.

config = prepare(folder, [package, ...], port=free_port())
with daemon(config) as process:      # `edge-agent run`, ready to answer
    ...
"""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import HTTPMessage
from pathlib import Path

import msgspec
import tomli_w
import tritonclient.http as triton
from tritonclient.utils import np_to_triton_dtype

from agent.config import Config, Http, Serve
from agent.packages.install import install
from edge_core.files import write_atomic
from edge_core.tensors import Feeds

ROOT = Path(__file__).resolve().parent.parent
START_S = 60.0
STOP_S = 30.0


def prepare(
    folder: Path,
    packages: Iterable[Path],
    *,
    port: int = 0,
    serve: Serve | None = None,
    models: Mapping[str, Serve] | None = None,
) -> Config:
    """Install the packages below ``folder``, and write the settings beside them."""
    config = Config(
        data_dir=str(folder / "data"),
        log_level="warning",
        http=Http(port=port),
        serve=serve or Serve(),
        models=dict(models or {}),
    )
    config.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(settings(config), tomli_w.dumps(msgspec.to_builtins(config)).encode(), mode=0o600)
    for package in packages:
        install(config, package)
    return config


def settings(config: Config) -> Path:
    """The file that prepare() wrote."""
    return config.root.parent / "config.toml"


@contextmanager
def daemon(config: Config) -> Iterator[subprocess.Popen[bytes]]:
    """Run `edge-agent run` until the block ends; what it logs goes to a file beside its settings.

    Raises SystemExit with that file's end if it does not become ready, or does not end well.
    """
    log = config.root.parent / "log"
    command = [sys.executable, "-m", "agent", "run", "--config", str(settings(config))]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
        try:
            wait_ready("127.0.0.1", config.http.port, "/v2/health/ready", process, log)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                code = -signal.SIGKILL
    if code != 0:
        raise SystemExit(f"the agent ended with {code}:\n{_end(log)}")


def wait_ready(
    host: str, port: int, path: str, process: subprocess.Popen[bytes], log: Path
) -> None:
    """Ask until the answer is 200; raises SystemExit if the process dies or START_S pass."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit(f"a server ended with {process.returncode}:\n{_end(log)}")
        connection = http.client.HTTPConnection(host, port, timeout=5)
        with suppress(OSError, http.client.HTTPException):
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                connection.close()
                return
        connection.close()
        time.sleep(0.05)
    raise SystemExit(f"a server is not ready after {START_S:g} s:\n{_end(log)}")


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def infer_inputs(feeds: Feeds) -> list[triton.InferInput]:
    """The tensors of a request, in binary."""
    inputs = []
    for name, array in feeds.items():
        given = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        given.set_data_from_numpy(array, binary_data=True)
        inputs.append(given)
    return inputs


def infer_body(feeds: Feeds, outputs: Iterable[str]) -> tuple[bytes, dict[str, str]]:
    """A request of the Open Inference Protocol with binary tensors, as tritonclient writes it."""
    inputs = infer_inputs(feeds)
    wanted = [triton.InferRequestedOutput(name, binary_data=True) for name in outputs]
    body, json_size = triton.InferenceServerClient.generate_request_body(inputs, outputs=wanted)
    headers = {"Content-Type": "application/octet-stream"}
    if json_size is not None:
        headers["Inference-Header-Content-Length"] = str(json_size)
    return bytes(body), headers


def infer_result(body: bytes, headers: HTTPMessage) -> triton.InferResult:
    """An answer, as tritonclient reads it."""
    size = headers.get("Inference-Header-Content-Length")
    parse = triton.InferenceServerClient.parse_response_body
    return parse(body, header_length=int(size) if size else None)


def _end(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])
