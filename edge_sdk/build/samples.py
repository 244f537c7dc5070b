"""Calibration and evaluation data: a folder of images, .npz, .npy, or a Python callable.

    load("photos/", inputs, recipe=recipe)      images; class sub-folders become labels
    load("digits.npz", inputs)                  one array an input, stacked; optional "labels"
    load("my.data:calibration", inputs)         yields arrays, dicts, or (sample, label)

Every sample is checked against the model's inputs here, so that later stages trust it.
"""

from __future__ import annotations

import importlib
import json
import operator
import sys
from collections.abc import Iterable, Iterator
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
    labels: tuple[int, ...] | None  # one a sample, or none at all
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
        items, names = _images(path, inputs, recipe, labels)
    elif path.suffix == ".npz":
        items = _npz(path, inputs)
    elif path.suffix == ".npy":
        items = _npy(path, inputs)
    elif ":" in source and not path.exists():
        items = _callable(source)
    else:
        raise InputError(
            f"no samples at '{source}'",
            hint="a folder of images, a .npz, a .npy, or module:function",
        )
    feeds, found = [], []
    for where, sample, label in items:
        feeds.append(_fit(sample, inputs, where))
        found.append(label)
        if len(feeds) > MAX_SAMPLES:
            raise InputError(f"{source}: more than {MAX_SAMPLES} samples")
    if not feeds:
        raise InputError(f"{source}: no samples in it")
    if labels and not path.is_dir():
        found = list(_label_list(labels, len(feeds)))
    return Samples(
        source=source,
        feeds=tuple(feeds),
        labels=_all_or_none(found, source),
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
    except (OSError, msgspec.MsgspecError, ValueError) as e:
        fields = ", ".join(ImageRecipe.__struct_fields__)
        raise InputError(f"{path}: {e}", hint=f"fields: {fields}") from e


def read_class_names(path: Path) -> tuple[str, ...]:
    """One class name a line, in the order of the model's outputs; raises InputError."""
    try:
        names = path.read_text(encoding="utf-8").splitlines()
    except OSError as e:
        raise InputError(f"cannot read class names from {path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise InputError(f"{path}: class names are not UTF-8 text: {e}") from e
    if not names:
        raise InputError(f"{path}: no class names in it", hint="one a line, from class 0 on")
    return tuple(n.strip() for n in names)


def _fit(sample: Any, inputs: Inputs, where: str) -> Feeds:
    if isinstance(sample, dict):
        return check_feeds(sample, inputs, where)
    if len(inputs) != 1:
        names = ", ".join(i.name for i in inputs)
        raise InputError(f"{where}: the model has {len(inputs)} inputs; give a dict of {names}")
    return check_feeds({inputs[0].name: np.asarray(sample)}, inputs, where)


def _images(
    folder: Path, inputs: Inputs, recipe: ImageRecipe | None, labels: Path | None
) -> tuple[Iterator[Item], tuple[str, ...]]:
    files = sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()
    )
    if not files:
        raise InputError(
            f"{folder}: no images in it", hint=f"image files end in {', '.join(IMAGE_SUFFIXES)}"
        )
    if recipe is None:
        raise InputError(
            f"{folder} is a folder of images, and no preprocessing recipe says how they enter",
            hint=f"--preprocess FILE.toml, or one of: {', '.join(sorted(BUILT_IN))}",
        )
    how = recipe
    by_file = _label_table(labels) if labels else {}
    classes = sorted({p.relative_to(folder).parts[0] for p in files if p.parent != folder})
    numbers = all(c.isdigit() for c in classes)  # ImageNet style: the folder is the class index

    def label(p: Path) -> int | None:
        if labels:
            name = p.relative_to(folder).as_posix()
            if name not in by_file:
                raise InputError(f"{labels}: no label for '{name}'")
            return _class(by_file[name], f"{labels}: '{name}'")
        if p.parent == folder:
            return None
        top = p.relative_to(folder).parts[0]
        return int(top) if numbers else classes.index(top)

    items = ((str(p), to_tensor(p, how), label(p)) for p in files)
    return items, () if numbers else tuple(classes)


def _npz(path: Path, inputs: Inputs) -> Iterator[Item]:
    arrays = sample_store.read_numpy(path)
    labels = arrays.pop("labels", None)
    if len(arrays) == 1 and len(inputs) == 1:  # the only array is the only input
        arrays = {inputs[0].name: next(iter(arrays.values()))}
    stacks = {i.name: _stack(arrays[i.name], i, path) for i in inputs if i.name in arrays}
    if missing := [i.name for i in inputs if i.name not in stacks]:
        raise InputError(
            f"{path}: input '{missing[0]}' is missing",
            hint=f"it has: {', '.join(arrays) or 'no arrays'}",
        )
    count = min(map(len, stacks.values()))
    if any(len(s) != count for s in stacks.values()):
        raise InputError(f"{path}: the inputs have different numbers of samples")
    classes = None if labels is None else _classes(labels, f"{path}: labels", count)
    for k in range(count):
        sample = {name: s[k] for name, s in stacks.items()}
        yield f"{path} sample {k}", sample, classes[k] if classes else None


def _npy(path: Path, inputs: Inputs) -> Iterator[Item]:
    if len(inputs) != 1:
        raise InputError(f"{path}: the model has {len(inputs)} inputs; use a .npz with one each")
    stack = _stack(sample_store.read_numpy(path)[path.stem], inputs[0], path)
    return ((f"{path} sample {k}", stack[k], None) for k in range(len(stack)))


def _stack(a: Array, spec: TensorSpec, path: Path) -> Array:
    """Samples along axis 0, each with the model's own shape; a batch of 1 may be left out."""
    if a.ndim == len(spec.shape) and spec.shape and spec.shape[0] == 1:
        a = a[:, None]
    if a.ndim != len(spec.shape) + 1:
        want = "x".join(map(str, spec.shape))
        have = "x".join(map(str, a.shape)) or "a scalar"
        raise InputError(
            f"{path}: '{spec.name}' has shape {have}; stack samples of {want} along the first axis"
        )
    return a


def _callable(source: str) -> Iterator[Item]:
    function = import_callable(source)
    try:
        produced: Iterable[Any] = function()
        for k, item in enumerate(produced):
            pair = isinstance(item, tuple) and len(item) == 2
            sample, label = item if pair else (item, None)
            where = f"{source} sample {k}"
            yield where, sample, None if label is None else _class(label, where)
    except EdgeError:
        raise
    except Exception as e:  # the user's own code
        raise InputError(f"{source} failed: {type(e).__name__}: {e}") from e


def import_callable(source: str) -> Any:
    """Import 'module:function', the current folder included; raises InputError."""
    module, _, name = source.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as e:  # the user's own code, which may fail in any way
        why = f"{type(e).__name__}: {e}"
        raise InputError(f"cannot import '{source}': {why}", hint="write module:function") from e
    if not callable(function):
        raise InputError(f"'{source}' is not callable")
    return function


def _label_table(path: Path) -> dict[str, int]:
    if path.suffix != ".json":
        raise InputError(f"{path}: labels of an image folder are a .json of file name to class")
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, int])
    except (OSError, msgspec.MsgspecError, json.JSONDecodeError) as e:
        raise InputError(f"{path}: not a table of file name to class number: {e}") from e


