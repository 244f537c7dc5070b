"""Every example of docs/serving.md, run against a server; its tables checked against the code."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from PIL import Image as Pillow

from agent.config import Http
from agent.http import app, limits, oip, replies, wire
from agent.http.server import Server
from tests.agent import http_server
from tests.cases import ROOT

PAGE = (ROOT / "docs" / "serving.md").read_text("utf-8")
ADDRESS = "127.0.0.1:8000"  # in the page


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.M | re.S)


def table(heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without its head."""
    text = PAGE.split(f"### {heading}\n", 1)[1]
    lines = re.search(r"(?:^\|.*\n)+", text, re.M)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both models of the page installed twice, a picture, and settings of the first agent."""
    folder = tmp_path_factory.mktemp("serving")
    for make, name in ((http_server.dense, "steering"), (http_server.picture, "quarters")):
        path = make(tmp_path_factory.mktemp("package"), name=name)
        for root in ("data", "served"):
            http_server.install(folder / root, path)
    quarters = np.kron(np.array([[10, 20], [250, 40]]), np.ones((16, 16))).astype(np.uint8)
    Pillow.fromarray(quarters).save(folder / "photo.png")
    (folder / "config.toml").write_text(tomli_w.dumps({"data_dir": str(folder / "data")}))
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """A server on a port, with another one on the unix socket."""
    with (
        http_server.serving(folder / "served") as (agent, address),
        Server(agent, Http(socket=str(folder / "agent.sock"))) as local,
    ):
        local.start()
        yield address


def test_the_python_examples_print_what_they_say(folder, address, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(block.replace(ADDRESS, address), names)  # later ones go on where the first ended
        expected_lines = re.findall(r"^ *print\(.*\)  # (.*)$", block, re.M)
        assert capsys.readouterr().out.splitlines() == expected_lines
    assert len(blocks("python")) == 3


def test_the_shell_examples_get_answers(folder, address):
    answers = []
    for block in blocks("sh"):
        done = subprocess.run(
            ["sh", "-ec", block.replace(ADDRESS, address)],
            cwd=folder, capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
        at, decoder = 0, json.JSONDecoder()
        while at < len(done.stdout):
            answer, at = decoder.raw_decode(done.stdout, at)
            assert "error" not in answer, block
            answers.append(answer)
    numbers, zeros, status, ready = answers
    (shown,) = map(json.loads, blocks("json"))
    scores, best = (output["data"] for output in numbers["outputs"])
    numbers["outputs"][0]["data"] = [round(number, 3) for number in scores]
    score, rest = best[0].split(":", 1)
    numbers["outputs"][1]["data"] = [f"{float(score):.1f}:{rest}"]
    assert numbers == shown
    assert zeros["outputs"][0]["shape"] == [1, 3]
    assert [model["name"] for model in status["models"]] == ["quarters", "steering"]
    assert ready == {"ready": True}


def test_every_path_is_documented_and_offered(address):
    shown = {path for cell, *_ in table("Paths") for path in re.findall(r"`([^`]+)`", cell)}
    offered = app.PATHS.replace(
        "/v2/models/NAME[/versions/VERSION][/ready, /stats or /infer]",
        ", ".join(f"/v2/models/NAME{verb}" for verb in ("", "/ready", "/stats", "/infer")),
    )
    assert shown == set(offered.split(", "))


def test_every_parameter_is_documented():
    kinds = {
        "request": oip._Parameters,
        "output": oip._OutputParameters,
        "input": oip._InputParameters,
    }
    known = {(name, of) for of, kind in kinds.items() for name in kind.__struct_fields__}
    assert {(name.strip("`"), of) for name, of, _ in table("Parameters of a request")} == known


def test_every_status_and_limit_is_documented():
    shown = {int(status) for status, _ in table("Refusals")}
    assert shown == {status for _, status in replies.STATUS} | {403, 405, 415, 431, 500}
    limit = limits.DEFAULT
    refusals = PAGE.split("### Refusals\n", 1)[1]
    for text in (
        f"{limit.body_s:g} s", f"{limit.head // 1024} KiB or {limit.headers} headers",
        f"{limit.head_s:g} s", f"{limit.keep_alive_s} s", f"{limit.stuck_s:g} s",
        f"{oip.MAX_JSON // 2**20} MiB",
    ):  # fmt: skip
        assert text in refusals


def test_every_datatype_is_documented():
    line = PAGE.split("### Tensors\n", 1)[1].split(". ", 1)[0]
    shown = set(re.findall(r"`(\w+)`", line))
    assert shown <= wire.DATATYPES.keys()
    assert wire.DATATYPES.keys() - shown == {"INT16", "INT32", "UINT16", "UINT32"}  # "to"
