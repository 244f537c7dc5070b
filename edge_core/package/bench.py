"""Timing a package on this machine: latency, load time and memory.

bench_package(path, facts) -> BenchResult
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import msgspec

from edge_core.errors import InputError
from edge_core.facts import DeviceFacts
from edge_core.package import format as package
from edge_core.package import golden
from edge_core.package.selector import choose_variant
from edge_core.package.verify import open_model
from edge_core.runtimes import sample_store
from edge_core.runtimes.child import Child


class BenchResult(msgspec.Struct, frozen=True, kw_only=True):
    """One thread count on this machine; milliseconds and 10^6 bytes."""

    threads: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    runs: int
    load_ms: float
    peak_mb: float
    notes: tuple[str, ...] = ()  # such as: the variant is not for a machine like this one


def bench_package(
    path: Path, facts: DeviceFacts, *, threads: tuple[int, ...], runs: int, variant: str = ""
) -> tuple[BenchResult, ...]:
    """Time a variant on its own golden inputs, each thread count in a fresh process.

    ``facts`` are this machine's; ``variant`` is the one to time, else choose_variant() decides.
    """
    if runs < 2:
        raise InputError(f"runs is {runs}; percentiles need at least 2")
    opened = package.open(path)
    choice = choose_variant(opened.manifest, facts, variant)
    chosen = choice.variant
    model = opened.manifest.model(chosen)
    vectors = golden.from_bytes(opened.read(chosen.title(chosen.golden)))
    results = []
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as folder:
        entry = opened.extract(chosen, Path(folder) / "package")
        feeds = Path(folder) / "in"
        sample_store.write(feeds, vectors.inputs)
        for count in threads:
            with Child() as child:
                load_ms = float(open_model(child, model, entry, count)["load_ms"])
                child.ask("time", feeds=str(feeds), runs=min(10, runs))  # warm up
                peak = float(child.ask("memory")["peak_mb"])
                ms = child.ask("time", feeds=str(feeds), runs=runs)["ms"]
            cuts = statistics.quantiles(ms, n=100, method="inclusive")
            results.append(
                BenchResult(
                    threads=count, p50_ms=cuts[49], p90_ms=cuts[89], p99_ms=cuts[98],
                    runs=len(ms), load_ms=load_ms, peak_mb=peak, notes=choice.notes,
                )
            )  # fmt: skip
    return tuple(results)
