"""Verifying a package where it is: every digest, then the golden vectors in a child process.

verify_package(path, facts) -> Verification
replay(child, model, path, vectors, folder) -> (runtime version, GoldenResult)
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from edge_core.errors import GateFailed, PackageError
from edge_core.facts import DeviceFacts
from edge_core.package import format as package
from edge_core.package import golden
from edge_core.package.manifest import PackagedModel
from edge_core.package.selector import choose_variant
from edge_core.runtimes import sample_store
from edge_core.runtimes.child import Child


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """A package whose bytes and answers are right on this machine."""

    package: str
    digest: str
    name: str
    version: str
    variant: str
    candidate: str
    runtime: str  # the one that replayed the golden vectors
    golden: golden.GoldenResult
    notes: tuple[str, ...] = ()


def verify_package(path: Path, facts: DeviceFacts, *, variant: str = "") -> Verification:
    """Check every digest and replay one variant's golden vectors in a child process.

    ``facts`` are this machine's; ``variant`` is the one to replay, else choose_variant() decides.
    Raises PackageError for a damaged package, GateFailed when the answers on this machine are not
    those of the build, MeasureError when the runtime refuses or crashes.
    """
    opened = package.open(path)
    choice = choose_variant(opened.manifest, facts, variant)
    chosen, model = choice.variant, opened.manifest.model(choice.variant)
    vectors = golden.from_bytes(opened.read(chosen.title(chosen.golden)))
    with tempfile.TemporaryDirectory(prefix="edge-verify-") as folder, Child() as child:
        entry = opened.extract(chosen, Path(folder) / "package")
        version, result = replay(child, model, entry, vectors, Path(folder))
    return Verification(
        package=str(path),
        digest=opened.digest,
        name=model.name,
        version=model.version,
        variant=model.variant,
        candidate=model.candidate,
        runtime=f"{model.runtime.name} {version}",
        golden=result,
        notes=(*choice.notes, *_version_notes(model, version)),
    )


def replay(
    child: Child,
    model: PackagedModel,
    path: Path,  # what the runtime opens
    vectors: golden.Golden,
    folder: Path,  # for the inputs and the outputs
    timeout_s: float = 600,
) -> tuple[str, golden.GoldenResult]:
    """Run the golden vectors in ``child``; returns the runtime's version and the result.

    Raises GateFailed when the answers on this machine are not those of the build, MeasureError
    when the runtime refuses, crashes or takes too long.
    """
    end = time.monotonic() + timeout_s
    version = str(open_model(child, model, path, 1, timeout_s)["version"])
    feeds, out = folder / "in", folder / "out"
    sample_store.write(feeds, vectors.inputs)
    child.ask("run", feeds=str(feeds), out=str(out), timeout_s=max(0.0, end - time.monotonic()))
    answers = iter(sample_store.read(out))
    result = golden.check(vectors, lambda _: next(answers))
    if not result.ok:
        raise GateFailed(
            f"{model.name} {model.version}: the golden vectors do not replay here: {result.text}",
            hint=f"built and measured on {model.runtime.name} {model.runtime.measured_on}; "
            f"this machine has {version}",
        )
    return version, result


def open_model(
    child: Child, model: PackagedModel, path: Path, threads: int, timeout_s: float = 600
) -> dict[str, Any]:
    """Load the model in ``child``; raises PackageError if it is not what the manifest says."""
    reply = child.ask(
        "open",
        timeout_s=timeout_s,
        path=str(path),
        runtime=model.runtime.name,
        threads=threads,
        options=model.runtime.options,
    )
    names = [spec["name"] for spec in reply["inputs"]]
    if names != [spec.name for spec in model.inputs]:
        raise PackageError(f"the model's inputs are {names}; the manifest says otherwise")
    return reply


def _version_notes(model: PackagedModel, version: str) -> tuple[str, ...]:
    need = model.runtime
    if version == need.version:
        return ()
    return (f"replayed on {need.name} {version}; the device has {need.version}",)
