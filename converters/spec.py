"""What every converter is: a module, or an object like one, with a SPEC and a convert().

    SPEC = Spec(name="onnx-fp16", ...)
    def convert(job: Job) -> Converted: ...

convert() runs in a child process with a folder of its own; it may crash. Importing a converter
is cheap: heavy packages are imported inside convert(), through need().
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from edge_core.tensors import Feeds, TensorSpec

Layout = Literal["NHWC", "NCHW"]
Batch = Literal["fixed", "dynamic"]


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """One recipe. ``name`` is the candidate's name in plans, reports and on the command line."""

    name: str  # "<target>-<precision>[-<recipe>]"
    title: str  # one line for tables
    target: Literal["onnx", "tflite"]
    runtimes: tuple[str, ...]  # names of edge_core.runtimes that open it, the better one first
    precision: Literal["fp32", "fp16", "int8", "int4"]
    scheme: Literal["float", "storage", "static", "dynamic", "weight-only"]
    suffix: str  # of the file it writes
    extra: str
    needs_samples: bool = False
    takes_samples: bool = False  # goes without them, and is better with them
    min_opset: int = 0  # the written file needs at least this
    arch_bound: bool = False  # laid out for the device: its times elsewhere say nothing
    is_reference: bool = False  # the float form of its target: the others are timed beside it
    rescues: tuple[str, ...] = ()  # made only where one of these fails an accuracy gate
    toolchain: tuple[str, ...] = ("onnx", "onnxruntime", "numpy")  # versions go into the package


class Ceiling(msgspec.Struct, frozen=True):
    """The newest ONNX file that the device's runtime loads; 0 for a runtime of another format."""

    opset: int
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


class Converted(msgspec.Struct, frozen=True, kw_only=True):
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

    def convert(self, job: Job) -> Converted:
        """Write the file; raises ConvertError naming the op and a way out."""
        ...
