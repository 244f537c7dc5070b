"""Device profiles: ours are sound and sourced; yours go through the same door."""

import contextlib
import json
import re

import msgspec
import pytest
import tomllib
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

import device_profiles
from converters.onnx import ort_facts
from device_profiles import files
from edge_core.errors import InputError
from edge_core.machine.cpu_rates import macs_per_cycle
from edge_core.profile import Profile, json_schema
from tests.cases import ROOT

NAMES = device_profiles.names()
FOLDER = ROOT / "device_profiles"
MINE = """
extends = "raspberry-pi-4b"
name = "gate"
title = "The gate"
"""


def list_fields(doc, prefix=""):
    for key, value in doc.items():
        if isinstance(value, dict):
            yield from list_fields(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def write_profile(tmp_path, text, name="mine.toml"):
    path = tmp_path / name
    path.write_text(text)
    return path


# --- ours ---------------------------------------------------------------------------------------


def test_the_devices_that_were_promised_are_there():
    assert len(NAMES) >= 18
    wanted = {
        "raspberry-pi-zero-2-w", "raspberry-pi-3b-plus", "raspberry-pi-3b-plus-32bit",
        "raspberry-pi-4b", "raspberry-pi-5", "jetson-nano", "jetson-xavier-nx",
        "jetson-orin-nano", "jetson-agx-orin", "jetson-thor", "x86-gateway-n100", "x86-64",
        "linux-arm64", "iphone-15", "iphone-12", "mac-m2", "android-arm64",
    }  # fmt: skip
    assert wanted <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_profile_is_named_as_its_file_and_has_gates(name):
    profile = device_profiles.load(name)
    assert profile.name == name
    assert profile.runtimes
    assert profile.memory.available_mb <= profile.memory.total_mb
    assert profile.budgets.memory_peak_mb <= profile.memory.available_mb
    assert profile.budgets.latency_p99_ms
    assert profile.budgets.accuracy_drop_points == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_every_value_that_a_file_sets_has_a_source_in_the_same_file(name):
    doc = tomllib.loads((FOLDER / f"{name}.toml").read_text())
    sources = doc.pop("sources")
    for key in ("name", "title", "extends"):
        doc.pop(key, None)
    for field in list_fields(doc):
        parents = {field[: dot.start()] for dot in re.finditer(r"\.|$", field)}
        assert parents & set(sources), f"{field} has no source"
    for key in sources:
        assert any(leaf == key or leaf.startswith(f"{key}.") for leaf in list_fields(doc)), (
            f"stale: {key}"
        )


@pytest.mark.parametrize("name", NAMES)
def test_mac_rates_are_those_of_the_table(name):
    profile = device_profiles.load(name)
    rates = macs_per_cycle(profile.platform.arch, profile.cpu.isa, profile.cpu.model)
    assert profile.cpu.fp32_macs_per_cycle == rates.fp32
    assert profile.cpu.int8_macs_per_cycle == (rates.int8 and pytest.approx(rates.int8, rel=0.01))


WHEEL = re.compile(
    r"cp3\d+-cp3\d+-(manylinux_2_(\d+)|macosx_(\d+)_0)_(x86_64|aarch64|armv7l|arm64)"
)


@pytest.mark.parametrize("name", NAMES)
def test_runtimes_have_exact_versions_and_wheels_that_fit_the_system(name):
    profile = device_profiles.load(name)
    for runtime in profile.runtimes:
        assert re.fullmatch(r"\d+(\.\d+){0,2}", runtime.version)
        if not runtime.wheel:
            assert runtime.provider or profile.platform.os in ("ios", "macos", "android")
            continue
        tag = WHEEL.match(runtime.wheel)
        assert runtime.wheel.startswith(f"cp{profile.platform.python.replace('.', '')}-")
        assert tag[4] == profile.platform.arch.replace("aarch64", "arm64" if tag[3] else "aarch64")
        if tag[2]:
            assert int(tag[2]) <= int(profile.platform.glibc.split(".")[1])


@pytest.mark.parametrize("name", NAMES)
def test_an_onnxruntime_of_ours_is_one_whose_ceiling_was_measured(name):
    runtime = device_profiles.load(name).runtime("onnxruntime")
    if runtime:
        assert ort_facts.describe_provenance(runtime.version).startswith("measured")


def test_a_32_bit_pi_has_no_onnx_runtime():
    profile = device_profiles.load("raspberry-pi-3b-plus-32bit")
    assert profile.runtime("onnxruntime") is None
    assert profile.runtime("tflite-runtime").version == "2.14.0"


def test_a_jetson_has_the_cpu_runtime_beside_the_vendors():
    for name in (name for name in NAMES if name.startswith("jetson")):
        profile = device_profiles.load(name)
        assert profile.runtime("onnxruntime")
        assert any(runtime.name == "tensorrt" and runtime.provider for runtime in profile.runtimes)
    assert profile.runtime("tensorrt") is None  # only CPU runtimes are answered


@pytest.mark.parametrize("name", NAMES)
def test_the_dumped_form_fits_the_json_schema_and_loads_to_the_same_profile(name, tmp_path):
    profile = device_profiles.load(name)
    text = device_profiles.dump(profile)
    Draft202012Validator(json_schema()).validate(tomllib.loads(text))
    Draft202012Validator(json_schema()).validate(json.loads(msgspec.json.encode(profile)))
    assert device_profiles.load(write_profile(tmp_path, text)) == profile


def test_the_json_schema_refuses_what_we_refuse():
    doc = json.loads(msgspec.json.encode(device_profiles.load("raspberry-pi-4b")))
    validator = Draft202012Validator(json_schema())
    assert validator.is_valid(doc)
    assert not validator.is_valid({**doc, "colour": "green"})
    assert not validator.is_valid({**doc, "cpu": {**doc["cpu"], "cores": 0}})


# --- yours --------------------------------------------------------------------------------------


def test_a_file_extends_ours_and_replaces_what_it_names(tmp_path):
    path = write_profile(tmp_path, MINE + 'precisions = ["fp32"]\n[budgets]\nlatency_p99_ms = 20\n')
    profile, base = device_profiles.load(path), device_profiles.load("raspberry-pi-4b")
    assert profile.name == "gate"
    assert profile.precisions == ("fp32",)  # lists are replaced
    assert profile.budgets.latency_p99_ms == 20
    assert profile.budgets.memory_peak_mb == base.budgets.memory_peak_mb  # tables are merged
    assert profile.cpu == base.cpu
    assert device_profiles.load(str(path)) == profile


def test_files_extend_each_other_by_relative_path(tmp_path):
    (tmp_path / "sub").mkdir()
    write_profile(tmp_path, MINE, "base.toml")
    text = 'extends = "../base.toml"\nname = "b"\n[cpu]\ncores = 2\n'
    profile = device_profiles.load(write_profile(tmp_path / "sub", text))
    assert (profile.name, profile.title, profile.cpu.cores) == ("b", "The gate", 2)


def test_a_replaced_value_loses_the_source_it_came_with(tmp_path):
    profile = device_profiles.load(write_profile(tmp_path, MINE + "[cpu]\nclock_mhz = 1500\n"))
    assert "cpu.clock_mhz" not in profile.sources
    assert "cpu.model" in profile.sources


def test_none_takes_an_inherited_limit_away(tmp_path):
    path = write_profile(tmp_path, MINE + 'thermal = "none"\n[budgets]\nlatency_p99_ms = "none"\n')
    profile = device_profiles.load(path, ("budgets.cosine_min=none",))
    assert profile.thermal is None
    assert profile.budgets.latency_p99_ms is None
    assert profile.budgets.cosine_min is None
    assert profile.budgets.agreement_min == 0.9


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[cpu]\ncoers = 2\n", ["no field 'cpu.coers'", "'cores'"]),
        ("budget = {}\n", ["no field 'budget'", "'budgets'"]),
        ('[cpu]\ncores = "four"\n', ["cpu.cores", "expected int, got str"]),
        ("[cpu]\ncores = 0\n", ["cpu.cores", ">= 1"]),
        ("[budgets]\nagreement_min = 1.5\n", ["budgets.agreement_min", "<= 1"]),
        ("[budgets]\nlatency_p99_ms = nan\n", ["budgets.latency_p99_ms", "finite"]),
        ("[budgets]\nlatency_p99_ms = inf\n", ["budgets.latency_p99_ms", "finite"]),
        ("[memory]\ntotal_mb = 1" + "0" * 400 + "\n", ["memory.total_mb", "2^53"]),
        ('[platform]\narch = "arm"\n', ["platform.arch", "aarch64, armv7l, x86_64"]),
        ('precisions = ["fp32", "int9"]\n', ["precisions[1]", "int9", "fp16"]),
        ('[[runtimes]]\nname = "ort"\nversion = "1"\n', ["runtimes[0].name", "onnxruntime"]),
        ('[[runtimes]]\nname = "litert"\n', ["runtimes[0].version", "missing"]),
        (
            '[[runtimes]]\nname = "litert"\nversion = "1"\nwheels = ""\n',
            ["runtimes[0].wheels", "'wheel'"],
        ),
        ("cpu = 4\n", ["cpu", "expected table, got int"]),
        ("title = 2026-01-01\n", ["title", "expected str"]),
        ('name = "My Gate"\n', ["name", "regex"]),
        ("schema = 2\n", ["schema 2", "reads up to 1"]),
        ("extends = 3\n", ["extends", "expected str"]),
        ('extends = "raspbery-pi-4b"\n', ["extends", "'raspberry-pi-4b'"]),
        ('extends = "gone.toml"\n', ["extends: no file", "gone.toml"]),
        ("[cpu\n", ["not readable TOML", "line"]),
        ("a = " + "[" * 5000 + "\n", ["not readable TOML"]),
        ("# " + "x" * files.MAX_BYTES, ["bytes", "at most"]),
    ],
)
def test_an_error_names_the_file_the_field_and_what_is_allowed(text, words, tmp_path):
    base = "" if text.startswith(("extends", "name", "title")) else 'extends = "raspberry-pi-4b"\n'
    path = write_profile(tmp_path, f"{base}{text}", "bad.toml")
    with pytest.raises(InputError) as error:
        device_profiles.load(path)
    for word in ("bad.toml", *words):
        assert word in str(error.value), str(error.value)


