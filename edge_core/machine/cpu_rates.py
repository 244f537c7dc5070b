"""Peak multiply-accumulates per cycle of one core, by processor. A table and a lookup; pure.

    macs_per_cycle("aarch64", ("asimd", "asimddp"), "Cortex-A76 (bcm2712)") -> Rates(8.0, 32.0)

Peaks of the widest unit that ONNX Runtime's kernels use (MLAS): vector multiply-add for fp32; for
int8 the dot product or matrix instruction, or the widening multiplies where there is none. They
compare processors with each other; kernels reach half of them or less. What is not documented
stays None.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import msgspec


class Rates(msgspec.Struct, frozen=True):
    """MACs per cycle of one core; None is unknown."""

    fp32: float | None = None
    int8: float | None = None


class Core(msgspec.Struct, frozen=True):
    pattern: str  # searched in the processor's name
    rates: Rates
    source: str


# int8 without a dot product: SMULL + SMLAL2 + SADALP make 16 MACs (MLAS, QgemmS8S8KernelNeon.S).
CORES: tuple[Core, ...] = (
    Core("Cortex-A53", Rates(4, 16 / 3), "8 flop per cycle; in order, one 128-bit operation each"),
    Core("Cortex-A55", Rates(4, 16), "Arm Cortex-A55 Software Optimization Guide: FMLA, SDOT 1"),
    Core(
        "Cortex-A57", Rates(4, 8), "Arm Cortex-A57 SOG: FMLA Q-form 1, SMLAL 1 (F0), SADALP 1 (F1)"
    ),
    # Measured as well: 15.86 GFLOPS at 2.0 GHz (wlog.flatlib.jp/2015/10/30/n1787).
    Core(
        "Cortex-A72", Rates(4, 8), "Arm Cortex-A72 SOG: FMLA Q-form 1, SMLAL 1 (F0), SADALP 1 (F1)"
    ),
    Core("Cortex-A76", Rates(8, 32), "Arm Cortex-A76 SOG: FMLA 2, SDOT 2"),
    Core("Cortex-A78", Rates(8, 32), "Arm Cortex-A78 SOG: FMLA 2, SDOT 2"),
    Core("Neoverse-N1", Rates(8, 32), "Arm Neoverse N1 SOG: FMLA 2, SDOT 2"),
    Core("Neoverse-V3AE", Rates(8, 64), "Arm Neoverse V3AE SOG: two vector pipes; SMMLA 32 MACs"),
    # Two 128-bit multiply-add pipes; AVX2 is split. int8 is a lower bound: one 128-bit VPDPBUSD
    # per cycle, as no public table says whether the second pipe has one.
    Core(
        r"\bN(50|95|97|100|150|200|250|305|350|355)\b",
        Rates(8, 16),
        "Gracemont: Intel 64 and IA-32 Optimization Reference Manual; int8 a lower bound",
    ),
    Core("Armv8-A", Rates(4, 16 / 3), "the slowest of the above, for generic profiles"),
    Core(r"\b[JN]3[34]\d\d\b", Rates(4, None), "Goldmont: one 128-bit multiply and one add"),
)

# Processors that are not listed by name, by what /proc/cpuinfo says; the first match wins.
# (required flags, part of the name, rates, reason)
X86: tuple[tuple[frozenset[str], str, Rates, str], ...] = (
    (frozenset({"avx512f", "avx512_vnni"}), "Xeon", Rates(32, 128), "two 512-bit units"),
    (frozenset({"avx512f"}), "Xeon", Rates(32, 64), "two 512-bit units; VPMADDUBSW + VPMADDWD"),
    (frozenset({"avx512f", "avx512_vnni"}), "", Rates(16, 64), "one 512-bit or two 256-bit units"),
    (frozenset({"fma", "avx_vnni"}), "", Rates(16, 64), "two 256-bit units"),
    (frozenset({"avx512f"}), "", Rates(16, 32), "one 512-bit or two 256-bit units"),
    (frozenset({"fma", "avx2"}), "", Rates(16, 32), "two 256-bit units; VPMADDUBSW + VPMADDWD"),
    (frozenset({"avx"}), "", Rates(8, None), "one 256-bit multiply and one add"),
    (frozenset({"sse4_2"}), "", Rates(4, None), "one 128-bit multiply and one add"),
)


def macs_per_cycle(arch: str, isa: Collection[str], model: str) -> Rates:
    """The rates of a processor by its name, or on x86-64 by its instruction sets.

    For a processor with several kinds of cores, those of the fastest.
    """
    matching = [core.rates for core in CORES if re.search(core.pattern, model)]
    if matching:
        return max(matching, key=lambda rates: rates.fp32 or 0)
    if arch != "x86_64":
        return Rates()
    have = set(isa)
    return next(
        (rates for flags, name, rates, _ in X86 if flags <= have and name in model), Rates()
    )
