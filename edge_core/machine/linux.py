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


def cpu(root: Path, arch: Arch) -> Cpu:
    """The processor as /proc and /sys under ``root`` describe it."""
    info = _cpuinfo(read_text(root / "proc/cpuinfo"))
    flags = " ".join((*info.get("flags", ()), *info.get("Features", ()))).split()
    isa = tuple(f for f in dict.fromkeys(flags) if f in ISA)
    model = info["model name"][0] if arch == "x86_64" and "model name" in info else ""
    model = model or _arm_name(info, root) or arch
    rates = macs_per_cycle(arch, isa, model)
    return Cpu(
        model=model,
        cores=cores(),
        clock_mhz=_clock_mhz(info, root),
        isa=isa,
        fp32_macs_per_cycle=rates.fp32,
        int8_macs_per_cycle=rates.int8,
    )


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota(root: Path) -> float:
    """Processors that the control groups of this process let it use at a time; else infinity."""
    quotas = (read_text(g / "cpu.max").split() for g in _cgroups(root))
    found = (int(q[0]) / int(q[1]) for q in quotas if len(q) == 2 and q[0].isdecimal())
    return min(found, default=math.inf)


def memory(root: Path) -> Memory:
    """Memory of this process: the machine's, or its control group's where that is less."""
    info = dict(re.findall(r"^(\w+):\s+(\d+) kB", read_text(root / "proc/meminfo"), re.MULTILINE))
    if not {"MemTotal", "MemAvailable"} <= info.keys():
        raise InputError(f"{root / 'proc/meminfo'} does not state MemTotal and MemAvailable")
    total, available = (int(info[k]) * 1024 / 1e6 for k in ("MemTotal", "MemAvailable"))
    for limit_mb, used_mb in _cgroup_limits(root):
        total = min(total, limit_mb)
        available = min(available, max(limit_mb - used_mb, 1.0))
    return Memory(total_mb=round(total), available_mb=max(1, round(min(total, available))))


def trip_point(root: Path) -> Thermal | None:
    """The lowest temperature at which the kernel starts to lower a processor's clock."""
    found = []
    for zone in (root / "sys/class/thermal").glob("thermal_zone*"):
        if not re.search(r"cpu|soc|pkg", read_text(zone / "type").lower()):
            continue
        for kind in zone.glob("trip_point_*_type"):
            milli = read_text(zone / kind.name.replace("_type", "_temp")).strip()
            if read_text(kind).strip() == "passive" and milli.isdecimal() and int(milli) > 0:
                found.append(int(milli) / 1000)
    return Thermal(throttle_c=min(found)) if found else None


def device_name(root: Path) -> str:
    """The board's name from the device tree or the firmware; empty where neither says."""
    names = (root / "proc/device-tree/model", root / "sys/class/dmi/id/product_name")
    return next((n for n in (read_text(p).strip("\0 \n") for p in names) if n), "")


def compatible(root: Path) -> list[str]:
    """What the device tree calls the board, from the board's own name to its chip's."""
    return read_text(root / "proc/device-tree/compatible").strip("\0").split("\0")


def _cpuinfo(text: str) -> dict[str, list[str]]:
    """/proc/cpuinfo: every key with its different values, in order."""
    out: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        values = out.setdefault(key.strip(), []) if colon else []
        if value.strip() not in values:
            values.append(value.strip())
    return out


def _arm_name(info: dict[str, list[str]], root: Path) -> str:
    """'Cortex-A72 (bcm2711)': the cores, and the chip as the device tree calls it."""
    makers = info.get("CPU implementer", [])
    cores = [PARTS[p] for p in info.get("CPU part", ()) if "0x41" in makers and p in PARTS]
    if CARMEL[0] in makers and CARMEL[1] in info.get("CPU part", ()):
        cores.append("Carmel")
    chip = compatible(root)[-1].partition(",")[2]

    return " ".join(filter(None, (" + ".join(cores), f"({chip})" if chip else "")))


def _clock_mhz(info: dict[str, list[str]], root: Path) -> float | None:
    files = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/cpuinfo_max_freq")
    khz = [int(k) for k in (read_text(f).strip() for f in files) if k.isdecimal()]
    if khz:
        return max(khz) / 1000
    mhz = [float(m) for m in info.get("cpu MHz", ()) if re.fullmatch(r"\d+(\.\d+)?", m)]
    return round(max(mhz)) if mhz and max(mhz) >= 1 else None


def _cgroup_limits(root: Path) -> list[tuple[float, float]]:
    """(limit, used) in MB of every control group above this process that has a limit."""
    pairs = [(g / "memory.max", g / "memory.current") for g in _cgroups(root)]
    v1 = root / "sys/fs/cgroup/memory"
    pairs.append((v1 / "memory.limit_in_bytes", v1 / "memory.usage_in_bytes"))
    texts = [(read_text(a).strip(), read_text(b).strip()) for a, b in pairs]
    return [(int(a) / 1e6, int(b or 0) / 1e6) for a, b in texts if a.isdecimal() and int(a) > 0]


def _cgroups(root: Path) -> list[Path]:
    """The control group of this process and those above it."""
    own = re.search(r"^0::(/\S*)$", read_text(root / "proc/self/cgroup"), re.MULTILINE)
    base = root / "sys/fs/cgroup"
    group = base / own[1].lstrip("/") if own else base
    return [g for g in (group, *group.parents) if g == base or base in g.parents]


def read_text(path: Path) -> str:
    """A small system file; empty where it is absent or not readable."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
