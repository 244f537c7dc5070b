"""A build's cache, and the child processes that its conversions and measurements run in.

    cache/runtimes/   private runtime versions
    cache/prepared/   static ONNX files, by content
    cache/artifacts/  converted candidates, by content
    cache/feeds/      samples on disk, by content
    cache/outputs/    a candidate's outputs, by content
    cache/timings/    latency and memory, by content and machine

Every entry appears whole or not at all, so an interrupted build resumes where it stopped.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from edge_core.errors import ConvertError, MeasureError, StorageError
from edge_core.runtimes.child import Child

STALE_S = 86400.0  # the builds that own temporary entries of this age were killed
LITTLE_DISK = 1_000_000  # bytes; with less free, this is why a converter failed
Progress = Callable[[str, str, int, int], None]  # stage, what, done, total


def silent(stage: str, what: str, done: int, total: int) -> None:
    """Report progress to nobody."""


def default_cache() -> Path:
    """EDGE_CACHE, or the user's cache folder."""
    if folder := os.environ.get("EDGE_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "edge-deploy"


def default_jobs() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workspace:
    """The effects of a build: its cache, its children, its progress."""

    def __init__(
        self,
        cache: Path | None = None,
        *,
        jobs: int | None = None,
        offline: bool = False,
        progress: Progress = silent,
    ) -> None:
        self.cache = cache or default_cache()
        self.jobs = jobs or default_jobs()
        self.offline = offline
        self.progress = progress
        self._ends: list[Callable[[], None]] = []
        self._stopped = False
        self._lock = threading.Lock()

    def entry(self, kind: str, *parts: Any) -> Path:
        """The cache path for content described by ``parts``."""
        text = msgspec.json.encode(parts, enc_hook=str, order="sorted")
        return self.cache / kind / hashlib.sha256(text).hexdigest()[:32]

    def sweep(self) -> None:
        """Remove the temporary entries of builds that were killed more than a day ago."""
        for entry in self.cache.glob("*/.*"):
            with suppress(OSError):  # another build may have removed it
                if time.time() - entry.stat().st_mtime > STALE_S:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    @contextmanager
    def measuring_child(self, site: Path | None) -> Iterator[Child]:
        """A worker process (edge_core.runtimes.worker) that stop() ends too."""
        with Child(site=site) as child, self._track(child.kill):
            yield child

    @contextmanager
    def converting_child(self, module: str) -> Iterator[Child]:
        """A child that runs ``module``, raises ConvertError for it, and ends with stop() too."""
        with (
            tempfile.TemporaryFile() as stderr,
            Child(
                module,
                name="the converter",
                failure=ConvertError,
                stderr=stderr,
                environment={"OPENBLAS_NUM_THREADS": "1"},  # sums in one order: the same bytes
            ) as child,
            self._track(child.kill),
        ):
            try:
                yield child
            except ConvertError as e:
                if shutil.disk_usage(self.cache).free >= LITTLE_DISK:
                    raise
                raise StorageError(
                    f"cannot write to {self.cache}: no space left",
                    hint="free some space, or choose another folder with --cache",
                ) from e

    @contextmanager
    def _track(self, end: Callable[[], None]) -> Iterator[None]:
        with self._lock:
            if self._stopped:
                end()
                raise MeasureError("the build was stopped")
            self._ends.append(end)
        try:
            yield
        finally:
            end()
            with self._lock:
                self._ends.remove(end)

    def stop(self) -> None:
        """End every child now and start no more: the user interrupted the build."""
        with self._lock:
            self._stopped = True
            for end in self._ends:
                end()


def code(part: object) -> str:
    """SHA-256 of the sources of the package that a module, function or object's class is from.

    Part of a cache key: a converter or adapter that changed must not get old entries.
    """
    name = part.__name__ if isinstance(part, ModuleType) else part.__module__
    return _sources(name.partition(".")[0])


@cache
def _sources(package: str) -> str:
    module = sys.modules[package]
    folders = [Path(folder) for folder in getattr(module, "__path__", [])]
    files = [file for folder in folders for file in folder.rglob("*.py")] or [
        Path(module.__file__ or "")
    ]
    sha256 = hashlib.sha256()
    for file in sorted(files):
        sha256.update(f"{file.name}\0".encode() + file.read_bytes())
    return sha256.hexdigest()


def versions(distributions: tuple[str, ...]) -> dict[str, str]:
    """Installed versions of ``distributions``; those not installed are left out."""
    installed = {}
    for name in distributions:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed
