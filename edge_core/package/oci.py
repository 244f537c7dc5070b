"""OCI image layouts: a manifest that names blobs by digest, and the directory that holds them.

    oci-layout, index.json, blobs/sha256/<manifest>, <config>, <layer>, ...

archive.py holds the same in one file; what the blobs mean is package.py's business.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from edge_core.errors import EdgeError, InputError, PackageError
from edge_core.files import fsync_dir

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
TITLE = "org.opencontainers.image.title"
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'

MAX_INDEX = 64 * 1024  # bytes
MAX_MANIFEST = 256 * 1024
MAX_CONFIG = 256 * 1024
MAX_BLOB = 8**11 - 1  # what the size field of a tar header holds, 8 GiB
MAX_LAYERS = 512
CHUNK = 1 << 20

_T = TypeVar("_T")

Digest = Annotated[str, Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z")]
Size = Annotated[int, Meta(ge=0, le=MAX_BLOB)]


class Descriptor(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A blob as a manifest or index names it."""

    media_type: str
    digest: Digest
    size: Size
    annotations: dict[str, str] = {}
    artifact_type: str = ""


class ImageManifest(msgspec.Struct, frozen=True, rename="camel"):
    """The OCI image manifest: its digest is the package's identity."""

    schema_version: Literal[2]
    media_type: str
    artifact_type: str
    config: Descriptor
    layers: Annotated[tuple[Descriptor, ...], Meta(max_length=MAX_LAYERS)]


class _Index(msgspec.Struct, frozen=True, rename="camel"):
    schema_version: Literal[2]
    manifests: tuple[Descriptor, ...]


class _Layout(msgspec.Struct, frozen=True, rename="camel"):
    image_layout_version: str


class Blob(msgspec.Struct, frozen=True):
    """Bytes with a digest: in memory, a file, or a part of one."""

    digest: str
    size: int
    source: Path | bytes
    offset: int = 0

    @classmethod
    def of(cls, source: Path | bytes) -> Blob:
        """Hash a file or bytes; raises InputError for a file that cannot be read."""
        if isinstance(source, bytes):
            return cls(digest_of(source), len(source), source)
        digest, size = hashlib.sha256(), 0
        with regular(source, InputError) as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
        return cls(f"sha256:{digest.hexdigest()}", size, source)

    def chunks(self) -> Iterator[bytes]:
        """The bytes; raises PackageError after the last one if they do not have the digest.

        Nothing may be made of them before the iterator has ended.
        """
        digest, remaining = hashlib.sha256(), self.size
        if isinstance(self.source, bytes):
            digest.update(self.source)
            yield self.source
        else:
            with regular(self.source, PackageError) as file:
                file.seek(self.offset)
                while remaining and (chunk := file.read(min(CHUNK, remaining))):
                    digest.update(chunk)
                    remaining -= len(chunk)
                    yield chunk
        if f"sha256:{digest.hexdigest()}" != self.digest:
            where = self.source if isinstance(self.source, Path) else "memory"
            raise PackageError(
                f"{where}: the bytes of blob {self.digest} do not have that digest",
                hint="the file is damaged or was changed; fetch it again",
            )

    def read(self, limit: int) -> bytes:
        """All bytes, verified; raises PackageError if there are more than ``limit``."""
        if self.size > limit:
            raise PackageError(
                f"blob {self.digest} has {self.size} bytes; at most {limit} are read"
            )
        return b"".join(self.chunks())

    def verify(self) -> None:
        """Raise PackageError unless the bytes have the digest."""
        for _ in self.chunks():
            pass

    def save(self, path: Path) -> None:
        """Write a new file that is on the disk when this returns; raises OSError, PackageError."""
        with path.open("wb") as file:
            for chunk in self.chunks():
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())


class Image(msgspec.Struct, frozen=True):
    """A manifest and its blobs: config first, then the layers, each digest once."""

    raw: bytes  # the manifest as it is stored
    manifest: ImageManifest
    blobs: dict[str, Blob]  # digest -> blob

    @property
    def digest(self) -> str:
        return digest_of(self.raw)


def encode(artifact_type: str, config: Descriptor, layers: Sequence[Descriptor]) -> bytes:
    """A manifest's bytes: same descriptors, same bytes."""
    return _json(ImageManifest(2, MANIFEST_TYPE, artifact_type, config, tuple(layers)))


