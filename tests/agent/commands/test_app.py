"""The commands as a user types them: results on stdout, the rest on stderr, exit codes."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import stat
from pathlib import Path

import msgspec
import numpy as np
import pytest

from agent.commands import app, caches, device, models, service
from agent.config import Config, Http, Serve, load_config
from agent.packages.install import install
from agent.service import doctor
from edge_core.package import format as package
from edge_core.package import golden
from tests.agent.process import Service, clips, edge_agent, numbers, settings

ROWS = [[1.0, -2.0, 3.0, 0.5]]
COMMANDS = (
    "init", "install", "run", "status", "infer", "models", "rollback", "doctor", "verify", "bench",
    "detect", "cache",
)  # fmt: skip


@pytest.fixture
def config(tmp_path: Path, config: Config) -> Config:
    return msgspec.structs.replace(config, http=Http(socket=str(tmp_path / "http.sock")))


def ask_json(*words: object, config: Path) -> object:
    return json.loads(edge_agent(*words, "--json", config=config).stdout)


# --- the form of the commands -------------------------------------------------------------------


def test_every_command_is_there_explains_itself_and_prints_json():
    for name in COMMANDS:
        said = edge_agent(name, "--help").stdout
        assert "--json" in said or name == "run", name
        assert re.search(r"^  [A-Z].*\.", said, re.M), name


def test_a_command_is_short():
    for group in (app, caches, device, models, service):
        for name, function in vars(group).items():
            if inspect.isfunction(function) and function.__module__ == group.__name__:
                body = inspect.getsource(function).split('"""')[-1]
                assert len(body.splitlines()) <= 15, name


# --- a life -------------------------------------------------------------------------------------


def test_init_makes_what_the_other_commands_need(tmp_path: Path, make_package):
    path, data = tmp_path / "c.toml", tmp_path / "data"
    done = ask_json("init", "--data-dir", data, config=path)
    assert done == {"config": str(path), "data_dir": str(data)}
    assert load_config(path) == Config(data_dir=str(data))
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert "exists" in edge_agent("init", config=path, ok=1).stderr
    assert ask_json("models", config=path) == []
    edge_agent("install", make_package(), config=path)
    assert [model["name"] for model in ask_json("models", config=path)] == ["dense"]


def test_install_shows_each_step_and_what_is_current(config: Config, make_package):
    path = settings(config)
    first, second = make_package(), make_package(version="2.0.0", seed=2)
    done = edge_agent("install", first, config=path)
    for step in ("verified dense 1.0.0", "self-test", "3 of 3 golden samples", "thread(s)"):
        assert step in done.stderr
    assert "dense 1.0.0 is current: sha256:" in done.stdout
    assert "no agent runs here" in done.stdout
    answer = ask_json("install", second, config=path)
    assert answer["current"]["digest"] == package.open(second).digest
    assert answer["previous"]["version"] == "1.0.0"
    assert (answer["already"], answer["served"]) == (False, "")
    assert ask_json("install", second, config=path)["already"] is True
    back = ask_json("rollback", "dense", config=path)
    assert (back["current"]["version"], back["previous"]["version"]) == ("1.0.0", "2.0.0")


def test_refused_packages_are_not_installed_again_by_chance(config: Config, make_package):
    path = settings(config)
    first, second = make_package(), make_package(version="2.0.0", seed=2)
    for package_path in (first, second):
        edge_agent("install", package_path, config=path)
    edge_agent("rollback", "dense", "--refuse", config=path)
    assert "--force" in edge_agent("install", second, config=path, ok=1).stderr
    edge_agent("install", second, "--force", config=path)


