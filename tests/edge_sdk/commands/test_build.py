"""`edge inspect`, `edge plan` and `edge build`, on good and on bad input."""

import json
import re

import numpy as np
import onnx
import pytest

from tests.cases import DIGITS
from tests.edge_sdk.commands.messages import error_line, hint_line


def test_inspect_says_what_the_model_is_and_what_a_runtime_lacks(edge, digits):
    inspection = json.loads(edge("inspect", digits, "-p", "raspberry-pi-4b", "--json").stdout)
    assert inspection["model"]["inputs"][0]["shape"] == [1, 1, 28, 28]
    assert inspection["model"]["parameters"] == 390410
    assert inspection["model"]["macs"] == 7748608
    assert inspection["support"][0]["missing"] == []
    text = edge("inspect", digits, "-p", "raspberry-pi-4b").stdout
    assert "7.7 M MACs" in text
    assert "Conv 3" in text


def test_inspect_counts_macs_once_dimensions_are_fixed(edge, magika):
    free = json.loads(edge("inspect", magika, "--json").stdout)
    assert free["model"]["macs"] is None
    (name,) = free["model"]["dynamic"]
    fixed = json.loads(edge("inspect", magika, "--shape", f"{name}=1", "--json").stdout)
    assert fixed["model"]["macs"] > 1_000_000


def test_inspect_shows_the_outputs_that_follow_from_fixed_inputs(edge, lite0):
    inspection = json.loads(edge("inspect", lite0, "--json").stdout)
    assert inspection["model"]["outputs"][0]["shape"] == [1, 1000]


def test_plan_lists_every_candidate_with_its_reason(edge, lite0):
    (plan,) = json.loads(edge("plan", lite0, "-p", "x86-gateway-n100", "--json").stdout)
    decisions = {one["candidate"]: one for one in plan["decisions"]}
    assert decisions["onnx-int8-static-u8s8"]["verdict"] == "in"
    assert "75.5 ms against 7.89 ms" in decisions["onnx-int8-dynamic-conv"]["evidence"]
    text = edge("plan", lite0, "-p", "x86-gateway-n100").stdout
    assert all(name in text for name in decisions)


def test_a_build_for_a_profile_of_this_machine_is_measured_and_not_predicted(
    edge, digits, tmp_path
):
    edge("profiles", "detect", "--out", tmp_path / "here.toml")
    completed = edge("build", digits, "-p", tmp_path / "here.toml", *DIGITS, "--only", "onnx-fp32",
                "--out", tmp_path, "--json")  # fmt: skip
    (result,) = json.loads(completed.stdout)
    assert result["measurements"][0]["values"]["latency_p50_ms"]["kind"] == "measured"


# Bad input: models


@pytest.mark.parametrize("keep", [0, 100, 200_000])
def test_a_truncated_model(edge, digits, tmp_path, keep):
    (tmp_path / "cut.onnx").write_bytes(digits.read_bytes()[:keep])
    completed = edge("build", tmp_path / "cut.onnx", "-p", "x86-64", *DIGITS, "--out",
                tmp_path / "out", ok=1)  # fmt: skip
    assert "cut.onnx" in error_line(completed)
    assert not list((tmp_path / "out").glob("*"))


def test_a_model_that_is_not_there_or_of_another_format(edge, tmp_path):
    assert "no model at nowhere.onnx" in error_line(edge("inspect", "nowhere.onnx", ok=1))
    (tmp_path / "m.h5").write_bytes(b"\x89HDF")
    assert "read from .onnx or .pt2" in error_line(edge("inspect", tmp_path / "m.h5", ok=1))


def test_a_model_with_an_op_that_nothing_has(edge, tmp_path):
    node = onnx.helper.make_node("Frobnicate", ["x"], ["y"], name="here")
    source = onnx.helper.make_tensor_value_info("x", 1, [1, 4])
    result = onnx.helper.make_tensor_value_info("y", 1, [1, 4])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [source], [result]),
        opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    onnx.save(model, tmp_path / "odd.onnx")
    np.save(tmp_path / "x.npy", np.ones((2, 4), np.float32))
    completed = edge("build", tmp_path / "odd.onnx", "-p", "x86-64", "--eval", tmp_path / "x.npy",
                "--out", tmp_path / "out", ok=1)  # fmt: skip
    assert "op Frobnicate (node 'here')" in error_line(completed)
    assert "without it" in hint_line(completed)


def test_a_dimension_that_is_still_free_names_it_and_the_option(edge, magika, tmp_path):
    completed = edge("build", magika, "-p", "x86-64", "--eval", "examples.data:magika_eval",
                     "--out", tmp_path, ok=1)  # fmt: skip
    assert re.search(r"--shape \S+=1|--shape", completed.stderr)
    assert "unk__214" in error_line(completed) + hint_line(completed)


