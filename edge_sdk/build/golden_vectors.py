"""Golden vectors of a candidate, from what measuring children answered.

read(given, original, which, model, outputs) -> (inputs, want)
make(inputs, want, got, outputs) -> Golden
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from converters.layouts import to_artifact
from edge_core.package import golden
from edge_core.package.golden import Samples
from edge_core.runtimes import sample_store
from edge_core.tensors import Feeds, TensorSpec

Specs = Sequence[TensorSpec]


def read(
    given: Path, original: Path, which: Sequence[int], model: Specs, outputs: Specs
) -> tuple[Samples, Samples]:
    """Some samples as the file takes them, and the original's answers as the file would give them.

    ``model`` and ``outputs`` are the outputs of both.
    """
    inputs, want = (
        tuple(source[i] for i in which) for source in map(sample_store.read, (given, original))
    )
    return inputs, tuple(to_artifact(reference, model, outputs) for reference in want)


def make(inputs: Samples, want: Samples, got: Samples, outputs: Specs) -> golden.Golden:
    """With the tolerances that the answers ``got`` of the file ask for."""
    return golden.make(inputs, want, got, _steps(want, got, outputs))


def _steps(want: Sequence[Feeds], got: Sequence[Feeds], outputs: Specs) -> dict[str, float]:
    """Tolerances of integer outputs that stand for reals, in their steps: kernels round them
    differently, and quantising has moved them already."""
    found = {}
    for spec in outputs:
        if spec.scale:
            apart = [
                float(
                    np.sqrt(np.mean((reference[spec.name].astype(float) - answer[spec.name]) ** 2))
                )
                for reference, answer in zip(want, got, strict=True)
            ]
            found[spec.name] = max(1.0, golden.QUANTISATION_FACTOR * max(apart))
    return found
