"""How many threads a model gets here, and whether several requests at once are faster.

    tune(child, model, path, vectors, folder, limits) -> Tuning     about tune_s, in a child

Both are measured with the model's own golden inputs, interleaved, so that a busy moment of the
machine hits every candidate alike. One session is loaded at a time: on a small device there is no
room for one per thread count. The decisions are smallest_good() and judged(): pure functions of
what was measured.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.packages.slots import Batching, Tuning
from edge_core.errors import EdgeError, MeasureError
from edge_core.machine import linux
from edge_core.package import golden
from edge_core.package.manifest import PackagedModel
from edge_core.package.verify import open_model
from edge_core.runtimes import sample_store
from edge_core.runtimes.child import Child
from edge_core.tensors import Feeds

NEAR_BEST = 0.95  # a rate this close to the best is as good; fewer threads and rows are cheaper
PAYS = 1.15  # times the rate of single requests
AGREED = 0.8  # share of the rounds in which it does; one busy moment must not turn batches on
ROUNDS = 5
ENOUGH_ROUNDS = 3  # for a verdict on batches
VISIT_S = 0.1  # of one candidate in one round
MAX_RUNS = 2000  # in one visit
SAMPLES = 8  # golden inputs that are used
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # threads that are tried

Visit = Callable[..., list[float]]  # rows of an inference, taken in turn -> milliseconds


@dataclass(frozen=True)
class TuningLimits:
    """What a measurement may use."""

    threads: int  # at most
    max_batch_size: int  # rows
    tune_s: float
    timeout_s: float  # of one load or one visit; only a runtime that hangs reaches it


def limit_threads(cpu_share: float, root: Path = Path("/")) -> int:
    """``cpu_share`` of the processors of this process and its control groups; at least 1."""
    return max(1, math.floor(cpu_share * min(linux.count_cores(), linux.read_cpu_quota(root))))


def tune(
    child: Child,
    model: PackagedModel,
    path: Path,  # what the runtime opens
    vectors: golden.Golden,
    folder: Path,  # for inputs and outputs
    limits: TuningLimits,
) -> Tuning:
    """Measure; raises MeasureError if the runtime refuses, crashes or hangs, StorageError."""
    start = time.monotonic()
    feeds = folder / "tune"
    sample_store.write(feeds, _samples(vectors))
    version = ""

    def load(threads: int) -> None:
        nonlocal version
        reply = open_model(child, model, path, threads, limits.timeout_s)
        version = str(reply["version"])

    def visit(*rows: int) -> list[float]:
        reply = child.ask(
            "time", timeout_s=limits.timeout_s,
            feeds=str(feeds), runs=MAX_RUNS, rows=rows, limit_s=VISIT_S,
        )  # fmt: skip
        return [float(ms) for ms in reply["ms"]]

    samples_ms = _threads(load, visit, limits.threads, start + limits.tune_s / 2)
    p50 = {count: statistics.median(ms) for count, ms in sorted(samples_ms.items())}
    threads = smallest_good({count: 1 / ms for count, ms in p50.items()})
    load(threads)
    end = start + limits.tune_s
    batching = _batching(child, model, vectors, feeds, visit, limits, p50[threads], end)
    return Tuning(
        runtime=f"{model.runtime.name} {version}",
        threads=threads,
        p50_ms={str(count): ms for count, ms in p50.items()},
        batching=batching,
        seconds=time.monotonic() - start,
    )


def smallest_good(rates: Mapping[int, float]) -> int:
    """The smallest key whose rate is near the best."""
    best = max(rates.values())
    return min(count for count, rate in rates.items() if rate >= NEAR_BEST * best)


def judge_batching(rates: Mapping[int, Sequence[float]]) -> Batching:
    """Do batches pay? ``rates`` are rows a second by batch size, 1 among them, one a round."""
    rounds = min(map(len, rates.values()))
    if rounds < ENOUGH_ROUNDS:
        return _off(f"{rounds} of {ENOUGH_ROUNDS} rounds fitted in the time", can=True)
    ratios = {
        rows: [batched / single for batched, single in zip(many, rates[1], strict=False)]
        for rows, many in rates.items()
        if rows > 1
    }
    size = smallest_good({rows: statistics.median(many) for rows, many in ratios.items()})
    ratio = statistics.median(ratios[size])
    agreed = sum(round_ratio >= PAYS for round_ratio in ratios[size])
    pays = ratio >= PAYS and agreed >= AGREED * rounds
    times = f"{ratio:.2f} times" if ratio >= 1 else f"{ratio:.2f} of"
    return Batching(
        can=True,
        pays=pays,
        max_batch_size=size if pays else 1,
        why=f"{size} rows at once: {times} the rate of single ones"
        + (f", but only in {agreed} of {rounds} rounds" if ratio >= PAYS and not pays else ""),
        single_per_s=statistics.median(rates[1]),
        batched_per_s=statistics.median(rates[size]),
        measured_at=size,
    )


def why_unbatchable(model: PackagedModel, vectors: golden.Golden) -> str:
    """Why the model cannot take a batch, as far as its tensors tell; empty if it may."""
    for spec in (*model.inputs, *model.outputs):
        if not spec.shape:
            return f"'{spec.name}' is a scalar"
        if isinstance(spec.shape[0], int):
            return f"the batch dimension is fixed at {spec.shape[0]} ('{spec.name}')"
    rows = {len(array) for array in vectors.inputs[0].values()}
    return "" if rows == {1} else f"a golden sample has {max(rows)} rows"


def _threads(
    load: Callable[[int], None], visit: Visit, most: int, end: float
) -> dict[int, list[float]]:
    """Milliseconds by thread count. The largest is measured in any case, and first."""
    counts = sorted({count for count in COUNTS if count <= most} | {most}, reverse=True)
    ms: dict[int, list[float]] = {}
    for _ in range(ROUNDS):
        for count in counts:
            if ms and time.monotonic() >= end:
                return ms
            load(count)
            runs = visit(1)
            ms.setdefault(count, []).extend(runs[1:] or runs)  # the first packs weights
        counts.reverse()
    return ms


def _batching(
    child: Child,
    model: PackagedModel,
    vectors: golden.Golden,
    feeds: Path,
    visit: Visit,
    limits: TuningLimits,
    p50_ms: float,
    end: float,
) -> Batching:
    if why := why_unbatchable(model, vectors):
        return _off(why)
    if limits.max_batch_size < 2:
        return _off(f"max_batch_size is {limits.max_batch_size}")
    rates: dict[int, list[float]] = {1: []}
    rates |= {2**k: [] for k in range(1, limits.max_batch_size.bit_length())}
    least = (1 + ENOUGH_ROUNDS) * sum(max(VISIT_S, (1 + rows) * p50_ms / 1e3) for rows in rates)
    if time.monotonic() + least > end:
        return _off(f"not measured: it would take {least:.1f} s more")
    try:
        if why := _differs(child, vectors, feeds, limits.timeout_s):
            return _off(why)
        for i in range(1 + ROUNDS):
            for rows, samples in rates.items():
                if time.monotonic() >= end:
                    return judge_batching(rates)
                # Requests come as they come: a batch is timed right after one of another size.
                # That costs nothing in ONNX Runtime; TFLite allocates its tensors again.
                ms = visit(1, rows)[1::2] if rows > 1 else visit(1)
                if i:  # in the first round each size allocates
                    samples.append(1e3 * rows / statistics.median(ms))
    except MeasureError as error:
        return _off(f"a batch was refused: {error.what}")
    return judge_batching(rates)


def _differs(child: Child, vectors: golden.Golden, feeds: Path, timeout_s: float) -> str:
    """In what way the rows of batches of two differ from single runs; empty if they do not."""
    answers = {}
    for rows in (1, 2):
        out = feeds.with_name(f"rows-{rows}")
        child.ask("run", timeout_s=timeout_s, feeds=str(feeds), out=str(out), rows=rows)
        answers[rows] = tuple(sample_store.read(out))
    halves = iter(_row(batch, k) for batch in answers[2] for k in range(2))
    single = answers[1]
    try:
        expected = golden.Golden(tuple(sample_store.read(feeds)), single, single, vectors.tolerance)
        result = golden.check(expected, lambda _: next(halves))
    except EdgeError as error:
        return f"rows of a batch of 2: {error.what}"
    return "" if result.ok else f"rows of a batch of 2 are not those of single runs: {result.text}"


def _row(batch: Feeds, row: int) -> Feeds:
    return {name: array[row : row + 1] for name, array in batch.items()}


def _samples(vectors: golden.Golden) -> tuple[Feeds, ...]:
    """An even number of inputs. A single one comes with its mirror image, to tell rows apart."""
    inputs = vectors.inputs[:SAMPLES]
    if len(inputs) == 1:
        return (
            *inputs,
            {name: np.ascontiguousarray(np.flip(array)) for name, array in inputs[0].items()},
        )
    return inputs[: len(inputs) // 2 * 2]


def _off(why: str, can: bool = False) -> Batching:
    return Batching(
        can=can, pays=False, max_batch_size=1, why=why,
        single_per_s=0.0, batched_per_s=0.0, measured_at=1,
    )  # fmt: skip
