"""Does a file with a dynamic batch give every row what the row gets alone? The device's runtime
version decides.

    pick(samples) -> indices        different samples, in batches of ROWS
    prove(workspace, subject, ...)  raises MeasureError for a file that must not be packaged

 1. One row: the answers are those of the file for one row, bit by bit. ONNX Runtime joins other ops
    where it does not know the shapes: then they are the same bits without its optimiser, and within
    the golden tolerance with it. For a file that is written optimised (.ort) the latter is enough.
 2. Batches of different rows: each row is what it was alone, within the golden tolerance.
 3. One row again: the same bits as before the batches.
 4. XNNPACK takes the file in no more pieces than before.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from converters.batch_tracker import FIXED_BATCH_HINT, ROWS
from edge_core.errors import InputError, MeasureError
from edge_core.files import sha256_tree, write_atomic
from edge_core.package import golden
from edge_core.profile import Profile
from edge_core.runtimes import registry as runtimes
from edge_core.runtimes import sample_store
from edge_core.runtimes.child import Child
from edge_core.tensors import Feeds
from edge_sdk.build import golden_vectors, io_layout, measure, samples
from edge_sdk.build.measure import Specs, Subject
from edge_sdk.build.workspace import Workspace

Rows = tuple[int, ...]  # indices of samples
BATCHES = 4
TIMEOUT_S = 1800.0
GENERATION = 1


def pick(dataset: samples.Samples) -> Rows:
    """Indices of up to BATCHES * ROWS different samples, from all over the set.

    Raises InputError if there are not enough for one batch.
    """
    seen: dict[str, int] = {}
    for index, sample in enumerate(dataset.feeds):
        seen.setdefault(sample_store.digest([sample]), index)
    if len(seen) < ROWS:
        raise InputError(
            f"{dataset.source}: {len(seen)} different samples; a dynamic batch is tried on {ROWS}",
            hint=f"give more samples, or {FIXED_BATCH_HINT}",
        )
    count = min(BATCHES, len(seen) // ROWS) * ROWS
    places = np.linspace(0, len(seen) - 1, count).round().astype(int)
    indices = list(seen.values())
    return tuple(indices[place] for place in places)


def prove(
    workspace: Workspace,
    subject: Subject,
    feeds: Path,
    original: Path,
    outputs: Specs,
    rows: Rows,
    host: Profile,
) -> None:
    """Raise MeasureError, with the row that is wrong, unless the file may be packaged.

    ``original`` holds what the original, whose ``outputs`` are given, made of ``feeds``; ``rows``
    are the samples that are looked at.
    """
    assert subject.fixed is not None
    about = (feeds.name, rows, measure.machine(host), GENERATION)
    done = workspace.entry("batches", subject.key, sha256_tree(subject.fixed), about)
    if done.is_file():
        return
    fitted = io_layout.fit_samples(workspace, feeds, subject.model, subject.file)
    inputs, original_outputs = golden_vectors.read(fitted, original, rows, outputs, subject.outputs)
    _pieces(workspace, subject, host)
    starts = range(0, len(inputs), ROWS)
    together = [_join(inputs[i : i + ROWS]) for i in starts]
    with workspace.measuring_child(subject.env.site) as child:
        (before,) = _answers(child, subject, subject.fixed, [inputs])
        alone, batches, again = _answers(child, subject, subject.path, [inputs, together, inputs])
        same = _identical(before, alone)
        if not same and not subject.is_optimised and _has_optimiser_switch(subject):
            files = (subject.fixed, subject.path)
            old, new = (
                _answers(child, subject, file, [inputs[:ROWS]], optimiser="off")[0]
                for file in files
            )
            same = _identical(old, new)
    _require(same or subject.is_optimised, "one row alone is not bit by bit what it was")
    expected = golden_vectors.make(inputs, original_outputs, tuple(before), subject.outputs)
    _check(expected, alone, "one row alone is not what it was")
    _check(expected, _split(batches), f"in a batch of {ROWS}, rows are not what they are alone")
    _require(_identical(alone, again), "one row is another after a batch")
    write_atomic(done, msgspec.json.encode({"samples": len(inputs)}))


def _has_optimiser_switch(subject: Subject) -> bool:
    return "graph_optimization" in runtimes.get(subject.env.name).SPEC.options


def _pieces(workspace: Workspace, subject: Subject, host: Profile) -> None:
    assert subject.fixed is not None
    one = msgspec.structs.replace(subject, path=subject.fixed, sha256=sha256_tree(subject.fixed))
    before, now = (measure.delegation(workspace, file, host) for file in (one, subject))
    if before and now and before.partitions is not None and now.partitions is not None:
        _require(
            now.partitions <= before.partitions,
            f"with a dynamic batch XNNPACK takes it in {now.partitions} pieces instead of "
            f"{before.partitions}",
        )


def _answers(
    child: Child, subject: Subject, path: Path, runs: Sequence[Sequence[Feeds]], optimiser: str = ""
) -> list[list[Feeds]]:
    """What one file answers to each of the ``runs``, in that order."""
    more = {"graph_optimization": optimiser} if optimiser else {}
    options = {**subject.options, **more}
    child.ask("open", path=str(path), runtime=subject.env.name, threads=1, options=options)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for index, feeds in enumerate(runs):
            inputs, out = Path(folder) / f"in{index}", Path(folder) / f"out{index}"
            sample_store.write(inputs, feeds)
            try:
                child.ask("run", timeout_s=TIMEOUT_S, feeds=str(inputs), out=str(out))
            except MeasureError as error:
                rows = len(next(iter(feeds[0].values())))
                raise MeasureError(f"{rows} rows at once do not run: {error.what}") from error
            results.append(list(sample_store.read(out)))
    return results


def _join(rows: Sequence[Feeds]) -> Feeds:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _split(batches: Sequence[Feeds]) -> list[Feeds]:
    return [
        {name: array[i : i + 1] for name, array in batch.items()}
        for batch in batches
        for i in range(ROWS)
    ]


def _identical(first: Sequence[Feeds], second: Sequence[Feeds]) -> bool:
    return all(
        one[name].shape == other[name].shape and one[name].tobytes() == other[name].tobytes()
        for one, other in zip(first, second, strict=True)
        for name in one
    )


def _check(expected: golden.Golden, answers: Sequence[Feeds], wrong: str) -> None:
    rows = iter(answers)
    result = golden.check(expected, lambda _: next(rows))
    _require(result.ok, f"{wrong}: {result.text}")


def _require(right: bool, wrong: str) -> None:
    if not right:
        raise MeasureError(wrong, hint=FIXED_BATCH_HINT)