def _label_list(path: Path, count: int) -> list[int]:
    try:
        if path.suffix == ".npy":
            return _classes(sample_store.read_numpy(path)[path.stem], str(path), count)
        if path.suffix == ".txt":
            words = path.read_text(encoding="utf-8").split()
            return _classes(np.array([int(x) for x in words], np.int64), str(path), count)
    except (OSError, ValueError, OverflowError) as e:
        raise InputError(f"{path}: not a list of class numbers: {e}") from e
    raise InputError(f"{path}: labels are read from .npy, .txt, or .json for image folders")


def _classes(labels: Array, where: str, count: int) -> list[int]:
    """One class number a sample; raises InputError for anything else."""
    if labels.ndim != 1 or labels.dtype.kind not in "iub":
        raise InputError(
            f"{where}: an array of {labels.dtype} with {labels.ndim} dimensions",
            hint="one integer class number a sample",
        )
    if len(labels) != count:
        raise InputError(f"{where}: {len(labels)} labels for {count} samples")
    return [_class(x, f"{where}, sample {k}") for k, x in enumerate(labels)]


def _class(label: Any, where: str) -> int:
    try:
        number = operator.index(label)  # refuses 1.5 and "cat"; int() would not
    except TypeError as e:
        raise InputError(f"{where}: label {label!r} is not a class number") from e
    if number < 0:
        raise InputError(f"{where}: label {number} is negative", hint="classes count from 0")
    return number


def _all_or_none(labels: list[int | None], source: str) -> tuple[int, ...] | None:
    known = [x for x in labels if x is not None]
    if known and len(known) != len(labels):
        raise InputError(f"{source}: only {len(known)} of {len(labels)} samples have a label")
    return tuple(known) or None
