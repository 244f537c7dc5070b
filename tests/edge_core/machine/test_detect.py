"""Detection: the profile states what this machine's files state, and no more."""

import os
import platform
import pwd
import subprocess
import sys

import msgspec
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

import device_profiles
from edge_core.errors import InputError
from edge_core.machine import detect, linux
from edge_core.machine.cpu_rates import CORES, X86, Rates, macs_per_cycle
from edge_core.machine.linux import ISA
from edge_core.runtimes.registry import installed_runtimes
from tests.cases import ROOT

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# /proc/cpuinfo, device tree "compatible" and highest clock in kHz, as the boards show them.
ARM = "CPU implementer\t: {maker}\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {part}\n"
PLAIN = "fp asimd evtstrm crc32 cpuid"
DOT = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop"
BOARDS = {  # profile: (Features, maker, part, compatible, kHz)
    "raspberry-pi-3b-plus": (
        PLAIN, "0x41", "0xd03", "raspberrypi,3-model-b-plus\0brcm,bcm2837\0", 1400000,
    ),
    "raspberry-pi-3b-plus-32bit": (
        "half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm crc32",
        "0x41", "0xd03", "raspberrypi,3-model-b-plus\0brcm,bcm2837\0", 1400000,
    ),
    "raspberry-pi-zero-2-w": (
        PLAIN, "0x41", "0xd03", "raspberrypi,model-zero-2-w\0brcm,bcm2837\0", 1000000,
    ),
    "raspberry-pi-4b": (PLAIN, "0x41", "0xd08", "raspberrypi,4-model-b\0brcm,bcm2711\0", 1800000),
    "raspberry-pi-5": (
        f"{DOT} asimddp", "0x41", "0xd0b", "raspberrypi,5-model-b\0brcm,bcm2712\0", 2400000,
    ),
    "jetson-xavier-nx": (DOT, "0x4e", "0x004", "nvidia,p3449-0000\0nvidia,tegra194\0", 1900000),
    "jetson-orin-nano": (
        f"{DOT} asimddp", "0x41", "0xd42", "nvidia,p3768-0000\0nvidia,tegra234\0", 1700000,
    ),
}  # fmt: skip


def write_tree(root, **texts):
    """Write files below ``root``; __ in a name stands for a slash."""
    for name, text in texts.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text))
    return root


@pytest.mark.parametrize("name", BOARDS)
def test_a_boards_files_give_the_cpu_of_its_profile(name, tmp_path):
    features, maker, part, compatible, khz = BOARDS[name]
    core = f"Features\t: {features}\n" + ARM.format(maker=maker, part=part)
    write_tree(
        tmp_path,
        proc__cpuinfo="".join(f"processor\t: {i}\n{core}\n" for i in range(4)),
        **{"proc__device-tree__compatible": compatible},
        sys__devices__system__cpu__cpu0__cpufreq__cpuinfo_max_freq=f"{khz}\n",
    )
    shipped = device_profiles.load(name)
    cpu = linux.read_cpu(tmp_path, shipped.platform.arch)
    assert (cpu.model, cpu.clock_mhz) == (shipped.cpu.model, shipped.cpu.clock_mhz)
    assert cpu.isa == shipped.cpu.isa
    assert cpu.fp32_macs_per_cycle == shipped.cpu.fp32_macs_per_cycle
    int8_rate = shipped.cpu.int8_macs_per_cycle
    assert cpu.int8_macs_per_cycle == (int8_rate and pytest.approx(int8_rate, rel=0.01))


def test_two_kinds_of_cores_are_both_named_and_the_fast_one_counts(tmp_path):
    parts = "".join(ARM.format(maker="0x41", part=part) for part in ("0xd05", "0xd05", "0xd0b"))
    cpu = linux.read_cpu(write_tree(tmp_path, proc__cpuinfo=parts), "aarch64")
    assert cpu.model == "Cortex-A55 + Cortex-A76"
    assert cpu.fp32_macs_per_cycle == 8


def test_what_the_system_hides_stays_open(tmp_path):
    cpu = linux.read_cpu(tmp_path, "aarch64")
    assert (cpu.model, cpu.clock_mhz, cpu.isa) == ("aarch64", None, ())
    assert cpu.fp32_macs_per_cycle is None
    assert linux.read_trip_point(tmp_path) is None
    with pytest.raises(InputError, match="MemTotal"):
        linux.read_memory(tmp_path)


MEMINFO = "MemTotal:        8000000 kB\nMemFree:  1 kB\nMemAvailable:    4000000 kB\n"


