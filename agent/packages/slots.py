"""Installed packages on disk, and which of them is served. No network, no runtime.

    models/NAME/slots/<64 hex digits>.VARIANT/   one variant of one package, immutable
    models/NAME/active.json              Active: current, previous, refused; replaced by one rename
    models/.work.*                       an installation's scratch folder

A slot appears whole or not at all and disappears by a rename before its files go, so a folder
named by a package's digest and a variant is complete. Nothing but Active says what is served: what
it does not name is rubbish, and sweep() removes it. Readers need no lock. Two flocks order the
writers: `.installing` is held for a whole installation, `.lock` for one change of one Active.

Against bit rot: the package's OCI manifest lies in the slot, and check() compares the files with
its digests. The agent calls it before every load: the runtime reads those bytes anyway, and
SHA-256 takes 8 ms for a model of 13 MB (1.7 GB/s on x86-64 with SHA instructions).
"""

from __future__ import annotations

import difflib
import fcntl
import os
import pwd
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edge_core.errors import InputError, PackageError, StorageError, UnknownModel
from edge_core.files import atomic_directory, fsync_dir, remove_tree, storage_error, write_atomic
from edge_core.package import manifest as manifest_file
from edge_core.package import oci
from edge_core.package.format import Package, list_files
from edge_core.package.manifest import MANIFEST, Manifest, PackagedModel, Variant
from edge_core.package.oci import Blob, Descriptor, Digest

FORMAT = 1
ACTIVE = "active.json"
MAX_ACTIVE = 1024 * 1024  # bytes
MAX_REFUSED = 32  # digests; the oldest is forgotten
IMAGE = ".oci-manifest"  # no title of a package begins with a dot
GONE, WORK = ".gone.", ".work."
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # one file name, the same on every system


class Batching(msgspec.Struct, frozen=True, kw_only=True):
    """Can the model take several requests at once, and is that faster here?"""

    can: bool
    pays: bool
    max_batch_size: int  # rows; 1 where it does not pay
    why: str
    single_per_s: float  # rows a second one by one; 0.0: not measured
    batched_per_s: float  # rows a second, ``measured_at`` at once
    measured_at: int


class Tuning(msgspec.Struct, frozen=True, kw_only=True):
    """What a short measurement on this machine chose."""

    runtime: str  # "onnxruntime 1.31.1"
    threads: int
    p50_ms: dict[str, float]  # thread count -> median of one inference
    batching: Batching
    seconds: float  # that the measurement took


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """One installed package."""

    digest: Digest
    name: str
    version: str
    variant: str  # of the package, the one that this machine matched
    candidate: str
    installed_at: float  # seconds since 1970
    tuning: Tuning

    @property
    def model_id(self) -> str:
        """What answers: two variants of one package may compute different outputs."""
        return f"{self.digest}.{self.variant}"


class Active(msgspec.Struct, frozen=True, kw_only=True):
    """What is served for one model."""

    format: int = FORMAT
    current: Slot | None = None
    previous: Slot | None = None
    refused: tuple[Digest, ...] = ()  # rolled back here; not installed again unless forced
    disabled: str = ""  # why ``current`` is not served


