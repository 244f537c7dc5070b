"""The package's manifest: what is inside, for which devices, judged by what.

    Manifest -> variants: one model in the form that one class of devices gets
    manifest.model(variant) -> PackagedModel: what serves or checks one variant needs of both

It is the first layer of the package, so its digest is covered by the OCI manifest and nothing in
it needs a canonical form. The limits and the rule for new fields are in docs/package.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edge_core.errors import InputError, PackageError
from edge_core.package.preprocess import ImageRecipe
from edge_core.tensors import TensorSpec

FORMAT = 2
OLDEST_FORMAT = 2  # that is still read; 1 was never released
MAX_BYTES = 4 * 1024 * 1024
MAX_VARIANTS = 16
MAX_FILES = 64  # of one variant
MAX_DEPTH = 8  # names in a path
MAX_PATH = 200  # characters
MAX_NEEDS = 32  # groups of CPU features that a selector names

MANIFEST, CARD, SBOM = "manifest.json", "model-card.md", "sbom.cdx.json"
PACKAGE_FILES = (MANIFEST, CARD, SBOM)  # of the package as a whole; every other is a variant's
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # a file name, the same on every system

Fact = Annotated[str, Meta(min_length=1, max_length=200)]
Version = Annotated[str, Meta(pattern=r"\A([0-9]{1,9}(\.[0-9]{1,9}){0,5})?\Z")]


class VersionRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Versions from ``minimal`` on and lower than ``below``; an empty bound is none."""

    minimal: Version = ""
    below: Version = ""