def index(digest: str, size: int) -> bytes:
    """The index that names one manifest."""
    manifest = {"digest": digest, "mediaType": MANIFEST_TYPE, "size": size}
    return _json({"manifests": [manifest], "mediaType": INDEX_TYPE, "schemaVersion": 2})


def blob_name(digest: str) -> str:
    """Where a blob lies in a layout."""
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def digest_of(data: bytes) -> str:
    """``sha256:`` and 64 hex digits."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def parse(raw: bytes, where: Path) -> ImageManifest:
    """An image manifest from verified bytes; raises PackageError."""
    manifest = _decode(raw, ImageManifest, f"{where}: the image manifest")
    if manifest.media_type != MANIFEST_TYPE:
        raise PackageError(f"{where}: the manifest has mediaType '{manifest.media_type}'")
    if manifest.config.size > MAX_CONFIG:
        raise PackageError(
            f"{where}: the config has {manifest.config.size} bytes; {MAX_CONFIG} fit"
        )
    return manifest


def write_directory(image: Image, folder: Path) -> None:
    """Fill an empty ``folder`` with the layout; raises OSError, PackageError."""
    (folder / "blobs" / "sha256").mkdir(parents=True)
    for blob in (Blob.of(image.raw), *image.blobs.values()):
        blob.save(folder / blob_name(blob.digest))
    Blob.of(index(image.digest, len(image.raw))).save(folder / "index.json")
    Blob.of(LAYOUT).save(folder / "oci-layout")
    for path in (folder / "blobs" / "sha256", folder / "blobs", folder):
        fsync_dir(path)


def read_directory(folder: Path) -> Image:
    """Verify a layout directory, as other tools write it too; raises PackageError.

    Digests and sizes are verified, the form of oci-layout and index.json is not.
    """
    if not (folder / "oci-layout").exists():
        raise PackageError(f"{folder} is no OCI image layout: it has no file 'oci-layout'")
    # 1. Layout version and index: size limits, then parsed; no digest covers them.
    layout = _decode(_small(folder / "oci-layout"), _Layout, f"{folder}/oci-layout")
    if layout.image_layout_version != "1.0.0":
        raise PackageError(f"{folder}: image layout {layout.image_layout_version}; 1.0.0 is read")
    manifests = _decode(_small(folder / "index.json"), _Index, f"{folder}/index.json").manifests
    if len(manifests) != 1:
        count = len(manifests)
        raise PackageError(f"{folder}: the index names {count} manifests; a package has one")
    # 2. The manifest: size, digest; parsed only then.
    raw = _in_folder(folder, manifests[0].digest, manifests[0].size).read(MAX_MANIFEST)
    manifest = parse(raw, folder)
    # 3. Config and layers: size, digest.
    blobs = {
        digest: _in_folder(folder, digest, size)
        for digest, size in unique(manifest, folder).items()
    }
    for blob in blobs.values():
        blob.verify()
    return Image(raw, manifest, blobs)


def unique(manifest: ImageManifest, where: Path) -> dict[str, int]:
    """Digest -> size in the order of storage; equal blobs are stored once."""
    sizes: dict[str, int] = {}
    for descriptor in (manifest.config, *manifest.layers):
        if sizes.setdefault(descriptor.digest, descriptor.size) != descriptor.size:
            raise PackageError(f"{where}: the manifest gives {descriptor.digest} two sizes")
    return sizes


@contextmanager
def regular(path: Path, kind: type[EdgeError]) -> Iterator[IO[bytes]]:
    """Open a regular file; a pipe or device could block or never end."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise kind(f"{path} is not a regular file")
        with os.fdopen(fd, "rb") as file:
            yield file
    except OSError as error:
        raise kind(f"cannot read {path}: {error.strerror}") from error


def _in_folder(folder: Path, digest: str, size: int) -> Blob:
    path = folder / blob_name(digest)
    with regular(path, PackageError) as file:
        actual_size = os.fstat(file.fileno()).st_size
    if actual_size != size:
        raise PackageError(f"{path} has {actual_size} bytes; the manifest says {size}")
    return Blob(digest, size, path)


def _small(path: Path) -> bytes:
    with regular(path, PackageError) as file:
        raw = file.read(MAX_INDEX + 1)
    if len(raw) > MAX_INDEX:
        raise PackageError(f"{path} is longer than {MAX_INDEX} bytes")
    return raw


def _decode(raw: bytes, kind: type[_T], what: str) -> _T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PackageError(f"{what} is not readable: {error}") from error


def _json(value: object) -> bytes:
    return msgspec.json.encode(value, order="sorted")
