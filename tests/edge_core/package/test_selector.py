"""Selection: the first variant whose every fact matches, and a reason where none does."""

import msgspec
import pytest

from edge_core.errors import InputError
from edge_core.facts import DeviceFacts
from edge_core.package.manifest import (
    AcceleratorNeed,
    RuntimeRange,
    Selector,
    VersionRange,
)
from edge_core.package.selector import choose_variant, find_mismatch, select_variant
from edge_core.profile import Accelerator
from tests import packages

PI = DeviceFacts(
    arch="aarch64", os="linux", glibc="2.36", python="3.11", cpu_features=("asimd", "asimddp"),
    runtimes={"onnxruntime": "1.23.2"}, memory_mb=8000,
)  # fmt: skip
ORIN = msgspec.structs.replace(
    PI, accelerators=(Accelerator(name="Ampere GPU", kind="gpu", capability="sm_87"),)
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return packages.make_contents(tmp_path_factory.mktemp("contents"))[0]


def with_selector(manifest, **facts):
    return packages.with_variant(manifest, selector=Selector(arch="aarch64", os="linux", **facts))


@pytest.mark.parametrize(
    ("needs", "reason"),
    [
        ({}, ""),
        ({"glibc": "2.36"}, ""),
        ({"glibc": "2.4"}, ""),  # numbers, not text
        ({"glibc": "2.38"}, "needs glibc 2.38; it has 2.36"),
        ({"python": VersionRange("3.10", "3.12")}, ""),
        (
            {"python": VersionRange("3.10", "3.11")},
            "needs Python from 3.10 below 3.11; it has 3.11",
        ),
        ({"cpu_features": ("i8mm|asimddp", "asimd")}, ""),
        (
            {"cpu_features": ("i8mm|sve",)},
            "needs the CPU feature i8mm or sve; it has asimd asimddp",
        ),
        ({"accelerator": AcceleratorNeed(kind="npu")}, "needs npu; it has none"),
        ({"runtime": RuntimeRange(name="onnxruntime")}, ""),
        (
            {"runtime": RuntimeRange(name="onnxruntime", versions=VersionRange("1.24"))},
            "needs onnxruntime from 1.24; it has 1.23.2",
        ),
        ({"runtime": RuntimeRange(name="tensorrt")}, "needs tensorrt; it has none"),
        ({"memory_mb": 16000}, "needs 16000 MB of memory; it has 8000 MB"),
    ],
)
def test_each_fact_is_matched_and_named(manifest, needs, reason):
    assert find_mismatch(with_selector(manifest, **needs).variants[0], PI) == reason


@pytest.mark.parametrize(
    ("minimal", "fits"),
    [("", True), ("sm_72", True), ("sm_87", True), ("sm_110", False), ("gfx_9", False)],
)
def test_a_capability_is_at_least_the_one_that_is_needed(manifest, minimal, fits):
    need = AcceleratorNeed(kind="gpu", capability=minimal)
    variant = with_selector(manifest, accelerator=need).variants[0]
    assert (find_mismatch(variant, ORIN) == "") is fits


def test_the_order_of_the_package_decides(manifest):
    (plain,) = manifest.variants
    need = AcceleratorNeed(kind="gpu", capability="sm_87")
    selector = Selector(arch="aarch64", os="linux", accelerator=need)
    gpu = msgspec.structs.replace(plain, name="orin", selector=selector)
    both = msgspec.structs.replace(manifest, variants=(gpu, plain))
    assert select_variant(both, ORIN).name == "orin"
    assert select_variant(both, PI).name == plain.name
    swapped = msgspec.structs.replace(manifest, variants=(plain, gpu))
    assert select_variant(swapped, ORIN).name == plain.name


def test_where_none_matches_each_variant_has_its_reason_in_one_line(manifest):
    other = msgspec.structs.replace(PI, arch="armv7l")
    with pytest.raises(InputError) as caught:
        select_variant(manifest, other)
    assert caught.value.what == (
        "dense 1.0.0 has no variant for this machine: "
        "'raspberry-pi-4b' needs aarch64 linux; it has armv7l linux"
    )
    many = tuple(msgspec.structs.replace(manifest.variants[0], name=f"v{i}") for i in range(16))
    with pytest.raises(InputError, match="and 8 more") as caught:
        select_variant(msgspec.structs.replace(manifest, variants=many), other)
    assert len(caught.value.what) < 2000


def test_a_runtime_that_is_not_installed_is_passed_over(manifest):
    without = msgspec.structs.replace(PI, runtimes={"litert": "2.3.0"})
    with pytest.raises(InputError, match="needs the runtime onnxruntime; it has litert"):
        select_variant(manifest, without)


def test_a_host_takes_what_it_can_run_and_says_what_does_not_match(manifest):
    host = msgspec.structs.replace(PI, arch="x86_64")
    choice = choose_variant(manifest, host)
    assert choice.variant.name == "raspberry-pi-4b"
    assert choice.notes == ("variant 'raspberry-pi-4b' needs aarch64 linux; it has x86_64 linux",)
    assert choose_variant(manifest, PI).notes == ()
    assert choose_variant(manifest, host, "raspberry-pi-4b") == choice
    with pytest.raises(InputError, match="has no variant 'pi'") as caught:
        choose_variant(manifest, host, "pi")
    assert caught.value.hint == "one of: raspberry-pi-4b"
