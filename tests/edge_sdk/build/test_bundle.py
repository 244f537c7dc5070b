"""Bundles: one package whose variants each reach the device that they are for."""

import json

import msgspec
import pytest

import device_profiles
import edge_sdk
from agent import Agent
from agent.config import Config, Install
from agent.packages.install import install
from edge_core.errors import InputError
from edge_core.machine.detect import detect_facts
from edge_core.package import format as package
from edge_core.package import golden
from edge_core.package.manifest import Gate, Selector
from edge_core.package.selector import find_mismatch, select_variant
from edge_core.runtimes.registry import installed_runtimes
from edge_sdk.build import policy
from edge_sdk.build.bundle import detectable_facts, order_variants
from tests import packages

SAME = {"model.onnx": "sha256:0"}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return packages.make_contents(tmp_path_factory.mktemp("contents"))[0]


def make_bundle(manifest, names, digests=None):
    """The manifest of a bundle for shipped profiles."""
    profiles = [device_profiles.load(name) for name in names]
    digests = digests or [{"model.onnx": f"sha256:{name}"} for name in names]
    return msgspec.structs.replace(manifest, variants=order(manifest, profiles, digests))


def order(manifest, profiles, digests):
    """The variants of these profiles, in the package's order."""
    variants = [
        msgspec.structs.replace(
            manifest.variants[0], name=profile.name, profiles=(profile.name,),
            selector=Selector(arch=profile.platform.arch, os=profile.platform.os),
        )
        for profile in profiles
    ]  # fmt: skip
    return order_variants(profiles, variants, digests)


@pytest.mark.parametrize(
    "names",
    [
        ("raspberry-pi-4b", "x86-64"),
        ("raspberry-pi-4b", "raspberry-pi-5"),
        ("linux-arm64", "raspberry-pi-5", "jetson-orin-nano", "jetson-nano"),
        ("jetson-orin-nano", "jetson-agx-orin", "jetson-thor", "jetson-xavier-nx"),
        ("x86-64", "x86-64-v3", "x86-gateway-n100"),
        ("raspberry-pi-zero-2-w", "raspberry-pi-4b", "linux-arm64"),
    ],
)
def test_every_device_gets_the_variant_of_its_profile_in_any_order(manifest, names):
    for listed in (names, names[::-1]):
        bundle = make_bundle(manifest, listed)
        for name in names:
            facts = detectable_facts(device_profiles.load(name))
            assert name in select_variant(bundle, facts).profiles


def test_a_selector_has_no_more_than_it_needs(manifest):
    bundle = make_bundle(manifest, ("raspberry-pi-4b", "x86-64"))
    for variant in bundle.variants:
        assert variant.selector == Selector(arch=variant.selector.arch, os="linux")


def test_profiles_that_no_fact_tells_apart_share_a_variant_or_are_refused(manifest):
    profile = device_profiles.load("raspberry-pi-4b")
    twins = [profile, msgspec.structs.replace(profile, name="twin")]
    gated = packages.with_variant(manifest, gates=(Gate("cosine", 0.9, "pass"),)).variants[0]
    variants = [
        msgspec.structs.replace(gated, name=twin.name, profiles=(twin.name,)) for twin in twins
    ]
    (shared,) = order_variants(twins, variants, [SAME, SAME])
    assert shared.profiles == ("raspberry-pi-4b", "twin")
    assert {gate.profile for gate in shared.gates} == {"raspberry-pi-4b", "twin"}
    with pytest.raises(InputError, match="tells 'raspberry-pi-4b' from 'twin'") as error:
        order_variants(twins, variants, [SAME, {"model.onnx": "sha256:1"}])
    assert "without --bundle" in error.value.hint


def vary(**changes):
    """The profile of a Raspberry Pi 4B with some parts changed."""
    return msgspec.structs.replace(device_profiles.load("raspberry-pi-4b"), **changes)


def test_a_merged_variant_is_still_reached_by_both_of_its_devices(manifest):
    """2000 and 2100 MB share a file; 2600 MB, of which a device must have 2080, has another."""
    memory = vary().memory
    sizes = {"one": 2000, "two": 2100, "large": 2600}
    profiles = [
        vary(name=name, memory=msgspec.structs.replace(memory, total_mb=mb, available_mb=1000))
        for name, mb in sizes.items()
    ]
    with pytest.raises(InputError, match="tells 'one' from 'large'"):
        order(manifest, profiles, [SAME, SAME, {"model.onnx": "sha256:1"}])


