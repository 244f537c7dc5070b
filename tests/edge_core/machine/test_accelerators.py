"""Accelerators: what the files of recorded boards state, and no more."""

import pytest

import device_profiles
from edge_core.machine.accelerators import EDGE_TPU, find_accelerators, is_detectable
from edge_core.profile import Accelerator

# /proc/device-tree/compatible as the boards give it.
JETSONS = {
    "jetson-nano": "nvidia,p3450-0000\0nvidia,jetson-nano\0nvidia,tegra210\0",
    "jetson-xavier-nx": "nvidia,p3449-0000+p3668-0000\0nvidia,p3449-0000\0nvidia,tegra194\0",
    "jetson-orin-nano": "nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0",
    "jetson-agx-orin": "nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0",
    "jetson-thor": "nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0nvidia,tegra264\0",
}
# /proc/driver/nvidia/gpus/*/information, as driver 535 writes it.
INFORMATION = """Model: \t\t NVIDIA GeForce RTX 3060
IRQ:   \t\t 143
GPU UUID: \t GPU-00000000-0000-0000-0000-000000000000
Bus Type: \t PCIe
Bus Location: \t 0000:01:00.0
"""


def write_tree(root, **texts):
    """Write files below ``root``; __ in a name stands for a slash."""
    for name, text in texts.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize("name", JETSONS)
def test_a_jetsons_device_tree_gives_the_gpu_of_its_profile(name, tmp_path):
    write_tree(tmp_path, **{"proc__device-tree__compatible": JETSONS[name]})
    (gpu,) = find_accelerators(tmp_path)
    profile = device_profiles.load(name)
    (expected,) = filter(is_detectable, profile.accelerators)
    assert (gpu.kind, gpu.capability) == (expected.kind, expected.capability)
    assert expected.name.startswith(gpu.name)


def test_the_capability_of_a_discrete_gpu_is_not_detectable():
    for capability in ("sm_75", "sm_89", ""):
        gpu = Accelerator(name="NVIDIA T4", kind="gpu", capability=capability)
        assert not is_detectable(gpu)


def test_a_raspberry_pi_has_no_accelerator(tmp_path):
    compatible = "raspberrypi,5-model-b\0brcm,bcm2712\0"
    write_tree(tmp_path, **{"proc__device-tree__compatible": compatible})
    assert find_accelerators(tmp_path) == ()


def test_a_discrete_gpu_has_its_name_and_no_capability(tmp_path):
    write_tree(
        tmp_path,
        **{"proc__driver__nvidia__gpus__0000:01:00.0__information": INFORMATION},
    )
    assert find_accelerators(tmp_path) == (
        Accelerator(name="NVIDIA GeForce RTX 3060", kind="gpu", capability=""),
    )


@pytest.mark.parametrize(
    ("bus", "ids", "count"),
    [
        ("usb", {"idVendor": "1a6e\n", "idProduct": "089a\n"}, 1),  # before its firmware is loaded
        ("usb", {"idVendor": "18d1\n", "idProduct": "9302\n"}, 1),
        ("usb", {"idVendor": "18d1\n", "idProduct": "4ee7\n"}, 0),  # a telephone
        ("pci", {"vendor": "0x1ac1\n", "device": "0x089a\n"}, 1),
        ("pci", {"vendor": "0x8086\n", "device": "0x1533\n"}, 0),
    ],
)
def test_an_edge_tpu_is_known_by_the_numbers_on_its_bus(bus, ids, count, tmp_path):
    write_tree(tmp_path, **{f"sys__bus__{bus}__devices__1-2__{k}": v for k, v in ids.items()})
    assert find_accelerators(tmp_path) == (Accelerator(name=EDGE_TPU, kind="npu"),) * count


def test_what_no_file_states_is_not_detectable():
    neural_engine = Accelerator(name="Apple Neural Engine", kind="npu", capability="16 cores")
    assert not is_detectable(neural_engine)
    assert not is_detectable(Accelerator(name="a card", kind="gpu"))
    assert is_detectable(Accelerator(name=EDGE_TPU, kind="npu"))
