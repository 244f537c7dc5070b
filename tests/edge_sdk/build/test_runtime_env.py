"""Private runtime versions: the very one where there is a wheel, the nearest and its label else."""

import sys

import numpy as np
import pytest

from converters.tflite import lower
from edge_core.errors import MeasureError
from edge_core.machine import detect
from edge_core.runtimes import onnxruntime, sample_store
from edge_core.runtimes import registry as runtimes
from edge_core.runtimes.child import Child
from edge_sdk.build import measure, runtime_env
from edge_sdk.build.runtime_env import RuntimeEnv
from edge_sdk.build.workspace import Workspace

HERE = onnxruntime.version()


@pytest.fixture
def cache(edge):
    return edge.cache


def version_in(env, model):
    with Child(site=env.site) as child:
        return child.ask(
            "open", path=str(model), runtime=env.name, threads=1, options={}
        )["version"]  # fmt: skip


def test_the_hosts_own_version_needs_no_folder(cache):
    env = runtime_env.provide("onnxruntime", HERE, cache)
    assert (env.version, env.site, env.exact, env.note) == (HERE, None, True, "")


@pytest.mark.parametrize("version", ["1.19.2", "1.16.3"])  # 1.16.3 imports beside NumPy 1 only
def test_an_older_version_runs_in_a_folder_of_its_own(cache, fastestdet, version):
    env = runtime_env.provide("onnxruntime", version, cache)
    assert env.exact
    assert env.where.startswith(f"onnxruntime {version} on this ")
    assert version_in(env, fastestdet) == version
    assert onnxruntime.version() == HERE


TFLITE = [("litert", "2.1.2")]
if sys.version_info < (3, 12):  # the others have no wheels from there on
    TFLITE += [("tflite-runtime", "2.14.0"), ("tflite-runtime", "2.20.0.dev20250409")]
    TFLITE += [("litert", "1.0.1")]


@pytest.mark.parametrize(("name", "version"), TFLITE)
def test_tflite_runtimes_run_beside_the_numpy_they_need(cache, digits, tmp_path, name, version):
    lower.to_tflite(digits, tmp_path / "digits.tflite")
    sample_store.write(tmp_path / "feeds", [{"input": np.zeros((1, 28, 28, 1), np.float32)}])
    env = runtime_env.provide(name, version, cache)
    assert (env.exact, env.version) == (True, version)
    with Child(site=env.site) as child:
        path = str(tmp_path / "digits.tflite")
        reply = child.ask("open", path=path, runtime=name, threads=1, options={})
        assert reply["version"] == version
        assert [spec["name"] for spec in reply["inputs"]] == ["input"]
        child.ask("run", feeds=str(tmp_path / "feeds"), out=str(tmp_path / "out"))
    assert sample_store.read(tmp_path / "out").stacked["logits"].shape == (1, 1, 10)


@pytest.mark.parametrize(
    ("name", "version", "wanted"),
    [
        ("onnxruntime", "1.18.1", ["onnxruntime==1.18.1", "numpy==1.26.4"]),
        ("onnxruntime", "1.19.0", ["onnxruntime==1.19.0"]),
        ("litert", "1.0.1", ["ai-edge-litert==1.0.1", "numpy==1.26.4"]),
        ("litert", "1.1.2", ["ai-edge-litert==1.1.2"]),
        ("tflite-runtime", "2.14.0", ["tflite-runtime==2.14.0", "numpy==1.26.4"]),
        (
            "tflite-runtime", "2.20.0.dev20250409",
            ["tflite-runtime-nightly==2.20.0.dev20250409", "numpy==1.26.4"],
        ),
    ],
)  # fmt: skip
def test_what_is_installed_for_a_version(name, version, wanted):
    assert runtime_env._requirements(runtimes.get(name), version) == wanted


def test_a_version_without_a_wheel_here_is_replaced_by_the_nearest_which_says_so(cache, fastestdet):
    env = runtime_env.provide("onnxruntime", "1.10.0", cache)
    assert not env.exact
    assert env.version.startswith("1.15.")  # the oldest wheel for Python 3.11
    assert "the profile names 1.10.0, which has no wheel for this host" in env.where
    assert version_in(env, fastestdet) == env.version


def test_offline_takes_what_is_at_hand_and_says_so(cache, tmp_path):
    runtime_env.provide("onnxruntime", "1.19.2", cache)
    at_hand = runtime_env.provide("onnxruntime", "1.19.2", cache, offline=True)
    assert at_hand.exact
    env = runtime_env.provide("onnxruntime", "1.19.0", tmp_path, offline=True)
    assert (env.version, env.exact) == (HERE, False)
    assert "--offline was given" in env.where


def test_offline_with_no_version_at_hand_says_what_to_do(tmp_path):
    with pytest.raises(MeasureError, match=r"tflite-runtime 2\.14\.0 is not at hand") as error:
        runtime_env.provide("tflite-runtime", "2.14.0", tmp_path, offline=True)
    assert "without --offline" in error.value.hint


def test_a_version_that_is_none_cannot_be_had(cache):
    with pytest.raises(MeasureError, match="onnxruntime no-version cannot be installed"):
        runtime_env.provide("onnxruntime", "no-version", cache)


@pytest.mark.parametrize(
    ("wanted", "available", "nearest"),
    [
        ("1.10.0", ["1.15.0", "1.15.1", "1.31.1"], "1.15.1"),
        ("1.19.1", ["1.18.1", "1.19.2", "1.20.0"], "1.19.2"),
        ("1.40.0", ["1.31.1", "2.0.0"], "1.31.1"),
        ("1.19.1", ["1.19.0.dev1"], None),
        ("1.19.1", [], None),
    ],
)
def test_nearest_is_by_minor_version_and_never_a_prerelease(wanted, available, nearest):
    assert runtime_env._nearest(wanted, available) == nearest


def test_a_label_that_would_be_wrong_is_an_error(fastestdet, tmp_path):
    """The folder holds another version than its name says: nothing is measured under that name."""
    wrong = RuntimeEnv("onnxruntime", "1.2.3", None, exact=True)
    inputs = onnxruntime.open(fastestdet, threads=1, options={}).inputs
    subject = measure.Subject(fastestdet, "0" * 64, {}, wrong, inputs, inputs)
    sample_store.write(tmp_path / "feeds", [{"input.1": np.zeros((1, 3, 352, 352), np.float32)}])
    with pytest.raises(MeasureError, match=rf"onnxruntime is {HERE} there, not 1\.2\.3"):
        measure.answers(
            Workspace(tmp_path / "cache"), subject, tmp_path / "feeds", detect.detect(runtimes={})
        )
