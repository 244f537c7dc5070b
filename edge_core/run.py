"""Using a package where it is: verify it, run it, time it. No network; no framework but its own.

verify(path) -> Verified       digests, then the golden vectors in a child process
run(path, input) -> Answer     an image, .npz or .npy in, outputs and labels out
bench(path) -> Timed           latency, load time and memory on this machine
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_core import feeds as feeds_file
from edge_core import golden, package, runtimes
from edge_core.child import Child
from edge_core.errors import GateFailed, InputError, PackageError
from edge_core.manifest import Manifest
from edge_core.preprocess import IMAGE_SUFFIXES, to_tensor
from edge_core.tensors import Feeds, check_feeds, dequantise

MAX_TOP = 1000


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """A package whose bytes and answers are right on this machine."""

    package: str
    digest: str
    name: str
    version: str
    candidate: str
    runtime: str  # the one that replayed the golden vectors
    golden: golden.GoldenResult
    notes: tuple[str, ...] = ()


class Scored(msgspec.Struct, frozen=True):
    index: int
    label: str
    score: float


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the model said. ``top`` is there when the output is one row of class scores."""

    outputs: dict[str, list[object]]
    top: tuple[Scored, ...]
    ms: float  # the inference alone


class Timed(msgspec.Struct, frozen=True, kw_only=True):
    """One thread count on this machine; milliseconds and 10^6 bytes."""

    threads: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    runs: int
    load_ms: float
    peak_mb: float


def verify(path: Path) -> Verified:
    """Check every digest and replay the golden vectors in a child process.

    Raises PackageError for a damaged package, GateFailed when the answers on this machine are not
    those of the build, MeasureError when the runtime refuses or crashes.
    """
    opened = package.open(path)
    manifest = opened.manifest
    vectors = golden.from_bytes(opened.read("golden.npz"))
    with tempfile.TemporaryDirectory(prefix="edge-verify-") as folder, Child() as child:
        model = opened.extract(Path(folder) / "package")
        version, result = replay(child, manifest, model, vectors, Path(folder))
    return Verified(
        package=str(path),
        digest=opened.digest,
        name=manifest.name,
        version=manifest.version,
        candidate=manifest.candidate,
        runtime=f"{manifest.runtime.name} {version}",
        golden=result,
        notes=_version_notes(manifest, version),
    )


def replay(
    child: Child,
    manifest: Manifest,
    model: Path,
    vectors: golden.Golden,
    folder: Path,  # for the inputs and the outputs
    timeout_s: float = 600,
) -> tuple[str, golden.GoldenResult]:
    """Run the golden vectors in ``child``; returns the runtime's version and the result.

    Raises GateFailed when the answers on this machine are not those of the build, MeasureError
    when the runtime refuses, crashes or takes too long.
    """
    end = time.monotonic() + timeout_s
    version = str(open_model(child, manifest, model, 1, timeout_s)["version"])
    feeds, out = folder / "in", folder / "out"
    feeds_file.write(feeds, vectors.inputs)
    child.ask("run", feeds=str(feeds), out=str(out), timeout_s=max(0.0, end - time.monotonic()))
    answers = iter(feeds_file.read(out))
    result = golden.check(vectors, lambda _: next(answers))
    if not result.ok:
        raise GateFailed(
            f"{manifest.name} {manifest.version}: the golden vectors do not replay here: "
            f"{result.text}",
            hint=f"built and measured on {manifest.runtime.name} {manifest.runtime.measured_on}; "
            f"this machine has {version}",
        )
    return version, result


def run(path: Path, source: Path, *, top: int = 5, threads: int = 1) -> Answer:
    """Run the package on one input, offline, in this process."""
    opened = package.open(path)
    with _model(opened) as model:
        return infer(model, opened.manifest, source, top=top, threads=threads)


def infer(
    model: Path, manifest: Manifest, source: Path, *, top: int = 5, threads: int = 1
) -> Answer:
    """Run a package's model file on one input, in this process."""
    if not 0 <= top <= MAX_TOP:
        raise InputError(f"top is {top}; 0 to {MAX_TOP} can be shown")
    feeds = read_input(source, manifest)
    adapter = runtimes.get(manifest.runtime.name)
    session = adapter.open(model, threads=threads, options=manifest.runtime.options)
    start = time.perf_counter()
    integers = session.run(feeds)
    ms = (time.perf_counter() - start) * 1e3
    outputs = {s.name: dequantise(integers[s.name], s) for s in manifest.outputs}
    return Answer(
        outputs={name: a.tolist() for name, a in outputs.items()},
        top=top_scores(outputs, manifest.labels, top) if manifest.class_scores else (),
        ms=ms,
    )


