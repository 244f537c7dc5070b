"""A package with two variants: each device installs the one that is for it, or none."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from agent.config import Config
from agent.packages.install import install
from agent.packages.slots import Slots
from edge_core.errors import InputError, MissingExtra
from edge_core.facts import DeviceFacts
from edge_core.machine.detect import detect_facts
from edge_core.package import format as package
from edge_core.package.manifest import MANIFEST, RuntimeNeed
from edge_core.runtimes.registry import installed_runtimes

FEATURES = ("avx512_vnni|avx_vnni",)


@pytest.fixture(scope="module")
def here() -> DeviceFacts:
    return detect_facts(installed_runtimes())


@pytest.fixture
def with_vnni(here: DeviceFacts) -> DeviceFacts:
    return msgspec.structs.replace(here, cpu_features=("avx2", "avx_vnni"))


@pytest.fixture
def without_vnni(here: DeviceFacts) -> DeviceFacts:
    return msgspec.structs.replace(here, cpu_features=("avx2",))


@pytest.fixture
def two(make_package, tmp_path: Path) -> Path:
    """The same model for a processor with VNNI and, after it, for any."""
    opened = package.open(make_package())
    (plain,) = opened.manifest.variants
    selector = msgspec.structs.replace(plain.selector, cpu_features=FEATURES)
    fast = msgspec.structs.replace(plain, name="fast", selector=selector)
    manifest = msgspec.structs.replace(opened.manifest, variants=(fast, plain))
    files = {title: opened.read(title) for title in opened.titles if title != MANIFEST}
    files |= {
        fast.title(variant_file): opened.read(plain.title(variant_file))
        for variant_file in fast.files
    }
    return package.write(tmp_path / "two.edgepkg", manifest, files).path


def test_blobs_that_variants_share_are_stored_once(two, make_package):
    one = package.open(make_package())
    assert len(package.open(two).image.blobs) == len(one.image.blobs)


def test_each_device_installs_the_variant_that_is_for_it(two, config, with_vnni, without_vnni):
    first = install(config, two, facts=with_vnni)
    assert first.slot.variant == "fast"
    slots = Slots(config.root)
    assert slots.model(first.slot).variant == "fast"
    assert sorted(path.name for path in slots.folder(first.slot).iterdir()) == [
        ".oci-manifest", "golden.npz", "manifest.json", "model-card.md", "model.onnx",
        "recipe.json", "sbom.cdx.json",
    ]  # fmt: skip
    other = Config(data_dir=f"{config.data_dir}-2", install=config.install)
    assert install(other, two, facts=without_vnni).slot.variant == "here"


def test_another_variant_is_installed_when_the_device_has_changed(
    two, config, with_vnni, without_vnni
):
    before = install(config, two, facts=without_vnni)
    assert install(config, two, facts=without_vnni).already
    after = install(config, two, facts=with_vnni)
    assert (after.already, after.slot.variant) == (False, "fast")
    slots = Slots(config.root)
    assert not slots.folder(before.slot).exists()  # the same package is no way back
    slots.check(after.slot, everything=True)


def test_a_runtime_that_can_be_installed_is_named_after_one_that_nobody_knows(
    two, config, without_vnni, tmp_path
):
    opened = package.open(two)
    fast, plain = opened.manifest.variants
    needs = [RuntimeNeed("abacus", "1", "1"), RuntimeNeed("tflite-runtime", "2.14.0", "2.14.0")]
    variants = tuple(
        msgspec.structs.replace(v, runtime=need, selector=plain.selector)
        for v, need in zip((fast, plain), needs, strict=True)
    )
    manifest = msgspec.structs.replace(opened.manifest, variants=variants)
    files = {t: opened.read(t) for t in opened.titles if t != MANIFEST}
    path = package.write(tmp_path / "unknown.edgepkg", manifest, files).path
    with pytest.raises(MissingExtra, match="is not installed"):
        install(config, path, facts=without_vnni)


def test_a_device_that_none_matches_is_told_which_fact_does_not(two, config, without_vnni):
    foreign = msgspec.structs.replace(without_vnni, os="android")
    with pytest.raises(InputError) as caught:
        install(config, two, facts=foreign)
    assert caught.value.what.startswith(
        "dense 1.0.0 has no variant for this machine: 'fast' needs "
    )
    assert caught.value.what.endswith("linux; it has " + f"{foreign.arch} android")
    assert Slots(config.root).names() == ()
