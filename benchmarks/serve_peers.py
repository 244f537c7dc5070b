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
import contextlib
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks import agent_daemon, agent_packages, load, peer_servers
from benchmarks.load import Load
from benchmarks.peer_servers import OURS, Job, Server
from edge_core import console
from edge_core.errors import MeasureError

CLIENTS = (1, 8, 32)


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
    pooled = load.pool_loads([round_.load for round_ in rounds])
    cpu_ms = sum(round_.cpu_s for round_ in rounds) * 1e3 / max(1, len(pooled.ms))
    return Figures(pooled.quantile(0.5), pooled.quantile(0.99), pooled.per_s, cpu_ms, pooled.failed)


def cpu_s(session: int) -> float:
    """Processor time so far of the living processes of a session."""
    total = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def measure_servers(job: Job, all_servers: Sequence[Server], rounds: int, seconds: float) -> Found:
    """Load of every server, the servers in turn; peers that cannot be had are left out."""
    turns: dict[str, dict[int, list[Round]]] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-serve-")))
        ready: list[tuple[Server, int, int]] = []
        for i, server in enumerate(all_servers):
            port = agent_daemon.free_port()
            print(f"starting {server.name}", file=sys.stderr, flush=True)
            try:
                session = stack.enter_context(peer_servers.running(server, folder / str(i), port))
            except MeasureError as error:
                if server.name == OURS:
                    raise
                print(f"{server.name}: {error.what}")
                continue
            peer_servers.check_answer(server, port, job.want)
            ready.append((server, port, session))
            turns[server.name] = {count: [] for count in CLIENTS}
        for _ in range(rounds):
            for clients in CLIENTS:
                for server, port, session in ready:
                    before = cpu_s(session)
                    one = load.run(
                        ("127.0.0.1", port), server.request(port),
                        clients=clients, seconds=seconds,
                    )  # fmt: skip
                    turns[server.name][clients].append(Round(one, cpu_s(session) - before))
    return {
        name: {count: figures(given) for count, given in by.items()} for name, by in turns.items()
    }


def table(title: str, found: Found) -> None:
    """Print one model's rows."""
    columns = ("p50 ms", "p99 ms", "1/s", "CPU ms each", "failed")
    table_ = console.new_table(title, "clients", *columns, right=("clients", *columns))
    for clients in CLIENTS:
        for name, by in found.items():
            figure = by[clients]
            table_.add_row(
                name, str(clients), f"{figure.p50:.2f}", f"{figure.p99:.2f}", f"{figure.per_s:.0f}",
                f"{figure.cpu_ms:.2f}", str(figure.failed),
            )  # fmt: skip
        table_.add_section()
    console.stdout().print(table_)


def verdicts(title: str, found: Found) -> dict[str, bool | None]:
    """Ours against the best peer in each figure; None: there was no peer."""
    peers = {name: by for name, by in found.items() if name != OURS}
    if not peers:
        return {f"{title}: no peer ran": None}
    failed = sum(figure.failed for figure in found[OURS].values())
    told: dict[str, bool | None] = {f"{title}: {failed} failed requests": failed == 0}
    for clients in CLIENTS:
        ours = found[OURS][clients]
        for what in ("p50", "p99"):
            best = min(peers, key=lambda name: getattr(peers[name][clients], what))
            own, peer = getattr(ours, what), getattr(peers[best][clients], what)
            told[f"{title}, {clients} clients: {what} {own:.2f} ms ({best}: {peer:.2f})"] = (
                own < peer
            )
        best = max(peers, key=lambda name: peers[name][clients].per_s)
        own, peer = ours.per_s, peers[best][clients].per_s
        told[f"{title}, {clients} clients: {own:.0f} answers a second ({best}: {peer:.0f})"] = (
            own > peer
        )
    return told


MODELS = {"lite0": agent_packages.lite0, "digits": agent_packages.digits}


def main(
    models: Sequence[str], rounds: int = 3, seconds: float = 4.0, offline: bool = False
) -> int:
    told: dict[str, bool | None] = {}
    for name in models:
        with tempfile.TemporaryDirectory(prefix="edge-serve-") as folder:
            job = peer_servers.job(MODELS[name](), Path(folder))
            found = measure_servers(job, peer_servers.rows(job, offline=offline), rounds, seconds)
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