def test_a_requirement_does_not_let_back_in_whom_an_earlier_one_kept_out(manifest):
    runtime = vary().runtimes[0]
    versions = {"both": ("2.0", "2.0"), "old-first": ("1.0", "2.0"), "old-second": ("2.0", "1.0")}
    profiles = [
        vary(
            name=name,
            runtimes=(
                msgspec.structs.replace(runtime, name="onnxruntime", version=first),
                msgspec.structs.replace(runtime, name="litert", version=second),
            ),
        )
        for name, (first, second) in versions.items()
    ]
    digests = [SAME, {"model.onnx": "sha256:1"}, SAME]
    shared, other = order(manifest, profiles, digests)
    assert (set(shared.profiles), other.profiles) == ({"both", "old-second"}, ("old-first",))
    assert find_mismatch(shared, detectable_facts(profiles[1]))


def test_a_feature_that_no_detection_reports_is_not_demanded(manifest):
    cpu = vary().cpu
    special = vary(name="special", cpu=msgspec.structs.replace(cpu, isa=(*cpu.isa, "crc32")))
    with pytest.raises(InputError, match="no fact that a device detects"):
        order(manifest, [special, vary()], [SAME, {"model.onnx": "sha256:1"}])


def test_what_the_policy_demands_of_a_processor_is_in_the_selector():
    n100 = device_profiles.load("x86-gateway-n100")
    assert policy.find_required_features("onnx-int8-static-u8s8", n100) == ("avx_vnni|avx512_vnni",)
    assert policy.find_required_features("onnx-fp32", n100) == ()
    plain = device_profiles.load("x86-64")
    assert policy.find_required_features("onnx-int8-static-u8s8", plain) == ()


def test_a_bundle_is_built_verified_installed_and_reported(digits, tmp_path):
    names = ["x86-64-v3", "raspberry-pi-4b"]
    options = edge_sdk.BuildOptions(
        evaluation="examples.data:digits_eval", preprocess="mnist", only=("onnx-fp32",),
        bundle=True, out=tmp_path / "out", cache=tmp_path / "cache",
    )  # fmt: skip
    profiles = [
        edge_sdk.load_profile(profile_name, latency_p99_ms=10_000, memory_peak_mb=10_000)
        for profile_name in names
    ]
    built = edge_sdk.build(digits, profiles, options)
    assert len({build.package for build in built}) == 1
    opened = package.open(built[0].package)
    assert [set(variant.profiles) for variant in opened.manifest.variants] == [
        {names[0]},
        {names[1]},
    ]
    card = opened.read("model-card.md").decode()
    assert all(f"## The file of `{name}`" in card for name in names)
    for result in built:
        report = json.loads(result.report_json.read_bytes())
        assert report["package"] == built[0].package.name
        assert set(report["variants"]) == set(names)
        assert "with the variants" in result.report_html.read_text()
    for name in names:
        verified = edge_sdk.verify(built[0].package, variant=name)
        assert (verified.variant, verified.golden.ok) == (name, True)
    here = msgspec.structs.replace(detect_facts(installed_runtimes()), arch="aarch64")
    config = Config(data_dir=str(tmp_path / "agent"), install=Install(tune_s=0.2))
    assert install(config, built[0].package, facts=here).slot.variant == "raspberry-pi-4b"
    inputs = golden.from_bytes(opened.read("raspberry-pi-4b/golden.npz")).inputs
    with Agent(config) as agent:
        answer = agent.infer(opened.manifest.name, inputs[0])
    assert set(answer.outputs) == {spec.name for spec in opened.manifest.variants[0].outputs}


def test_a_bundle_that_is_refused_leaves_the_reports_of_what_was_measured(digits, tmp_path):
    floats = msgspec.structs.replace(
        edge_sdk.load_profile("x86-64", latency_p99_ms=10_000, memory_peak_mb=10_000),
        precisions=("fp32",),
    )
    integers = msgspec.structs.replace(floats, name="integers", precisions=("int8",))
    options = edge_sdk.BuildOptions(
        evaluation="examples.data:digits_eval", preprocess="mnist",
        only=("onnx-fp32", "onnx-int8-weights"), bundle=True, out=tmp_path / "out",
        cache=tmp_path / "cache",
    )  # fmt: skip
    with pytest.raises(InputError, match="no fact that a device detects tells"):
        edge_sdk.build(digits, [floats, integers], options)
    assert not list((tmp_path / "out").glob("*.edgepkg"))
    reports = sorted((tmp_path / "out").glob("*.report.json"))
    profiles = [json.loads(report.read_bytes())["profile"]["name"] for report in reports]
    assert profiles == ["integers", "x86-64"]
