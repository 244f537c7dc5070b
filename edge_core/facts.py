"""What a device is, as far as it decides which variant of a package it gets."""

from __future__ import annotations

import msgspec

from edge_core.profile import Accelerator, Profile


class DeviceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts that detection finds and selectors name. An empty fact is unknown."""

    arch: str
    os: str
    glibc: str = ""
    python: str = ""
    cpu_features: tuple[str, ...] = ()
    accelerators: tuple[Accelerator, ...] = ()
    runtimes: dict[str, str] = {}  # installed: name -> version
    memory_mb: float = 0.0  # in all, 10^6 bytes

    @classmethod
    def from_profile(cls, profile: Profile) -> DeviceFacts:
        """The facts of a profile: one that was detected, or one that was written."""
        return cls(
            arch=profile.platform.arch,
            os=profile.platform.os,
            glibc=profile.platform.glibc,
            python=profile.platform.python,
            cpu_features=profile.cpu.isa,
            accelerators=profile.accelerators,
            runtimes={r.name: r.version for r in profile.runtimes},
            memory_mb=profile.memory.total_mb,
        )
