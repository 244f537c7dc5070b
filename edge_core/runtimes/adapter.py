"""What every runtime adapter is: a module with a SPEC and an open().

with adapter.open(path, threads=1, options={}) as session:
    outputs = session.run({"input": array})
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import msgspec

from edge_core.profile import Precision
from edge_core.tensors import Feeds, TensorSpec

Options = dict[str, str]  # allow-listed by the adapter; travels in packages


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the rest of the product knows about a runtime."""

    name: str  # as in profiles and packages
    distribution: str  # on the package index
    module: str  # what is imported
    extra: str
    suffixes: tuple[str, ...]  # files it loads
    precisions: tuple[Precision, ...]  # that it computes or unpacks on the CPU
    options: tuple[str, ...] = ()  # keys of Options that it accepts
    # Versions (PEP 440: "<1.19") whose wheels were built against NumPy 1 and fail beside NumPy 2.
    numpy_1: str | None = None
    prereleases: str = ""  # distribution with the pre-releases, where that is another one
    # Its kernels are of one kind on every architecture: a ratio of latencies carries over.
    portable: bool = False


class Session(Protocol):
    """One loaded model. Not for use by two threads at once."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...
    def run(self, feeds: Feeds) -> Feeds: ...


class Adapter(Protocol):
    """A module satisfies it; the type checker verifies the registry's tuple."""

    SPEC: Spec

    def version(self) -> str:
        """The installed version; raises MissingExtra."""
        ...

    def open(self, path: Path, *, threads: int, options: Options) -> Session:
        """Load a model file; raises MeasureError if the runtime refuses it."""
        ...
