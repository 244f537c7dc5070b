"""Model servers with one model file: how each is started, asked and understood.

    job(package, folder) -> Job            the model, an input, and what the model makes of it
    rows(job) -> (Server, ...)             ours first
    running(server, folder, port)          until the block ends
    checked(server, port, want)            its answer is the model's

The peers run in environments of their own; their code is in benchmarks/servers.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPMessage
from pathlib import Path

import msgspec
import numpy as np

from agent.config import Serve
from benchmarks import agent_daemon, load, peer_env
from benchmarks.agent_packages import read_golden
from edge_core.package import format as package
from edge_core.package.manifest import PackagedModel
from edge_core.runtimes import onnxruntime as adapter
from edge_core.tensors import Array, Feeds
from edge_sdk.build.workspace import default_cache

THREADS = 1
OURS = "edge-agent, binary"
HERE = Path(__file__).parent / "servers"
# httptools makes uvicorn faster, and MLServer does not ask for it; with a newer uvloop its workers
# do not start.
MLSERVER = peer_env.PeerEnv(
    "mlserver-1.7.1",
    (("mlserver==1.7.1", "onnxruntime==1.31.1", "httptools==0.9.0", "uvloop==0.21.0"),),
)
LITSERVE = peer_env.PeerEnv("litserve-0.2.19", (("litserve==0.2.19", "onnxruntime==1.31.1"),))


class Job(msgspec.Struct, frozen=True):
    """One model and one input for every server."""

    package: Path
    model: Path  # the file inside
    manifest: PackagedModel
    feeds: Feeds
    want: Array  # what the model makes of it

    @property
    def input(self) -> tuple[str, Array]:
        ((name, array),) = self.feeds.items()
        return name, array


class Launch(msgspec.Struct, frozen=True):
    """How a server's process is started."""

    command: Sequence[str]
    ready: str  # a path that answers 200
    env: Mapping[str, str] = {}


class Server(msgspec.Struct, frozen=True):
    """One row of the table."""

    name: str
    launch: Callable[[Path, int], Launch]  # given its own folder and port; may raise MeasureError
    path: str
    body: bytes
    headers: Mapping[str, str]
    answer: Callable[[bytes, HTTPMessage], Array]

    def request(self, port: int) -> bytes:
        return load.post(f"http://127.0.0.1:{port}{self.path}", self.body, self.headers)


def job(path: Path, folder: Path) -> Job:
    """The package's model file and its first golden input."""
    opened = package.open(path)
    (variant,) = opened.manifest.variants
    model = opened.extract(variant, folder / "model")
    feeds = read_golden(opened).inputs[0]
    want = adapter.open(model, threads=THREADS, options={}).run(feeds)
    return Job(path, model, opened.manifest.model(variant), feeds, next(iter(want.values())))


def agent(job: Job) -> Server:
    output = job.manifest.outputs[0].name
    body, headers = agent_daemon.infer_body(job.feeds, [output])

    def launch(folder: Path, port: int) -> Launch:
        serve = Serve(threads=THREADS, instances=1, batching=False)
        config = agent_daemon.prepare(folder, [job.package], port=port, serve=serve)
        command = [sys.executable, "-m", "agent", "run"]
        return Launch(
            [*command, "--config", str(agent_daemon.settings(config))],
            "/v2/health/ready",
            {"PYTHONPATH": str(agent_daemon.ROOT)},
        )

    def answer(body: bytes, headers: HTTPMessage) -> Array:
        return np.asarray(agent_daemon.infer_result(body, headers).as_numpy(output))

    return Server(OURS, launch, f"/v2/models/{job.manifest.name}/infer", body, headers, answer)