def open_model(
    child: Child, manifest: Manifest, model: Path, threads: int, timeout_s: float = 600
) -> dict[str, Any]:
    """Load the model in ``child``; raises PackageError if it is not what the manifest says."""
    reply = child.ask(
        "open",
        timeout_s=timeout_s,
        path=str(model),
        runtime=manifest.runtime.name,
        threads=threads,
        options=manifest.runtime.options,
    )
    names = [i["name"] for i in reply["inputs"]]
    if names != [i.name for i in manifest.inputs]:
        raise PackageError(f"the model's inputs are {names}; the manifest says otherwise")
    return reply


def bench(path: Path, *, threads: tuple[int, ...], runs: int) -> tuple[Timed, ...]:
    """Time the package on its own golden inputs, each thread count in a fresh process."""
    if runs < 2:
        raise InputError(f"runs is {runs}; percentiles need at least 2")
    opened = package.open(path)
    vectors = golden.from_bytes(opened.read("golden.npz"))
    results = []
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as folder:
        model = opened.extract(Path(folder) / "package")
        feeds = Path(folder) / "in"
        feeds_file.write(feeds, vectors.inputs)
        for count in threads:
            with Child() as child:
                load_ms = float(open_model(child, opened.manifest, model, count)["load_ms"])
                child.ask("time", feeds=str(feeds), runs=min(10, runs))  # warm up
                peak = float(child.ask("memory")["peak_mb"])
                ms = child.ask("time", feeds=str(feeds), runs=runs)["ms"]
            cuts = statistics.quantiles(ms, n=100, method="inclusive")
            results.append(
                Timed(
                    threads=count, p50_ms=cuts[49], p90_ms=cuts[89], p99_ms=cuts[98],
                    runs=len(ms), load_ms=load_ms, peak_mb=peak,
                )
            )  # fmt: skip
    return tuple(results)


def read_input(source: Path, manifest: Manifest) -> Feeds:
    """One sample for the package's inputs from an image, .npz or .npy; raises InputError."""
    if not source.is_file():
        raise InputError(f"no input at {source}")
    suffix = source.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        if manifest.preprocess is None or len(manifest.inputs) != 1:
            raise InputError(
                f"{source}: this package has no preprocessing recipe for images",
                hint=f"give a .npz with {', '.join(i.name for i in manifest.inputs)}",
            )
        feeds = {manifest.inputs[0].name: to_tensor(source, manifest.preprocess)}
    elif suffix in (".npz", ".npy"):
        feeds = _arrays(source, manifest)
    else:
        raise InputError(
            f"{source}: inputs are an image ({', '.join(IMAGE_SUFFIXES)}), a .npz or a .npy"
        )
    return check_feeds(feeds, manifest.inputs, str(source))


def top_scores(outputs: Feeds, labels: tuple[str, ...], count: int) -> tuple[Scored, ...]:
    """The highest scores of the first output if it is one row of them, best first."""
    first = next(iter(outputs.values()))
    row = first.reshape(-1)
    if first.ndim == 0 or first.shape[-1] != row.size or row.size < 2 or first.dtype.kind != "f":
        return ()
    best = np.argsort(-row, kind="stable")[:count]
    return tuple(
        Scored(int(i), labels[i] if i < len(labels) else str(i), float(row[i])) for i in best
    )


def _arrays(source: Path, manifest: Manifest) -> Feeds:
    arrays = feeds_file.read_numpy(source)
    if len(arrays) == 1 and len(manifest.inputs) == 1:  # the only array is the only input
        return {manifest.inputs[0].name: next(iter(arrays.values()))}
    return arrays


@contextmanager
def _model(opened: package.Package) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="edge-run-") as folder:
        yield opened.extract(Path(folder) / "package")


def _version_notes(manifest: Manifest, version: str) -> tuple[str, ...]:
    if version == manifest.runtime.version:
        return ()
    return (
        f"replayed on {manifest.runtime.name} {version}; the device has {manifest.runtime.version}",
    )