def test_the_running_agent_serves_before_the_command_returns(
    installed_config: Config, make_package, tmp_path: Path
):
    source = numbers(tmp_path, x=ROWS)
    with Service(installed_config) as service:
        path = service.path
        one = ask_json("infer", "dense", source, config=path)
        done = ask_json("install", make_package(version="2", seed=2), config=path)
        assert done["served"] == done["current"]["digest"] == service.digest("dense")
        two = ask_json("infer", "dense", source, config=path)
        assert one["outputs"] != two["outputs"]
        back = ask_json("rollback", "dense", config=path)
        assert back["served"] == service.digest("dense") == done["previous"]["digest"]
        assert ask_json("infer", "dense", source, config=path)["outputs"] == one["outputs"]
        shown = edge_agent("status", config=path).stdout
        assert "2 swaps, no errors" in shown
        status = ask_json("status", config=path)
        assert status["agent"]["pid"] == service.process.pid
        assert status["status"]["models"][0]["stages"]["total"]["n"] == 1


def test_an_answer_is_the_same_from_the_agent_this_process_and_the_package(
    config: Config, make_package, tmp_path: Path
):
    path, source = settings(config), numbers(tmp_path, x=ROWS)
    package_path = make_package()
    install(config, package_path)
    here = ask_json("infer", "dense", source, config=path)
    direct = ask_json("infer", package_path, source, config=path)
    with Service(config):
        there = ask_json("infer", "dense", source, config=path)
    assert here["outputs"] == direct["outputs"]
    for answer in (direct, there):
        np.testing.assert_allclose(answer["outputs"]["y"], here["outputs"]["y"], rtol=1e-6)
        assert [entry["label"] for entry in answer["top"]] == [
            entry["label"] for entry in here["top"]
        ]
        for served, local in zip(answer["top"], here["top"], strict=True):
            assert (served["index"], served["score"]) == (
                local["index"],
                pytest.approx(local["score"]),
            )
    people = edge_agent("infer", "dense", source, "--top", "1", config=path).stdout
    assert re.fullmatch(r" +0\.\d{4}  (left|ahead|right)\n", people)


def test_without_http_the_agent_takes_an_installation_up_by_itself(
    config: Config, make_package, tmp_path: Path
):
    config = msgspec.structs.replace(config, http=Http(enabled=False))
    install(config, make_package())
    with Service(config) as service:
        path = service.path
        said = edge_agent("install", make_package(version="2", seed=2), config=path).stdout
        assert "will serve it within a second" in said
        assert "no HTTP" in edge_agent("status", config=path).stdout
        source = numbers(tmp_path, x=ROWS)
        assert "right" in edge_agent("infer", "dense", source, config=path).stdout
        assert "HTTP is off" in edge_agent("doctor", config=path).stdout
        assert service.end() == 0


def test_caches_are_shown_and_cleared(config: Config, make_package, tmp_path: Path):
    caching = msgspec.structs.replace(config.serve, cache=True)
    config = msgspec.structs.replace(config, serve=caching)
    install(config, make_package())
    source = numbers(tmp_path, x=ROWS)
    with Service(config) as service:
        for _ in range(3):
            edge_agent("infer", "dense", source, config=service.path)
        status = ask_json("status", config=service.path)
        counters = status["status"]["caches"]["exact"]
        assert (counters["hits"], counters["misses"], counters["health"]) == (2, 1, "")
        assert "hits 2" in edge_agent("cache", config=service.path).stdout
        assert "another agent" in edge_agent("cache", "clear", config=service.path, ok=1).stderr
        service.end()
    (before,) = ask_json("cache", config=service.path)
    assert {table["name"]: table["rows"] for table in before["tables"]}["entries"] == 1
    assert ask_json("cache", "clear", config=service.path) == {"cleared": ["exact"]}
    assert ask_json("cache", config=service.path) == []


