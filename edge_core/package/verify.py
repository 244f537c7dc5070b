"""Verifying a package where it is: every digest, then the golden vectors in a child process.

verify_package(path) -> Verified
replay(child, manifest, model, vectors, folder) -> (runtime version, GoldenResult)
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from edge_core.errors import GateFailed, PackageError
from edge_core.package import format as package
from edge_core.package import golden
from edge_core.package.manifest import Manifest
from edge_core.runtimes import sample_store
from edge_core.runtimes.child import Child


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


def verify_package(path: Path) -> Verified:
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
    sample_store.write(feeds, vectors.inputs)
    child.ask("run", feeds=str(feeds), out=str(out), timeout_s=max(0.0, end - time.monotonic()))
    answers = iter(sample_store.read(out))
    result = golden.check(vectors, lambda _: next(answers))
    if not result.ok:
        raise GateFailed(
            f"{manifest.name} {manifest.version}: the golden vectors do not replay here: "
            f"{result.text}",
            hint=f"built and measured on {manifest.runtime.name} {manifest.runtime.measured_on}; "
            f"this machine has {version}",
        )
    return version, result


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


def _version_notes(manifest: Manifest, version: str) -> tuple[str, ...]:
    if version == manifest.runtime.version:
        return ()
    return (
        f"replayed on {manifest.runtime.name} {version}; the device has {manifest.runtime.version}",
    )
