"""Half an hour at a fixed rate with a swap every 20 s: does anything grow, does anything fail?

    python -m benchmarks.agent_soak [--minutes 30] [--rate 20] [--swap 20]

A daemon with EfficientNet-Lite0 INT8 in two versions that take turns, asked with tensors of 602 KB
and with photos, and with a CNN for digits whose answers are remembered. Requests start by the
clock, late or not; a latency counts from when its request was due. Every second the daemon's
resident memory, open files and threads are read from /proc. The memory's slope is a least-squares
line through what follows the warm-up, its interval widened for samples that resemble their
neighbours.
"""

from __future__ import annotations

import argparse
import http.client
import math
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from agent.config import Config, Serve
from agent.packages.slots import Slots
from benchmarks import agent_daemon, agent_packages
from benchmarks.agent_packages import read_golden
from edge_core import console
from edge_core.package import format as package
from edge_core.tensors import Feeds
from examples.data import PHOTOS

WARM_UP = 0.2  # share of the time, at most WARM_UP_S
WARM_UP_S = 300.0
CLIENTS = 4
DIGITS = 2000  # different inputs of the model whose answers are remembered
MORE_MB = 5.0  # from half to half; with every swap the allocator moves resident memory by more
LATE_S = 60.0
SETTLE_S = 3.0  # for the last swap to be noticed


class Sample(msgspec.Struct, frozen=True):
    """The daemon at one moment."""

    elapsed_s: float  # since the start
    mb: float  # resident, 10^6 bytes
    files: int
    threads: int


class Line(msgspec.Struct, frozen=True):
    """A straight line through samples: MB an hour, with its 95 % interval."""

    slope: float
    low: float
    high: float


class Asked(msgspec.Struct, frozen=True):
    """One request's end."""

    what: str
    ms: float  # from when it was due
    error: str = ""


class Swaps(msgspec.Struct, frozen=True):
    """How often the versions changed places: on disk, and in the daemon."""

    made: int
    served: int


Body = tuple[str, bytes, dict[str, str]]  # path, body, headers


def line(samples: Sequence[Sample]) -> Line:
    """Least squares over time.

    The variance is that of independent samples times (1 + r) / (1 - r), r being the residuals'
    correlation with their neighbours.
    """
    hours = np.array([sample.elapsed_s for sample in samples]) / 3600
    megabytes = np.array([sample.mb for sample in samples])
    if len(hours) < 10:
        return Line(math.nan, -math.inf, math.inf)
    hours = hours - hours.mean()
    slope = float((hours * megabytes).sum() / (hours * hours).sum())
    rest = megabytes - megabytes.mean() - slope * hours
    total = float((rest * rest).sum())
    correlation = float((rest[1:] * rest[:-1]).sum()) / total if total else 0.0
    correlation = min(max(correlation, 0.0), 0.99)
    variance = (
        total
        / (len(hours) - 2)
        / float((hours * hours).sum())
        * (1 + correlation)
        / (1 - correlation)
    )
    half = 1.96 * math.sqrt(variance)
    return Line(slope, slope - half, slope + half)


def read(pid: int, elapsed_s: float) -> Sample:
    """From /proc."""
    proc = Path("/proc") / str(pid)
    status = dict(
        row.split(":", 1) for row in (proc / "status").read_text().splitlines() if ":" in row
    )
    return Sample(
        elapsed_s=elapsed_s,
        mb=int(status["VmRSS"].split()[0]) * 1024 / 1e6,
        files=sum(1 for _ in (proc / "fd").iterdir()),
        threads=int(status["Threads"]),
    )


def bodies(packages: dict[str, Path]) -> dict[str, list[Body]]:
    """What is asked, by kind."""
    rng = np.random.default_rng(0)
    photos = [np.array([path.read_bytes()], object) for path in sorted(PHOTOS.glob("*.jpg"))]
    crops = list(read_golden(package.open(packages["lite0"])).inputs)
    digits = [rng.normal(size=(1, 1, 28, 28)).astype(np.float32) for _ in range(DIGITS)]
    return {
        "lite0, tensor": [_body("lite0", crop) for crop in crops],
        "lite0, photo": [_body("lite0", {"input": photo}) for photo in photos],
        "digits, tensor": [_body("digits", {"input": tensor}) for tensor in digits],
    }


def _body(name: str, feeds: Feeds) -> Body:
    return f"/v2/models/{name}/infer", *agent_daemon.infer_body(feeds, ["logits"])


