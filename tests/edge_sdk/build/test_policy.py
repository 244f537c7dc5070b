"""Planning: rules are data with evidence, and each one that matters decides what it should."""

import pytest
from msgspec.structs import replace

import device_profiles
from converters import registry as converters
from edge_core.errors import InputError
from edge_core.profile import Profile, Runtime
from edge_sdk.build import planner, policy, reader
from tests.cases import ROOT

PI = "raspberry-pi-4b"
LSTM = ROOT / "examples" / "data" / "lstm" / "trained_lstm.tflite"
X86 = "x86-gateway-n100"


def decide(model, profile, *, runtimes=(), **options):
    device = device_profiles.load(profile) if not isinstance(profile, Profile) else profile
    if runtimes:
        device = replace(
            device,
            runtimes=tuple(Runtime(name=name, version=version) for name, version in runtimes),
        )
    plan = planner.plan(reader.read(model), device, samples=options.pop("samples", True), **options)
    return {decision.candidate: decision for decision in plan.decisions}


def test_every_rule_has_a_reason_and_evidence_or_needs_none():
    for rule in policy.load_policy().rule:
        assert rule.reason, rule.id
        assert rule.evidence or rule.id == "default"


def test_rule_ids_are_unique_and_the_last_one_matches_everything():
    rules = policy.load_policy().rule
    assert len({rule.id for rule in rules}) == len(rules)
    assert rules[-1].when == {}
    assert rules[-1].candidates == ("*",)


def test_every_candidate_is_decided_and_no_pattern_is_dead(lite0):
    decisions = decide(lite0, X86)
    assert set(decisions) == set(converters.by_name())
    for rule in policy.load_policy().rule:
        assert any(
            policy.fnmatchcase(name, pattern)
            for name in converters.by_name()
            for pattern in rule.candidates
        ), rule.id


def test_a_conv_net_on_x86(lite0):
    decisions = decide(lite0, X86)
    assert decisions["onnx-int8-static-u8s8"].verdict == "in"
    assert decisions["onnx-int8-static-s8s8"].rule == "s8s8-slow-on-x86"
    assert decisions["onnx-int8-dynamic"].rule == "dynamic-int8-nothing-to-gain"
    assert "14.7 of 18.6 MB" in decisions["onnx-int8-dynamic"].evidence
    assert decisions["onnx-int8-dynamic-conv"].rule == "dynamic-int8-slow-on-conv"
    assert "75.5 ms against 7.89 ms" in decisions["onnx-int8-dynamic-conv"].evidence
    assert decisions["onnx-int4-conv"].rule == "int4-conv-loses-the-model"
    assert "0.61" in decisions["onnx-int4-conv"].evidence
    assert decisions["onnx-int4"].verdict == "out"
    assert decisions["onnx-int8-static-per-tensor"].rule == "per-tensor-on-depthwise"


def test_an_x86_without_vnni_gets_signed_activations_too(lite0):
    """U8S8 products saturate in 16 bits there; this host would not show it."""
    decisions = decide(lite0, "x86-gateway-j3455")
    assert decisions["onnx-int8-static-u8s8"].rule == "u8s8-saturates-without-vnni"
    assert decisions["onnx-int8-static-s8s8"].verdict == "in"


def test_a_conv_net_on_arm_gets_signed_activations(lite0):
    decisions = decide(lite0, PI)
    assert decisions["onnx-int8-static-s8s8"].verdict == "in"
    assert decisions["onnx-int8-static-u8s8"].rule == "u8s8-not-for-arm"


def test_a_transformer(minilm):
    decisions = decide(minilm, X86)
    assert decisions["onnx-int8-dynamic"].verdict == "in"
    assert "2.05 against 5.57 ms" in decisions["onnx-int8-dynamic"].evidence
    assert decisions["onnx-int8-static-u8s8"].rule == "static-int8-breaks-transformers"
    assert decisions["onnx-int4"].verdict == "in"


def test_static_int8_needs_samples(lite0):
    assert decide(lite0, X86, samples=False)["onnx-int8-static-u8s8"].rule == (
        "static-needs-samples"
    )


