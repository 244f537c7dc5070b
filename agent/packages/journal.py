"""Which models are inside a runtime right now, told to whoever comes after this process.

    journal, inside = Journal.open(path)   inside: where the last process was when it died
    i = journal.add(name, digest)          before a model is loaded
    journal.enter(i); journal.leave(i)     around every load and every inference
    journal.stop(); journal.close()        the end is wanted: no crash from here on

A small memory-mapped file. The kernel holds its page, so the counts survive kill -9 and SIGSEGV
without a single write. They are not worth anything after a reboot: the page may or may not have
reached the disk, and a power cut is nobody's fault. So the file names the boot that it belongs to.

On a disk the kernel writes the page back now and then while models work (every half minute by
default); on a tmpfs, such as /run, it never does.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import threading
from pathlib import Path

import msgspec

from edge_core.errors import EdgeError, InputError
from edge_core.files import storage_error

MAX_MODELS = 256  # loaded at once, old versions that still drain among them
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MAGIC = b"edge-agent journal 1\n"
_STATE = 32  # one byte: _RUNNING or _STOPPING
_BOOT = 64  # 64 bytes
_COUNTS = 128  # MAX_MODELS of 4 bytes
_NAMES = 2048  # MAX_MODELS of _NAME bytes: "NAME DIGEST", padded with zeros
_NAME = 192
_SIZE = _NAMES + MAX_MODELS * _NAME
_RUNNING, _STOPPING = 1, 2


class InFlight(msgspec.Struct, frozen=True):
    """A model that was loading or computing when its process died."""

    name: str
    digest: str


class Journal:
    """The file of this process. Made by open()."""

    def __init__(self, page: mmap.mmap, why: str) -> None:
        self._page, self._why = page, why
        self._view = memoryview(page)
        self._counts = self._view[_COUNTS : _COUNTS + 4 * MAX_MODELS].cast("I")
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path, boot_id: str | None = None) -> tuple[Journal, tuple[InFlight, ...]]:
        """A fresh journal, and what the last one of this boot says; never raises.

        Where the disk refuses, the journal is kept in this process alone, and health() says so.
        """
        boot = (_boot_id() if boot_id is None else boot_id)[:64]
        try:
            page, inside, why = *_map_file(path, boot), ""
        except EdgeError as error:
            page, inside, why = mmap.mmap(-1, _SIZE), (), error.what
        page[:_SIZE] = bytes(_SIZE)
        page[_BOOT : _BOOT + len(boot)] = boot.encode()
        page[_STATE] = _RUNNING
        page[: len(_MAGIC)] = _MAGIC
        return cls(page, why), inside

    def health(self) -> str:
        """Why a crash would not be noticed; empty when all is well."""
        return self._why and f"crashes are not attributed to models: {self._why}"

    def add(self, name: str, digest: str) -> int:
        """A number for a model that is about to be loaded; raises InputError beyond MAX_MODELS."""
        text = f"{name} {digest}".encode()
        if len(text) > _NAME:
            raise InputError(f"'{name}' is too long a name for a model")
        with self._lock:
            for i in range(MAX_MODELS):
                at = _NAMES + i * _NAME
                if not self._page[at]:
                    self._counts[i] = 0
                    self._page[at : at + len(text)] = text
                    return i
        raise InputError(f"{MAX_MODELS} models are loaded; that is the limit")

    def remove(self, place: int) -> None:
        """Free the number of a model that was unloaded."""
        at = _NAMES + place * _NAME
        with self._lock:
            self._page[at : at + _NAME] = bytes(_NAME)

    def enter(self, place: int) -> None:
        """A thread goes into the runtime."""
        with self._lock:
            self._counts[place] += 1

    def leave(self, place: int) -> None:
        """It has come back, with a result or an error."""
        with self._lock:
            self._counts[place] -= 1

    def stop(self) -> None:
        """The process is being ended on purpose: however it goes, it is no crash."""
        if not self._page.closed:
            self._page[_STATE] = _STOPPING

    def close(self) -> None:
        """Stop, and give the file back; may be called twice."""
        if not self._page.closed:
            self.stop()
            self._counts.release()
            self._view.release()
            self._page.close()


Opened = tuple[Journal, tuple[InFlight, ...]]


def _map_file(path: Path, boot: str) -> tuple[mmap.mmap, tuple[InFlight, ...]]:
    """The file, with its space allocated: a store into a hole of a full disk is a SIGBUS.

    The map keeps the descriptor, and with it the lock, until it is closed.
    """
    try:
        path.parent.mkdir(0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(0, "not a regular file")
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OSError(0, "another agent uses it") from None
            os.fchmod(fd, 0o600)
            old = os.pread(fd, _SIZE, 0)
            os.posix_fallocate(fd, 0, _SIZE)
            return mmap.mmap(fd, _SIZE), _find_in_flight(old, boot)
        finally:
            os.close(fd)
    except OSError as error:
        raise storage_error(error, path) from error


def _find_in_flight(old: bytes, boot: str) -> tuple[InFlight, ...]:
    """What a journal says; nothing if it is of another boot, another format or a wanted end."""
    if len(old) != _SIZE or not old.startswith(_MAGIC) or old[_STATE] != _RUNNING:
        return ()
    if not boot or old[_BOOT : _BOOT + 64].rstrip(b"\0") != boot.encode():
        return ()
    in_flight = []
    for i in range(MAX_MODELS):
        count, text = old[_COUNTS + 4 * i :][:4], old[_NAMES + _NAME * i :][:_NAME]
        name, _, digest = text.rstrip(b"\0").decode(errors="replace").partition(" ")
        if digest and any(count):
            in_flight.append(InFlight(name, digest))
    return tuple(in_flight)


def _boot_id() -> str:
    """This boot's; empty where the system does not say, and then no death counts as a crash."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""