class Slots:
    """The installed models below a data directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._models = root / "models"

    def names(self) -> tuple[str, ...]:
        """Installed models; raises StorageError where they cannot be listed."""
        try:
            folders = sorted(folder.name for folder in self._models.iterdir())
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise StorageError(
                f"cannot read {self._models}: {error.strerror}", hint="run it as the agent's user"
            ) from error
        return tuple(
            name
            for name in folders
            if _NAME.fullmatch(name) and (self._models / name / ACTIVE).exists()
        )

    def active(self, name: str) -> Active:
        """What is served for ``name``; raises UnknownModel, StorageError for a damaged file."""
        if not _NAME.fullmatch(name):
            raise self._make_unknown(name)
        path = self._active(name)
        try:
            raw = path.read_bytes() if path.stat().st_size <= MAX_ACTIVE else b""
        except FileNotFoundError:
            raise self._make_unknown(name) from None
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}") from error
        try:
            version = msgspec.json.decode(raw, type=_Format).format
            if version > FORMAT:
                raise StorageError(
                    f"{path} has format {version}; this version reads up to {FORMAT}"
                )
            return msgspec.json.decode(raw, type=Active)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise StorageError(
                f"{path} is not readable: {error}", hint="remove it and install the package again"
            ) from error

    def folder(self, slot: Slot) -> Path:
        """Where the files of ``slot`` lie, installed or not."""
        return self._folder(slot.name, slot.digest, slot.variant)

    def model(self, slot: Slot) -> PackagedModel:
        """What the manifest of ``slot`` says about its variant; raises PackageError."""
        manifest, variant = self._manifest(slot)
        return manifest.model(variant)

    def check(self, slot: Slot, *, everything: bool = False) -> None:
        """Check what is loaded, or every file, against its digest; raises PackageError."""
        folder = self.folder(slot)
        # 1. The OCI manifest has the digest that the slot is named by; parsed only then.
        raw = _read(folder / IMAGE, oci.MAX_MANIFEST)
        if oci.digest_of(raw) != slot.digest:
            raise PackageError(f"{folder / IMAGE} is damaged", hint=_AGAIN)
        layers = {layer.annotations[oci.TITLE]: layer for layer in oci.parse(raw, folder).layers}
        # 2. The manifest; parsed only then.
        _verify(folder / MANIFEST, layers[MANIFEST])
        _, variant = self._manifest(slot)
        # 3. The model's files, or everything.
        files = list_files(layers, variant)
        for path in files if everything else variant.model_files:
            _verify(folder / path, files[path])

    def has(self, package: Package, variant: Variant) -> bool:
        """Is there a folder for this variant, whole or damaged?"""
        return self._folder(package.manifest.name, package.digest, variant.name).exists()

    def stamp(self) -> tuple[tuple[str, int, int], ...]:
        """Changes whenever any model was switched: (name, inode, mtime in ns) of each."""
        stamps = []
        for name in self.names():
            try:
                seen = self._active(name).stat()
            except FileNotFoundError:  # removed since
                continue
            stamps.append((name, seen.st_ino, seen.st_mtime_ns))
        return tuple(stamps)

    def switch(self, slot: Slot) -> Active:
        """Serve ``slot``; what was served becomes ``previous``. One rename."""
        with self._lock(".lock"):
            old = self.active(slot.name) if self._active(slot.name).exists() else Active()
            refused = tuple(digest for digest in old.refused if digest != slot.digest)
            known = (
                known_slot
                for known_slot in (old.current, old.previous)
                if known_slot and known_slot.digest != slot.digest
            )
            previous = next(
                (known_slot for known_slot in known if known_slot.digest not in refused), None
            )
            return self._write(slot.name, Active(current=slot, previous=previous, refused=refused))

    def rollback(self, name: str, *, refuse: bool) -> Active:
        """Serve ``previous`` again; raises InputError if there is none.

        The abandoned package becomes ``previous``, or with ``refuse`` a digest that is refused.
        """
        with self._lock(".lock"):
            old = self.active(name)
            if old.previous is None:
                raise InputError(f"'{name}' has no previous version to go back to")
            if refuse or old.disabled:
                new = Active(current=old.previous, refused=_add_refusal(old))
            else:
                new = Active(current=old.previous, previous=old.current, refused=old.refused)
            return self._write(name, new)

    def disable(self, name: str, why: str) -> Active:
        """Serve nothing for ``name`` until another package is installed, or this one by force."""
        with self._lock(".lock"):
            old = self.active(name)
            new = msgspec.structs.replace(old, disabled=why, refused=_add_refusal(old))
            return self._write(name, new)

    def unpack(self, package: Package, variant: Variant) -> Path:
        """One variant as an immutable folder that is on the disk; a damaged one is replaced.

        Call it within installing(). Raises PackageError, StorageError.
        """
        name = package.manifest.name
        folder = self._folder(name, package.digest, variant.name)
        if folder.exists():
            if _is_whole(package, variant, folder):
                return folder
            self._remove(folder)
        self._private(self._slots(name))
        with atomic_directory(folder, mode=0o500) as fresh:
            (fresh / IMAGE).write_bytes(package.image.raw)
            package.save(variant, fresh)
            for path in fresh.rglob("*"):
                path.chmod(0o500 if path.is_dir() else 0o400)
        return folder

    @contextmanager
    def installing(self) -> Iterator[Path]:
        """Be the only installation; gives an empty scratch folder. Waits for another one."""
        with self._lock(".installing"):
            try:
                work = Path(tempfile.mkdtemp(dir=self._models, prefix=WORK))
            except OSError as error:
                raise storage_error(error, self._models) from error
            try:
                yield work
            finally:
                remove_tree(work)

    def sweep(self) -> tuple[Path, ...]:
        """Remove what no Active names; returns what it was. Nothing while another installs.

        Raises StorageError if there is something and the disk refuses.
        """
        if not self._rubbish():
            return ()
        with self._lock(".installing", wait=False) as first:
            if not first:
                return ()  # the other one sweeps when it has finished
            with self._lock(".lock"):
                rubbish = self._rubbish()
                for path in rubbish:
                    self._remove(path)
        return rubbish

    def _rubbish(self) -> tuple[Path, ...]:
        rubbish = [*self._models.glob(f"{WORK}*"), *self._models.glob(f"{GONE}*")]
        for home in self._models.glob("*"):
            if not _NAME.fullmatch(home.name) or not home.is_dir():
                continue
            if not (home / ACTIVE).exists():  # its first installation did not get that far
                if all(
                    path.name == "slots" or path.name.startswith(".") for path in home.iterdir()
                ):
                    rubbish.append(home)
                continue
            try:
                active = self.active(home.name)
            except StorageError:  # unknown what it names
                continue
            kept_folders = {self.folder(slot) for slot in (active.current, active.previous) if slot}
            rubbish += home.glob(f".{ACTIVE}.*")
            rubbish += (path for path in (home / "slots").glob("*") if path not in kept_folders)
        return tuple(sorted(rubbish))

    def _remove(self, path: Path) -> None:
        """Away by a rename first: no folder is ever there in part under its own name."""
        gone = path.with_name(f"{GONE}{path.name}.{os.urandom(4).hex()}")
        try:
            path.rename(gone)
            fsync_dir(path.parent)
            if gone.is_dir() and not gone.is_symlink():
                remove_tree(gone)
            else:
                gone.unlink()
        except OSError as error:
            raise storage_error(error, path) from error

    def _write(self, name: str, active: Active) -> Active:
        self._private(self._home(name))
        raw = msgspec.json.format(msgspec.json.encode(active), indent=1) + b"\n"
        write_atomic(self._active(name), raw, mode=0o600)
        return active

    def _home(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise PackageError(
                f"the model's name is {name!r}",
                hint="letters, digits, '.', '_' and '-', at most 100, the first no punctuation",
            )
        return self._models / name

    def _active(self, name: str) -> Path:
        return self._home(name) / ACTIVE

    def _slots(self, name: str) -> Path:
        return self._home(name) / "slots"

    def _folder(self, name: str, digest: str, variant: str) -> Path:
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            raise InputError(f"'{digest}' is no digest of a package")
        if not _NAME.fullmatch(variant):
            raise InputError(f"{variant!r} is no name of a variant")
        return self._slots(name) / f"{digest.removeprefix('sha256:')}.{variant}"

    def _manifest(self, slot: Slot) -> tuple[Manifest, Variant]:
        path = self.folder(slot) / MANIFEST
        manifest = Manifest.from_bytes(_read(path, manifest_file.MAX_BYTES))
        try:
            return manifest, manifest.variant(slot.variant)
        except InputError as error:
            raise PackageError(f"{path}: {error.what}", hint=_AGAIN) from error

    def _make_unknown(self, name: str) -> UnknownModel:
        known = self.names()
        near = difflib.get_close_matches(name, known, 1)
        listed = f"installed: {', '.join(known)}" if known else "no model is installed"
        return UnknownModel(
            f"no model '{name}'", hint=f"did you mean '{near[0]}'? {listed}" if near else listed
        )

    @contextmanager
    def _lock(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold a lock; without ``wait`` False if another process or thread has it."""
        self._private(self._models)
        try:
            fd = os.open(self._models / name, os.O_RDONLY | os.O_CREAT, 0o600)
        except OSError as error:
            raise storage_error(error, self._models / name) from error
        try:
            yield _try_lock(fd, wait)
        finally:
            os.close(fd)

    def _private(self, folder: Path) -> None:
        """Make ``folder`` and what is missing above it, for this user only."""
        try:
            for parent in reversed(
                [parent for parent in (folder, *folder.parents) if not parent.exists()]
            ):
                parent.mkdir(0o700, exist_ok=True)
                parent.chmod(0o700)
                fsync_dir(parent.parent)
            owner = self.root.stat().st_uid
        except OSError as error:
            raise storage_error(error, folder) from error
        if owner != os.geteuid():  # the agent could not read what another user installs
            raise InputError(
                f"{self.root} belongs to {_user(owner)}, and this is {_user(os.geteuid())}",
                hint=f"sudo -u {_user(owner)} edge-agent ...",
            )


class _Format(msgspec.Struct):
    format: int


def _add_refusal(active: Active) -> tuple[Digest, ...]:
    if active.current is None:
        return active.refused
    others = (digest for digest in active.refused if digest != active.current.digest)
    return (*others, active.current.digest)[-MAX_REFUSED:]


_AGAIN = "install the package again"


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise PackageError(f"cannot read {path}: {error.strerror}", hint=_AGAIN) from error
    if len(raw) > limit:
        raise PackageError(f"{path} is longer than {limit} bytes", hint=_AGAIN)
    return raw


def _is_whole(package: Package, variant: Variant, folder: Path) -> bool:
    try:
        if oci.digest_of(_read(folder / IMAGE, oci.MAX_MANIFEST)) != package.digest:
            return False
        for path, layer in package.files(variant).items():
            _verify(folder / path, layer)
    except PackageError:
        return False
    return True


def _verify(path: Path, layer: Descriptor) -> None:
    try:
        digest = Blob.of(path).digest
    except InputError as error:
        raise PackageError(error.what, hint=_AGAIN) from error
    if digest != layer.digest:
        raise PackageError(f"{path} is damaged", hint=_AGAIN)


def _try_lock(fd: int, wait: bool) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
