"""From a model and the user's samples to the calibration of its near-duplicate cache.

calibrate_model(run, read_clips(folder, model), ...) -> Calibration
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path

from agent.caches.calibration import Calibration
from agent.caches.descriptors import InputDescriptor, describe
from agent.caches.results import input_key
from agent.caches.rules import AnswerRule
from agent.caches.threshold_search import CalibrationSample, calibrate_threshold
from edge_core.errors import InputError
from edge_core.package.manifest import PackagedModel
from edge_core.package.run import read_input
from edge_core.tensors import Feeds, TensorSpec

MAX_VECTOR = 8192  # numbers of an input that is compared as it is


def choose_descriptor(inputs: tuple[TensorSpec, ...]) -> InputDescriptor:
    """How inputs of a model are compared; raises InputError if nothing fits."""
    images = [spec for spec in inputs if spec.layout]
    floats = [spec for spec in inputs if spec.dtype.startswith("float")]
    if len(images) == 1:
        return InputDescriptor(
            kind="image",
            input=images[0].name,
            layout="NHWC" if images[0].layout == "NHWC" else "NCHW",
        )
    if not images and len(floats) == 1 and _size(floats[0]) <= MAX_VECTOR:
        return InputDescriptor(kind="vector", input=floats[0].name)
    names = "; ".join(f"{spec.name} ({spec.dtype})" for spec in inputs)
    raise InputError(
        f"no input is a picture of known layout or one short tensor of reals: {names}",
        hint="a package has the layout if it was built with a recipe; texts are compared by their "
        "embeddings, in the application: NearCache.lookup_embedding()",
    )


def _size(spec: TensorSpec) -> float:
    return math.prod(dim if isinstance(dim, int) else math.inf for dim in spec.shape)


def calibrate_model(
    run: Callable[[Feeds], Feeds],
    samples: Iterable[tuple[Feeds, Hashable]],
    *,
    model: str,
    inputs: tuple[TensorSpec, ...],
    rule: AnswerRule,
    epsilon: float,
    confidence: float = 0.95,
) -> Calibration:
    """Run a model on samples in their order and find its threshold; raises InputError.

    ``run`` gives the outputs as the agent answers them (reals). A sample comes with its group: a
    clip, a day; None = a group of its own. Exact repeats are left out: the exact cache takes them.
    """
    descriptor = choose_descriptor(inputs)
    unique_samples, seen = [], set()
    for feeds, group in samples:
        key = input_key(0, model, feeds)
        item = describe(descriptor, feeds)
        if item is not None and key not in seen:
            seen.add(key)
            unique_samples.append(CalibrationSample(item, run(feeds), group))
    return calibrate_threshold(
        unique_samples, model=model, descriptor=descriptor, rule=rule, epsilon=epsilon,
        confidence=confidence,
    )  # fmt: skip


def read_clips(folder: Path, model: PackagedModel) -> Iterator[tuple[Feeds, Hashable]]:
    """The samples of a folder in the order of their names; each sub-folder is one group.

    Files are images, .npz or .npy. Raises InputError for anything else.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder} is no folder", hint="one file a sample; one sub-folder a clip or a topic"
        )
    for place in sorted(folder.iterdir()):
        if place.is_dir():
            for path in sorted(place.iterdir()):
                yield read_input(path, model), place.name
        else:
            yield read_input(place, model), None
