"""The package: one model for one class of devices, with all that proves it, in one file.

    write(out, manifest, files) -> PackageRef       same inputs, same bytes
    open(path) -> Package                            every byte verified, file or OCI directory
    unpack(path, folder), pack(folder, out)          file <-> directory, without a change

It is an OCI artifact (docs/package.md): registries and their tools can hold and copy it. The first
layer is edge_core.package.manifest.Manifest; each further layer is a file, named by its title.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from edge_core.errors import InputError, PackageError
from edge_core.files import fsync_dir, whole, whole_dir
from edge_core.package import archive, oci
from edge_core.package import manifest as manifest_file
from edge_core.package.manifest import Manifest
from edge_core.package.oci import Blob, Descriptor, Image

ARTIFACT_TYPE = "application/vnd.edge-deploy.package.v1+json"
# A real image config, because skopeo 1.9 refuses to inspect any other (docs/adr/0003).
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
MODEL_TYPE = "application/vnd.edge-deploy.model.v1"
MANIFEST = "manifest.json"


class Kind(msgspec.Struct, frozen=True):
    """What a layer is to the outside, and how much of it is read at once."""

    media_type: str
    limit: int  # bytes


# Every package has these and its model file, and nothing else.
TITLES = {
    MANIFEST: Kind("application/vnd.edge-deploy.manifest.v1+json", manifest_file.MAX_BYTES),
    "golden.npz": Kind("application/vnd.edge-deploy.golden.v1+zip", 256 * 1024 * 1024),
    "model-card.md": Kind("text/markdown", 1024 * 1024),
    "recipe.json": Kind("application/vnd.edge-deploy.recipe.v1+json", 16 * 1024 * 1024),
    "sbom.cdx.json": Kind("application/vnd.cyclonedx+json", 16 * 1024 * 1024),
}
MODEL = Kind(MODEL_TYPE, oci.MAX_BLOB)
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # one file name, the same on every system

# What Go programs call an architecture and a system, with the variant.
GO_ARCH = {"x86_64": ("amd64", ""), "aarch64": ("arm64", ""), "armv7l": ("arm", "v7")}
GO_OS = {"macos": "darwin"}


class PackageRef(msgspec.Struct, frozen=True):
    """A package that was written."""

    path: Path
    digest: str  # "sha256:..." of the OCI manifest, which covers every blob
    bytes: int


class Package(msgspec.Struct, frozen=True):
    """A verified package. What it gives out is verified once more, against the same digests."""

    path: Path
    manifest: Manifest
    image: Image
    layers: dict[str, Descriptor]  # title -> layer

    @property
    def digest(self) -> str:
        """``sha256:...`` of the OCI manifest, which covers every blob."""
        return self.image.digest

    @property
    def titles(self) -> tuple[str, ...]:
        """Names of the files inside."""
        return tuple(self.layers)

    def read(self, title: str) -> bytes:
        """One file's bytes; raises InputError for a title that is not there."""
        if title not in self.layers:
            raise InputError(f"{self.path} has no '{title}'", hint=f"{', '.join(self.layers)}")
        kind = TITLES.get(title, MODEL)
        return self.image.blobs[self.layers[title].digest].read(kind.limit)

    def extract(self, folder: Path) -> Path:
        """Write every file into ``folder``, whole or not at all; return the model file's path.

        A folder that already holds this package is left as it is, so this may run twice. Raises
        StorageError, and InputError for a folder that holds something else.
        """
        if not folder.exists():
            with whole_dir(folder) as d:
                for title, layer in self.layers.items():
                    self.image.blobs[layer.digest].save(d / title)
                fsync_dir(d)
        for title, layer in self.layers.items():
            if Blob.of(folder / title).digest != layer.digest:
                raise InputError(
                    f"{folder / title} is not the file of this package",
                    hint="choose a folder that does not exist",
                )
        return folder / self.manifest.file


def write(out: Path, manifest: Manifest, files: Mapping[str, Path | bytes]) -> PackageRef:
    """Write ``out``, whole or not at all; ``files`` are all titles but the manifest's own.

    Raises InputError for a missing, unknown or unsafe title or a file beyond its limit,
    StorageError if the disk refuses.
    """
    if MANIFEST in files:
        raise InputError(f"'{MANIFEST}' is made from the manifest; leave it out of the files")
    contents = {MANIFEST: manifest.to_bytes(), **files}
    blobs = {title: Blob.of(contents[title]) for title in sorted(contents, key=_order)}
    layers = tuple(_layer(title, blob) for title, blob in blobs.items())
    config = Blob.of(_config(manifest, layers))
    described = Descriptor(CONFIG_TYPE, config.digest, config.size)
    raw = oci.encode(ARTIFACT_TYPE, described, layers)
    stored = {b.digest: b for b in (config, *blobs.values())}
    try:
        checked = _opened(out, Image(raw, oci.parse(raw, out), stored))
    except PackageError as e:  # here the caller's input is unfit, not a package
        raise InputError(f"no package can be made: {e.what}", hint=e.hint) from e
    return _written(out, checked)


