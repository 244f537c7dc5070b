"""Preparing a model: what the original is, when an input of it became a constant."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from converters.registry import find_format
from edge_core.files import sha256_file
from edge_core.runtimes import onnxruntime
from edge_sdk.build import convert
from edge_sdk.build.workspace import Workspace
from tests import graphs


@pytest.fixture
def scaled(tmp_path):
    """y = x * factor, where the factor is a whole number that callers feed."""
    nodes = [
        helper.make_node("Cast", ["factor"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "real"], ["y"]),
    ]
    inputs = [graphs.value("x", [1, 4]), graphs.value("factor", [], TensorProto.INT64)]
    model = graphs.make_model(nodes, inputs, [graphs.value("y", [1, 4])])
    return graphs.save_model(model, tmp_path / "scaled.onnx")


@pytest.mark.parametrize(("shapes", "names"), [({}, ["x", "factor"]), ({"factor": 3}, ["x"])])
def test_the_original_takes_the_inputs_that_samples_have(scaled, tmp_path, shapes, names):
    prepared = convert.prepare(
        Workspace(tmp_path / "cache"), scaled, find_format(scaled), sha256_file(scaled), shapes
    )
    original = onnxruntime.open(prepared.original, threads=1, options={})
    assert [spec.name for spec in original.inputs] == names
    assert prepared.original_sha256 == sha256_file(prepared.original)
    assert prepared.sha256 == sha256_file(prepared.path)
    feeds = {"x": np.ones((1, 4), np.float32), "factor": np.array(3, np.int64)}
    answer = original.run({name: feeds[name] for name in names})
    np.testing.assert_array_equal(answer["y"], 3 * feeds["x"])
