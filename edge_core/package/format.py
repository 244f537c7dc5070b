"""The package: one model for one or more classes of devices, with all that proves it, in one file.

    write(out, manifest, files) -> PackageRef       same inputs, same bytes
    open(path) -> Package                            every byte verified, file or OCI directory
    unpack(path, folder), pack(folder, out)          file <-> directory, without a change

It is an OCI artifact (docs/package.md): registries and their tools can hold and copy it. The first
layer is edge_core.package.manifest.Manifest; each further layer is a file, named by its title:
"sbom.cdx.json" for the package as a whole, "VARIANT/PATH" for one of a variant. Equal files are
stored once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from edge_core.errors import InputError, PackageError
from edge_core.files import atomic_directory, fsync_dir, open_atomic
from edge_core.package import archive, oci
from edge_core.package import manifest as manifest_file
from edge_core.package.manifest import CARD, MANIFEST, PACKAGE_FILES, SBOM, Manifest, Variant
from edge_core.package.oci import Blob, Descriptor, Image

ARTIFACT_TYPE = "application/vnd.edge-deploy.package.v2+json"
# A real image config, because skopeo 1.9 refuses to inspect any other (docs/adr/0003).
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"


class Kind(msgspec.Struct, frozen=True):
    """What a layer is to the outside, and how much of it is read at once."""

    media_type: str
    limit: int  # bytes


KINDS = {
    MANIFEST: Kind("application/vnd.edge-deploy.manifest.v2+json", manifest_file.MAX_BYTES),
    CARD: Kind("text/markdown", 1024 * 1024),
    SBOM: Kind("application/vnd.cyclonedx+json", 16 * 1024 * 1024),
}
GOLDEN = Kind("application/vnd.edge-deploy.golden.v1+zip", 256 * 1024 * 1024)
RECIPE = Kind("application/vnd.edge-deploy.recipe.v1+json", 16 * 1024 * 1024)
MODEL = Kind("application/vnd.edge-deploy.model.v1", oci.MAX_BLOB)

# What Go programs call an architecture and a system, with the variant.
GO_ARCH = {"x86_64": ("amd64", ""), "aarch64": ("arm64", ""), "armv7l": ("arm", "v7")}
GO_OS = {"macos": "darwin"}


class PackageRef(msgspec.Struct, frozen=True):
    """A package that was written."""

    path: Path
    digest: str  # "sha256:..." of the OCI manifest, which covers every blob
    bytes: int
    variants: tuple[str, ...]  # their names, in the order of choice


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
        kind = layer_kinds(self.manifest)[title]
        return self.image.blobs[self.layers[title].digest].read(kind.limit)

    def files(self, variant: Variant) -> dict[str, Descriptor]:
        """What an unpacked ``variant`` consists of: relative path -> layer."""
        return list_files(self.layers, variant)

    def save(self, variant: Variant, folder: Path) -> None:
        """Write the files of one variant into an empty ``folder``; raises OSError, PackageError."""
        for path, layer in self.files(variant).items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            self.image.blobs[layer.digest].save(target)

    def extract(self, variant: Variant, folder: Path) -> Path:
        """Write one variant into ``folder``, whole or not at all; return what the runtime opens.

        A folder that already holds this variant is left as it is, so this may run twice. Raises
        StorageError, and InputError for a folder that holds something else.
        """
        if not folder.exists():
            with atomic_directory(folder) as fresh:
                self.save(variant, fresh)
                fsync_dir(fresh)
        for path, layer in self.files(variant).items():
            if Blob.of(folder / path).digest != layer.digest:
                raise InputError(
                    f"{folder / path} is not the file of this package",
                    hint="choose a folder that does not exist",
                )
        return folder / variant.entry


def list_files(layers: Mapping[str, Descriptor], variant: Variant) -> dict[str, Descriptor]:
    """The package's own files and those of ``variant``: path in the folder -> layer."""
    own = {path: layers[variant.title(path)] for path in variant.files}
    return {**{title: layers[title] for title in PACKAGE_FILES}, **own}


def layer_kinds(manifest: Manifest) -> dict[str, Kind]:
    """Every title that the package of ``manifest`` has, in the order of its layers."""
    kinds = dict(KINDS)
    for variant in manifest.variants:
        roles = {variant.golden: GOLDEN, variant.recipe: RECIPE}
        kinds |= {variant.title(path): roles.get(path, MODEL) for path in sorted(variant.files)}
    return kinds


def write(out: Path, manifest: Manifest, files: Mapping[str, Path | bytes]) -> PackageRef:
    """Write ``out``, whole or not at all; ``files`` are all titles but the manifest's own.

    A variant's file is titled "VARIANT/PATH". Raises InputError for a missing, unknown or unsafe
    title or a file beyond its limit, StorageError if the disk refuses.
    """
    if MANIFEST in files:
        raise InputError(f"'{MANIFEST}' is made from the manifest; leave it out of the files")
    contents = {MANIFEST: manifest.to_bytes(), **files}
    kinds = layer_kinds(manifest)
    order = {title: i for i, title in enumerate(kinds)}
    titles = sorted(contents, key=lambda name: (order.get(name, len(order)), name))
    blobs = {title: Blob.of(contents[title]) for title in titles}
    layers = tuple(
        Descriptor(kinds.get(title, MODEL).media_type, blob.digest, blob.size, {oci.TITLE: title})
        for title, blob in blobs.items()
    )
    config = Blob.of(_config(manifest, layers))
    described = Descriptor(CONFIG_TYPE, config.digest, config.size)
    raw = oci.encode(ARTIFACT_TYPE, described, layers)
    stored = {stored_blob.digest: stored_blob for stored_blob in (config, *blobs.values())}
    try:
        checked = _check_image(out, Image(raw, oci.parse(raw, out), stored))
    except PackageError as error:  # here the caller's input is unfit, not a package
        raise InputError(f"no package can be made: {error.what}", hint=error.hint) from error
    return _write_archive(out, checked)


