"""Golden vectors of a candidate, from what measuring children answered.

read(samples, original, which, model, outputs) -> (inputs, originals)
make(inputs, originals, answers, outputs) -> Golden
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
    samples: Path, original: Path, which: Sequence[int], model: Specs, outputs: Specs
) -> tuple[Samples, Samples]:
    """Some samples as the file takes them, and the original's answers as the file would give them.

    ``model`` and ``outputs`` are the outputs of both.
    """
    inputs, originals = (
        tuple(source[i] for i in which) for source in map(sample_store.read, (samples, original))
    )
    return inputs, tuple(to_artifact(reference, model, outputs) for reference in originals)


def make(inputs: Samples, originals: Samples, answers: Samples, outputs: Specs) -> golden.Golden:
    """With the tolerances that the ``answers`` of the file ask for."""
    return golden.make(inputs, originals, answers, _steps(originals, answers, outputs))


def _steps(
    originals: Sequence[Feeds], answers: Sequence[Feeds], outputs: Specs
) -> dict[str, float]:
    """Tolerances of integer outputs that stand for reals, in their steps: kernels round them
    differently, and quantising has moved them already."""
    tolerances = {}
    for spec in outputs:
        if spec.scale:
            apart = [
                float(
                    np.sqrt(np.mean((reference[spec.name].astype(float) - answer[spec.name]) ** 2))
                )
                for reference, answer in zip(originals, answers, strict=True)
            ]
            tolerances[spec.name] = max(1.0, golden.QUANTISATION_FACTOR * max(apart))
    return tolerances