def mlserver(job: Job, *, workers: int, text: bool, offline: bool) -> Server:
    name, array = job.input

    def launch(folder: Path, port: int) -> Launch:
        python = peer_env.provide(MLSERVER, default_cache(), offline=offline)
        own = {
            "host": "127.0.0.1", "http_port": port, "grpc_port": agent_daemon.free_port(),
            "metrics_endpoint": None, "debug": False, "gzip_enabled": False,
            "parallel_workers": workers,
        }  # fmt: skip
        extra = {"threads": THREADS, "dtypes": {name: array.dtype.name}}
        model = {
            "name": "m",
            "implementation": "mlserver_ort.OnnxModel",
            "parameters": {"uri": str(job.model), "extra": extra},
        }
        (folder / "m").mkdir()
        (folder / "settings.json").write_text(json.dumps(own))
        (folder / "m" / "model-settings.json").write_text(json.dumps(model))
        command = [str(python.parent / "mlserver"), "start", str(folder)]
        return Launch(command, "/v2/models/m/ready", {"PYTHONPATH": str(HERE)})

    kinds = {"float32": "FP32", "int32": "INT32", "int64": "INT64"}
    tensor = {"name": name, "shape": array.shape}
    if text:
        tensor |= {"datatype": kinds[array.dtype.name], "data": array.ravel().tolist()}
    else:
        tensor |= {"datatype": "BYTES", "data": [base64.b64encode(array.tobytes()).decode()]}
    body = json.dumps({"inputs": [tensor]}).encode()

    def answer(body: bytes, _: HTTPMessage) -> Array:
        (output,) = json.loads(body)["outputs"]
        return np.array(output["data"], np.float32).reshape(output["shape"])

    form = "JSON" if text else "base64"
    title = f"MLServer, {form}" + (f", {workers} worker" if workers else "")
    headers = {"Content-Type": "application/json"}
    return Server(title, launch, "/v2/models/m/infer", body, headers, answer)


def litserve(job: Job, *, fast_queue: bool, offline: bool) -> Server:
    name, array = job.input

    def launch(folder: Path, port: int) -> Launch:
        python = peer_env.provide(LITSERVE, default_cache(), offline=offline)
        given = {
            "model": str(job.model), "input": name, "dtype": array.dtype.name,
            "shape": array.shape, "threads": THREADS, "copies": 1, "port": port,
            "fast_queue": fast_queue,
        }  # fmt: skip
        command = [str(python), str(HERE / "litserve_ort.py"), json.dumps(given)]
        return Launch(command, "/health")

    def answer(body: bytes, _: HTTPMessage) -> Array:
        return np.frombuffer(body, job.want.dtype).reshape(job.want.shape)

    headers = {"Content-Type": "application/octet-stream"}
    title = f"LitServe, bytes, {'ZeroMQ' if fast_queue else 'process'} queue"
    return Server(title, launch, "/predict", array.tobytes(), headers, answer)


def rows(job: Job, *, offline: bool) -> tuple[Server, ...]:
    """Ours, and the peers in the settings that may suit them."""
    return (
        agent(job),
        mlserver(job, workers=0, text=True, offline=offline),
        mlserver(job, workers=0, text=False, offline=offline),
        mlserver(job, workers=1, text=False, offline=offline),
        litserve(job, fast_queue=False, offline=offline),
        litserve(job, fast_queue=True, offline=offline),
    )


@contextlib.contextmanager
def running(server: Server, folder: Path, port: int) -> Iterator[int]:
    """The server until the block ends, in a session of its own, whose id it gives."""
    folder.mkdir()
    how = server.launch(folder, port)
    log = folder / "output"
    with log.open("wb") as output:
        process = subprocess.Popen(
            how.command, cwd=folder, env={**os.environ, **how.env}, stdin=subprocess.DEVNULL,
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        agent_daemon.wait_ready("127.0.0.1", port, how.ready, process, log)
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def check_answer(server: Server, port: int, want: Array) -> None:
    """One request; raises SystemExit unless the answer is the model's."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", server.path, server.body, dict(server.headers))
    response = connection.getresponse()
    body = response.read()
    connection.close()
    if response.status != 200:
        raise SystemExit(f"{server.name} answered {response.status}: {body[:300]!r}")
    got = server.answer(body, response.headers)
    if not np.allclose(got, want, rtol=1e-3, atol=1e-4):
        raise SystemExit(f"{server.name} gives another answer than the model")
