"""Our own file for tflite_vs_peers, made in a process of its own.

python -m benchmarks.tflite_ours MODEL CANDIDATE SAMPLES OUT
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from converters import registry as converters
from converters.onnx.format import ONNX
from converters.spec import Ceiling
from edge_core.profile import Runtime
from edge_core.runtimes import registry as runtimes
from edge_sdk.build import convert
from edge_sdk.build.stages import Candidate
from edge_sdk.build.workspace import Workspace


def make_file(model: str, candidate: str, feeds: str, out: str) -> None:
    """One candidate through the stages of `edge build`, with nothing in the cache."""
    work = Workspace(Path(out).with_suffix(".cache"), jobs=1)
    prepared = convert.prepare(work, Path(model), ONNX, ONNX.digest(Path(model)), {})
    chosen = Candidate(
        spec=converters.get(candidate).SPEC,
        runtime=Runtime(name="litert", version=runtimes.get("litert").version()),
        ceiling=Ceiling(opset=0, ir=0),
        arch="x86_64",
    )
    artifact = convert.convert(work, prepared, chosen, layout="NHWC", feeds=Path(feeds))
    shutil.copy(artifact.path, out)


if __name__ == "__main__":
    make_file(*sys.argv[1:])
