"""Settings: one file, every key explained, mistakes named with what is allowed."""

from __future__ import annotations

import contextlib
import re
import stat
from pathlib import Path

import msgspec
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from agent import config
from agent.config import Config, Serve
from edge_core.errors import InputError, StorageError


def write(folder: Path, text: str) -> Path:
    path = folder / "agent.toml"
    path.write_text(text)
    return path


# --- the file that init writes ------------------------------------------------------------------


def test_the_written_file_loads_to_the_defaults(tmp_path: Path):
    path, data = tmp_path / "etc" / "config.toml", tmp_path / "data"
    config.write_default(path, data)
    assert config.load_config(path) == Config(data_dir=str(data))


def test_the_data_directory_is_its_owners_alone(tmp_path: Path):
    config.write_default(tmp_path / "c.toml", tmp_path / "a" / "data")
    assert stat.S_IMODE((tmp_path / "a" / "data").stat().st_mode) == 0o700
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(InputError, match="open is open to others"):
        config.write_default(tmp_path / "d.toml", tmp_path / "open")
    assert not (tmp_path / "d.toml").exists()


def test_an_existing_file_is_never_overwritten(tmp_path: Path):
    path = write(tmp_path, "# mine\n")
    with pytest.raises(InputError, match="exists"):
        config.write_default(path, tmp_path / "data")
    assert path.read_text() == "# mine\n"
    assert not (tmp_path / "data").exists()


def test_a_disk_that_refuses_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        config.write_default(tmp_path / "c.toml", tmp_path / "file" / "data")


def parts() -> list[type[msgspec.Struct]]:
    named = [field.default for field in msgspec.structs.fields(Config)]
    return [Config, *(type(default) for default in named if isinstance(default, msgspec.Struct))]


@pytest.mark.parametrize("part", parts(), ids=lambda p: p.__name__)
def test_every_key_is_in_the_file_with_its_explanation(part: type[msgspec.Struct]):
    text = config.default_text(Config())
    for field in msgspec.structs.fields(part):
        if isinstance(field.default, (msgspec.Struct, dict)) or field.name == "models":
            continue
        (line,) = re.findall(rf"^# (.+)\n{field.name} = ", text, re.M)
        assert not line.startswith("("), f"{field.name} has limits and no description"


def test_limits_are_in_the_explanation():
    text = config.default_text(Config())
    assert "(1 to 64)\ninstances" in text
    assert "(more than 0, at most 1)\ncpu_share" in text
    assert "debug, error, info, warning" in text


# --- loading ------------------------------------------------------------------------------------


def test_a_model_inherits_what_it_does_not_say_from_serve(tmp_path: Path):
    path = write(
        tmp_path,
        "[serve]\nqueue = 7\ncache = true\n[models.a]\nqueue = 3\n[models.b]\nthreads = 2\n",
    )
    loaded = config.load_config(path)
    assert loaded.limits_of("a") == Serve(queue=3, cache=True)
    assert loaded.limits_of("b") == Serve(queue=7, cache=True, threads=2)
    assert loaded.limits_of("elsewhere") == loaded.serve == Serve(queue=7, cache=True)


def test_an_empty_file_is_all_defaults(tmp_path: Path):
    assert config.load_config(write(tmp_path, "")) == Config()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1\n", ["no field 'prot'"]),
        ("[http]\nprot = 1\n", ["no field 'http.prot'", "did you mean 'port'?"]),
        ("[htpp]\n", ["no field 'htpp'", "did you mean 'http'?"]),
        ("[models.a]\nqeue = 1\n", ["no field 'models.a.qeue'", "did you mean 'queue'?"]),
        ("[models.a]\nqueue = 0\n", ["models.a.queue", ">= 1"]),
        ("[models]\na = 3\n", ["models", "expected table, got int"]),
        ("[http]\nport = 70000\n", ["http.port", "<= 65535"]),
        ("[serve]\ndeadline_ms = nan\n", ["serve.deadline_ms", "finite"]),
        ("[serve]\ncache = 1\n", ["serve.cache", "expected bool"]),
        ('log_level = "loud"\n', ["log_level", "debug, error, info, warning"]),
        ('data_dir = "here"\n', ["data_dir", "absolute path", "'here'"]),
        ("[http\n", ["not readable TOML"]),
        ("# " + "x" * config.MAX_BYTES, ["bytes", "at most"]),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(tmp_path: Path, text: str, words: list[str]):
    with pytest.raises(InputError) as caught:
        config.load_config(write(tmp_path, text))
    for word in ("agent.toml", *words):
        assert word in str(caught.value), str(caught.value)


KEYS = st.sampled_from([*Config.__struct_fields__, *Serve.__struct_fields__, "port", "x"])
VALUES = st.recursive(
    st.one_of(st.text(max_size=8), st.integers(), st.floats(), st.booleans(), st.dates()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=8,
)


@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_any_toml_gives_settings_or_an_input_error(tmp_path_factory, doc):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(tomli_w.dumps(doc), encoding="utf-8")
    with contextlib.suppress(InputError):
        assert isinstance(config.load_config(path), Config)


# --- finding ------------------------------------------------------------------------------------


def test_the_given_file_goes_before_the_environments(tmp_path: Path):
    given_, named = tmp_path / "given.toml", tmp_path / "named.toml"
    for path in (given_, named):
        path.write_text("")
    environ = {config.ENVIRONMENT: str(named)}
    assert config.find_config(given_, environ) == given_
    assert config.find_config(None, environ) == named


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path):
    gone = tmp_path / "gone.toml"
    for arguments in ((gone, {}), (None, {config.ENVIRONMENT: str(gone)})):
        with pytest.raises(
            InputError, match=r"no settings at .*\n  hint: edge-agent init --config"
        ):
            config.find_config(*arguments)


def test_then_come_the_systems_and_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not config.SYSTEM.exists(), "this machine has an agent of its own"
    with pytest.raises(InputError, match=r"no settings at /etc/.*\n  hint: edge-agent init"):
        config.find_config(None, {})
    users = tmp_path / ".config" / "edge-agent" / "config.toml"
    users.parent.mkdir(parents=True)
    users.write_text("")
    assert config.find_config(None, {}) == users
