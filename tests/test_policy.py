"""Planning: rules are data with evidence, and each one that matters decides what it should."""

import pytest

import converters
import device_profiles
from edge_core.errors import InputError
from edge_core.profile import Profile
from edge_sdk import planner, policy, reader

PI = "raspberry-pi-4b"
X86 = "x86-gateway-n100"


def decisions(model, profile, **options):
    p = device_profiles.load(profile) if not isinstance(profile, Profile) else profile
    made = planner.plan(reader.read(model), p, samples=options.pop("samples", True), **options)
    return {d.candidate: d for d in made.decisions}


def test_every_rule_has_a_reason_and_evidence_or_needs_none():
    for rule in policy.shipped().rule:
        assert rule.reason, rule.id
        assert rule.evidence or rule.id == "default"


def test_rule_ids_are_unique_and_the_last_one_matches_everything():
    rules = policy.shipped().rule
    assert len({r.id for r in rules}) == len(rules)
    assert rules[-1].when == {}
    assert rules[-1].candidates == ("*",)


def test_every_candidate_is_decided_and_no_pattern_is_dead(lite0):
    made = decisions(lite0, X86)
    assert set(made) == set(converters.by_name())
    for rule in policy.shipped().rule:
        assert any(
            policy.fnmatchcase(name, p) for name in converters.by_name() for p in rule.candidates
        ), rule.id


def test_a_conv_net_on_x86(lite0):
    made = decisions(lite0, X86)
    assert made["onnx-int8-static-u8s8"].verdict == "in"
    assert made["onnx-int8-static-s8s8"].rule == "s8s8-slow-on-x86"
    assert made["onnx-int8-dynamic"].rule == "dynamic-int8-nothing-to-gain"
    assert "14.7 of 18.6 MB" in made["onnx-int8-dynamic"].evidence
    assert made["onnx-int8-dynamic-conv"].rule == "dynamic-int8-slow-on-conv"
    assert "75.5 ms against 7.89 ms" in made["onnx-int8-dynamic-conv"].evidence
    assert made["onnx-int4-conv"].rule == "int4-conv-loses-the-model"
    assert "0.61" in made["onnx-int4-conv"].evidence
    assert made["onnx-int4"].verdict == "out"
    assert made["onnx-int8-static-per-tensor"].rule == "per-tensor-on-depthwise"


def test_an_x86_without_vnni_gets_signed_activations_too(lite0):
    """U8S8 products saturate in 16 bits there; this host would not show it."""
    made = decisions(lite0, "x86-gateway-j3455")
    assert made["onnx-int8-static-u8s8"].rule == "u8s8-saturates-without-vnni"
    assert made["onnx-int8-static-s8s8"].verdict == "in"


def test_a_conv_net_on_arm_gets_signed_activations(lite0):
    made = decisions(lite0, PI)
    assert made["onnx-int8-static-s8s8"].verdict == "in"
    assert made["onnx-int8-static-u8s8"].rule == "u8s8-not-for-arm"


def test_a_transformer(minilm):
    made = decisions(minilm, X86)
    assert made["onnx-int8-dynamic"].verdict == "in"
    assert "2.05 against 5.57 ms" in made["onnx-int8-dynamic"].evidence
    assert made["onnx-int8-static-u8s8"].rule == "static-int8-breaks-transformers"
    assert made["onnx-int4"].verdict == "in"


def test_static_int8_needs_samples(lite0):
    assert decisions(lite0, X86, samples=False)["onnx-int8-static-u8s8"].rule == (
        "static-needs-samples"
    )


def test_a_device_without_the_runtime_gets_nothing_and_is_told_what_it_has(lite0):
    made = decisions(lite0, "raspberry-pi-3b-plus-32bit")
    assert {d.verdict for d in made.values()} == {"out"}
    assert "tflite-runtime 2.14" in made["onnx-fp32"].reason


def test_precisions_that_the_profile_does_not_list_are_out(lite0):
    p = device_profiles.load(X86, ('precisions=["fp32"]',))
    made = decisions(lite0, p)
    assert made["onnx-int8-static-u8s8"].rule == "precision-not-on-device"
    assert made["onnx-fp32"].verdict == "in"


def test_with_overrules_experience_but_not_the_device(lite0):
    made = decisions(lite0, X86, also=("onnx-int8-dynamic",))
    assert made["onnx-int8-dynamic"].verdict == "in"
    assert "asked for" in made["onnx-int8-dynamic"].reason
    none = decisions(lite0, "raspberry-pi-3b-plus-32bit", also=("onnx-fp32",))
    assert none["onnx-fp32"].verdict == "out"


def test_an_unknown_candidate_is_refused_with_the_known_ones(lite0):
    with pytest.raises(InputError, match="no candidate 'onnx-int3'") as e:
        decisions(lite0, X86, only=("onnx-int3",))
    assert "onnx-int8-dynamic" in e.value.hint


def rule(**when):
    return policy.Rule("r", ("*",), when, "out", "because", "seen")


@pytest.mark.parametrize(
    ("when", "facts", "holds"),
    [
        ({"arch": "aarch64"}, {"arch": "aarch64"}, True),
        ({"arch": ["aarch64", "armv7l"]}, {"arch": "x86_64"}, False),
        ({"share": ">= 0.5"}, {"share": 0.5}, True),
        ({"share": "< 0.5"}, {"share": 0.5}, False),
        ({"runtime_version": "< 1.20"}, {"runtime_version": "1.9.1"}, True),
        ({"runtime_version": "< 1.20"}, {"runtime_version": "1.20.0"}, False),
        ({"runtime_version": "< 1.20"}, {"runtime_version": ""}, False),
        ({"isa": "has asimddp"}, {"isa": ("asimd", "asimddp")}, True),
        ({"isa": "lacks asimddp"}, {"isa": ("asimd",)}, True),
        ({"isa": "has avx_vnni|avx512_vnni"}, {"isa": ("avx2", "avx512_vnni")}, True),
        ({"isa": "lacks avx_vnni|avx512_vnni"}, {"isa": ("avx2", "avx512_vnni")}, False),
        ({"isa": "lacks avx_vnni|avx512_vnni"}, {"isa": ("avx2",)}, True),
        ({}, {}, True),
    ],
)
def test_the_language_of_conditions(when, facts, holds):
    assert rule(**when).matches("onnx-fp32", facts) is holds


def test_a_rule_about_no_fact_is_an_error_and_not_silence():
    with pytest.raises(InputError, match="no fact 'shear'"):
        rule(shear=">= 0.5").matches("onnx-fp32", {"share": 1.0})


def test_a_version_that_is_none_is_an_input_error():
    rule = next(r for r in policy.shipped().rule if r.id == "int4-kernels-too-new")
    assert rule.matches("onnx-int4", {"runtime_version": "1.15.1"})
    with pytest.raises(InputError, match=r"'1\.17-nv' is no version"):
        rule.matches("onnx-int4", {"runtime_version": "1.17-nv"})
