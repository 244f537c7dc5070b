"""Accelerators, by what the device tree, the buses and the NVIDIA driver state about them.

Only what the files say: a chip's name decides the GPU inside it, a bus number the chip. The
capability of a discrete GPU is in none of these files, so it stays empty.
"""

from __future__ import annotations

import re
from pathlib import Path

from edge_core.machine.linux import read_compatible, read_text
from edge_core.profile import Accelerator

# The GPU of a Tegra chip: "compatible" of the root node (Documentation/devicetree/bindings/arm/
# tegra.yaml of the kernel); compute capabilities: developer.nvidia.com/cuda-gpus and its list of
# legacy GPUs, and the data sheets that the Jetson profiles name.
TEGRA_GPUS = {
    "nvidia,tegra210": ("Maxwell GPU", "sm_53"),
    "nvidia,tegra186": ("Pascal GPU", "sm_62"),
    "nvidia,tegra194": ("Volta GPU", "sm_72"),
    "nvidia,tegra234": ("Ampere GPU", "sm_87"),
    "nvidia,tegra264": ("Blackwell GPU", "sm_110"),
}
EDGE_TPU = "Coral Edge TPU"
# Before and after its firmware is loaded: 99-edgetpu-accelerator.rules of google-coral/libedgetpu.
EDGE_TPU_USB = {("1a6e", "089a"), ("18d1", "9302")}
EDGE_TPU_PCI = {("0x1ac1", "0x089a")}  # pci.ids: Global Unichip Corp., Coral Edge TPU


def find_accelerators(root: Path) -> tuple[Accelerator, ...]:
    """The accelerators of the machine whose files are below ``root``."""
    return (*_tegra_gpu(root), *_nvidia_gpus(root), *_edge_tpus(root))


def is_detectable(accelerator: Accelerator) -> bool:
    """Could find_accelerators() tell that a device has this one?"""
    capabilities = {capability for _, capability in TEGRA_GPUS.values()}
    return accelerator.name == EDGE_TPU or (
        accelerator.kind == "gpu" and accelerator.capability in capabilities
    )


def _tegra_gpu(root: Path) -> list[Accelerator]:
    compatible = read_compatible(root)
    return [
        Accelerator(name=name, kind="gpu", capability=capability)
        for chip, (name, capability) in TEGRA_GPUS.items()
        if chip in compatible
    ]


def _nvidia_gpus(root: Path) -> list[Accelerator]:
    """Discrete GPUs: one folder each, in which the driver states the model."""
    files = sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
    models = (re.search(r"^Model:\s*(\S.*)$", read_text(file), re.MULTILINE) for file in files)
    return [Accelerator(name=match[1].strip()[:100], kind="gpu") for match in models if match]


def _edge_tpus(root: Path) -> list[Accelerator]:
    usb = _bus_ids(root / "sys/bus/usb/devices", "idVendor", "idProduct")
    pci = _bus_ids(root / "sys/bus/pci/devices", "vendor", "device")
    count = sum(ids in EDGE_TPU_USB for ids in usb) + sum(ids in EDGE_TPU_PCI for ids in pci)
    return [Accelerator(name=EDGE_TPU, kind="npu")] * count


def _bus_ids(folder: Path, vendor: str, product: str) -> list[tuple[str, str]]:
    return [
        (read_text(device / vendor).strip(), read_text(device / product).strip())
        for device in folder.glob("*")
    ]