def test_a_device_without_the_runtime_gets_nothing_and_is_told_what_it_has(lite0):
    decisions = decide(lite0, "raspberry-pi-3b-plus-32bit")
    onnx = [decision for name, decision in decisions.items() if name.startswith("onnx-")]
    assert {decision.verdict for decision in onnx} == {"out"}
    assert "tflite-runtime 2.14" in decisions["onnx-fp32"].reason
    decisions = decide(lite0, X86, also=("tflite-fp32",), runtimes=(("onnxruntime", "1.23.2"),))
    assert {
        decision.verdict for name, decision in decisions.items() if name.startswith("tflite-")
    } == {"out"}
    assert decisions["tflite-fp32"].reason == (
        "the profile has no litert or tflite-runtime; it has onnxruntime 1.23.2"
    )


def test_precisions_that_the_profile_does_not_list_are_out(lite0):
    profile = device_profiles.load(X86, ('precisions=["fp32"]',))
    decisions = decide(lite0, profile)
    assert decisions["onnx-int8-static-u8s8"].rule == "precision-not-on-device"
    assert decisions["onnx-fp32"].verdict == "in"


def test_with_overrules_experience_but_not_the_device(lite0):
    decisions = decide(lite0, X86, also=("onnx-int8-dynamic",))
    assert decisions["onnx-int8-dynamic"].verdict == "in"
    assert "asked for" in decisions["onnx-int8-dynamic"].reason
    none = decide(lite0, "raspberry-pi-3b-plus-32bit", also=("onnx-fp32",))
    assert none["onnx-fp32"].verdict == "out"


def test_an_unknown_candidate_is_refused_with_the_known_ones(lite0):
    with pytest.raises(InputError, match="no candidate 'onnx-int3'") as error:
        decide(lite0, X86, only=("onnx-int3",))
    assert "onnx-int8-dynamic" in error.value.hint


# TFLite candidates: what an old runtime cannot compute, and what does not suit the model


TFR_214, TFR_220 = ("tflite-runtime", "2.14.0"), ("tflite-runtime", "2.20.0.dev20250409")
L101, L140, L203, L212, L230 = (
    ("litert", v) for v in ("1.0.1", "1.4.0", "2.0.3", "2.1.2", "2.3.0")
)
ANY = {"tflite-fp32", "tflite-fp16"}
STATIC = {"tflite-int8-static", "tflite-int8-static-mixed"}
PLAIN = {"tflite-int8-static-plain", "tflite-int8-static-mixed"}
DYNAMIC, PER_TENSOR = {"tflite-int8-dynamic"}, {"tflite-int8-dynamic-per-tensor"}
WEIGHTS, INT4 = {"tflite-int8-weights"}, {"tflite-int4"}
TABLE, BLOCKS = {"tflite-int8-int4-table"}, {"tflite-int4-block32"}


def list_chosen(decisions):
    return {name for name, decision in decisions.items() if decision.verdict == "in"}


@pytest.mark.parametrize(
    ("runtime", "wanted"),
    [
        (TFR_214, PLAIN | PER_TENSOR),
        (TFR_220, STATIC | PLAIN | DYNAMIC | PER_TENSOR),
        (L101, STATIC),
        (L140, STATIC | DYNAMIC),
        (L203, STATIC | DYNAMIC),
        (L212, STATIC | DYNAMIC),
        (L230, STATIC | DYNAMIC),
    ],
)
def test_tflite_forms_of_a_conv_net(lite0, runtime, wanted):
    assert list_chosen(decide(lite0, PI, runtimes=(runtime,))) == ANY | WEIGHTS | wanted


@pytest.mark.parametrize(
    ("runtime", "wanted"),
    [
        (TFR_214, PER_TENSOR),
        (TFR_220, DYNAMIC | PER_TENSOR),
        (L101, DYNAMIC),
        (L140, DYNAMIC),
        (L203, DYNAMIC | TABLE),
        (L212, DYNAMIC | TABLE | BLOCKS),
        (L230, DYNAMIC | TABLE | BLOCKS),
    ],
)
def test_tflite_forms_of_a_transformer(minilm, runtime, wanted):
    """Static INT8 breaks it, and unpacking matrices at every inference is slow."""
    decisions = decide(minilm, PI, runtimes=(runtime,))
    assert list_chosen(decisions) == ANY | INT4 | wanted
    assert decisions["tflite-int8-weights"].rule == "weight-only-is-for-convs"