def test_an_incomplete_profile_names_what_is_missing(tmp_path):
    with pytest.raises(InputError, match="'title' is missing"):
        device_profiles.load(write_profile(tmp_path, 'name = "a"\n'))


def test_what_is_no_text_or_no_file_is_refused(tmp_path):
    path = tmp_path / "latin.toml"
    path.write_bytes(b'title = "caf\xe9"\n')
    for source, words in (
        (path, "not UTF-8"),
        (tmp_path, "cannot read"),
        (tmp_path / "none.toml", "No such file"),
        ("a\0b.toml", "not readable"),
    ):
        with pytest.raises(InputError, match=words):
            device_profiles.load(source)


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(InputError, match="did you mean 'raspberry-pi-5'"):
        device_profiles.load("rasberry-pi-5")
    with pytest.raises(InputError, match=r"known: android-arm64.*x86-64"):
        device_profiles.load("toaster")


def test_cycles_and_long_chains_are_refused(tmp_path):
    first = write_profile(tmp_path, 'extends = "b.toml"\n', "a.toml")
    write_profile(tmp_path, 'extends = "./a.toml"\n', "b.toml")
    with pytest.raises(InputError, match=r"a cycle: a\.toml -> b\.toml -> a\.toml"):
        device_profiles.load(first)
    extends_itself = write_profile(tmp_path, 'extends = "self.toml"\n', "self.toml")
    with pytest.raises(InputError, match="a cycle"):
        device_profiles.load(extends_itself)
    for i in range(files.MAX_DEPTH + 1):
        write_profile(tmp_path, f'extends = "{i + 1}.toml"\n', f"{i}.toml")
    with pytest.raises(InputError, match="more than 8 files"):
        device_profiles.load(tmp_path / "0.toml")


