"""Requests while the model is swapped: every one answered, each by one of the two versions.

    python -m benchmarks.agent_swap [--requests 10000] [--swaps 50]

Two packages of one model with different weights; the weights, run by a session of their own, say
which version gave an answer, and the answer must say the same of itself. In process: threads that
call Agent.infer() with and without the cache of exact answers. Over HTTP: a daemon that finds out
by itself, and clients that ask for nothing but keep their connections.
"""

from __future__ import annotations

import argparse
import http.client
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import msgspec
import numpy as np

from agent import Agent
from agent.config import Config, Serve
from agent.packages.slots import Slot, Slots
from benchmarks import agent_daemon, agent_packages
from edge_core import console
from edge_core.errors import EdgeError
from edge_core.runtimes import onnxruntime as adapter
from edge_core.tensors import Array, Feeds

NAME, INPUT, OUTPUT = "dense", "x", "y"
POOL = 500  # different inputs; with a cache most requests hit
CLIENTS = 8
SWAP_TIMEOUT_S = 60.0


class Version(msgspec.Struct, frozen=True):
    """One of the two: what it is called, and what it answers to each input of the pool."""

    slot: Slot
    answers: tuple[Array, ...]


class Pair(msgspec.Struct, frozen=True):
    """Both, installed."""

    config: Config
    versions: tuple[Version, Version]
    pool: tuple[Feeds, ...]

    def whose(self, index: int, got: Array) -> Slot | None:
        """The version that answers so to input ``i`` of the pool; None if neither does."""
        for version in self.versions:
            if got.shape == version.answers[index].shape and np.allclose(
                got, version.answers[index], atol=1e-6
            ):
                return version.slot
        return None


class Outcome(msgspec.Struct, frozen=True):
    """What became of the requests."""

    requests: int
    swaps: int
    failed: tuple[str, ...]  # errors
    neither: int  # answers of neither version
    mislabelled: int  # answers of one version that call themselves the other's
    cached: int
    during: int  # answers while a swap was under way
    answered: dict[str, int]  # version -> answers
    seconds: float

    @property
    def ok(self) -> bool:
        """All answered, each by a version that it names, and both were there."""
        wrong = len(self.failed) + self.neither + self.mislabelled
        return not wrong and len(self.answered) == 2


class Tally:
    """Counts from several threads."""

    def __init__(self, requests: int) -> None:
        self.wanted, self.done = requests, 0  # at least
        self.swapping = self.swapped = False  # is a swap under way; were all made?
        self.failed: list[str] = []
        self.counts: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def more(self) -> bool:
        """Is there one more request to send?"""
        return not self.swapped or self.done < self.wanted

    def judge(self, whose: Slot | None, named: str, known_as: str, cached: bool = False) -> None:
        """One answer: of whose weights, and the version that it names."""
        with self._lock:
            self.done += 1
            self.counts["cached"] += cached
            self.counts["during"] += self.swapping
            if whose is None:
                self.counts["neither"] += 1
            elif named != known_as:
                self.counts["mislabelled"] += 1
            else:
                self.answered[whose.version] += 1

    def fail(self, why: str) -> None:
        with self._lock:
            self.done += 1
            self.failed.append(why)

    def outcome(self, swaps: int, seconds: float) -> Outcome:
        return Outcome(
            self.done, swaps, tuple(self.failed), self.counts["neither"],
            self.counts["mislabelled"], self.counts["cached"], self.counts["during"],
            dict(self.answered), seconds,
        )  # fmt: skip


def pair(folder: Path, packages: Sequence[Path], *, cache: bool = False, port: int = 0) -> Pair:
    """Install both versions; the second one is current."""
    serve = Serve(threads=1, cache=cache, batching=False)
    config = agent_daemon.prepare(folder, packages, port=port, serve=serve)
    slots = Slots(config.root)
    active = slots.active(NAME)
    assert active.current is not None
    assert active.previous is not None
    rng = np.random.default_rng(0)
    pool = tuple({INPUT: rng.normal(size=(1, 4)).astype(np.float32)} for _ in range(POOL))
    versions = tuple(
        Version(slot, answers(slots.folder(slot) / "model.onnx", pool))
        for slot in (active.previous, active.current)
    )
    return Pair(config, (versions[0], versions[1]), pool)


def answers(model: Path, pool: Sequence[Feeds]) -> tuple[Array, ...]:
    """What a model file says, without any agent."""
    session = adapter.open(model, threads=1, options={})
    return tuple(session.run(feeds)[OUTPUT] for feeds in pool)


Ask = Callable[[int], tuple[Array, str, bool]]  # index -> answer, the version it names, cached?


