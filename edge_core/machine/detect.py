"""The profile of the machine that this runs on. Reads files; asks nothing of the network.

    detect(runtimes=registry.installed_runtimes()) -> Profile

Linux (x86-64, aarch64, armv7l) and macOS. Only facts that the system states are in it; the rest
stays None or empty. Power modes and budgets are not detected: they are the owner's to add, with
`extends`.
"""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from edge_core.errors import InputError
from edge_core.facts import DeviceFacts
from edge_core.machine import accelerators, darwin, linux
from edge_core.machine.cpu_rates import Rates, macs_per_cycle
from edge_core.profile import (
    Arch,
    Os,
    Platform,
    Precision,
    Profile,
    Runtime,
    Storage,
)

__all__ = ["Rates", "detect", "macs_per_cycle"]

SOURCES = {
    "platform": "uname, os-release, the C library and the interpreter",
    "cpu": "/proc/cpuinfo, the device tree, cpufreq and the affinity mask; on macOS sysctl",
    "cpu.fp32_macs_per_cycle": "cpu_rates.py, by the processor's name and features",
    "cpu.int8_macs_per_cycle": "cpu_rates.py, by the processor's name and features",
    "memory": "/proc/meminfo, and the control group's limit where it is lower; on macOS sysctl",
    "storage": "free space of the folder that was asked for",
    "accelerators": "the device tree, the USB and PCI buses, and the NVIDIA driver",
    "thermal": "the lowest passive trip point in /sys/class/thermal",
    "runtimes": "installed distributions of this interpreter",
    "precisions": "what the installed runtimes compute",
}


def detect(
    packages: Path | None = None,
    root: Path = Path("/"),
    *,
    runtimes: Mapping[Runtime, tuple[Precision, ...]],
) -> Profile:
    """Describe this machine.

    ``packages`` is the folder whose free storage counts (default: the home folder), ``root`` where
    /proc and /sys are read, ``runtimes`` what is installed and computes which precisions. Raises
    InputError on a processor or system that no profile can name.
    """
    mac = sys.platform == "darwin"
    cpu = darwin.read_cpu(_arch()) if mac else linux.read_cpu(root, _arch())
    computed = {precision for precisions in runtimes.values() for precision in precisions}
    return Profile(
        name="this-machine",
        title=f"Detected: {linux.read_device_name(root) or cpu.model}",
        platform=detect_platform(),
        cpu=cpu,
        memory=darwin.read_memory() if mac else linux.read_memory(root),
        storage=Storage(available_mb=_free_mb(packages or Path.home())),
        runtimes=tuple(runtimes),
        precisions=tuple(precision for precision in get_args(Precision) if precision in computed),
        accelerators=() if mac else accelerators.find_accelerators(root),
        thermal=linux.read_trip_point(root),
        sources=SOURCES,
    )


def detect_facts(runtimes: Mapping[Runtime, tuple[Precision, ...]]) -> DeviceFacts:
    """What decides which variant of a package this machine gets."""
    # Free storage is none of them, and not every user has a home folder.
    return DeviceFacts.from_profile(detect(Path("/"), runtimes=runtimes))


def _arch() -> Arch:
    machine = platform.machine().lower()
    wide = sys.maxsize > 2**32  # a 32-bit system may run on a 64-bit kernel
    known: dict[str, Arch] = {"x86_64": "x86_64", "amd64": "x86_64"}
    arm: Arch = "aarch64" if wide else "armv7l"
    known.update(dict.fromkeys(("aarch64", "arm64", "armv8l", "armv7l"), arm))
    if machine not in known or (known[machine] == "x86_64" and not wide):
        raise InputError(
            f"no profile can name this machine: '{machine}', {64 if wide else 32}-bit",
            hint="known are x86_64, aarch64 and armv7l",
        )
    return known[machine]


def detect_platform() -> Platform:
    """Architecture and system of this interpreter; raises InputError if no profile can name it."""
    system: dict[str, Os] = {"linux": "linux", "android": "android", "darwin": "macos"}
    if sys.platform not in system:
        raise InputError(f"no profile can name the system '{sys.platform}'", hint=", ".join(system))
    release = platform.mac_ver()[0] if sys.platform == "darwin" else _os_release()
    library, version = platform.libc_ver()
    return Platform(
        arch=_arch(),
        os=system[sys.platform],
        os_version=release,
        glibc=version if library == "glibc" else "",
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
    )


def _os_release() -> str:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return ""
    return " ".join(filter(None, (release.get("NAME"), release.get("VERSION_ID"))))


def _free_mb(folder: Path) -> float:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return max(1, shutil.disk_usage(folder).free // 10**6)