# --- overrides ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("budgets.latency_p99_ms=20", "budgets.latency_p99_ms", 20),
        ("budgets.latency_p99_ms = 2e1", "budgets.latency_p99_ms", 20),
        ("name=gate-7", "name", "gate-7"),
        ('name="gate-7"', "name", "gate-7"),
        ("platform.glibc=2.31", "platform.glibc", "2.31"),
        ("platform.arch=x86_64", "platform.arch", "x86_64"),
        ('precisions=["fp32"]', "precisions", ("fp32",)),
        ("cpu.isa=[]", "cpu.isa", ()),
        ("thermal.throttle_c=70", "thermal.throttle_c", 70),
        ("budgets={load_ms=5}", "budgets.load_ms", 5),
        ("notes=a = b", "notes", "a = b"),
    ],
)
def test_an_override_is_read_as_toml_or_as_bare_text(text, field, value):
    actual = device_profiles.load("raspberry-pi-4b", (text,))
    for part in field.split("."):
        actual = getattr(actual, part)
    assert actual == value


def test_an_item_of_a_list_is_overridden_by_its_name():
    base = device_profiles.load("jetson-orin-nano")
    profile = device_profiles.load("jetson-orin-nano", ("runtimes.tensorrt.version=10.7.0",))
    assert [runtime.version for runtime in profile.runtimes] == ["1.23.2", "10.7.0", "2.3.0"]
    assert device_profiles.load("jetson-orin-nano") == base  # nothing is kept between calls


