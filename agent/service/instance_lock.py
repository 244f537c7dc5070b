"""Is an agent running on this data directory, and where? One lock and one small file.

    with hold(root):                          this process is the agent; InputError if another is
        write_instance(root, address)         writes agent.json, which goes away with the block
    find_instance(root) -> Instance | None    for a command

The lock, on the directory itself, is what counts: it needs no writable disk, and the kernel frees
it however the process ended, so an agent.json that a crash left behind misleads nobody.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from edge_core.errors import InputError, StorageError
from edge_core.files import write_atomic

log = logging.getLogger(__name__)

FILE = "agent.json"
PATIENCE_S = 1.0  # a command that asks holds the lock for a moment


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """The agent that serves."""

    pid: int
    address: str  # "http://127.0.0.1:8000", "unix:/run/edge-agent.sock", "" without a server
    since: float  # seconds since 1970


@contextmanager
def hold(root: Path) -> Iterator[None]:
    """Be the only agent of a data directory; raises InputError if another one runs."""
    try:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        hint = "edge-agent init" if isinstance(error, FileNotFoundError) else ""
        raise InputError(f"data_dir {root}: {error.strerror}", hint=hint) from error
    try:
        end = time.monotonic() + PATIENCE_S
        while not _try_lock(fd, fcntl.LOCK_EX):
            if time.monotonic() > end:
                other = _read(root)
                raise InputError(
                    f"another agent serves {root}" + (f": process {other.pid}" if other else ""),
                    hint="stop it, or give this one a data_dir of its own",
                )
            time.sleep(0.05)
        _remove_file(root)  # what a crash left behind
        try:
            yield
        finally:
            _remove_file(root)
    finally:
        os.close(fd)


def write_instance(root: Path, address: str) -> Instance:
    """Tell commands of the same user where this process answers; call it within hold().

    On a disk that refuses, commands find no agent, and applications need none of this.
    """
    instance = Instance(pid=os.getpid(), address=address, since=time.time())
    try:
        write_atomic(root / FILE, msgspec.json.encode(instance), mode=0o600)
    except StorageError as error:
        log.error("event=not_announced why=%r", error.what)
    return instance


def find_instance(root: Path) -> Instance | None:
    """The agent that runs on a data directory, or None."""
    instance = _read(root)
    if instance is None:
        return None
    try:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        return None if _try_lock(fd, fcntl.LOCK_SH) else instance
    finally:
        os.close(fd)


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_file(root: Path) -> None:
    with suppress(OSError):
        (root / FILE).unlink(missing_ok=True)


def _read(root: Path) -> Instance | None:
    try:
        return msgspec.json.decode((root / FILE).read_bytes(), type=Instance)
    except (OSError, msgspec.MsgspecError):
        return None
