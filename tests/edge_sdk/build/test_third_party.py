"""A format, its converters and its runtime from another package, through every command.

tests/plugins/edge_linear knows the product; the product does not know it.
"""

import json
import subprocess
import sys

import numpy as np
import pytest

from edge_core.machine import detect
from edge_core.runtimes import registry
from tests.cases import ROOT

PLUGINS = str(ROOT / "tests" / "plugins")
INPUTS, OUTPUTS = 8, 3
AGENT = """
import json, sys
import numpy as np
from agent import Agent, Config
from agent.packages.install import install

root, package, samples = sys.argv[1:]
config = Config(data_dir=root)
install(config, __import__("pathlib").Path(package))
with Agent(config) as agent:
    answer = agent.infer("plan-b", {"x": np.load(samples)[0]}, top=1)
print(json.dumps(answer.outputs["y"].tolist()))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """model.lin, samples.npy and a profile of this machine that names its runtime."""
    folder = tmp_path_factory.mktemp("linear")
    rng = np.random.default_rng(1)
    with (folder / "plan-b.lin").open("wb") as file:
        np.savez(
            file,
            weights=rng.normal(size=(INPUTS, OUTPUTS)).astype(np.float32),
            bias=rng.normal(size=OUTPUTS).astype(np.float32),
        )
    np.save(folder / "samples.npy", rng.normal(size=(40, 1, INPUTS)).astype(np.float32))
    np.save(folder / "one.npy", np.load(folder / "samples.npy")[0])
    here = detect.detect_platform()
    (folder / "box.toml").write_text(
        f'''extends = "x86-64"
name = "box"
title = "A box with a runtime of its own"
runtimes = [{{name = "linear", version = "1.0"}}]
precisions = ["fp32", "fp16"]
[platform]
arch = "{here.arch}"
os = "{here.os}"
''',
        encoding="utf-8",
    )
    return folder


def compute_output(folder):
    with np.load(folder / "plan-b.lin") as arrays:
        return np.load(folder / "one.npy") @ arrays["weights"] + arrays["bias"]


@pytest.fixture(scope="module", params=["linear-fp16", "linear-fp32-folder"])
def package_path(edge, folder, request):
    """A package whose entry is a file, and one whose entry is a folder of files."""
    out = folder / request.param
    edge("build", folder / "plan-b.lin", "-p", folder / "box.toml", "--eval",
         folder / "samples.npy", "--only", request.param, "--out", out,
         PYTHONPATH=PLUGINS)  # fmt: skip
    (package,) = out.glob("*.edgepkg")
    return package


def test_it_is_inspected(edge, folder):
    process = edge("inspect", folder / "plan-b.lin", "-p", folder / "box.toml", "--json",
                   PYTHONPATH=PLUGINS)  # fmt: skip
    inspected = json.loads(process.stdout)
    assert inspected["model"]["format"] == "linear"
    assert inspected["model"]["macs"] == INPUTS * OUTPUTS
    assert inspected["support"][0]["runtime"] == "linear 1.0"


def test_its_converters_are_planned_and_ours_are_not(edge, folder):
    process = edge("plan", folder / "plan-b.lin", "-p", folder / "box.toml", "--json",
                   PYTHONPATH=PLUGINS)  # fmt: skip
    (plan,) = json.loads(process.stdout)
    assert [candidate["spec"]["name"] for candidate in plan["chosen"]] == [
        "linear-fp16",
        "linear-fp32",
        "linear-fp32-folder",
    ]
    assert {
        decision["verdict"]
        for decision in plan["decisions"]
        if "linear" not in decision["candidate"]
    } == {"out"}


def test_a_package_is_built_verified_and_run(edge, folder, package_path):
    edge("verify", package_path, PYTHONPATH=PLUGINS)
    process = edge("run", package_path, folder / "one.npy", "--json", PYTHONPATH=PLUGINS)
    answer = np.array(json.loads(process.stdout)["outputs"]["y"])
    np.testing.assert_allclose(answer, compute_output(folder), atol=0.02)


def test_the_report_shows_its_candidates(package_path):
    (html,) = package_path.parent.glob("*.report.html")
    text = html.read_text()
    assert package_path.parent.name in text
    assert "linear 1.0" in text


def test_the_agent_installs_and_serves_it(edge, folder, package_path, tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", AGENT, tmp_path, package_path, folder / "samples.npy"],
        cwd=ROOT, env=edge.environment(PYTHONPATH=PLUGINS), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    answer = np.array(json.loads(process.stdout))
    np.testing.assert_allclose(answer, compute_output(folder), atol=0.02)


def test_without_the_package_its_names_are_refused_with_those_that_are_known(edge, folder):
    assert "linear" not in registry.by_name()
    process = edge("plan", folder / "plan-b.lin", "-p", folder / "box.toml", ok=1)
    assert "no runtime 'linear' is known" in process.stderr
    assert "one of: onnxruntime, litert" in process.stderr
