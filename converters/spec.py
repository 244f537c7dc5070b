"""What every converter and every format is.

A converter is a module, or an object like one, with a SPEC and a convert():

    SPEC = Spec(name="onnx-fp16", ...)
    def convert(job: Job) -> Conversion: ...

convert() runs in a child process with a folder of its own; it may crash. A format is a value,
Format(name="onnx", ...): what the rest of the product knows about model files of one kind.
Importing either is cheap: heavy packages are imported inside the functions, through need().
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from edge_core.errors import InputError
from edge_core.files import sha256_file
from edge_core.profile import Runtime
from edge_core.tensors import Feeds, TensorSpec

Layout = Literal["NHWC", "NCHW"]
Batch = Literal["fixed", "dynamic"]
Specs = tuple[TensorSpec, ...]
# What --shape fixes: a dimension or scalar input by name, or a whole input.
Shapes = Mapping[str, int | tuple[int, ...]]


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """One recipe. ``name`` is the candidate's name in plans, reports and on the command line."""

    name: str  # "<target>-<precision>[-<recipe>]"
    title: str  # one line for tables
    target: str  # name of the format that it writes
    sources: tuple[str, ...]  # names of the formats that it reads, once prepared
    runtimes: tuple[str, ...]  # names of edge_core.runtimes that open it, the better one first
    precision: Literal["fp32", "fp16", "int8", "int4"]
    scheme: Literal["float", "storage", "static", "dynamic", "weight-only"]
    suffix: str  # of the file it writes
    extra: str
    needs_samples: bool = False
    takes_samples: bool = False  # goes without them, and is better with them
    min_opset: int = 0  # the written file needs at least this
    arch_bound: bool = False  # laid out for the device: its times elsewhere say nothing
    is_optimised: bool = False  # as the runtime's optimiser leaves it: has no form without it
    is_reference: bool = False  # the float form of its target: the others are timed beside it
    fallback_for: tuple[str, ...] = ()  # made only where one of these fails an accuracy gate
    toolchain: tuple[str, ...] = ("onnx", "onnxruntime", "numpy")  # versions go into the package


class Ceiling(msgspec.Struct, frozen=True):
    """The newest ONNX file that a runtime loads; 0 for a runtime of another format."""

    opset: int  # of the standard domain
    ir: int


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One conversion. ``model`` is a prepared ONNX file (static shapes, no constant If), or the
    user's .tflite file."""

    model: Path
    out_dir: Path
    ceiling: Ceiling
    arch: str  # of the device: "x86_64", "aarch64", "armv7l"
    runtime_version: str  # of the device's runtime: "1.23.2"
    layout: Layout = "NHWC"  # of images at the border, where the format has a choice
    samples: Sequence[Feeds] = ()  # as the original takes them
    batch: Batch = "fixed"  # "dynamic": any number of rows in the first dimension


class Conversion(msgspec.Struct, frozen=True, kw_only=True):
    """What convert() wrote, and how the runtime must open it."""

    path: Path
    options: dict[str, str] = {}
    inputs: tuple[TensorSpec, ...] = ()  # where they are not the model's own
    outputs: tuple[TensorSpec, ...] = ()
    notes: tuple[str, ...] = ()  # in the report and in the package
    times: tuple[str, ...] = ()  # in the report only: they vary from run to run
    precision: str = ""  # where it is not the recipe's: a file that is taken as it is
    quantised_share: float | None = None  # of the weight bytes; None for float files
    fixed: Path | None = None  # the same for one row, where the batch of ``path`` is dynamic


class Converter(Protocol):
    """A module satisfies it, and so does a frozen object; the registry's tuple is type-checked."""

    @property
    def SPEC(self) -> Spec: ...  # noqa: N802

    def convert(self, job: Job) -> Conversion:
        """Write the file; raises ConvertError naming the op and a way out."""
        ...


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What a model takes and gives, what it is made of and what it costs."""

    inputs: Specs
    outputs: Specs
    opset: int = 0  # 0 where the format has none
    ir: int = 0
    ops: dict[str, int]  # "Conv" or "com.microsoft:Attention" -> count
    parameters: int
    weight_bytes: int
    macs: int | None  # of one inference; None when a shape is not known
    dynamic: tuple[str, ...] = ()  # names of the dimensions that --shape must fix
    # What policy rules look at: shares of MACs and weights by kind.
    facets: dict[str, float] = {}


class Preparation(msgspec.Struct, frozen=True):
    """What the reader of a report should know about a prepared file."""

    notes: tuple[str, ...]
    inputs_fixed: bool  # is an input of the original now a constant?


class Support(msgspec.Struct, frozen=True):
    """What a runtime version lacks for a model, as far as that is known."""

    missing: tuple[str, ...] = ()  # ops without a CPU kernel
    opset: str = ""  # "17 of at most 21"


def _no_versions(path: Path) -> dict[str, str]:
    return {}


def _no_ceiling(runtime: Runtime) -> Ceiling:
    return Ceiling(opset=0, ir=0)


def _no_support(model: Description, runtime: Runtime) -> Support:
    return Support()


class Format(msgspec.Struct, frozen=True, kw_only=True):
    """Model files of one kind. ``name`` is what converters' specs and policy rules say.

    describe(path, shapes)  the model; ``shapes`` fixes free dimensions by name; raises InputError
                            for a file that is no model of this format
    read_io_specs(path)     its inputs and outputs only
    digest(path)            SHA-256 of all that the file consists of; raises InputError for a
                            damaged one
    export(path, out)       write it in the format ``exports_to``, whose functions take over
    prepare(path, out, shapes, batch)
                            write the form with fixed shapes that converters read; raises
                            ConvertError; without it they read the file as it is
    read_versions(path)     what a written file needs of a runtime: {"opset": "17", "ir": "8"}
    find_ceiling(runtime)   the newest file that a device's runtime loads
    find_support(model, runtime)  what a device's runtime lacks for it
    """

    name: str
    suffixes: tuple[str, ...]  # of users' files
    runtimes: tuple[str, ...]  # that run it, on the host and on devices; the better one first
    describe: Callable[[Path, Shapes], Description]
    read_io_specs: Callable[[Path], tuple[Specs, Specs]]
    digest: Callable[[Path], str] = sha256_file
    export: Callable[[Path, Path], None] | None = None
    exports_to: str = ""
    prepare: Callable[[Path, Path, Shapes, Batch], Preparation] | None = None
    toolchain: tuple[str, ...] = ()  # distributions whose versions decide what prepare() writes
    read_versions: Callable[[Path], dict[str, str]] = _no_versions
    find_ceiling: Callable[[Runtime], Ceiling] = _no_ceiling
    find_support: Callable[[Description, Runtime], Support] = _no_support

    def __post_init__(self) -> None:
        if bool(self.export) != bool(self.exports_to):
            raise InputError(f"format '{self.name}': export and exports_to belong together")
