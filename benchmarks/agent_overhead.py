"""What the agent adds to a bare runtime session, in process and over HTTP; then other servers.

    python -m benchmarks.agent_overhead [--rounds 100] [--no-peers] [--offline]

In process: the runtime's own object, edge_core's adapter and Agent.infer() without caches take
turns in one process, on the same model file with the same threads. HTTP: a daemon, asked over one
kept connection by http.client and by tritonclient with binary tensors, in turn with Agent.infer()
here. Ratios and differences are those of the same round, and their median is shown. The table of
benchmarks.serve_peers follows.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
import tritonclient.http as triton
from rich.table import Table

from agent import Agent
from agent.config import Serve
from benchmarks import agent_daemon, agent_packages, serve_peers
from benchmarks.agent_packages import read_golden
from edge_core import console
from edge_core.package import format as package
from edge_core.package.manifest import PackagedModel
from edge_core.runtimes import registry as runtimes
from edge_core.tensors import Feeds

TURN = 5  # calls in a row
THREADS = 1
RAW, ADAPTER, AGENT = "the runtime's own", "edge_core adapter", "Agent.infer"
HTTP_CLIENT, TRITON = "HTTP, http.client", "HTTP, tritonclient"

Call = Callable[[], object]
Times = dict[str, list[float]]  # ms


class Model(msgspec.Struct, frozen=True):
    """One package, its model file, and an input."""

    package: Path
    file: Path
    manifest: PackagedModel
    feeds: Feeds


def model(path: Path, folder: Path) -> Model:
    opened = package.open(path)
    feeds = read_golden(opened).inputs[0]
    (variant,) = opened.manifest.variants
    return Model(path, opened.extract(variant, folder), opened.manifest.model(variant), feeds)


def raw(model: Model) -> Call:
    """The runtime as its documentation uses it, set up as the adapter does."""
    if model.manifest.runtime.name == "litert":
        return _interpreter(model)
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = THREADS
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(model.file), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, model.feeds)


def _interpreter(model: Model) -> Call:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(model.file), num_threads=THREADS)
    interpreter.allocate_tensors()
    (given,) = interpreter.get_input_details()
    (gives,) = interpreter.get_output_details()
    (array,) = model.feeds.values()

    def call() -> object:
        interpreter.set_tensor(given["index"], array)
        interpreter.invoke()
        return interpreter.get_tensor(gives["index"])

    return call


def adapter(model: Model) -> Call:
    need = model.manifest.runtime
    session = runtimes.get(need.name).open(model.file, threads=THREADS, options=need.options)
    return lambda: session.run(model.feeds)


def in_turn(calls: Mapping[str, Call], rounds: int) -> Times:
    """Milliseconds of each call; every round begins with another one."""
    times: Times = {name: [] for name in calls}
    order = list(calls.items())
    for _, call in order:
        for _ in range(2 * TURN):
            call()
    for i in range(rounds):
        start_with = i % len(order)
        for name, call in itertools.chain(order[start_with:], order[:start_with]):
            for _ in range(TURN):
                start = time.perf_counter_ns()
                call()
                times[name].append((time.perf_counter_ns() - start) / 1e6)
    return times


def in_process(model: Model, folder: Path, rounds: int) -> Times:
    config = agent_daemon.prepare(folder, [model.package], serve=Serve(threads=THREADS))
    with Agent(config) as agent:
        name = model.manifest.name
        calls = {
            RAW: raw(model),
            ADAPTER: adapter(model),
            AGENT: lambda: agent.infer(name, model.feeds, cache=False),
        }
        return in_turn(calls, rounds)


def over_http(model: Model, folder: Path, rounds: int) -> Times:
    port, serve = agent_daemon.free_port(), Serve(threads=THREADS)
    served = agent_daemon.prepare(folder / "daemon", [model.package], port=port, serve=serve)
    here = agent_daemon.prepare(folder / "here", [model.package], serve=serve)
    name, outputs = model.manifest.name, [output.name for output in model.manifest.outputs]
    body, headers = agent_daemon.infer_body(model.feeds, outputs)
    with agent_daemon.daemon(served), Agent(here) as agent:
        connection = http.client.HTTPConnection("127.0.0.1", port)

        def plain() -> None:
            connection.request("POST", f"/v2/models/{name}/infer", body, headers)
            response = connection.getresponse()
            answer = response.read()
            if response.status != 200:
                raise SystemExit(f"the agent answered {response.status}: {answer[:300]!r}")
            agent_daemon.infer_result(answer, response.headers).as_numpy(outputs[0])

        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:

            def tritons() -> None:
                inputs = agent_daemon.infer_inputs(model.feeds)
                wanted = [
                    triton.InferRequestedOutput(output, binary_data=True) for output in outputs
                ]
                client.infer(name, inputs, outputs=wanted).as_numpy(outputs[0])

            calls = {
                AGENT: lambda: agent.infer(name, model.feeds, cache=False),
                HTTP_CLIENT: plain,
                TRITON: tritons,
            }
            times = in_turn(calls, rounds)
        connection.close()
    return times


def rows(table: Table, title: str, times: Times, base: str) -> None:
    """One row a call; what it adds is against ``base``."""
    for name, ms in times.items():
        p50, p99 = np.quantile(ms, [0.5, 0.99])
        ratio, added = against(times, name, base)
        table.add_row(
            title, name, f"{p50:.4f}", f"{p99:.4f}",
            *(("", "") if name == base else (f"{ratio:.3f}x", f"{added * 1e3:.1f}")),
        )  # fmt: skip


def against(times: Times, name: str, base: str) -> tuple[float, float]:
    """p50 of ``name`` over that of ``base`` and their difference in ms: medians over the rounds.

    A busy moment of the machine falls on both in a round, and seldom on all calls of a turn.
    """
    times_of_name, times_of_base = (
        np.median(np.reshape(times[key], (-1, TURN)), axis=1) for key in (name, base)
    )
    return float(np.median(times_of_name / times_of_base)), float(
        np.median(times_of_name - times_of_base)
    )


def main(rounds: int, *, peers: bool, offline: bool) -> int:
    met: dict[str, bool] = {}
    columns = ("p50 ms", "p99 ms", "p50 ratio", "added us")
    table = console.new_table("model", "call", *columns, right=columns)
    made = {
        "Lite0 INT8, ONNX Runtime": (agent_packages.lite0(), rounds),
        "Lite0 INT8, LiteRT": (agent_packages.lite0("tflite-int8-static"), rounds),
        "dense 4x3, ONNX Runtime": (agent_packages.dense("1"), 20 * rounds),
    }
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as scratch:
        for i, (title, (path, count)) in enumerate(made.items()):
            folder = Path(scratch) / str(i)
            folder.mkdir()
            under_test = model(path, folder / "model")
            times = in_process(under_test, folder / "agent", count)
            rows(table, title, times, RAW)
            ratio, added = against(times, AGENT, RAW)
            if title.startswith("Lite0"):
                met[f"{title}: p50 {ratio:.3f} of the bare session's (at most 1.02)"] = (
                    ratio <= 1.02
                )
            else:
                met[f"{title}: {added * 1e3:.1f} us added (at most 60)"] = added <= 0.060
            if i != 1:  # the runtime makes no difference to HTTP
                times = over_http(under_test, folder / "http", count)
                rows(table, f"{title}, HTTP", times, AGENT)
                size = sum(array.nbytes for array in under_test.feeds.values())
                for name in (HTTP_CLIENT, TRITON):
                    _, added = against(times, name, AGENT)
                    text = f"{title}: {name} adds {added:.3f} ms for {size:,} bytes (at most 1.0)"
                    met[text] = added <= 1.0
    console.stdout().print(table)
    for text, ok in met.items():
        print(f"{'met    ' if ok else 'NOT MET'} {text}")
    mine = 0 if all(met.values()) else 2
    return max(mine, serve_peers.main(tuple(serve_peers.MODELS), offline=offline) if peers else 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--no-peers", action="store_true", help="ours only")
    parser.add_argument("--offline", action="store_true", help="install no peer")
    given = parser.parse_args()
    sys.exit(main(given.rounds, peers=not given.no_peers, offline=given.offline))