class RuntimeRange(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """A runtime that must be installed."""

    name: Fact
    versions: VersionRange = VersionRange()


class AcceleratorNeed(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """An accelerator that must be there; an empty field may be anything."""

    kind: Literal["gpu", "npu", "dla", "dsp"]
    name: Annotated[str, Meta(max_length=200)] = ""
    capability: Annotated[str, Meta(pattern=r"\A([a-z]+_[0-9]{1,6})?\Z")] = ""  # "sm_72": at least


class Selector(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What a device must be to get a variant: every fact that is named here must match.

    A field that this version does not know is refused, because it might exclude this device.
    """

    arch: Fact
    os: Fact
    glibc: Version = ""  # at least
    python: VersionRange = VersionRange()
    # Every group; "a|b" is a group of which the processor has one.
    cpu_features: Annotated[tuple[Fact, ...], Meta(max_length=MAX_NEEDS)] = ()
    accelerator: AcceleratorNeed | None = None
    runtime: RuntimeRange | None = None
    memory_mb: Annotated[float, Meta(ge=0)] = 0.0  # in all, at least


class RuntimeNeed(msgspec.Struct, frozen=True):
    """What runs it: the version it was measured on and the options to open it with."""

    name: str  # an adapter of edge_core.runtimes
    version: str  # the version that the profile names
    measured_on: str  # the version that the gates ran; differs only where no wheel exists
    options: dict[str, str] = {}


class Gate(msgspec.Struct, frozen=True):
    """One gate's outcome. Values that vary from run to run are in the report, not here."""

    name: str
    limit: float | None
    outcome: str  # "pass" or "inconclusive"; a package with a failed gate is never written
    value: float | None = None
    unit: str = ""
    profile: str = ""  # whose limit it is; empty where the variant has one profile


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """The model in one form: its files, what runs them, and for which devices."""

    name: str  # the folder of its files; a safe file name
    selector: Selector
    profiles: tuple[str, ...]  # that it was judged for
    candidate: str  # "onnx-int8-static"
    precision: str
    runtime: RuntimeNeed
    files: Annotated[tuple[str, ...], Meta(min_length=1, max_length=MAX_FILES)]  # relative paths
    entry: str  # what the runtime opens: a file, or a folder of files
    golden: str = "golden.npz"
    recipe: str = "recipe.json"
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocess: ImageRecipe | None = None
    gates: tuple[Gate, ...] = ()
    toolchain: dict[str, str] = {}  # distribution -> version

    def __post_init__(self) -> None:
        where = f"variant {_shorten(self.name)}"
        if not _NAME.fullmatch(self.name):
            raise PackageError(f"{where}: the name is not safe as a file name")
        # Beside the package's own files, because they share a folder when they are unpacked.
        check_paths((*PACKAGE_FILES, *self.files), where)
        for role in ("golden", "recipe"):
            if getattr(self, role) not in self.files:
                raise PackageError(f"{where}: {role} is none of its files")
        if not any(
            file == self.entry or file.startswith(f"{self.entry}/") for file in self.model_files
        ):
            raise PackageError(f"{where}: entry is none of its model files and no folder of them")

    @property
    def model_files(self) -> tuple[str, ...]:
        """What the runtime may read."""
        return tuple(file for file in self.files if file not in (self.golden, self.recipe))

    def title(self, path: str) -> str:
        """What a file of this variant is called in the package."""
        return f"{self.name}/{path}"


class PackagedModel(msgspec.Struct, frozen=True, kw_only=True):
    """One variant as it is served: what its users need of the package and of the variant."""

    name: str
    version: str
    variant: str
    candidate: str
    runtime: RuntimeNeed
    entry: str  # relative to the folder that the package is unpacked in
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocess: ImageRecipe | None = None
    labels: tuple[str, ...] = ()
    class_scores: bool = True  # is the first output one score a class?


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a device must know before it touches a model file."""

    format: int = FORMAT
    name: str
    version: str
    model_sha256: str  # of the file that the user gave
    labels: tuple[str, ...] = ()
    class_scores: bool = True
    variants: Annotated[tuple[Variant, ...], Meta(min_length=1, max_length=MAX_VARIANTS)]

    def __post_init__(self) -> None:
        check_paths((*PACKAGE_FILES, *(variant.name for variant in self.variants)), "the package")

    def variant(self, name: str) -> Variant:
        """A variant by name; raises InputError with the names that there are."""
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise InputError(
            f"{self.name} {self.version} has no variant '{name}'",
            hint=f"one of: {', '.join(known.name for known in self.variants)}",
        )

    def model(self, variant: Variant) -> PackagedModel:
        """The view of one variant."""
        return PackagedModel(
            name=self.name,
            version=self.version,
            variant=variant.name,
            candidate=variant.candidate,
            runtime=variant.runtime,
            entry=variant.entry,
            inputs=variant.inputs,
            outputs=variant.outputs,
            preprocess=variant.preprocess,
            labels=self.labels,
            class_scores=self.class_scores,
        )

    def to_bytes(self) -> bytes:
        """Deterministic JSON: same fields, same bytes."""
        return msgspec.json.format(msgspec.json.encode(self, order="sorted"), indent=1) + b"\n"

    @classmethod
    def from_bytes(cls, raw: bytes) -> Manifest:
        """Parse a manifest; raise PackageError, and only that, if it is unfit."""
        if len(raw) > MAX_BYTES:
            raise PackageError(f"the package manifest has {len(raw)} bytes; limit {MAX_BYTES}")
        try:
            _check_format(msgspec.json.decode(raw, type=_Format).format)
            return msgspec.json.decode(raw, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise PackageError(f"the package manifest is not readable: {error}") from error


def check_paths(paths: Iterable[str], where: str) -> None:
    """Refuse paths that are unsafe or that two systems would store differently.

    Each is relative, with "/" between safe names. No two are the same file on a system that
    ignores case, and none is a folder of another. Raises PackageError.
    """
    spelled: dict[str, str] = {}  # in lower case -> as it was spelled first
    files: set[str] = set()
    for path in paths:
        names = path.split("/")
        if not all(_NAME.fullmatch(name) for name in names) or len(names) > MAX_DEPTH:
            raise PackageError(f"{where}: unsafe path {_shorten(path)}")
        if len(path) > MAX_PATH:
            raise PackageError(f"{where}: path {_shorten(path)} has over {MAX_PATH} characters")
        folders = ["/".join(names[:depth]) for depth in range(1, len(names))]
        is_taken = path.lower() in spelled or any(
            folder in files or spelled.setdefault(folder.lower(), folder) != folder
            for folder in folders
        )
        if is_taken:
            raise PackageError(f"{where}: path {_shorten(path)} collides with another")
        spelled[path.lower()] = path
        files.add(path)


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:100]}...")


class _Format(msgspec.Struct):
    format: int


def _check_format(version: int) -> None:
    if version > FORMAT:
        raise PackageError(
            f"package format {version}; this version reads up to {FORMAT}",
            hint="update edge-deploy on this machine before this package",
        )
    if version < OLDEST_FORMAT:
        raise PackageError(
            f"package format {version}; this version reads {OLDEST_FORMAT} to {FORMAT}",
            hint="build the package again with this version of edge-deploy",
        )
