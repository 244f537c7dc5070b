"""What Linux states about its machine: /proc, /sys and the device tree, as plain values.

Every function takes the folder that stands for /, so a copied tree can be read as well.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

from edge_core.errors import InputError
from edge_core.machine.cpu_rates import macs_per_cycle
from edge_core.profile import Arch, Cpu, Memory, Thermal

# Instruction sets that decide how fast or whether a runtime computes; the rest is left out.
ISA = frozenset({
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx_vnni_int8", "avx512f", "avx512bw",
    "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "neon", "vfpv4", "fp", "asimd", "fphp", "asimdhp", "asimddp", "asimdfhm", "atomics", "i8mm",
    "bf16", "sve", "sve2", "svei8mm", "svebf16", "sme", "sme2",
})  # fmt: skip
# "CPU part" of "CPU implementer" 0x41 (Arm): arch/arm64/include/asm/cputype.h of the kernel.
PARTS = {
    "0xd03": "Cortex-A53", "0xd04": "Cortex-A35", "0xd05": "Cortex-A55", "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72", "0xd09": "Cortex-A73", "0xd0a": "Cortex-A75", "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1", "0xd0d": "Cortex-A77", "0xd40": "Neoverse-V1", "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE", "0xd44": "Cortex-X1", "0xd46": "Cortex-A510", "0xd47": "Cortex-A710",
    "0xd49": "Neoverse-N2", "0xd4f": "Neoverse-V2", "0xd83": "Neoverse-V3AE",
    "0xd84": "Neoverse-V3",
}  # fmt: skip
CARMEL = ("0x4e", "0x004")  # NVIDIA's own core of Xavier


def read_cpu(root: Path, arch: Arch) -> Cpu:
    """The processor as /proc and /sys under ``root`` describe it."""
    info = _cpuinfo(read_text(root / "proc/cpuinfo"))
    flags = " ".join((*info.get("flags", ()), *info.get("Features", ()))).split()
    isa = tuple(flag for flag in dict.fromkeys(flags) if flag in ISA)
    model = info["model name"][0] if arch == "x86_64" and "model name" in info else ""
    model = model or _arm_name(info, root) or arch
    rates = macs_per_cycle(arch, isa, model)
    return Cpu(
        model=model,
        cores=count_cores(),
        clock_mhz=_clock_mhz(info, root),
        isa=isa,
        fp32_macs_per_cycle=rates.fp32,
        int8_macs_per_cycle=rates.int8,
    )


def count_cores() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_cpu_quota(root: Path) -> float:
    """How many processors the control groups grant this process; infinity where none limits it."""
    quotas = (read_text(group / "cpu.max").split() for group in _cgroups(root))
    shares = (
        int(quota[0]) / int(quota[1])
        for quota in quotas
        if len(quota) == 2 and quota[0].isdecimal()
    )
    return min(shares, default=math.inf)


def read_memory(root: Path) -> Memory:
    """Memory of this process: the machine's, or its control group's where that is less."""
    info = dict(re.findall(r"^(\w+):\s+(\d+) kB", read_text(root / "proc/meminfo"), re.MULTILINE))
    if not {"MemTotal", "MemAvailable"} <= info.keys():
        raise InputError(f"{root / 'proc/meminfo'} does not state MemTotal and MemAvailable")
    total, available = (int(info[key]) * 1024 / 1e6 for key in ("MemTotal", "MemAvailable"))
    for limit_mb, used_mb in _cgroup_limits(root):
        total = min(total, limit_mb)
        available = min(available, max(limit_mb - used_mb, 1.0))
    return Memory(total_mb=round(total), available_mb=max(1, round(min(total, available))))


def read_trip_point(root: Path) -> Thermal | None:
    """The lowest temperature at which the kernel starts to lower a processor's clock."""
    temperatures = []
    for zone in (root / "sys/class/thermal").glob("thermal_zone*"):
        if not re.search(r"cpu|soc|pkg", read_text(zone / "type").lower()):
            continue
        for kind in zone.glob("trip_point_*_type"):
            millidegrees = read_text(zone / kind.name.replace("_type", "_temp")).strip()
            passive = read_text(kind).strip() == "passive"
            if passive and millidegrees.isdecimal() and int(millidegrees) > 0:
                temperatures.append(int(millidegrees) / 1000)
    return Thermal(throttle_c=min(temperatures)) if temperatures else None


def read_device_name(root: Path) -> str:
    """The board's name from the device tree or the firmware; empty where neither says."""
    files = (root / "proc/device-tree/model", root / "sys/class/dmi/id/product_name")
    return next((name for name in (read_text(file).strip("\0 \n") for file in files) if name), "")


def read_compatible(root: Path) -> list[str]:
    """The device tree's "compatible" names, from the board's own to its chip's."""
    return read_text(root / "proc/device-tree/compatible").strip("\0").split("\0")


def _cpuinfo(text: str) -> dict[str, list[str]]:
    """/proc/cpuinfo: every key with its different values, in order."""
    values_by_key: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        values = values_by_key.setdefault(key.strip(), []) if colon else []
        if value.strip() not in values:
            values.append(value.strip())
    return values_by_key


def _arm_name(info: dict[str, list[str]], root: Path) -> str:
    """'Cortex-A72 (bcm2711)': the cores, and the chip as the device tree calls it."""
    makers = info.get("CPU implementer", [])
    names = [PARTS[part] for part in info.get("CPU part", ()) if "0x41" in makers and part in PARTS]
    if CARMEL[0] in makers and CARMEL[1] in info.get("CPU part", ()):
        names.append("Carmel")
    chip = read_compatible(root)[-1].partition(",")[2]

    return " ".join(filter(None, (" + ".join(names), f"({chip})" if chip else "")))


def _clock_mhz(info: dict[str, list[str]], root: Path) -> float | None:
    files = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/cpuinfo_max_freq")
    khz = [int(text) for text in (read_text(file).strip() for file in files) if text.isdecimal()]
    if khz:
        return max(khz) / 1000
    mhz = [float(text) for text in info.get("cpu MHz", ()) if re.fullmatch(r"\d+(\.\d+)?", text)]
    return round(max(mhz)) if mhz and max(mhz) >= 1 else None


def _cgroup_limits(root: Path) -> list[tuple[float, float]]:
    """(limit, used) in MB of every control group above this process that has a limit."""
    files = [(group / "memory.max", group / "memory.current") for group in _cgroups(root)]
    legacy = root / "sys/fs/cgroup/memory"  # version 1
    files.append((legacy / "memory.limit_in_bytes", legacy / "memory.usage_in_bytes"))
    texts = [(read_text(limit).strip(), read_text(used).strip()) for limit, used in files]
    return [
        (int(limit) / 1e6, int(used or 0) / 1e6)
        for limit, used in texts
        if limit.isdecimal() and int(limit) > 0
    ]


def _cgroups(root: Path) -> list[Path]:
    """The control group of this process and those above it."""
    own = re.search(r"^0::(/\S*)$", read_text(root / "proc/self/cgroup"), re.MULTILINE)
    top = root / "sys/fs/cgroup"
    innermost = top / own[1].lstrip("/") if own else top
    return [
        group for group in (innermost, *innermost.parents) if group == top or top in group.parents
    ]


def read_text(path: Path) -> str:
    """A small system file; empty where it is absent or not readable."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
