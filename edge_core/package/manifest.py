"""The package's manifest: what is inside, for which device, judged by what.

It is the first layer of the package, so its digest is covered by the OCI manifest and nothing in
it needs a canonical form. A newer host may add an optional field; a reader refuses a higher format.
"""

from __future__ import annotations

import msgspec

from edge_core.errors import PackageError
from edge_core.package.preprocess import ImageRecipe
from edge_core.tensors import TensorSpec

FORMAT = 1
MAX_BYTES = 4 * 1024 * 1024


class Selector(msgspec.Struct, frozen=True):
    """Which devices may install it."""

    profiles: tuple[str, ...]
    arch: str
    os: str


class RuntimeNeed(msgspec.Struct, frozen=True):
    """What runs it: the version it was measured on and the options to open it with."""

    name: str  # a module of edge_core.runtimes
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


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a device must know before it touches the model file."""

    format: int = FORMAT
    name: str
    version: str
    model_sha256: str  # of the file that the user gave
    candidate: str  # "onnx-int8-static"
    precision: str
    file: str  # title of the layer that the runtime opens
    selector: Selector
    runtime: RuntimeNeed
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocess: ImageRecipe | None = None
    labels: tuple[str, ...] = ()
    class_scores: bool = True  # is the first output one score a class?
    gates: tuple[Gate, ...] = ()
    toolchain: dict[str, str] = {}  # distribution -> version

    def to_bytes(self) -> bytes:
        """Deterministic JSON: same fields, same bytes."""
        return msgspec.json.format(msgspec.json.encode(self, order="sorted"), indent=1) + b"\n"

    @classmethod
    def from_bytes(cls, raw: bytes) -> Manifest:
        """Parse a manifest; raise PackageError, and only that, if it is unfit."""
        if len(raw) > MAX_BYTES:
            raise PackageError(f"the package manifest has {len(raw)} bytes; limit {MAX_BYTES}")
        try:
            found = msgspec.json.decode(raw, type=_Format).format
            if found > FORMAT:
                raise PackageError(
                    f"package format {found}; this version reads up to {FORMAT}",
                    hint="update edge-deploy on this machine before this package",
                )
            return msgspec.json.decode(raw, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
            raise PackageError(f"the package manifest is not readable: {e}") from e


class _Format(msgspec.Struct):
    format: int
