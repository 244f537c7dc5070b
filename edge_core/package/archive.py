"""A package as one file: the tar of an OCI layout, in the only serialisation that is accepted.

    oci-layout, index.json, blobs/sha256/<manifest>, <config>, <layer>, ...

Every byte follows from the blobs: uncompressed ustar, members in this order, no owner, no time.
So reading needs no tar parser. Each header is computed and compared, and links, devices, sparse
files, repeated or foreign members cannot occur.
"""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import IO

from edge_core.errors import InputError, PackageError
from edge_core.package import oci
from edge_core.package.oci import MAX_MANIFEST, Blob, Image

BLOCK = 512  # bytes, of a tar
_NOT_CANONICAL = "fetch the package again; a tar made by another tool is no package"


def write(image: Image, out: IO[bytes]) -> None:
    """Write the one tar that stands for ``image``."""
    out.write(_member("oci-layout", oci.LAYOUT))
    out.write(_member("index.json", oci.index(image.digest, len(image.raw))))
    out.write(_member(oci.blob_name(image.digest), image.raw))
    for blob in image.blobs.values():
        out.write(_header(oci.blob_name(blob.digest), blob.size))
        for chunk in blob.chunks():
            out.write(chunk)
        out.write(_padding(blob.size))
    out.write(bytes(2 * BLOCK))


def read(path: Path) -> Image:
    """Verify every byte of a tar; raises PackageError. Memory stays below a few MB."""
    with oci.regular(path, InputError) as file:
        total = os.fstat(file.fileno()).st_size
        if not file.read(10) == b"oci-layout":
            raise PackageError(f"{path} is no .edgepkg file", hint=_NOT_CANONICAL)
        file.seek(0)
        # 1. The layout's version has one content, which takes two blocks.
        _same(file, _member("oci-layout", oci.LAYOUT), "oci-layout", path)
        # 2. In the index only digest and size of the manifest are free; it fits in one block.
        digest, size = _parse_index(file.read(2 * BLOCK), path)
        file.seek(-2 * BLOCK, os.SEEK_CUR)
        _same(file, _member("index.json", oci.index(digest, size)), "index.json", path)
        # 3. The manifest: size limit, header, digest, padding; parsed only then.
        if size > MAX_MANIFEST:
            raise PackageError(f"{path}: the manifest has {size} bytes; limit {MAX_MANIFEST}")
        _same(file, _header(oci.blob_name(digest), size), "the manifest's tar header", path)
        raw = Blob(digest, size, path, file.tell()).read(MAX_MANIFEST)
        file.seek(size, os.SEEK_CUR)
        _same(file, _padding(size), "padding", path)
        manifest = oci.parse(raw, path)
        # 4. The file ends where its blobs do; known before gigabytes are hashed.
        blob_sizes = oci.unique(manifest, path)
        members = sum(BLOCK + size + len(_padding(size)) for size in blob_sizes.values())
        expected_size = file.tell() + members + 2 * BLOCK
        if total != expected_size:
            raise PackageError(f"{path} has {total} bytes; its manifest makes it {expected_size}")
        # 5. Config and layers: header, digest, padding.
        blobs = {}
        for digest, size in blob_sizes.items():
            _same(file, _header(oci.blob_name(digest), size), f"the tar header of {digest}", path)
            blobs[digest] = Blob(digest, size, path, file.tell())
            blobs[digest].verify()
            file.seek(size, os.SEEK_CUR)
            _same(file, _padding(size), "padding", path)
        # 6. Two empty blocks end it.
        _same(file, bytes(2 * BLOCK), "the end mark", path)
    return Image(raw, manifest, blobs)


def _parse_index(member: bytes, path: Path) -> tuple[str, int]:
    match = re.search(rb'"digest":"(sha256:[0-9a-f]{64})".{1,99}"size":([0-9]{1,11})[^0-9]', member)
    if match is None:
        raise PackageError(f"{path}: index.json names no manifest", hint=_NOT_CANONICAL)
    return match[1].decode(), int(match[2])


def _member(name: str, data: bytes) -> bytes:
    return _header(name, len(data)) + data + _padding(len(data))


def _padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


def _header(name: str, size: int) -> bytes:
    """A ustar header (POSIX.1-1988): a plain file of nobody in particular, made in 1970."""
    before = struct.pack("100s8s8s8s12s12s", name.encode(), b"0000644", b"0000000", b"0000000",
                         b"%011o" % size, b"0" * 11)  # fmt: skip
    after = struct.pack("1s100s6s2s32s32s8s8s155s12x", b"0", b"", b"ustar", b"00", b"", b"",
                        b"0000000", b"0000000", b"")  # fmt: skip
    return before + b"%06o\0 " % (sum(before) + sum(after) + 8 * ord(" ")) + after


def _same(file: IO[bytes], expected: bytes, what: str, path: Path) -> None:
    at = file.tell()
    if file.read(len(expected)) != expected:
        raise PackageError(
            f"{path}: {what} (from byte {at}) is not what its content asks for",
            hint=_NOT_CANONICAL,
        )
