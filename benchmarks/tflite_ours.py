"""Our own file for tflite_vs_peers, made in a process of its own.

python -m benchmarks.tflite_ours MODEL CANDIDATE SAMPLES OUT
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from converters.spec import Ceiling
from edge_core.runtimes import registry as runtimes
from edge_sdk.build import convert
from edge_sdk.build.workspace import Workspace


def make_file(model: str, candidate: str, feeds: str, out: str) -> None:
    """One candidate through the stages of `edge build`, with nothing in the cache."""
    work = Workspace(Path(out).with_suffix(".cache"), jobs=1)
    prepared = convert.prepare(work, Path(model), convert.digest(Path(model)), {})
    artifact = convert.convert(
        work, prepared, candidate, ceiling=Ceiling(opset=0, ir=0), arch="x86_64",
        runtime_version=runtimes.get("litert").version(), layout="NHWC", feeds=Path(feeds),
    )  # fmt: skip
    shutil.copy(artifact.path, out)


if __name__ == "__main__":
    make_file(*sys.argv[1:])
