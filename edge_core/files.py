"""Atomic writes: files and folders that appear whole or not at all; errors of a full disk.

with open_atomic(path) as f: f.write(...)    # temp in the same folder, fsync, rename, fsync folder
with atomic_directory(path) as folder: ...   # the same for a folder
write_atomic(path, data)                     # for bytes at hand
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from edge_core.errors import EdgeError, InputError, StorageError

_STORAGE = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "disk quota exceeded",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EIO: "input/output error",
}


def storage_error(e: OSError, path: Path) -> EdgeError:
    """The StorageError for an operating system error on ``path``, in words."""
    # NumPy reports a full disk without an errno: "8000 requested and 96 written".
    number = errno.ENOSPC if e.errno is None and "written" in str(e) else e.errno or 0
    why = _STORAGE.get(number, e.strerror or str(e))
    hint = "free some space or choose another folder" if number == errno.ENOSPC else ""
    return StorageError(f"cannot write {path}: {why}", hint=hint)


def fsync_dir(path: Path) -> None:
    """Make renames inside the folder ``path`` survive a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def open_atomic(path: Path, mode: int = 0o644) -> Iterator[IO[bytes]]:
    """A file to write, which replaces ``path`` only when the block ends without an error.

    Raises StorageError if the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as e:
        raise storage_error(e, path) from e
    temp = Path(name)
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temp.chmod(mode)
        temp.replace(path)
        fsync_dir(path.parent)
    except OSError as e:
        raise storage_error(e, path) from e
    finally:
        temp.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write ``data`` as ``path``, whole or not at all."""
    with open_atomic(path, mode) as file:
        file.write(data)


@contextmanager
def atomic_directory(path: Path, mode: int = 0o755) -> Iterator[Path]:
    """A folder to fill, which appears as ``path`` only when the block ends without an error.

    An existing ``path`` stays as it is (the first writer wins): content-addressed folders hold
    the same bytes whoever writes them. Raises StorageError if the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temp = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as e:
        raise storage_error(e, path) from e
    try:
        yield temp
        temp.chmod(mode)
        _fsync_tree(temp)
        try:
            temp.rename(path)
        except OSError as e:
            if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        fsync_dir(path.parent)
    except OSError as e:
        raise storage_error(e, path) from e
    finally:
        remove_tree(temp)


def remove_tree(path: Path) -> None:
    """Remove a folder, read-only folders inside it too; ignore what cannot be removed."""
    for folder, _, _ in os.walk(path):
        with suppress(OSError):
            Path(folder).chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)


def _fsync_tree(folder: Path) -> None:
    """Without it, a power cut after the rename leaves a folder of empty files."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with Path(parent, name).open("rb") as file:
                os.fsync(file.fileno())
        fsync_dir(Path(parent))


def read_limited(path: Path, limit: int) -> bytes:
    """The bytes of a file that has ``limit`` of them at most; raises InputError for any other."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise InputError(f"{path} has {size} bytes; at most {limit} are read")
        return path.read_bytes()
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror}") from e


def sha256_file(path: Path) -> str:
    """The file's SHA-256 as 64 hex digits."""
    digest = hashlib.sha256()  # hashlib.file_digest() is not in Python 3.10
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_tree(path: Path) -> str:
    """SHA-256 of a file, or of a folder: over the names and the digests of all files below it."""
    if not path.is_dir():
        return sha256_file(path)
    listing = (
        f"{file.relative_to(path).as_posix()}\0{sha256_file(file)}\n" for file in _walk(path)
    )
    return hashlib.sha256("".join(listing).encode()).hexdigest()


def tree_bytes(path: Path) -> int:
    """Size of a file, or of all files below a folder."""
    return sum(file.stat().st_size for file in (_walk(path) if path.is_dir() else [path]))


def _walk(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())
