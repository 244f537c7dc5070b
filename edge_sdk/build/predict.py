"""From what this host measured to what the device will show: ratios with honest bands. Pure.

A device that is not this machine gets *predicted* values. Latency is the float model's time here,
scaled by the ratio of the two processors' peak float multiply-accumulate rates (clock x MACs per
cycle, one core), over the candidate's speed-up; the band is a factor of BAND either way, an
allowance for caches, memory and kernels that nobody measured on the device. Peak memory carries
over within MEMORY_BAND. A processor whose rate is not known gives *unknown*. The golden vectors and
`edge bench` replace predictions on the device itself.
"""

from __future__ import annotations

import math

from edge_core.profile import Cpu, Profile
from edge_sdk.build.stages import Quantity

BAND = 3.0
# On a log scale. EfficientNet-Lite0 of a promised 4x: 1.85x on a Pixel 4 (tensorflow/tpu,
# efficientnet/lite: 12 and 6.5 ms), 1.8x on AVX512-VNNI (benchmarks/convert_vs_peers.py).
KEPT = 0.5
MEMORY_BAND = {True: 0.10, False: 0.25}  # same architecture: allocator and wheels are alike


def same_machine(host: Profile, device: Profile) -> bool:
    """Is the profile one of this very kind of machine?

    The processor's name alone is not enough: two boards may carry one chip.
    """
    mine, its = (
        (one.platform.arch, one.cpu.model, one.cpu.cores, round(one.memory.total_mb, -2))
        for one in (host, device)
    )
    return mine == its


def rate(cpu: Cpu) -> float | None:
    """Peak float MACs per microsecond of one core; None when the profile does not say."""
    per_cycle, clock = cpu.fp32_macs_per_cycle, cpu.clock_mhz
    return per_cycle * clock if per_cycle and clock else None


def latency(
    host: Profile,
    device: Profile,
    *,
    candidate: Quantity,
    float32: Quantity | None,
    integer: bool,
    portable: bool = False,
) -> Quantity:
    """One-thread latency on the device from what ``candidate`` and ``float32`` took here.

    On another architecture the candidate's own time says nothing (an S8S8 file has no fast kernel
    on x86), unless its kernels are ``portable``, of one kind on all; what the device's integer
    rate promises over its float rate stands in.
    """
    if same_machine(host, device):
        return candidate
    here, there = rate(host.cpu), rate(device.cpu)
    if not (here and there):
        unknown = host if there else device
        return Quantity("unknown", None, "ms", "", note=f"no MAC rate for {unknown.cpu.model}")
    if not (float32 and float32.value and candidate.value):
        return Quantity("unknown", None, "ms", "", note="the float model was not timed beside it")
    telling = portable or host.platform.arch == device.platform.arch
    speed_up = float32.value / candidate.value if telling else 1.0
    if integer:
        speed_up = _integer_speed_up(host.cpu, device.cpu, speed_up if telling else None)
    ms = float32.value * here / there / speed_up
    note = (
        f"the float model's time here x {here / there:.1f} (peak MAC rates) / {speed_up:.2f} "
        f"(speed-up of this candidate), within a factor {BAND:g}"
    )
    return Quantity("predicted", ms, "ms", device.cpu.model, ms / BAND, ms * BAND, note)


def _integer_speed_up(host: Cpu, device: Cpu, measured: float | None) -> float:
    """Speed-up over float that an integer candidate keeps on the device.

    The processors promise a ratio of integer to float rates; what was ``measured`` here carries
    over on a log scale, so that an equal promise keeps it and no promise leaves none. What is
    slower than float here is so for other reasons, and stays that. Where nothing could be
    measured, models keep about KEPT of the promise.
    """
    if measured is not None and measured < 1.0:
        return measured
    promised_here = (host.int8_macs_per_cycle or 0.0) / (host.fp32_macs_per_cycle or 1.0)
    promised = (device.int8_macs_per_cycle or 0.0) / (device.fp32_macs_per_cycle or 1.0)
    if promised <= 1.0:  # unknown, or no integer unit worth the name
        return 1.0
    if measured is None:
        return float(promised**KEPT)
    if promised_here <= 1.0:
        return measured
    return float(measured ** (math.log(promised) / math.log(promised_here)))


def memory(host: Profile, device: Profile, here: Quantity) -> Quantity:
    """Peak resident set on the device."""
    if here.value is None or same_machine(host, device):
        return here
    band = MEMORY_BAND[host.platform.arch == device.platform.arch]
    low, high = here.value * (1 - band), here.value * (1 + band)
    note = f"measured on this host, within {band:.0%}"
    return Quantity("predicted", here.value, "MB", device.cpu.model, low, high, note)


def energy(device: Profile, latency_ms: Quantity) -> Quantity:
    """Millijoules of one inference: board power in the default mode times latency.

    The lower end takes the power above idle where the profile knows it.
    """
    mode = next((mode for mode in device.power_modes if mode.default), None)
    if mode is None or latency_ms.value is None:
        return Quantity("unknown", None, "mJ", "", note="no default power mode or no latency")
    low = latency_ms.low if latency_ms.low is not None else latency_ms.value
    high = latency_ms.high if latency_ms.high is not None else latency_ms.value
    active = mode.watts - (mode.idle_watts or 0.0)
    return Quantity(
        "predicted",
        latency_ms.value * mode.watts,
        "mJ",
        device.cpu.model,
        low * active,
        high * mode.watts,
        f"board power {mode.watts:g} W ({mode.name}) x latency",
    )