def open(path: Path) -> Package:
    """Verify a package, file or layout directory; raises PackageError.

    Steps 1 to 6 are archive.read(), or 1 to 3 of oci.read_directory(): every byte has its digest.
    """
    image = oci.read_directory(path) if path.is_dir() else archive.read(path)
    return _check_image(path, image)


def unpack(path: Path, folder: Path) -> None:
    """Write a package as an OCI layout directory, whole or not at all.

    Raises PackageError, StorageError, and InputError if ``folder`` exists.
    """
    package = open(path)
    if folder.exists():
        raise InputError(f"{folder} exists", hint="choose a folder that does not exist")
    with atomic_directory(folder) as fresh:
        oci.write_directory(package.image, fresh)


def pack(folder: Path, out: Path) -> PackageRef:
    """Write a layout directory as a package file: the very bytes that write() made.

    Raises PackageError, StorageError, and InputError if ``folder`` is no directory.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no directory", hint="give the folder of an OCI layout")
    return _write_archive(out, open(folder))


def _check_image(path: Path, image: Image) -> Package:
    oci_manifest = image.manifest
    # 7. It is a package of ours.
    if oci_manifest.artifact_type != ARTIFACT_TYPE:
        raise PackageError(
            f"{path}: artifactType is '{oci_manifest.artifact_type}', not {ARTIFACT_TYPE}"
        )
    if oci_manifest.config.media_type != CONFIG_TYPE:
        raise PackageError(
            f"{path}: the config is '{oci_manifest.config.media_type}', not {CONFIG_TYPE}"
        )
    # 8. Every layer has a title, and none occurs twice.
    layers: dict[str, Descriptor] = {}
    for layer in oci_manifest.layers:
        title = layer.annotations.get(oci.TITLE, "")
        if not title:
            raise PackageError(f"{path}: a layer has no title")
        if layers.setdefault(title, layer) is not layer:
            raise PackageError(f"{path}: two layers are {title!r}")
    # 9. The package manifest is the first layer; parsed within its limit. Names and paths in it
    #    are safe and do not collide (Manifest and Variant check themselves).
    if next(iter(layers), "") != MANIFEST:
        raise PackageError(f"{path}: the first layer is not {MANIFEST}")
    raw = image.blobs[layers[MANIFEST].digest].read(KINDS[MANIFEST].limit)
    manifest = Manifest.from_bytes(raw)
    # 10. Exactly the titles that the manifest names; each of its type and within its limit.
    _check_layers(path, layers, layer_kinds(manifest))
    return Package(path, manifest, image, layers)


def _check_layers(path: Path, layers: Mapping[str, Descriptor], kinds: Mapping[str, Kind]) -> None:
    if missing := kinds.keys() - layers.keys():
        raise PackageError(f"{path}: '{min(missing)}' is missing")
    if unknown := layers.keys() - kinds.keys():
        raise PackageError(f"{path}: {min(unknown)!r} is unknown", hint=f"{', '.join(kinds)}")
    for title, kind in kinds.items():
        layer = layers[title]
        if layer.media_type != kind.media_type:
            raise PackageError(f"{path}: '{title}' is '{layer.media_type}', not {kind.media_type}")
        if layer.size > kind.limit:
            raise PackageError(f"{path}: '{title}' has {layer.size} bytes; limit {kind.limit}")


def _write_archive(out: Path, package: Package) -> PackageRef:
    with open_atomic(out) as file:
        archive.write(package.image, file)
        size = file.tell()
    variants = tuple(variant.name for variant in package.manifest.variants)
    return PackageRef(out, package.digest, size, variants)


def _config(manifest: Manifest, layers: tuple[Descriptor, ...]) -> bytes:
    """The OCI image config: what other tools show. We never read it; only its digest counts.

    An image has one architecture; of several variants it is the first one's.
    """
    variants = manifest.variants
    selector = variants[0].selector
    arch, arch_variant = GO_ARCH.get(selector.arch, (selector.arch, ""))
    labels = {
        "org.opencontainers.image.title": manifest.name,
        "org.opencontainers.image.version": manifest.version,
        "edge-deploy.candidate": _join(variant.candidate for variant in variants),
        "edge-deploy.model-sha256": manifest.model_sha256,
        "edge-deploy.precision": _join(variant.precision for variant in variants),
        "edge-deploy.profiles": _join(
            profile for variant in variants for profile in variant.profiles
        ),
        "edge-deploy.runtime": _join(
            f"{variant.runtime.name} {variant.runtime.version}" for variant in variants
        ),
        "edge-deploy.variants": _join(variant.name for variant in variants),
    }
    config = {
        "architecture": arch,
        "os": GO_OS.get(selector.os, selector.os),
        "config": {"Labels": labels},
        # Layers are stored as they are, so their digests are the uncompressed ones.
        "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
    }
    return msgspec.json.encode(
        {**config, "variant": arch_variant} if arch_variant else config, order="sorted"
    )


def _join(values: Iterable[str]) -> str:
    return ",".join(dict.fromkeys(values))
