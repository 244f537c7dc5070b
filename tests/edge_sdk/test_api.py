"""The Python interface: what the command does, as functions."""

import subprocess
import sys

import pytest

import edge_sdk
from edge_core.errors import InputError
from tests.cases import ROOT


def test_the_python_interface_does_the_same_in_five_lines(digits, edge, tmp_path):
    code = f"""
import edge_sdk
options = edge_sdk.BuildOptions(evaluation="examples.data:digits_eval", only=["onnx-fp32"],
                                preprocess="mnist", out={str(tmp_path)!r})
results = edge_sdk.build({str(digits)!r}, ["x86-64"], options)
print(edge_sdk.verify(results[0].package).golden.ok, results[0].verdict.winner)
"""
    completed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=edge.environment(), capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert completed.stdout.split() == ["True", "onnx-fp32"]


def test_a_profile_is_given_by_name_or_by_value_and_budgets_as_numbers(digits):
    profile = edge_sdk.load_profile("raspberry-pi-4b", package_mb=7)
    assert profile.budgets.package_mb == 7
    by_name = edge_sdk.plan(digits, "raspberry-pi-4b")
    by_value = edge_sdk.plan(digits, profile)
    assert by_name.decisions == by_value.decisions


def test_inspect_fixes_dimensions_by_name(magika):
    (name,) = edge_sdk.inspect(magika).model.dynamic
    assert edge_sdk.inspect(magika, shapes={name: 1}).model.macs > 1_000_000


def test_a_build_without_a_model_or_a_profile_is_an_input_error(tmp_path):
    options = edge_sdk.BuildOptions(out=tmp_path)
    with pytest.raises(InputError, match="no model at"):
        edge_sdk.build(tmp_path / "none.onnx", ["x86-64"], options)
    with pytest.raises(InputError, match="no profile"):
        edge_sdk.build(tmp_path / "none.onnx", [], options)