# Bad input: samples


def test_an_empty_calibration_folder(edge, lite0, tmp_path):
    (tmp_path / "empty").mkdir()
    completed = edge("build", lite0, "-p", "x86-64", "--calibration", tmp_path / "empty",
                "--preprocess", "imagenet", "--out", tmp_path / "out", ok=1)  # fmt: skip
    assert "empty: no images in it" in error_line(completed)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((4, 1, 27, 28), np.float32), "shape 1x1x27x28; the model takes 1x1x28x28"),
        (np.full((4, 1, 28, 28), np.nan, np.float32), "sample 0: input 'input' contains NaN"),
        (np.ones((4, 1, 28, 28), np.complex64), "dtype complex64; the model takes float32"),
    ],
)
def test_samples_that_do_not_fit(edge, digits, tmp_path, array, message):
    np.save(tmp_path / "x.npy", array)
    completed = edge("build", digits, "-p", "x86-64", "--eval", tmp_path / "x.npy", "--out",
                tmp_path / "out", ok=1)  # fmt: skip
    assert message in error_line(completed)
    assert not list((tmp_path / "out").glob("*"))


def test_no_samples_at_all(edge, digits, tmp_path):
    completed = edge("build", digits, "-p", "x86-64", "--out", tmp_path, ok=1)
    assert "no samples" in error_line(completed)
    assert "--eval" in hint_line(completed)


def test_labels_and_class_names_that_do_not_fit_the_scores(edge, digits, tmp_path):
    np.savez(tmp_path / "x.npz", input=np.ones((4, 1, 28, 28), np.float32), labels=[0, 1, 2, 10])
    arguments = ("build", digits, "-p", "x86-64", "--eval", tmp_path / "x.npz", "--out", tmp_path)
    completed = edge(*arguments, ok=1)
    assert "x.npz: label 10 is beyond the 10 scores of 'logits'" in error_line(completed)
    assert "count from 0" in hint_line(completed)
    np.savez(tmp_path / "x.npz", input=np.ones((4, 1, 28, 28), np.float32), labels=[0, 1, 2, 9])
    (tmp_path / "names.txt").write_text("zero\none\n")
    completed = edge(*arguments, "--class-names", tmp_path / "names.txt", ok=1)
    assert "2 class names for the 10 scores of 'logits'" in error_line(completed)


def test_a_metric_that_needs_labels_or_does_not_exist(edge, digits, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((4, 1, 28, 28), np.float32))
    arguments = ("build", digits, "-p", "x86-64", "--eval", tmp_path / "x.npy", "--out", tmp_path)
    assert "metric top1 needs labels" in error_line(edge(*arguments, "--metric", "top1", ok=1))
    completed = edge(*arguments, "--metric", "f1", ok=1)
    assert "no metric 'f1'" in error_line(completed)
    assert "agreement" in hint_line(completed)


# Bad input: options


@pytest.mark.parametrize(
    ("arguments", "message", "way_out"),
    [
        (("-p", "raspberry-pi-4"), "raspberry-pi-4", "raspberry-pi-4b"),
        (("-p", "x86-64", "--set", "budgets.latency_p99=5"), "latency_p99", "latency_p99_ms"),
        (("-p", "x86-64", "--set", "budgets.package_mb=big"), "package_mb", ""),
        (("-p", "x86-64", "--shape", "batch"), "--shape batch", ""),
        (("-p", "x86-64", "--shape", "batch=0"), "--shape batch=0", ""),
    ],
)
def test_wrong_options(edge, digits, tmp_path, arguments, message, way_out):
    completed = edge("build", digits, *arguments, *DIGITS, "--out", tmp_path, ok=1)
    assert message in error_line(completed)
    assert way_out in completed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--name", "../up"), "name '../up' cannot be part of a file name"),
        (("--version", "1/2"), "version '1/2' cannot be part of a file name"),
        (("-p", "x86-64"), "two profiles are named 'x86-64'"),
        (("--shape", "input=\u00b2"), "--shape input=\u00b2"),
    ],
)
def test_options_that_would_write_elsewhere_or_twice(edge, digits, tmp_path, arguments, message):
    out = tmp_path / "out"
    completed = edge("build", digits, "-p", "x86-64", *arguments, *DIGITS, "--out", out, ok=1)
    assert message in error_line(completed)
    assert not list(tmp_path.iterdir())


def test_an_output_folder_that_cannot_be_written(edge, digits, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    completed = edge("build", digits, "-p", "x86-64", *DIGITS, "--out", tmp_path / "file", ok=1)
    assert "cannot write" in error_line(completed)
