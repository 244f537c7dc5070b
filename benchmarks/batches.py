"""What a dynamic batch costs one row, and what batches bring: real models, one thread.

    python -m benchmarks.batches [MODEL ...]

Each candidate with a dynamic batch against its twin for one row, in turns in one process: one row
may take at most 5 % longer. *after others* is the same in a session that also runs batches, whose
memory has grown. Rows a second are those of that session, with a run of another size before each:
requests come as they come. *cosine* is the smallest between what a row gets in batches of 8 and
what it gets alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np

from converters import registry as converters
from converters.layouts import to_artifact
from converters.onnx import fixed_shapes, ort_facts
from converters.onnx.format import ONNX
from converters.onnx.model_file import load_model
from converters.onnx.preparation import prepare_model
from converters.spec import Ceiling, Job
from edge_core import console
from edge_core.errors import ConvertError
from edge_core.runtimes import registry as runtimes
from edge_core.runtimes.adapter import Session
from edge_core.tensors import Feeds
from examples import data, models

SAMPLES = {
    "digits": "digits", "magika": "magika", "keywords": "keywords", "minilm": "sentences",
    "lite0": "photo_crops",
}  # fmt: skip
CANDIDATES = (
    "onnx-fp32", "onnx-int8-static-u8s8", "onnx-int8-static-u8s8-ort", "onnx-int8-dynamic",
    "onnx-int4", "tflite-fp32", "tflite-int8-static", "tflite-int8-dynamic",
)  # fmt: skip
SIZES = (1, 4, 8)
ROUNDS, TURN_S = 25, 0.03
WORSE = 1.05


class Found(msgspec.Struct, frozen=True):
    """Medians over the rounds."""

    fixed_ms: float
    ratio: float  # of a round: dynamic over fixed, one row
    after: float  # the same in a session that also runs batches
    rows_per_s: dict[int, float]
    cosine: float


def time_session(session: Session, feeds: Feeds, least: int) -> float:
    """Median seconds of a run in a turn of at least ``least`` runs."""
    times: list[float] = []
    while len(times) < least or sum(times) < TURN_S:
        start = time.perf_counter()
        session.run(feeds)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def compare(fixed: Session, fresh: Session, free: Session, rows: list[Feeds]) -> Found:
    """All in turns, on real samples; ``fresh`` never sees a batch."""
    batches = {size: _join_rows(rows[:size]) for size in SIZES}
    ones: list[float] = []
    ratios: list[tuple[float, float]] = []
    times: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(ROUNDS):
        for size in SIZES[1:]:
            free.run(batches[1])
            times[size].append(time_session(free, batches[size], 2))
        turns = [
            time_session(session, batches[1], 3) for session in (fixed, fresh, free, fresh, fixed)
        ]
        times[1].append(turns[2])
        one = statistics.mean([turns[0], turns[4]])
        ones.append(one)
        ratios.append((statistics.mean(turns[1:4:2]) / one, turns[2] / one))
    alone = [free.run(row) for row in rows[:8]]
    together = free.run(batches[8])
    return Found(
        fixed_ms=statistics.median(ones) * 1e3,
        ratio=statistics.median(row[0] for row in ratios),
        after=statistics.median(row[1] for row in ratios),
        rows_per_s={size: size / statistics.median(seconds) for size, seconds in times.items()},
        cosine=min(
            _cosine(answer[name], together[name][i])
            for i, answer in enumerate(alone)
            for name in answer
        ),
    )


def _join_rows(rows: list[Feeds]) -> Feeds:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    left, right = first.ravel().astype(np.float64), second.ravel().astype(np.float64)
    return float(left @ right / np.sqrt((left @ left) * (right @ right)))


def model(name: str, folder: Path) -> Iterator[tuple[str, Found | str]]:
    """Every candidate of one model: its figures, or why there is none."""
    source = models.BUILDERS[name](folder / "user.onnx")
    prepared = folder / "prepared.onnx"
    prepare_model(source, prepared, fixed_shapes.add_batch_of_one(load_model(source), {}))
    inputs, _ = ONNX.read_io_specs(prepared)
    known = {sample.name: sample for sample in inputs}

    def some(which: str, count: int) -> list[Feeds]:
        given = islice(getattr(data, f"{SAMPLES[name]}_{which}")(), count)
        samples = (labelled[0] if isinstance(labelled, tuple) else labelled for labelled in given)
        return [
            sample if isinstance(sample, dict) else {inputs[0].name: np.asarray(sample)}
            for sample in samples
        ]

    versions = {name: runtimes.get(name).version() for name in ("onnxruntime", "litert")}
    top = ort_facts.find_ceiling(versions["onnxruntime"])
    for candidate in CANDIDATES:
        out = folder / candidate
        out.mkdir()
        converter = converters.get(candidate)
        runtime = converter.SPEC.runtimes[0]
        job = Job(
            model=prepared, out_dir=out, ceiling=Ceiling(top.opset, top.ir), arch="x86_64",
            runtime_version=versions[runtime], samples=some("calibration", 64), batch="dynamic",
        )  # fmt: skip
        try:
            done = converter.convert(job)
        except ConvertError as error:
            yield candidate, error.what
            continue
        assert done.fixed is not None
        adapter = runtimes.get(runtime)
        fixed, fresh, free = (
            adapter.open(file, threads=1, options=done.options)
            for file in (done.fixed, done.path, done.path)
        )
        takes = done.inputs or inputs
        rows = [to_artifact(sample, tuple(known.values()), takes) for sample in some("eval", 8)]
        yield candidate, compare(fixed, fresh, free, rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("models", nargs="*", metavar="MODEL", default=[*SAMPLES])
    wanted = parser.parse_args().models
    numbers = (
        "ms fixed",
        "dynamic",
        "after others",
        *(f"rows/s at {size}" for size in SIZES),
        "cosine",
    )
    table = console.new_table("model", "candidate", *numbers, right=numbers)
    missed = 0
    for name in wanted:
        with tempfile.TemporaryDirectory(prefix="edge-bench-") as folder:
            for candidate, found in model(name, Path(folder)):
                if isinstance(found, str):
                    table.add_row(name, candidate, found)
                    continue
                missed += found.ratio > WORSE
                rates = [f"{found.rows_per_s[size]:.0f}" for size in SIZES]
                cosine = f"{found.cosine:.5f}"
                table.add_row(
                    name, candidate, f"{found.fixed_ms:.3f}", f"{found.ratio:.3f}",
                    f"{found.after:.3f}", *rates, cosine,
                )  # fmt: skip
    console.stdout().print(table)
    print(f"{'NOT MET' if missed else 'met    '} one row costs at most {WORSE - 1:.0%} more")
    return 2 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
