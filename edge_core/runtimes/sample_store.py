"""Samples on disk: one .npy per tensor, stacked over the samples and memory-mapped to read.

    folder/0.npy ...  folder/index.json = {"count": 3, "names": ["input"]}

Every sample of a folder has the same names, shapes and dtypes: a build fixes shapes first.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from edge_core.errors import InputError
from edge_core.files import atomic_directory
from edge_core.tensors import Array, Feeds


def write(folder: Path, samples: Sequence[Feeds]) -> None:
    """Write ``samples`` (name -> array) as ``folder``, whole or not at all.

    Raises StorageError, and InputError for tensors that are not numbers or differ in shape.
    """
    names = list(samples[0]) if samples else []
    with atomic_directory(folder) as temp:
        for i, name in enumerate(names):
            try:
                np.save(
                    temp / f"{i}.npy",
                    np.stack([sample[name] for sample in samples]),
                    allow_pickle=False,
                )
            except ValueError as e:
                raise InputError(
                    f"'{name}' cannot be kept: it holds text, or its shape depends on the data",
                    hint="only tensors of numbers with one shape for all samples are compared",
                ) from e
        (temp / "index.json").write_text(json.dumps({"count": len(samples), "names": names}))


class StoredSamples(Sequence[Feeds]):
    """The samples of a folder; each one is read when it is indexed."""

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        self._count: int = index["count"]
        self.stacked: dict[str, Array] = {
            name: np.load(folder / f"{i}.npy", mmap_mode="r", allow_pickle=False)
            for i, name in enumerate(index["names"])
        }

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Feeds:  # type: ignore[override]  # no slices
        if not 0 <= index < self._count:
            raise IndexError(index)
        return {name: np.array(array[index]) for name, array in self.stacked.items()}

    def __iter__(self) -> Iterator[Feeds]:
        return (self[i] for i in range(self._count))


def read(folder: Path) -> StoredSamples:
    """Open what write() made; raises InputError if it is not there or damaged."""
    try:
        return StoredSamples(folder)
    except (OSError, ValueError, KeyError) as e:
        raise InputError(f"no samples in {folder}: {e}") from e


def read_numpy(path: Path) -> dict[str, Array]:
    """The arrays of a .npz by name, or of a .npy under its file's stem; no pickles.

    Raises InputError for anything that is not such a file.
    """
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            return dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else {path.stem: loaded}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError) as e:
        raise InputError(f"{path} is not a readable NumPy file: {e}") from e


def digest(samples: Sequence[Feeds]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all samples, in order."""
    sha256 = hashlib.sha256()
    for sample in samples:
        for name, array in sample.items():
            sha256.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
            sha256.update(np.ascontiguousarray(array).tobytes())
    return sha256.hexdigest()
