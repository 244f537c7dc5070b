"""Calibration and evaluation data: a folder of images, .npz, .npy, or a Python callable.

    load("photos/", inputs, recipe=recipe)      images; class sub-folders become labels
    load("digits.npz", inputs)                  one array for each input, stacked; optional "labels"
    load("my.data:calibration", inputs)         yields arrays, dicts, or (sample, label)

Every sample is checked against the model's inputs here, so that later stages trust it.
"""

from __future__ import annotations

import importlib
import json
import operator
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_core.errors import EdgeError, InputError
from edge_core.package.preprocess import BUILT_IN, IMAGE_SUFFIXES, ImageRecipe, to_tensor
from edge_core.runtimes import sample_store
from edge_core.tensors import Array, Feeds, TensorSpec, check_feeds

MAX_SAMPLES = 1_000_000
Inputs = tuple[TensorSpec, ...]
Item = tuple[str, Any, int | None]  # where it is from, the sample, its label


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    """Samples that fit the model's inputs, in order."""

    source: str
    feeds: tuple[Feeds, ...]
    labels: tuple[int, ...] | None  # one for each sample, or none at all
    class_names: tuple[str, ...] = ()  # from sub-folders
    digest: str

    def __len__(self) -> int:
        return len(self.feeds)


def load(
    source: str, inputs: Inputs, *, recipe: ImageRecipe | None = None, labels: Path | None = None
) -> Samples:
    """Read and check all samples; raises InputError naming the source, sample and tensor."""
    names: tuple[str, ...] = ()
    path = Path(source)
    if path.is_dir():
        items, names = _read_images(path, inputs, recipe, labels)
    elif path.suffix == ".npz":
        items = _read_npz(path, inputs)
    elif path.suffix == ".npy":
        items = _read_npy(path, inputs)
    elif ":" in source and not path.exists():
        items = _call_function(source)
    else:
        raise InputError(
            f"no samples at '{source}'",
            hint="a folder of images, a .npz, a .npy, or module:function",
        )
    feeds: list[Feeds] = []
    sample_labels: list[int | None] = []
    for where, sample, label in items:
        feeds.append(_to_feeds(sample, inputs, where))
        sample_labels.append(label)
        if len(feeds) > MAX_SAMPLES:
            raise InputError(f"{source}: more than {MAX_SAMPLES} samples")
    if not feeds:
        raise InputError(f"{source}: no samples in it")
    if labels and not path.is_dir():
        sample_labels = list(_read_label_list(labels, len(feeds)))
    return Samples(
        source=source,
        feeds=tuple(feeds),
        labels=_all_or_none(sample_labels, source),
        class_names=names,
        digest=sample_store.digest(feeds),
    )


def read_recipe(text: str) -> ImageRecipe:
    """A preprocessing recipe: a built-in name or a TOML file; raises InputError."""
    if text in BUILT_IN:
        return BUILT_IN[text]
    path = Path(text)
    if path.suffix != ".toml" or not path.is_file():
        raise InputError(
            f"no preprocessing recipe '{text}'",
            hint=f"a .toml file, or one of: {', '.join(sorted(BUILT_IN))}",
        )
    try:
        return msgspec.toml.decode(path.read_bytes(), type=ImageRecipe)
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        fields = ", ".join(ImageRecipe.__struct_fields__)
        raise InputError(f"{path}: {error}", hint=f"fields: {fields}") from error


def read_class_names(path: Path) -> tuple[str, ...]:
    """One class name on each line, in the order of the model's outputs; raises InputError."""
    try:
        names = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"cannot read class names from {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: class names are not UTF-8 text: {error}") from error
    if not names:
        raise InputError(f"{path}: no class names in it", hint="one on each line, from class 0")
    return tuple(name.strip() for name in names)


def _to_feeds(sample: Any, inputs: Inputs, where: str) -> Feeds:
    if isinstance(sample, dict):
        return check_feeds(sample, inputs, where)
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        raise InputError(f"{where}: the model has {len(inputs)} inputs; give a dict of {names}")
    return check_feeds({inputs[0].name: np.asarray(sample)}, inputs, where)


def _read_images(
    folder: Path, inputs: Inputs, recipe: ImageRecipe | None, labels: Path | None
) -> tuple[Iterator[Item], tuple[str, ...]]:
    files = sorted(
        file for file in folder.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
    )  # fmt: skip
    if not files:
        raise InputError(
            f"{folder}: no images in it", hint=f"image files end in {', '.join(IMAGE_SUFFIXES)}"
        )
    if recipe is None:
        raise InputError(
            f"{folder} is a folder of images, and no preprocessing recipe says how they enter",
            hint=f"--preprocess FILE.toml, or one of: {', '.join(sorted(BUILT_IN))}",
        )
    class_folders = sorted({_class_folder(file, folder) for file in files} - {""})
    # ImageNet style: the folder's name is the class index
    are_numbers = all(name.isdigit() for name in class_folders)
    label_table = _read_label_table(labels) if labels else {}

    def find_label(file: Path) -> int | None:
        if labels:
            name = file.relative_to(folder).as_posix()
            if name not in label_table:
                raise InputError(f"{labels}: no label for '{name}'")
            return _to_class(label_table[name], f"{labels}: '{name}'")
        class_folder = _class_folder(file, folder)
        if not class_folder:
            return None
        return int(class_folder) if are_numbers else class_folders.index(class_folder)

    items = ((str(file), to_tensor(file, recipe), find_label(file)) for file in files)
    return items, () if are_numbers else tuple(class_folders)


