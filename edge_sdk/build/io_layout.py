"""Samples and outputs on disk, as a converted file has them and as the model has them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from converters.layouts import Specs, has_same_interface, to_artifact, to_model
from edge_core.package.preprocess import ImageRecipe
from edge_core.runtimes import sample_store
from edge_core.tensors import Array
from edge_sdk.build.workspace import Workspace

GENERATION = 1


def fit_samples(workspace: Workspace, feeds: Path, model: Specs, file: Specs) -> Path:
    """The samples in ``feeds`` as the file takes them: the same folder, or another one."""
    if has_same_interface(model, file):
        return feeds
    folder = workspace.entry("feeds", feeds.name, tuple(model), tuple(file), GENERATION)
    if not folder.is_dir():
        source = sample_store.read(feeds)
        samples = [to_artifact(source[i], model, file) for i in range(len(source))]
        sample_store.write(folder, samples)
    return folder


def stack_answers(outputs: Path, model: Specs, file: Specs) -> dict[str, Array]:
    """What the file answered, stacked over the samples, as the model would have, in reals."""
    source = sample_store.read(outputs)
    if has_same_interface(model, file):
        return source.stacked
    answers = [to_model(source[i], model, file) for i in range(len(source))]
    return {spec.name: np.stack([answer[spec.name] for answer in answers]) for spec in model}


def recipe(wanted: ImageRecipe | None, file: Specs) -> ImageRecipe | None:
    """The preprocessing recipe for the file's input."""
    if wanted is None or len(file) != 1 or not file[0].layout:
        return wanted
    return msgspec.structs.replace(wanted, layout=file[0].layout)