def test_a_near_duplicate_cache_is_calibrated_on_the_users_samples(
    config: Config, make_package, tmp_path: Path
):
    config = msgspec.structs.replace(config, serve=Serve(cache=True))
    slot = install(config, make_package()).slot
    samples = clips(tmp_path / "samples")
    with Service(config) as service:
        words = ("cache", "calibrate", "dense", samples, "--epsilon", "0.1")
        done = ask_json(*words, config=service.path)
        assert (done["model"], done["samples"], done["groups"]) == (slot.model_id, 400, 100)
        assert done["threshold"] > 0
        assert done["evidence"]["upper"] <= 0.1
        near = ask_json("status", config=service.path)["status"]["caches"]["near dense"]
        assert (near["state"], near["threshold"]) == ("calibrated", done["threshold"])
        assert "100 independent groups" in edge_agent(*words, config=service.path).stdout
    # Ten clips prove nothing: the cache is off, and says why.
    for folder in sorted(samples.iterdir())[10:]:
        shutil.rmtree(folder)
    done = edge_agent(*words, config=service.path, ok=2)
    assert "off: " in done.stdout


# --- what goes wrong ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_model(tmp_path_factory: pytest.TempPathFactory, make_package) -> Path:
    """Settings of a data directory with one model."""
    config = Config(data_dir=str(tmp_path_factory.mktemp("mistakes") / "data"))
    install(config, make_package())
    return settings(config)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rollback", "dense"], "no previous version"),
        (["rollback", "dens"], "did you mean 'dense'?"),
        (["infer", "dens", "x.npz"], "no model 'dens'"),
        (["infer", "dense", "x.npz"], "no input at x.npz"),
        (["infer", "./gone.edgepkg", "x.npz"], "gone.edgepkg"),
        (["install", "gone.edgepkg"], "gone.edgepkg"),
        (["install"], "Missing argument"),
        (["isntall"], "No such command"),
        (["status", "--config", "/gone.toml"], "edge-agent init --config /gone.toml"),
    ],
)
def test_a_mistake_is_one_line_with_a_hint_and_exit_code_1(
    words: list[str], said: str, one_model: Path
):
    done = edge_agent(*words, config=one_model, ok=1)
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_a_package_whose_answers_differ_here_is_refused_with_exit_code_2(
    installed_config: Config, make_package, tmp_path: Path
):
    opened = package.open(make_package(version="3", seed=3))
    vectors = golden.from_bytes(opened.read("here/golden.npz"))
    wrong = tuple({"y": outputs["y"] + 1} for outputs in vectors.artifact)
    files = {title: opened.read(title) for title in opened.titles if title != "manifest.json"}
    files["here/golden.npz"] = golden.make(vectors.inputs, wrong, wrong).to_bytes()
    package.write(tmp_path / "p.edgepkg", opened.manifest, files)
    path = settings(installed_config)
    done = edge_agent("install", tmp_path / "p.edgepkg", config=path, ok=2)
    assert "the golden vectors do not replay here" in done.stderr
    (model_,) = ask_json("models", config=path)
    assert model_["current"]["version"] == "1.0.0"


def test_the_variant_of_a_package_is_chosen_and_shown(
    make_package, one_model: Path, tmp_path: Path
):
    path = make_package(version="3", seed=3)
    assert "here" in edge_agent("models", config=one_model).stdout
    chosen = edge_agent("verify", path, "--variant", "here", "--json", config=one_model).stdout
    assert json.loads(chosen)["variant"] == "here"
    inputs = tmp_path / "x.npy"
    np.save(inputs, np.zeros((1, 4), np.float32))
    for words in (("verify", path), ("bench", path), ("infer", path, inputs)):
        done = edge_agent(*words, "--variant", "pi", config=one_model, ok=1)
        assert "has no variant 'pi'" in done.stderr
    done = edge_agent("infer", "dense", inputs, "--variant", "here", config=one_model, ok=1)
    assert "leave --variant out" in done.stderr


def test_doctor_fails_with_1_and_only_for_failures(installed_config: Config):
    path = settings(installed_config)
    checks = {check["what"]: check["state"] for check in ask_json("doctor", config=path)}
    assert checks["model dense"] == "ok"
    assert checks["agent"] == "warn"
    assert "fail" not in checks.values()
    installed_config.root.chmod(0o755)
    done = edge_agent("doctor", "--json", config=path, ok=1)
    assert {check["what"]: check["state"] for check in json.loads(done.stdout)}["privacy"] == "fail"
    assert doctor.check_device(path)
