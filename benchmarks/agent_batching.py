"""Dynamic batches against none: where they pay, and where the installation leaves them off.

    python -m benchmarks.agent_batching [--rounds 3] [--seconds 3]

A CNN for digits whose batch of 8 costs 5 single inferences, and Magika, whose batch of 8 costs 8.
Clients in a closed loop: threads of this process, and another process over HTTP. With and without
take turns; figures are over all rounds. One session with one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
from pathlib import Path

import msgspec
from rich.table import Table

from agent import Agent
from agent.config import Config, Serve
from agent.packages.slots import Batching, Slots
from benchmarks import agent_daemon, agent_packages, load
from benchmarks.agent_packages import read_golden
from benchmarks.load import Load
from edge_core import console
from edge_core.package import format as package
from edge_core.tensors import Feeds

CLIENTS = (1, 8, 32)
THREADS, HTTP = "in process", "HTTP"
SAME = 0.9  # a throughput this close to the other is no slower on a busy machine

Key = tuple[str, bool, int]  # where, batching, clients


class Found(msgspec.Struct, frozen=True):
    """One model."""

    batching: Batching  # by the installation
    loads: dict[Key, list[Load]]
    batches: int  # inferences with more than one request, all rounds, batching allowed

    def all(self, where: str, batching: bool, clients: int) -> Load:
        return load.pool_loads(self.loads[where, batching, clients])

    def speed(self, where: str, clients: int) -> float:
        """Throughput with batching over that without, in the same round; median of the rounds."""
        both = zip(self.loads[where, True, clients], self.loads[where, False, clients], strict=True)
        return statistics.median(on.per_s / off.per_s for on, off in both)


def measure_clients(path: Path, folder: Path, rounds: int, seconds: float) -> Found:
    """Both settings, in turn, each installed once."""
    opened = package.open(path)
    name = opened.manifest.name
    feeds = read_golden(opened).inputs[0]
    loads: dict[Key, list[Load]] = {}
    with contextlib.ExitStack() as stack:
        configs = {
            on: agent_daemon.prepare(
                folder / str(on), [path], port=agent_daemon.free_port(),
                serve=Serve(threads=1, batching=on),
            )
            for on in (False, True)
        }  # fmt: skip
        agents = {on: stack.enter_context(Agent(config)) for on, config in configs.items()}
        for config in configs.values():
            stack.enter_context(agent_daemon.daemon(config))
        for _ in range(rounds):
            for clients in CLIENTS:
                for on in (False, True):
                    here = _here(agents[on], name, feeds, clients, seconds)
                    loads.setdefault((THREADS, on, clients), []).append(here)
                    there = _over_http(configs[on], name, opened, feeds, clients, seconds)
                    loads.setdefault((HTTP, on, clients), []).append(there)
        slot = Slots(configs[True].root).active(name).current
        assert slot is not None
        return Found(slot.tuning.batching, loads, agents[True].model(name).batches)


def _here(agent: Agent, name: str, feeds: Feeds, clients: int, seconds: float) -> Load:
    return load.threads(lambda: agent.infer(name, feeds), clients=clients, seconds=seconds)


def _over_http(
    config: Config, name: str, opened: package.Package, feeds: Feeds, clients: int, seconds: float
) -> Load:
    outputs = [spec.name for spec in opened.manifest.variants[0].outputs]
    body, headers = agent_daemon.infer_body(feeds, outputs)
    url = f"http://127.0.0.1:{config.http.port}/v2/models/{name}/infer"
    request = load.post(url, body, headers)
    at = ("127.0.0.1", config.http.port)
    return load.run(at, request, clients=clients, seconds=seconds)


def rows(table: Table, name: str, found: Found) -> None:
    for where in (THREADS, HTTP):
        for clients in CLIENTS:
            for on in (False, True):
                load = found.all(where, on, clients)
                table.add_row(
                    name, where, str(clients), "on" if on else "off",
                    f"{load.per_s:.0f}", f"{found.speed(where, clients):.2f}x" if on else "",
                    f"{load.quantile(0.5):.2f}", f"{load.quantile(0.99):.2f}", str(load.failed),
                )  # fmt: skip


def verdicts(pays: Found, does_not: Found) -> dict[str, bool]:
    """What both are held to."""
    told = {
        f"digits: the installation says {pays.batching.why!r}": pays.batching.pays,
        f"magika: the installation says {does_not.batching.why!r}": not does_not.batching.pays,
        f"magika: {does_not.batches} batches although allowed (0)": does_not.batches == 0,
    }
    for clients in CLIENTS[1:]:
        speed = pays.speed(THREADS, clients)
        told[f"digits, {clients} threads: {speed:.2f} times the throughput (above 1)"] = speed > 1
        on, off = (pays.all(THREADS, batched, clients).quantile(0.99) for batched in (True, False))
        told[f"digits, {clients} threads: p99 {on:.2f} ms with, {off:.2f} without (at most)"] = (
            on <= off
        )
        speed = pays.speed(HTTP, clients)
        told[f"digits, {clients} over HTTP: {speed:.2f} times the throughput (above 1)"] = speed > 1
    for where in (THREADS, HTTP):
        speed = pays.speed(where, 1)
        told[f"digits, one client, {where}: {speed:.2f} times (at least {SAME})"] = speed >= SAME
    return told


def main(rounds: int, seconds: float) -> int:
    columns = ("clients", "1/s", "of off", "p50 ms", "p99 ms", "failed")
    table = console.new_table("model", "where", "clients", "batching", *columns[1:], right=columns)
    with tempfile.TemporaryDirectory(prefix="edge-batch-") as folder:
        digits = measure_clients(agent_packages.digits(), Path(folder) / "digits", rounds, seconds)
        magika = measure_clients(agent_packages.magika(), Path(folder) / "magika", rounds, seconds)
    rows(table, "digits", digits)
    rows(table, "magika", magika)
    console.stdout().print(table)
    told = verdicts(digits, magika)
    for text, ok in told.items():
        print(f"{'met    ' if ok else 'NOT MET'} {text}")
    return 0 if all(told.values()) else 2


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    given = parser.parse_args()
    sys.exit(main(given.rounds, given.seconds))
