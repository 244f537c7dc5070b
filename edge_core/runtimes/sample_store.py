"""Samples on disk: one .npy a tensor, stacked over the samples, read without loading them all.

    folder/0.npy ...  folder/index.json = {"count": 3, "names": ["input"]}

Every sample of a folder has the same names, shapes and dtypes: shapes are fixed before a build.
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
from edge_core.files import whole_dir
from edge_core.tensors import Array, Feeds


def write(folder: Path, samples: Sequence[Feeds]) -> None:
    """Write ``samples`` as ``folder``, whole or not at all.

    Raises StorageError, and InputError for tensors that cannot be stacked or are no numbers.
    """
    names = list(samples[0]) if samples else []
    with whole_dir(folder) as d:
        for i, name in enumerate(names):
            try:
                np.save(d / f"{i}.npy", np.stack([s[name] for s in samples]), allow_pickle=False)
            except ValueError as e:
                raise InputError(
                    f"'{name}' cannot be kept: it holds text, or its shape depends on the data",
                    hint="only tensors of numbers with one shape for all samples are compared",
                ) from e
        (d / "index.json").write_text(json.dumps({"count": len(samples), "names": names}))


class FeedsOnDisk(Sequence[Feeds]):
    """The samples of a folder; each is read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        self._count: int = index["count"]
        self.stacked: dict[str, Array] = {
            name: np.load(folder / f"{i}.npy", mmap_mode="r", allow_pickle=False)
            for i, name in enumerate(index["names"])
        }

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> Feeds:  # type: ignore[override]  # no slices
        if not 0 <= i < self._count:
            raise IndexError(i)
        return {name: np.array(a[i]) for name, a in self.stacked.items()}

    def __iter__(self) -> Iterator[Feeds]:
        return (self[i] for i in range(self._count))


def read(folder: Path) -> FeedsOnDisk:
    """Open what write() made; raises InputError if it is not there or damaged."""
    try:
        return FeedsOnDisk(folder)
    except (OSError, ValueError, KeyError) as e:
        raise InputError(f"no samples in {folder}: {e}") from e


def read_numpy(path: Path) -> dict[str, Array]:
    """The arrays of a .npz by name, or of a .npy under its file's stem; no pickles.

    Raises InputError for anything that is not such a file.
    """
    try:
        with path.open("rb") as f:
            loaded = np.load(f, allow_pickle=False)
            return dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else {path.stem: loaded}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError) as e:
        raise InputError(f"{path} is not a readable NumPy file: {e}") from e


def digest(samples: Sequence[Feeds]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all samples, in order."""
    h = hashlib.sha256()
    for s in samples:
        for name, a in s.items():
            h.update(f"{name}\0{a.dtype.str}\0{a.shape}\0".encode())
            h.update(np.ascontiguousarray(a).tobytes())
    return h.hexdigest()
