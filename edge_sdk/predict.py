"""From what this host measured to what the device will show: ratios with honest bands. Pure.

A device that is not this machine gets *predicted* values. Latency scales with the ratio of the
two processors' peak multiply-accumulate rates (cores x clock x MACs per cycle, one core, for the
precision in question); the band is a factor of BAND either way, an allowance for caches, memory
and kernels that nobody measured on the device. Peak memory carries over within MEMORY_BAND. A
processor whose rate is not known gives *unknown*. The golden vectors and `edge bench` replace
predictions on the device itself.
"""

from __future__ import annotations

from edge_core.profile import Cpu, Profile
from edge_sdk.stages import Value

BAND = 3.0
MEMORY_BAND = {True: 0.10, False: 0.25}  # same architecture: allocator and wheels are alike


def same_machine(host: Profile, device: Profile) -> bool:
    """Is the profile one of this very kind of machine?"""
    return (host.platform.arch, host.cpu.model) == (device.platform.arch, device.cpu.model)


def rate(cpu: Cpu, integer: bool) -> float | None:
    """Peak MACs per second of one core; None when the profile does not say."""
    per_cycle = cpu.int8_macs_per_cycle if integer else cpu.fp32_macs_per_cycle
    return per_cycle * cpu.clock_mhz * 1e6 if per_cycle else None


def latency(
    host: Profile, device: Profile, *, candidate: Value, float32: Value | None, integer: bool
) -> Value:
    """One-thread latency on the device from the host's ``candidate`` or ``float32`` value.

    On another architecture the candidate's own time says little (an S8S8 file has no fast kernel
    on x86), so the float time is scaled to the device's rate for the candidate's precision.
    """
    if same_machine(host, device):
        return candidate
    same_arch = host.platform.arch == device.platform.arch
    base = candidate if same_arch else float32
    here = rate(host.cpu, integer and same_arch)
    there = rate(device.cpu, integer)
    if base is None or base.value is None or not here or not there:
        return Value("unknown", None, "ms", "", note=f"no MAC rate for {device.cpu.model}")
    ms = base.value * here / there
    how = "its own" if same_arch else "the float model's"
    note = f"{how} time here x {here / there:.1f} (peak MAC rates), within a factor {BAND:g}"
    return Value("predicted", ms, "ms", device.cpu.model, ms / BAND, ms * BAND, note)


def memory(host: Profile, device: Profile, here: Value) -> Value:
    """Peak resident set on the device."""
    if here.value is None or same_machine(host, device):
        return here
    band = MEMORY_BAND[host.platform.arch == device.platform.arch]
    low, high = here.value * (1 - band), here.value * (1 + band)
    note = f"measured on this host, within {band:.0%}"
    return Value("predicted", here.value, "MB", device.cpu.model, low, high, note)


def energy(device: Profile, latency_ms: Value) -> Value:
    """Millijoules of one inference: board power in the default mode times latency.

    The lower end takes the power above idle where the profile knows it.
    """
    mode = next((m for m in device.power_modes if m.default), None)
    if mode is None or latency_ms.value is None:
        return Value("unknown", None, "mJ", "", note="no default power mode or no latency")
    low = latency_ms.low if latency_ms.low is not None else latency_ms.value
    high = latency_ms.high if latency_ms.high is not None else latency_ms.value
    active = mode.watts - (mode.idle_watts or 0.0)
    return Value(
        "predicted",
        latency_ms.value * mode.watts,
        "mJ",
        device.cpu.model,
        low * active,
        high * mode.watts,
        f"board power {mode.watts:g} W ({mode.name}) x latency",
    )