class Clients:
    """Threads that ask by the clock."""

    def __init__(self, port: int, asked: dict[str, list[Body]], rate: float, seconds: float):
        self.ended: list[Asked] = []
        self._port, self._asked, self._rate, self._seconds = port, asked, rate, seconds
        self._due: queue.SimpleQueue[tuple[float, str, Body] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._client) for _ in range(CLIENTS)]
        self._threads.append(threading.Thread(target=self._clock))

    def start(self) -> None:
        self.started = time.monotonic()
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(LATE_S + self._seconds)

    def _clock(self) -> None:
        kinds = list(self._asked.items())
        for i in range(int(self._seconds * self._rate)):
            due = self.started + i / self._rate
            time.sleep(max(0.0, due - time.monotonic()))
            what, options = kinds[i % len(kinds)]
            self._due.put((due, what, options[i // len(kinds) % len(options)]))
        for _ in range(CLIENTS):
            self._due.put(None)

    def _client(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=LATE_S)
        while (item := self._due.get()) is not None:
            due, what, (path, body, headers) = item
            error = ""
            try:
                connection.request("POST", path, body, headers)
                response = connection.getresponse()
                said = response.read()
                if response.status != 200:
                    error = f"{response.status} {said[:200]!r}"
            except (OSError, http.client.HTTPException) as caught:
                error = repr(caught)
                connection.close()
            self.ended.append(Asked(what, (time.monotonic() - due) * 1e3, error))
        connection.close()


def run(
    config: Config, clients: Clients, seconds: float, swap_s: float, tell: Callable[[str], None]
) -> tuple[list[Sample], Swaps]:
    """Samples of the daemon while the clients ask and the versions take turns; and the swaps."""
    slots = Slots(config.root)
    samples: list[Sample] = []
    made = 0
    with agent_daemon.daemon(config) as process:
        clients.start()
        while (elapsed_s := time.monotonic() - clients.started) < seconds:
            if elapsed_s >= (made + 1) * swap_s:
                slots.rollback("lite0", refuse=False)  # previous and current change places
                made += 1
            samples.append(read(process.pid, elapsed_s))
            if len(samples) % 60 == 0:
                tell(f"{elapsed_s / 60:.0f} min: {samples[-1]}")
            time.sleep(max(0.0, clients.started + len(samples) - time.monotonic()))
        clients.join()
        time.sleep(SETTLE_S)
        return samples, Swaps(made, serve_agent(config.http.port))


def serve_agent(port: int) -> int:
    """Swaps that the daemon counts."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LATE_S)
    connection.request("GET", "/v2/edge/status")
    status = msgspec.json.decode(connection.getresponse().read())
    connection.close()
    return int(status["swaps"])


def verdicts(
    samples: Sequence[Sample], ended: Sequence[Asked], wanted: int, swaps: Swaps
) -> dict[str, bool]:
    """What the run is held to."""
    settled = settle(samples)
    growth = line(settled)
    failed = [answer for answer in ended if answer.error]
    told = {
        f"{len(ended)} of {wanted} requests answered, {len(failed)} failed": len(ended) == wanted
        and not failed,
        f"memory {growth.slope:+.2f} MB an hour, 95 % {growth.low:+.2f} to {growth.high:+.2f}"
        " (not above 0, as far as can be told)": growth.low <= 0,
        f"{swaps.made} swaps, {swaps.served} served": swaps.served == swaps.made,
    }
    for name, title, more in (
        ("mb", "resident MB", MORE_MB), ("files", "open files", 1), ("threads", "threads", 1)
    ):  # fmt: skip
        start, end = (_middle(part, name) for part in halves(settled))
        text = f"{title}: {start:.1f} in the first half, {end:.1f} in the second"
        told[f"{text} (at most {more:g} more)"] = end <= start + more
    return told


def settle(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Those after the warm-up."""
    after = min(WARM_UP_S, WARM_UP * samples[-1].elapsed_s)
    return [sample for sample in samples if sample.elapsed_s >= after]


def halves(samples: Sequence[Sample]) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """The first and the second."""
    return samples[: len(samples) // 2], samples[len(samples) // 2 :]


def _middle(samples: Sequence[Sample], name: str) -> float:
    return float(np.median([getattr(sample, name) for sample in samples]))


def show(samples: Sequence[Sample], ended: Sequence[Asked]) -> None:
    columns = ("n", "failed", "p50 ms", "p99 ms", "max ms")
    table = console.new_table("requests", *columns, right=columns)
    for what in sorted({answer.what for answer in ended}):
        ms = [answer.ms for answer in ended if answer.what == what and not answer.error]
        failed = sum(answer.what == what and bool(answer.error) for answer in ended)
        cells = (
            [f"{figure:.2f}" for figure in np.quantile(ms, [0.5, 0.99, 1.0])]
            if ms
            else ["", "", ""]
        )
        table.add_row(what, str(len(ms)), str(failed), *cells)
    console.stdout().print(table)
    figures = ("at the end of warm-up", "median", "at most", "at the end")
    table = console.new_table("daemon", *figures, right=figures)
    settled = settle(samples)
    for name, title in (("mb", "resident MB"), ("files", "open files"), ("threads", "threads")):
        values = [getattr(figure, name) for figure in settled]
        shown = [values[0], float(np.median(values)), max(values), values[-1]]
        table.add_row(title, *(f"{figure:.1f}" for figure in shown))
    console.stdout().print(table)


def main(minutes: float, rate: float, swap_s: float) -> int:
    packages = {"lite0": agent_packages.lite0(), "digits": agent_packages.digits()}
    seconds = minutes * 60
    with tempfile.TemporaryDirectory(prefix="edge-soak-") as folder:
        other = Path(folder) / "lite0-2.edgepkg"
        agent_packages.again(packages["lite0"], other, version="2")
        config = agent_daemon.prepare(
            Path(folder) / "agent", [*packages.values(), other], port=agent_daemon.free_port(),
            models={"digits": Serve(cache=True)},
        )  # fmt: skip
        clients = Clients(config.http.port, bodies(packages), rate, seconds)
        samples, swaps = run(
            config, clients, seconds, swap_s, lambda text: print(text, file=sys.stderr, flush=True)
        )
    show(samples, clients.ended)
    told = verdicts(samples, clients.ended, int(seconds * rate), swaps)
    for text, ok in told.items():
        print(f"{'met    ' if ok else 'NOT MET'} {text}")
    for answer in [answer for answer in clients.ended if answer.error][:5]:
        print(f"        {answer.what}: {answer.error}")
    return 0 if all(told.values()) else 2


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second")
    parser.add_argument("--swap", type=float, default=20.0, help="seconds between swaps")
    given = parser.parse_args()
    sys.exit(main(given.minutes, given.rate, given.swap))