def drive_requests(
    both: Pair,
    tally: Tally,
    swaps: int,
    swap: Callable[[Slot], None],
    client: Callable[[], AbstractContextManager[Ask]],
    known_as: Callable[[Slot], str],
) -> Outcome:
    """Clients ask until all swaps were made, which fall evenly between the wanted requests."""
    start = time.monotonic()

    def ask_on(seed: int) -> None:
        rng = np.random.default_rng(seed)
        with client() as ask:
            while tally.more:
                index = int(rng.integers(len(both.pool)))
                try:
                    got, named, cached = ask(index)
                except (EdgeError, OSError, http.client.HTTPException, Refused) as error:
                    tally.fail(f"{type(error).__name__}: {error}")
                    continue
                whose = both.whose(index, got)
                tally.judge(whose, named, known_as(whose) if whose else "", cached)

    with ThreadPoolExecutor(CLIENTS) as threads:
        asking = [threads.submit(ask_on, seed) for seed in range(CLIENTS)]
        try:
            for k in range(swaps):
                while tally.done < tally.wanted * (k + 1) // (swaps + 1):
                    if ended := [future for future in asking if future.done()]:
                        tally.wanted = 0
                        ended[0].result()  # it raised
                    time.sleep(0.0002)
                tally.swapping = True
                swap(both.versions[k % 2].slot)
                tally.swapping = False
        finally:
            tally.swapped = True
        for future in asking:
            future.result()
    return tally.outcome(swaps, time.monotonic() - start)


def in_process(both: Pair, requests: int, swaps: int) -> Outcome:
    """Threads of this process; a swap is a switch on disk and a reload()."""
    slots = Slots(both.config.root)
    with Agent(both.config) as agent:

        def swap(slot: Slot) -> None:
            slots.switch(slot)
            if agent.reload() != (NAME,):
                raise SystemExit(f"{slot.digest} was not loaded")

        @contextmanager
        def client() -> Iterator[Ask]:
            def ask(index: int) -> tuple[Array, str, bool]:
                answer = agent.infer(NAME, both.pool[index])
                return answer.outputs[OUTPUT], answer.digest, bool(answer.cached)

            yield ask

        return drive_requests(both, Tally(requests), swaps, swap, client, lambda slot: slot.digest)


class Refused(Exception):
    """The daemon's answer was not 200."""


def over_http(both: Pair, requests: int, swaps: int) -> Outcome:
    """A daemon; a swap is a switch on disk, and waiting until an answer is the new version's."""
    slots = Slots(both.config.root)
    port = both.config.http.port
    bodies = [agent_daemon.infer_body(feeds, [OUTPUT]) for feeds in both.pool]
    tally = Tally(requests)

    def swap(slot: Slot) -> None:
        slots.switch(slot)
        end = time.monotonic() + SWAP_TIMEOUT_S
        while serve_pair(port) != slot.version:
            if time.monotonic() > end:
                raise SystemExit(f"{slot.digest} is not served after {SWAP_TIMEOUT_S:g} s")
            time.sleep(0.01)

    @contextmanager
    def client() -> Iterator[Ask]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

        def ask(index: int) -> tuple[Array, str, bool]:
            body, headers = bodies[index]
            connection.request("POST", f"/v2/models/{NAME}/infer", body, headers)
            response = connection.getresponse()
            raw = response.read()
            if response.status != 200:
                raise Refused(f"{response.status} {raw[:200]!r}")
            found = agent_daemon.infer_result(raw, response.headers)
            return found.as_numpy(OUTPUT), found.get_response()["model_version"], False

        try:
            yield ask
        finally:
            connection.close()

    with agent_daemon.daemon(both.config):
        return drive_requests(both, tally, swaps, swap, client, lambda slot: slot.version)


def serve_pair(port: int) -> str:
    """The version that the daemon has for new requests."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", f"/v2/models/{NAME}")
    found = msgspec.json.decode(connection.getresponse().read())
    connection.close()
    return str(found["versions"][0])


def main(requests: int, swaps: int) -> int:
    packages = [agent_packages.dense("1"), agent_packages.dense("2")]
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="edge-swap-") as scratch:
        folder = Path(scratch)
        outcomes["in process"] = in_process(pair(folder / "a", packages), requests, swaps)
        cached = pair(folder / "b", packages, cache=True)
        outcomes["in process, with a cache"] = in_process(cached, requests, swaps)
        there = pair(folder / "c", packages, port=agent_daemon.free_port())
        outcomes["HTTP"] = over_http(there, requests, swaps)
    columns = ("requests", "swaps", "failed", "neither", "mislabelled", "cached", "during", "s")
    table = console.new_table("where", *columns, "answers of each", right=columns)
    for where, outcome in outcomes.items():
        each = ", ".join(
            f"{version}: {count}" for version, count in sorted(outcome.answered.items())
        )
        counts = (
            outcome.requests,
            outcome.swaps,
            len(outcome.failed),
            outcome.neither,
            outcome.mislabelled,
            outcome.cached,
            outcome.during,
        )
        table.add_row(where, *map(str, counts), f"{outcome.seconds:.1f}", each)
    console.stdout().print(table)
    for where, outcome in outcomes.items():
        print(
            f"{'met    ' if outcome.ok else 'NOT MET'} {where}: all answered, each by its version"
        )
        for why in outcome.failed[:3]:
            print(f"        {why}")
    return 0 if all(outcome.ok for outcome in outcomes.values()) else 2


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--swaps", type=int, default=50)
    given = parser.parse_args()
    sys.exit(main(given.requests, given.swaps))