@pytest.mark.parametrize(
    ("groups", "total", "available"),
    [
        ({}, 8192, 4096),
        ({"sys__fs__cgroup__a__b__memory.max": "max\n"}, 8192, 4096),
        ({"sys__fs__cgroup__a__b__memory.max": "2000000000\n"}, 2000, 2000),
        ({"sys__fs__cgroup__a__memory.max": "2000000000"}, 2000, 2000),  # the parent's limit
        (
            {
                "sys__fs__cgroup__a__b__memory.max": "3000000000",
                "sys__fs__cgroup__a__b__memory.current": "2900000000",
            },
            3000,
            100,
        ),
        ({"sys__fs__cgroup__memory__memory.limit_in_bytes": "512000000"}, 512, 512),  # version 1
        ({"sys__fs__cgroup__memory__memory.limit_in_bytes": str(2**63 - 4096)}, 8192, 4096),
    ],
)
def test_a_control_groups_limit_counts_where_it_is_lower(groups, total, available, tmp_path):
    write_tree(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/a/b\n", **groups)
    memory = linux.read_memory(tmp_path)
    assert (memory.total_mb, memory.available_mb) == (total, available)


def test_the_lowest_passive_trip_point_of_a_processor_is_the_throttle(tmp_path):
    zone = "sys__class__thermal__thermal_zone"
    write_tree(tmp_path, **{
        f"{zone}0__type": "cpu-thermal\n",
        f"{zone}0__trip_point_0_type": "passive\n", f"{zone}0__trip_point_0_temp": "80000\n",
        f"{zone}0__trip_point_1_type": "critical\n", f"{zone}0__trip_point_1_temp": "70000\n",
        f"{zone}0__trip_point_2_type": "passive\n", f"{zone}0__trip_point_2_temp": "75500\n",
        f"{zone}1__type": "battery\n",
        f"{zone}1__trip_point_0_type": "passive\n", f"{zone}1__trip_point_0_temp": "45000\n",
    })  # fmt: skip
    assert linux.read_trip_point(tmp_path).throttle_c == 75.5


@given(st.text(), st.sampled_from(["x86_64", "aarch64", "armv7l"]))
def test_any_cpuinfo_gives_a_cpu(tmp_path_factory, text, arch):
    root = tmp_path_factory.getbasetemp() / "garbage"
    (root / "proc").mkdir(parents=True, exist_ok=True)
    (root / "proc" / "cpuinfo").write_text(text, encoding="utf-8", errors="replace")
    assert linux.read_cpu(root, arch).cores >= 1


@linux_only
def test_this_machine_is_described_as_its_own_files_do():
    profile = detect.detect(runtimes=installed_runtimes())
    assert profile.platform.arch == platform.machine()
    assert profile.platform.python == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert profile.cpu.cores == len(os.sched_getaffinity(0))
    info = (linux.Path("/proc/cpuinfo")).read_text()
    assert profile.cpu.model in info or profile.platform.arch != "x86_64"
    assert set(profile.cpu.isa) <= ISA
    assert profile.memory.available_mb <= profile.memory.total_mb
    assert profile.runtime("onnxruntime").version == onnxruntime.__version__
    assert "linux" in profile.runtime("onnxruntime").wheel
    assert profile.budgets == type(profile.budgets)()
    assert profile.power_modes == ()


def test_a_user_without_a_home_folder_has_facts_as_well(monkeypatch):
    def refuse(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", refuse)
    assert detect.detect_facts(installed_runtimes()).memory_mb > 0


def test_what_is_detected_is_a_profile_that_can_be_written_and_loaded(tmp_path):
    profile = detect.detect(tmp_path / "not" / "there", runtimes=installed_runtimes())
    path = tmp_path / "here.toml"
    path.write_text(device_profiles.dump(profile))
    assert device_profiles.load(path) == profile
    assert "this-machine" not in device_profiles.names()
    msgspec.json.encode(profile)


@linux_only
def test_only_the_cores_that_the_process_may_use_are_counted():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from edge_core.machine.detect import detect; print(detect(runtimes={}).cpu.cores)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert process.stdout == "1\n"


FLAGS = sorted({flag for flags, *_ in X86 for flag in flags})


@given(st.sets(st.sampled_from(FLAGS)), st.sets(st.sampled_from(FLAGS)), st.booleans())
def test_more_instruction_sets_never_mean_fewer_macs(some, more, xeon):
    model = "Intel(R) Xeon(R) Processor" if xeon else "AMD"
    less, full = (macs_per_cycle("x86_64", isa, model) for isa in (some, some | more))
    assert (less.fp32 or 0) <= (full.fp32 or 0)
    assert (less.int8 or 0) <= (full.int8 or 0)


def test_a_processor_that_nobody_documents_has_no_rates():
    assert macs_per_cycle("aarch64", ("asimd", "asimddp"), "Apple M2") == Rates()
    assert macs_per_cycle("aarch64", (), "Carmel (tegra194)") == Rates()
    assert macs_per_cycle("x86_64", (), "") == Rates()


@pytest.mark.parametrize(
    ("model", "isa", "rates"),
    [
        ("Intel(R) N100", ("avx2", "fma", "avx_vnni"), Rates(8, 16)),
        ("12th Gen Intel(R) Core(TM) i5-1240P", ("avx2", "fma", "avx_vnni"), Rates(16, 64)),
        ("Intel(R) Xeon(R) Platinum 8480+", ("avx512f", "avx512_vnni", "fma"), Rates(32, 128)),
        ("AMD Ryzen 7 7840U", ("avx512f", "avx512_vnni", "fma", "avx2"), Rates(16, 64)),
        ("Intel(R) Celeron(R) CPU J3455 @ 1.50GHz", ("sse4_2",), Rates(4, None)),
    ],
)
def test_x86_processors_are_told_apart(model, isa, rates):
    assert macs_per_cycle("x86_64", isa, model) == rates


def test_every_rate_has_its_source():
    assert all(core.source for core in CORES)
    assert all(why for *_, why in X86)