def test_the_last_override_wins_and_is_the_values_source():
    profile = device_profiles.load("raspberry-pi-4b", ("cpu.cores=1", "cpu.cores=2"))
    assert profile.cpu.cores == 2
    assert profile.sources["cpu.cores"] == "override"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("budgets.latency_p9_ms=20", ["no field 'budgets.latency_p9_ms'", "latency_p99_ms"]),
        ("budgte.load_ms=1", ["no field 'budgte'", "'budgets'"]),
        ("cpu.cores=many", ["cpu.cores", "expected int"]),
        ("cpu.cores=none", ["cpu.cores", "expected int"]),
        ("cpu.cores.each=2", ["cpu.cores has no field 'each'"]),
        ("runtimes.ort.version=1", ["no field 'runtimes.ort'", "onnxruntime"]),
        ("runtimes.litert.versoin=1", ["no field 'runtimes.litert.versoin'", "'version'"]),
        ("cpu=4", ["cpu", "expected table, got int"]),
        ("cpu={coers=1}", ["no field 'cpu.coers'"]),
        ("budgets.load_ms", ["field.name=value"]),
        ("=3", ["field.name=value"]),
        ("cpu..cores=3", ["field.name=value"]),
        ("budgets.load_ms=-1", ["budgets.load_ms", "> 0"]),
        ("budgets.load_ms=1\nx=2", ["budgets.load_ms", "expected float"]),
        ("extends=x86-64", ["no field 'extends'"]),
    ],
)
def test_a_wrong_override_is_named_with_the_nearest_key(text, words):
    with pytest.raises(InputError) as error:
        device_profiles.load("raspberry-pi-4b", (text,))
    for word in ("override", *words):
        assert word in str(error.value), str(error.value)


@given(
    st.sampled_from(["latency_p50_ms", "latency_p99_ms", "load_ms", "memory_peak_mb", "energy_mj"]),
    st.floats(min_value=1e-6, max_value=1e9),
)
def test_any_positive_budget_survives_override_and_dump(tmp_path_factory, field, value):
    profile = device_profiles.load("x86-64", (f"budgets.{field}={value!r}",))
    assert getattr(profile.budgets, field) == value
    path = tmp_path_factory.getbasetemp() / "dumped.toml"
    path.write_text(device_profiles.dump(profile), encoding="utf-8")
    assert device_profiles.load(path) == profile


@given(st.text(max_size=60))
def test_any_text_as_override_gives_a_profile_or_an_input_error(text):
    with contextlib.suppress(InputError):
        assert isinstance(device_profiles.load("x86-64", (text,)), Profile)


FIELDS = ["budgets.load_ms", "cpu.isa", "runtimes", "runtimes.litert.version", "name", "sources.a"]


@given(st.sampled_from(FIELDS), st.text(max_size=30))
def test_any_value_of_an_override_gives_a_profile_or_an_input_error(field, text):
    with contextlib.suppress(InputError):
        profile = device_profiles.load("x86-64", (f"{field}={text}",))
        assert isinstance(profile, Profile)
        assert device_profiles.dump(profile)


KEYS = st.sampled_from(["extends", "name", "cpu", "budgets", "runtimes", "load_ms", "cores", "x"])
VALUES = st.recursive(
    st.one_of(st.text(max_size=8), st.integers(), st.floats(), st.booleans(), st.dates()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=8,
)


@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_any_toml_gives_a_profile_or_an_input_error(tmp_path_factory, doc):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(device_profiles.tomli_w.dumps(doc), encoding="utf-8")
    with contextlib.suppress(InputError):
        device_profiles.load(path)


@given(st.binary(max_size=200), st.integers(0, 400))
def test_a_damaged_file_gives_a_profile_or_an_input_error(tmp_path_factory, junk, at):
    path = tmp_path_factory.getbasetemp() / "damaged.toml"
    good = device_profiles.dump(device_profiles.load("x86-64")).encode()
    path.write_bytes(good[:at] + junk + good[at:])
    with contextlib.suppress(InputError):
        device_profiles.load(path)
