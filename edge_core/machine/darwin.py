"""What macOS states about its machine, by sysctl and vm_stat."""

from __future__ import annotations

import re
import subprocess

from edge_core.machine.cpu_rates import macs_per_cycle
from edge_core.machine.linux import ISA, count_cores
from edge_core.profile import Arch, Cpu, Memory

# Features of hw.optional.arm, by the names that Linux gives them.
FEATURES = {
    "FEAT_FP16": "asimdhp", "FEAT_DotProd": "asimddp", "FEAT_I8MM": "i8mm", "FEAT_BF16": "bf16",
}  # fmt: skip


def read_cpu(arch: Arch) -> Cpu:
    """The processor; Apple states no clock for its own."""
    model = _sysctl("machdep.cpu.brand_string")
    on = (
        name for feature, name in FEATURES.items() if _sysctl(f"hw.optional.arm.{feature}") == "1"
    )
    isa = ("asimd", *on) if arch == "aarch64" else _x86_isa()
    rates = macs_per_cycle(arch, isa, model)
    hertz = _sysctl("hw.cpufrequency_max")
    return Cpu(
        model=model,
        cores=count_cores(),
        clock_mhz=int(hertz) / 1e6 if hertz.isdecimal() and int(hertz) > 0 else None,
        isa=isa,
        fp32_macs_per_cycle=rates.fp32,
        int8_macs_per_cycle=rates.int8,
    )


def read_memory() -> Memory:
    """Installed memory, and what is free or may be reclaimed."""
    total = int(_sysctl("hw.memsize") or 0) / 1e6
    pages = subprocess.run(["vm_stat"], capture_output=True, text=True, check=False).stdout
    page_size = re.search(r"page size of (\d+)", pages)
    free = re.findall(r"Pages (?:free|inactive|speculative):\s+(\d+)", pages)
    available = sum(map(int, free)) * int(page_size[1]) / 1e6 if page_size else total
    return Memory(total_mb=round(total), available_mb=max(1, round(min(available, total))))


def _x86_isa() -> tuple[str, ...]:
    text = f"{_sysctl('machdep.cpu.features')} {_sysctl('machdep.cpu.leaf7_features')}"
    names = text.lower().replace("sse4.2", "sse4_2").replace("avx1.0", "avx").split()
    return tuple(name for name in names if name in ISA)


def _sysctl(name: str) -> str:
    """A macOS kernel value; empty where there is none."""
    process = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False)
    return process.stdout.strip()
