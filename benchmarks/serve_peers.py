"""The agent and other model servers with the same model file, the same threads, the same clients.

    python -m benchmarks.serve_peers [--model lite0|digits] [--rounds 3] [--seconds 4] [--offline]

Every server has one copy of the model in ONNX Runtime with one thread, and none makes batches.
Clients are another process (benchmarks.load). The servers take turns; figures are over all rounds.
Each server's answer is held against the model's own before it is timed.

    MLServer   the same protocol. Its HTTP has no binary tensors: JSON numbers, and base64, which is
               the least it can do; in its own process (no workers) and with one worker.
    LitServe   raw bytes in and out, with either of its queues.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from agent.config import Serve
from benchmarks import agent_daemon, agent_packages, load, peer_env
from benchmarks.load import Load
from edge_core import console, golden, package
from edge_core.errors import MeasureError
from edge_core.manifest import Manifest
from edge_core.runtimes import onnxruntime as adapter
from edge_core.tensors import Array, Feeds
from edge_sdk.workspace import default_cache

CLIENTS = (1, 8, 32)
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
    manifest: Manifest
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
    answer: Callable[[bytes, Mapping[str, str]], Array]

    def request(self, port: int) -> bytes:
        return load.post(f"http://127.0.0.1:{port}{self.path}", self.body, self.headers)


def job(path: Path, folder: Path) -> Job:
    """The package's model file and its first golden input."""
    opened = package.open(path)
    model = opened.extract(folder / "model")
    feeds = golden.from_bytes(opened.read("golden.npz")).inputs[0]
    want = adapter.open(model, threads=THREADS, options={}).run(feeds)
    return Job(path, model, opened.manifest, feeds, next(iter(want.values())))


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

    def answer(body: bytes, headers: Mapping[str, str]) -> Array:
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

    def answer(body: bytes, _: Mapping[str, str]) -> Array:
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

    def answer(body: bytes, _: Mapping[str, str]) -> Array:
        return np.frombuffer(body, job.want.dtype).reshape(job.want.shape)

    headers = {"Content-Type": "application/octet-stream"}
    title = f"LitServe, bytes, {'ZeroMQ' if fast_queue else 'process'} queue"
    return Server(title, launch, "/predict", array.tobytes(), headers, answer)


def servers(job: Job, *, offline: bool) -> tuple[Server, ...]:
    """All rows."""
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


def checked(server: Server, port: int, want: Array) -> None:
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


class Round(msgspec.Struct, frozen=True):
    """One turn of one server."""

    load: Load
    cpu_s: float  # of all the server's processes


class Figures(msgspec.Struct, frozen=True):
    """One server with one number of clients, over all rounds."""

    p50: float  # ms
    p99: float
    per_s: float
    cpu_ms: float  # a request
    failed: int


Found = dict[str, dict[int, Figures]]  # server -> clients -> figures


def figures(rounds: Sequence[Round]) -> Figures:
    """Quantiles are of all requests together."""
    x = load.pooled([r.load for r in rounds])
    cpu_ms = sum(r.cpu_s for r in rounds) * 1e3 / max(1, len(x.ms))
    return Figures(x.quantile(0.5), x.quantile(0.99), x.per_s, cpu_ms, x.failed)


def cpu_s(session: int) -> float:
    """Processor time so far of the living processes of a session."""
    total = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def measured(job: Job, all_servers: Sequence[Server], rounds: int, seconds: float) -> Found:
    """Load of every server, the servers in turn; peers that cannot be had are left out."""
    turns: dict[str, dict[int, list[Round]]] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-serve-")))
        ready: list[tuple[Server, int, int]] = []
        for i, server in enumerate(all_servers):
            port = agent_daemon.free_port()
            print(f"starting {server.name}", file=sys.stderr, flush=True)
            try:
                session = stack.enter_context(running(server, folder / str(i), port))
            except MeasureError as e:
                if server.name == OURS:
                    raise
                print(f"{server.name}: {e.what}")
                continue
            checked(server, port, job.want)
            ready.append((server, port, session))
            turns[server.name] = {n: [] for n in CLIENTS}
        for _ in range(rounds):
            for clients in CLIENTS:
                for server, port, session in ready:
                    before = cpu_s(session)
                    one = load.run(
                        ("127.0.0.1", port), server.request(port),
                        clients=clients, seconds=seconds,
                    )  # fmt: skip
                    turns[server.name][clients].append(Round(one, cpu_s(session) - before))
    return {name: {n: figures(given) for n, given in by.items()} for name, by in turns.items()}


def table(title: str, found: Found) -> None:
    """Print one model's rows."""
    columns = ("p50 ms", "p99 ms", "1/s", "CPU ms each", "failed")
    t = console.table(title, "clients", *columns, right=("clients", *columns))
    for n in CLIENTS:
        for name, by in found.items():
            f = by[n]
            t.add_row(
                name, str(n), f"{f.p50:.2f}", f"{f.p99:.2f}", f"{f.per_s:.0f}",
                f"{f.cpu_ms:.2f}", str(f.failed),
            )  # fmt: skip
        t.add_section()
    console.stdout().print(t)


def verdicts(title: str, found: Found) -> dict[str, bool | None]:
    """Ours against the best peer in each figure; None: there was no peer."""
    peers = {name: by for name, by in found.items() if name != OURS}
    if not peers:
        return {f"{title}: no peer ran": None}
    failed = sum(f.failed for f in found[OURS].values())
    told: dict[str, bool | None] = {f"{title}: {failed} failed requests": failed == 0}
    for n in CLIENTS:
        ours = found[OURS][n]
        for what in ("p50", "p99"):
            best = min(peers, key=lambda name: getattr(peers[name][n], what))
            a, b = getattr(ours, what), getattr(peers[best][n], what)
            told[f"{title}, {n} clients: {what} {a:.2f} ms ({best}: {b:.2f})"] = a < b
        best = max(peers, key=lambda name: peers[name][n].per_s)
        a, b = ours.per_s, peers[best][n].per_s
        told[f"{title}, {n} clients: {a:.0f} answers a second ({best}: {b:.0f})"] = a > b
    return told


MODELS = {"lite0": agent_packages.lite0, "digits": agent_packages.digits}


def main(
    models: Sequence[str], rounds: int = 3, seconds: float = 4.0, offline: bool = False
) -> int:
    told: dict[str, bool | None] = {}
    for name in models:
        with tempfile.TemporaryDirectory(prefix="edge-serve-") as folder:
            given = job(MODELS[name](), Path(folder))
            found = measured(given, servers(given, offline=offline), rounds, seconds)
        table(name, found)
        told |= verdicts(name, found)
    for text, met in told.items():
        print({True: "met    ", False: "NOT MET", None: "OPEN   "}[met], text)
    return 2 if False in told.values() else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--offline", action="store_true", help="install no peer")
    given = parser.parse_args()
    sys.exit(main(given.model or tuple(MODELS), given.rounds, given.seconds, given.offline))
