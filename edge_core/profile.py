"""A device profile: what a device is, and its budgets. Data only; device_profiles reads files.

Values are facts about the device (``platform`` ... ``thermal``) or limits that its owner sets
(``budgets``). Only a budget that is set becomes a gate. Units are part of every name.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

SCHEMA = 1  # raised when a field changes its meaning; readers refuse a higher one

Arch = Literal["x86_64", "aarch64", "armv7l"]
Os = Literal["linux", "android", "ios", "macos"]
Precision = Literal["fp32", "fp16", "int8", "int4", "bf16", "fp8", "fp4"]

Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Cosine = Annotated[float, Meta(ge=-1, le=1)]
Count = Annotated[int, Meta(ge=1)]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Platform(_Part, frozen=True, kw_only=True):
    """The operating system that the package runs on."""

    arch: Annotated[Arch, Meta(description="machine, as printed by 'uname -m'")]
    os: Os
    os_version: str = ""
    glibc: Annotated[str, Meta(description="'2.36'; empty where there is no glibc")] = ""
    python: Annotated[str, Meta(description="the agent's Python, '3.11'; empty: none")] = ""


class Cpu(_Part, frozen=True, kw_only=True):
    """The processor. MACs per cycle are per core, at the widest unit the runtime uses."""

    model: str
    cores: Count
    clock_mhz: Annotated[
        Positive | None, Meta(description="highest of one core; None where the system hides it")
    ] = None
    isa: Annotated[
        tuple[str, ...], Meta(description="features as /proc/cpuinfo names them: asimddp, avx2")
    ] = ()
    fp32_macs_per_cycle: Annotated[float | None, Meta(description="peak, one core")] = None
    int8_macs_per_cycle: Annotated[float | None, Meta(description="peak, one core")] = None


class Memory(_Part, frozen=True, kw_only=True):
    """Main memory, in 10^6 bytes."""

    total_mb: Positive
    available_mb: Annotated[float, Meta(gt=0, description="left for the model's process")]


class Storage(_Part, frozen=True, kw_only=True):
    """Where packages are kept, in 10^6 bytes."""

    available_mb: Annotated[float, Meta(gt=0, description="left for packages")]
    kind: str = ""  # "microSD", "eMMC", "NVMe"


class Accelerator(_Part, frozen=True, kw_only=True):
    """A processor beside the CPU that a runtime can use."""

    name: str
    kind: Literal["gpu", "npu", "dla", "dsp"]
    capability: str = ""  # "sm_87", "Neural Engine, 16 cores"


class Runtime(_Part, frozen=True, kw_only=True):
    """One runtime, in exactly the version that the device gets."""

    name: Annotated[
        str,
        Meta(
            description="of an installed adapter (edge_core.runtimes), or announced: "
            "'onnxruntime', 'litert', 'tflite-runtime', 'tensorrt', 'coreml'"
        ),
    ]
    version: str
    wheel: Annotated[
        str, Meta(description="tag of the wheel the index really has; empty: from the vendor")
    ] = ""
    provider: Annotated[str, Meta(description="execution provider or delegate; empty: CPU")] = ""


class PowerMode(_Part, frozen=True, kw_only=True):
    """A setting of the board that limits its power."""

    name: str
    watts: Annotated[float, Meta(gt=0, description="board power at full load in this mode")]
    idle_watts: Positive | None = None
    default: bool = False


class Thermal(_Part, frozen=True, kw_only=True):
    """Temperatures at which the device changes its speed."""

    throttle_c: Annotated[float, Meta(gt=0, description="clock is lowered from here on")]


class Budgets(_Part, frozen=True, kw_only=True):
    """Limits for one inference and for the package; each one that is set becomes a gate."""

    latency_p50_ms: Positive | None = None
    latency_p90_ms: Positive | None = None
    latency_p99_ms: Positive | None = None
    load_ms: Positive | None = None
    memory_peak_mb: Annotated[
        Positive | None, Meta(description="peak resident set of the serving process")
    ] = None
    package_mb: Annotated[Positive | None, Meta(description="model file, 10^6 bytes")] = None
    energy_mj: Annotated[Positive | None, Meta(description="millijoules per inference")] = None
    accuracy_drop_points: Annotated[
        NotNegative | None,
        Meta(description="labelled data: points (0-100) of the metric below the original"),
    ] = None
    agreement_min: Annotated[
        Share | None,
        Meta(description="no labels: share of samples with the original's top-1"),
    ] = None
    cosine_min: Annotated[
        Cosine | None, Meta(description="mean cosine to the original's outputs")
    ] = None


class Profile(_Part, frozen=True, kw_only=True):
    """One device, or one class of devices that gets the same package."""

    schema: Annotated[int, Meta(ge=1, le=SCHEMA)] = SCHEMA
    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    title: str
    notes: str = ""
    platform: Platform
    cpu: Cpu
    memory: Memory
    storage: Storage
    runtimes: tuple[Runtime, ...]
    precisions: Annotated[
        tuple[Precision, ...], Meta(description="what the device's runtimes compute or unpack")
    ]
    accelerators: tuple[Accelerator, ...] = ()
    power_modes: tuple[PowerMode, ...] = ()
    thermal: Thermal | None = None
    budgets: Budgets = Budgets()
    sources: Annotated[
        dict[str, str], Meta(description="dotted field name -> where its value is from")
    ] = {}

    def runtime(self, name: str) -> Runtime | None:
        """The device's CPU runtime of that name, or None."""
        on_cpu = (runtime for runtime in self.runtimes if not runtime.provider)
        return next((runtime for runtime in on_cpu if runtime.name == name), None)


def json_schema() -> dict[str, object]:
    """The JSON Schema (2020-12) of a resolved profile, for editors and other tools."""
    schema = msgspec.json.schema(Profile)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:edge-deploy:schema:profile:{SCHEMA}",
        "title": "edge-deploy device profile",
        **schema,
    }
