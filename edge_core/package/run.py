"""Running a package on one input, in this process. No network; no framework but its own.

run_package(path, source, facts) -> Answer     an image, .npz or .npy in, outputs and labels out
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np

from edge_core.errors import InputError
from edge_core.facts import DeviceFacts
from edge_core.package import format as package
from edge_core.package.manifest import PackagedModel
from edge_core.package.preprocess import IMAGE_SUFFIXES, to_tensor
from edge_core.package.selector import choose_variant
from edge_core.runtimes import registry as runtimes
from edge_core.runtimes import sample_store
from edge_core.tensors import Feeds, check_feeds, dequantise

MAX_TOP = 1000


class Scored(msgspec.Struct, frozen=True):
    index: int
    label: str
    score: float


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the model said. ``top`` is there when the output is one row of class scores."""

    outputs: dict[str, list[object]]
    top: tuple[Scored, ...]
    ms: float  # the inference alone
    notes: tuple[str, ...] = ()  # such as: the variant is not for a machine like this one


def run_package(
    path: Path,
    source: Path,
    facts: DeviceFacts,
    *,
    variant: str = "",
    top: int = 5,
    threads: int = 1,
) -> Answer:
    """Run one variant of the package on one input, offline, in this process.

    ``facts`` are this machine's; ``variant`` is the one to run, else choose_variant() decides.
    ``top`` is the number of classes in the answer. Raises InputError, PackageError, MeasureError.
    """
    opened = package.open(path)
    choice = choose_variant(opened.manifest, facts, variant)
    with tempfile.TemporaryDirectory(prefix="edge-run-") as folder:
        entry = opened.extract(choice.variant, Path(folder) / "package")
        model = opened.manifest.model(choice.variant)
        answer = infer(entry, model, source, top=top, threads=threads)
    return msgspec.structs.replace(answer, notes=choice.notes)


def infer(
    path: Path, model: PackagedModel, source: Path, *, top: int = 5, threads: int = 1
) -> Answer:
    """Run ``model``, whose entry lies at ``path``, on one input, in this process."""
    if not 0 <= top <= MAX_TOP:
        raise InputError(f"top is {top}; 0 to {MAX_TOP} can be shown")
    feeds = read_input(source, model)
    adapter = runtimes.get(model.runtime.name)
    session = adapter.open(path, threads=threads, options=model.runtime.options)
    start = time.perf_counter()
    integers = session.run(feeds)
    ms = (time.perf_counter() - start) * 1e3
    outputs = {spec.name: dequantise(integers[spec.name], spec) for spec in model.outputs}
    return Answer(
        outputs={name: array.tolist() for name, array in outputs.items()},
        top=top_scores(outputs, model.labels, top) if model.class_scores else (),
        ms=ms,
    )


def read_input(source: Path, model: PackagedModel) -> Feeds:
    """One sample for the package's inputs from an image, .npz or .npy; raises InputError."""
    if not source.is_file():
        raise InputError(f"no input at {source}")
    suffix = source.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        if model.preprocess is None or len(model.inputs) != 1:
            raise InputError(
                f"{source}: this package has no preprocessing recipe for images",
                hint=f"give a .npz with {', '.join(spec.name for spec in model.inputs)}",
            )
        feeds = {model.inputs[0].name: to_tensor(source, model.preprocess)}
    elif suffix in (".npz", ".npy"):
        feeds = _arrays(source, model)
    else:
        raise InputError(
            f"{source}: inputs are an image ({', '.join(IMAGE_SUFFIXES)}), a .npz or a .npy"
        )
    return check_feeds(feeds, model.inputs, str(source))


def top_scores(outputs: Feeds, labels: tuple[str, ...], count: int) -> tuple[Scored, ...]:
    """The highest scores of the first output if it is one row of them, best first."""
    first = next(iter(outputs.values()))
    row = first.reshape(-1)
    if first.ndim == 0 or first.shape[-1] != row.size or row.size < 2 or first.dtype.kind != "f":
        return ()
    best = np.argsort(-row, kind="stable")[:count]
    return tuple(
        Scored(int(place), labels[place] if place < len(labels) else str(place), float(row[place]))
        for place in best
    )


def _arrays(source: Path, model: PackagedModel) -> Feeds:
    arrays = sample_store.read_numpy(source)
    if len(arrays) == 1 and len(model.inputs) == 1:  # the only array is the only input
        return {model.inputs[0].name: next(iter(arrays.values()))}
    return arrays