def open(path: Path) -> Package:
    """Verify a package, file or layout directory; raises PackageError.

    Steps 1 to 6 are archive.read(), or 1 to 3 of oci.read_directory(): every byte has its digest.
    """
    image = oci.read_directory(path) if path.is_dir() else archive.read(path)
    return _opened(path, image)


def unpack(path: Path, folder: Path) -> None:
    """Write a package as an OCI layout directory, whole or not at all.

    Raises PackageError, StorageError, and InputError if ``folder`` exists.
    """
    package = open(path)
    if folder.exists():
        raise InputError(f"{folder} exists", hint="choose a folder that does not exist")
    with whole_dir(folder) as d:
        oci.write_directory(package.image, d)


def pack(folder: Path, out: Path) -> PackageRef:
    """Write a layout directory as a package file: the very bytes that write() made.

    Raises PackageError, StorageError, and InputError if ``folder`` is no directory.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no directory", hint="give the folder of an OCI layout")
    return _written(out, open(folder))


def _opened(path: Path, image: Image) -> Package:
    found = image.manifest
    # 7. It is a package of ours.
    if found.artifact_type != ARTIFACT_TYPE:
        raise PackageError(f"{path}: artifactType is '{found.artifact_type}', not {ARTIFACT_TYPE}")
    if found.config.media_type != CONFIG_TYPE:
        raise PackageError(f"{path}: the config is '{found.config.media_type}', not {CONFIG_TYPE}")
    # 8. Titles are safe as file names and occur once.
    layers: dict[str, Descriptor] = {}
    for layer in found.layers:
        title = layer.annotations.get(oci.TITLE, "")
        if not _SAFE.fullmatch(title):
            raise PackageError(f"{path}: unsafe title {title!r}")
        if layers.setdefault(title, layer) is not layer:
            raise PackageError(f"{path}: two layers are '{title}'")
    # 9. The package manifest is the first layer; parsed within its limit.
    if next(iter(layers), "") != MANIFEST:
        raise PackageError(f"{path}: the first layer is not {MANIFEST}")
    raw = image.blobs[layers[MANIFEST].digest].read(TITLES[MANIFEST].limit)
    manifest = Manifest.from_bytes(raw)
    # 10. Exactly the known titles and the model file; each of its type and within its limit.
    if manifest.file in TITLES:
        raise PackageError(f"{path}: the model file cannot be '{manifest.file}'")
    kinds = {**TITLES, manifest.file: MODEL}
    if missing := kinds.keys() - layers.keys():
        raise PackageError(f"{path}: '{min(missing)}' is missing")
    if unknown := layers.keys() - kinds.keys():
        raise PackageError(f"{path}: '{min(unknown)}' is unknown", hint=f"{', '.join(kinds)}")
    for title, kind in kinds.items():
        layer = layers[title]
        if layer.media_type != kind.media_type:
            raise PackageError(f"{path}: '{title}' is '{layer.media_type}', not {kind.media_type}")
        if layer.size > kind.limit:
            raise PackageError(f"{path}: '{title}' has {layer.size} bytes; limit {kind.limit}")
    return Package(path, manifest, image, layers)


def _written(out: Path, package: Package) -> PackageRef:
    with whole(out) as f:
        archive.write(package.image, f)
        size = f.tell()
    return PackageRef(out, package.digest, size)


def _order(title: str) -> tuple[bool, str]:
    return title != MANIFEST, title


def _layer(title: str, blob: Blob) -> Descriptor:
    kind = TITLES.get(title, MODEL)
    return Descriptor(kind.media_type, blob.digest, blob.size, {oci.TITLE: title})


def _config(manifest: Manifest, layers: tuple[Descriptor, ...]) -> bytes:
    """The OCI image config: what other tools show. We never read it; only its digest counts."""
    arch, variant = GO_ARCH.get(manifest.selector.arch, (manifest.selector.arch, ""))
    labels = {
        "org.opencontainers.image.title": manifest.name,
        "org.opencontainers.image.version": manifest.version,
        "edge-deploy.candidate": manifest.candidate,
        "edge-deploy.model-sha256": manifest.model_sha256,
        "edge-deploy.precision": manifest.precision,
        "edge-deploy.profiles": ",".join(manifest.selector.profiles),
        "edge-deploy.runtime": f"{manifest.runtime.name} {manifest.runtime.version}",
    }
    config = {
        "architecture": arch,
        "os": GO_OS.get(manifest.selector.os, manifest.selector.os),
        "config": {"Labels": labels},
        # Layers are stored as they are, so their digests are the uncompressed ones.
        "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
    }
    return msgspec.json.encode(
        {**config, "variant": variant} if variant else config, order="sorted"
    )