def _class_folder(file: Path, folder: Path) -> str:
    """The sub-folder of ``folder`` that a file is below; empty for one directly in it."""
    return "" if file.parent == folder else file.relative_to(folder).parts[0]


def _read_npz(path: Path, inputs: Inputs) -> Iterator[Item]:
    arrays = sample_store.read_numpy(path)
    labels = arrays.pop("labels", None)
    if len(arrays) == 1 and len(inputs) == 1:  # the only array is the only input
        arrays = {inputs[0].name: next(iter(arrays.values()))}
    stacks = {
        spec.name: _stack_samples(arrays[spec.name], spec, path)
        for spec in inputs
        if spec.name in arrays
    }
    if missing := [spec.name for spec in inputs if spec.name not in stacks]:
        raise InputError(
            f"{path}: input '{missing[0]}' is missing",
            hint=f"it has: {', '.join(arrays) or 'no arrays'}",
        )
    count = min(map(len, stacks.values()))
    if any(len(stack) != count for stack in stacks.values()):
        raise InputError(f"{path}: the inputs have different numbers of samples")
    classes = None if labels is None else _to_classes(labels, f"{path}: labels", count)
    for i in range(count):
        sample = {name: stack[i] for name, stack in stacks.items()}
        yield f"{path} sample {i}", sample, classes[i] if classes else None


def _read_npy(path: Path, inputs: Inputs) -> Iterator[Item]:
    if len(inputs) != 1:
        raise InputError(f"{path}: the model has {len(inputs)} inputs; use a .npz with one each")
    stack = _stack_samples(sample_store.read_numpy(path)[path.stem], inputs[0], path)
    return ((f"{path} sample {i}", stack[i], None) for i in range(len(stack)))


def _stack_samples(array: Array, spec: TensorSpec, path: Path) -> Array:
    """Samples along axis 0, each with the model's own shape; a batch of 1 may be left out."""
    if array.ndim == len(spec.shape) and spec.shape and spec.shape[0] == 1:
        array = array[:, None]
    if array.ndim != len(spec.shape) + 1:
        expected = "x".join(map(str, spec.shape))
        actual = "x".join(map(str, array.shape)) or "a scalar"
        raise InputError(
            f"{path}: '{spec.name}' has shape {actual}; "
            f"stack samples of {expected} along the first axis"
        )
    return array


def _call_function(source: str) -> Iterator[Item]:
    function = import_callable(source)
    try:
        for index, item in enumerate(function()):
            is_pair = isinstance(item, tuple) and len(item) == 2
            sample, label = item if is_pair else (item, None)
            where = f"{source} sample {index}"
            yield where, sample, None if label is None else _to_class(label, where)
    except EdgeError:
        raise
    except Exception as error:  # the user's own code
        raise InputError(f"{source} failed: {type(error).__name__}: {error}") from error


def import_callable(source: str) -> Any:
    """Import 'module:function', the current folder included; raises InputError."""
    module, _, name = source.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # the user's own code, which may fail in any way
        raise InputError(
            f"cannot import '{source}': {type(error).__name__}: {error}",
            hint="write module:function",
        ) from error
    if not callable(function):
        raise InputError(f"'{source}' is not callable")
    return function


def _read_label_table(path: Path) -> dict[str, int]:
    if path.suffix != ".json":
        raise InputError(f"{path}: labels of an image folder are a .json of file name to class")
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, int])
    except (OSError, msgspec.MsgspecError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not a table of file name to class number: {error}") from error


def _read_label_list(path: Path, count: int) -> list[int]:
    try:
        if path.suffix == ".npy":
            return _to_classes(sample_store.read_numpy(path)[path.stem], str(path), count)
        if path.suffix == ".txt":
            words = path.read_text(encoding="utf-8").split()
            return _to_classes(np.array([int(word) for word in words], np.int64), str(path), count)
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: not a list of class numbers: {error}") from error
    raise InputError(f"{path}: labels are read from .npy, .txt, or .json for image folders")


def _to_classes(labels: Array, where: str, count: int) -> list[int]:
    """One class number for each sample; raises InputError for anything else."""
    if labels.ndim != 1 or labels.dtype.kind not in "iub":
        raise InputError(
            f"{where}: an array of {labels.dtype} with {labels.ndim} dimensions",
            hint="one integer class number for each sample",
        )
    if len(labels) != count:
        raise InputError(f"{where}: {len(labels)} labels for {count} samples")
    return [_to_class(label, f"{where}, sample {index}") for index, label in enumerate(labels)]


def _to_class(label: Any, where: str) -> int:
    try:
        number = operator.index(label)  # refuses 1.5 and "cat"; int() would not
    except TypeError as error:
        raise InputError(f"{where}: label {label!r} is not a class number") from error
    if number < 0:
        raise InputError(f"{where}: label {number} is negative", hint="classes count from 0")
    return number


def _all_or_none(labels: list[int | None], source: str) -> tuple[int, ...] | None:
    known = [label for label in labels if label is not None]
    if known and len(known) != len(labels):
        raise InputError(f"{source}: only {len(known)} of {len(labels)} samples have a label")
    return tuple(known) or None