@pytest.mark.parametrize(("runtime", "form"), [(TFR_214, PLAIN), (L230, STATIC)])
def test_tflite_forms_of_a_recurrent_model(silero, runtime, form):
    """Whether its states bear INT8 is measured: TFLite keeps them in float or calibrates them."""
    decisions = decide(silero, PI, runtimes=(runtime, ("onnxruntime", "1.23.2")))
    dynamic = PER_TENSOR if runtime == TFR_214 else DYNAMIC
    tflite = {name for name in list_chosen(decisions) if name.startswith("tflite-")}
    assert tflite == ANY | form | dynamic | WEIGHTS
    assert decisions["onnx-int8-dynamic"].rule == "recurrent-stays-float"


def test_a_tflite_file_is_a_candidate_as_it_is_and_never_becomes_onnx():
    decisions = decide(LSTM, PI, runtimes=(TFR_214, ("onnxruntime", "1.23.2")))
    assert list_chosen(decisions) == {"tflite-given", "tflite-fp16"} | PLAIN | PER_TENSOR | INT4
    assert decisions["tflite-fp32"].rule == "given-is-float"
    back = {decision.rule for name, decision in decisions.items() if name.startswith("onnx-")}
    assert back == {"no-way-back-to-onnx"}


def test_an_onnx_file_is_not_given_as_tflite(lite0):
    asked = decide(lite0, PI, runtimes=(L230,), also=("tflite-given",))["tflite-given"]
    assert (asked.verdict, asked.rule) == ("out", "given-is-for-tflite-files")


@pytest.mark.parametrize(
    ("runtime", "name", "rule"),
    [
        (TFR_214, "tflite-int8-static", "hybrid-scales-not-in-tflite-runtime"),
        (TFR_214, "tflite-int8-dynamic", "hybrid-scales-not-in-tflite-runtime"),
        (TFR_220, "tflite-int4-block32", "int4-blocks-not-in-tflite-runtime"),
        (TFR_220, "tflite-int8-int4-table", "int4-blocks-not-in-tflite-runtime"),
        (L140, "tflite-int8-int4-table", "int4-block-tables-too-new"),
        (L203, "tflite-int4-block32", "int4-blocks-too-new"),
    ],
)
def test_what_a_runtime_cannot_compute_is_out_even_when_asked_for(minilm, runtime, name, rule):
    decision = decide(minilm, PI, runtimes=(runtime,), also=(name,))[name]
    assert (decision.verdict, decision.rule) == ("out", rule)
    assert f"{runtime[0]} {runtime[1]}" in decision.reason


@pytest.mark.parametrize(
    ("runtime", "name", "rule"),
    [
        (L101, "tflite-int8-dynamic", "hybrid-conv-wrong-on-litert-1.0"),
        (L230, "tflite-int16x8", "int16x8-is-slow"),
        (L230, "tflite-int8-static-io", "integer-io-on-request"),
        (L230, "tflite-int8-static-plain", "one-scale-only-for-old-runtimes"),
        (L230, "tflite-int8-dynamic-per-tensor", "one-scale-only-for-old-runtimes"),
        (L230, "tflite-int4", "tflite-int4-needs-matmul"),
        (L230, "tflite-int8-int4-table", "int4-tables-need-tables"),
    ],
)
def test_what_experience_speaks_against_is_measured_when_asked_for(lite0, runtime, name, rule):
    left_out = decide(lite0, PI, runtimes=(runtime,))[name]
    assert (left_out.verdict, left_out.rule) == ("out", rule)
    asked = decide(lite0, PI, runtimes=(runtime,), also=(name,))[name]
    assert asked.verdict == "in"
    assert left_out.reason in asked.reason


def test_static_tflite_needs_samples(lite0):
    decisions = decide(lite0, PI, runtimes=(L230,), samples=False)
    assert list_chosen(decisions) == ANY | WEIGHTS | DYNAMIC
    assert {decisions[name].rule for name in STATIC} == {"static-needs-samples"}


def test_litert_is_planned_for_where_a_device_has_both(lite0):
    decisions = decide(lite0, PI, runtimes=(TFR_214, L230))
    assert list_chosen(decisions) == ANY | WEIGHTS | STATIC | DYNAMIC


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
    rule = next(entry for entry in policy.load_policy().rule if entry.id == "int4-kernels-too-new")
    assert rule.matches("onnx-int4", {"runtime_version": "1.15.1"})
    with pytest.raises(InputError, match=r"'1\.17-nv' is no version"):
        rule.matches("onnx-int4", {"runtime_version": "1.17-nv"})
