"""Pictures in, classes out: the agent with several clients against one caller, step by step.

    python -m benchmarks.agent_pipeline [--rounds 5] [--seconds 4]

EfficientNet-Lite0 INT8 with one session of one thread, and JPEG photos that the package's recipe
prepares. The caller decodes, infers and ranks, one photo after the other, with the same functions
as the agent. They take turns; ratios are of the same round. The agent's own clock says what each
stage took.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
from pathlib import Path

from agent import Agent, EncodedImage
from agent.config import Serve
from agent.serving.timing import Stage
from benchmarks import agent_daemon, agent_packages, load
from benchmarks.load import Load
from edge_core import console
from edge_core.package import format as package
from edge_core.package.preprocess import to_tensor
from edge_core.package.run import Scored, top_scores
from edge_core.runtimes import registry as runtimes
from edge_core.tensors import check_feeds, dequantise
from examples.data import PHOTOS

CLIENTS = (1, 2, 4, 8)
TOP = 5
SEQUENTIAL = "one caller, step by step"


class Sequential:
    """The same work with nothing beside it."""

    def __init__(self, path: Path, folder: Path) -> None:
        opened = package.open(path)
        (variant,) = opened.manifest.variants
        self._manifest = opened.manifest.model(variant)
        need = self._manifest.runtime
        self._session = runtimes.get(need.name).open(
            opened.extract(variant, folder), threads=1, options=need.options
        )

    def __call__(self, photo: bytes) -> tuple[Scored, ...]:
        manifest = self._manifest
        assert manifest.preprocess is not None
        feeds = {manifest.inputs[0].name: to_tensor(photo, manifest.preprocess)}
        outputs = self._session.run(check_feeds(feeds, manifest.inputs, manifest.name))
        reals = {spec.name: dequantise(outputs[spec.name], spec) for spec in manifest.outputs}
        return top_scores(reals, manifest.labels, TOP)


def measure_clients(
    path: Path, folder: Path, rounds: int, seconds: float
) -> tuple[dict[str, list[Load]], dict[str, Stage]]:
    """Loads by row, and the agent's stages; every answer is the sequential one's."""
    photos = [p.read_bytes() for p in sorted(PHOTOS.glob("*.jpg"))]
    sequential = Sequential(path, folder / "model")
    config = agent_daemon.prepare(folder / "agent", [path], serve=Serve(threads=1))
    (name,) = ("lite0",)
    loads: dict[str, list[Load]] = {}
    with Agent(config) as agent:
        for photo in photos:
            if agent.infer(name, EncodedImage(photo), top=TOP).top != sequential(photo):
                raise SystemExit("the agent gives another answer than its parts")
        turn = itertools.cycle(photos)
        for _ in range(rounds):
            one = load.threads(lambda: sequential(next(turn)), clients=1, seconds=seconds)
            loads.setdefault(SEQUENTIAL, []).append(one)
            for clients in CLIENTS:
                many = load.threads(
                    lambda: agent.infer(name, EncodedImage(next(turn)), top=TOP),
                    clients=clients, seconds=seconds,
                )  # fmt: skip
                loads.setdefault(f"the agent, {clients} clients", []).append(many)
        return loads, dict(agent.model(name).stages)


def speeds(loads: dict[str, list[Load]]) -> dict[str, float]:
    """Throughput over the sequential one's in the same round; median of the rounds."""
    base = loads[SEQUENTIAL]
    return {
        name: statistics.median(
            ours.per_s / sequential.per_s for ours, sequential in zip(by, base, strict=True)
        )
        for name, by in loads.items()
    }


def main(rounds: int, seconds: float) -> int:
    with tempfile.TemporaryDirectory(prefix="edge-pipeline-") as folder:
        loads, stages = measure_clients(agent_packages.lite0(), Path(folder), rounds, seconds)
    columns = ("1/s", "of sequential", "p50 ms", "p99 ms")
    table = console.new_table("JPEG photos", *columns, right=columns)
    ratio = speeds(loads)
    for name, by in loads.items():
        pooled = load.pool_loads(by)
        table.add_row(
            name, f"{pooled.per_s:.1f}", f"{ratio[name]:.2f}x",
            f"{pooled.quantile(0.5):.2f}", f"{pooled.quantile(0.99):.2f}",
        )  # fmt: skip
    console.stdout().print(table)
    figures = ("p50 ms", "p90 ms", "p99 ms", "mean ms", "requests")
    breakdown = console.new_table("stage", *figures, right=figures)
    for stage, times in stages.items():
        breakdown.add_row(
            stage,
            *(f"{ms:.3f}" for ms in (times.p50_ms, times.p90_ms, times.p99_ms, times.mean_ms)),
            str(times.n),
        )
    console.stdout().print(breakdown)
    best = max(ratio, key=lambda clients: ratio[clients])
    ok = best != SEQUENTIAL and ratio[best] > 1.2
    print(f"{'met    ' if ok else 'NOT MET'} {best}: {ratio[best]:.2f} of sequential (above 1.2)")
    return 0 if ok else 2


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    given = parser.parse_args()
    sys.exit(main(given.rounds, given.seconds))
