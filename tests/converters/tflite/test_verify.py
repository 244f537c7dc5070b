"""A wrong lowering is refused, and the op is named: one is put in its place on purpose."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from converters.tflite import verify
from converters.tflite.ops.elementwise import apply_unary
from converters.tflite.ops.table import LOWERINGS
from edge_core.errors import ConvertError
from tests import graphs


@pytest.fixture
def source(tmp_path):
    input_info, output_info, second_info = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in ("x", "y", "z")
    )
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["a"], name="first"),
        helper.make_node("Tanh", ["a"], ["b"], name="second"),
        helper.make_node("Neg", ["b"], ["y"], name="third"),
        helper.make_node("Exp", ["a"], ["z"], name="fourth"),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [input_info], [output_info, second_info]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    return graphs.save_model(model, tmp_path / "model.onnx")


def test_a_right_file_passes(source, tmp_path):
    sample = {"x": np.linspace(-3, 3, 8, dtype=np.float32)[None]}
    lowered = verify.convert_verified(
        source, tmp_path / "out.tflite", layout="NHWC", samples=[sample]
    )
    assert [spec.name for spec in lowered.outputs] == ["y", "z"]


@pytest.mark.parametrize(
    ("wrong", "code"), [("Sigmoid", "SIN"), ("Tanh", "SIN"), ("Neg", "ABS"), ("Exp", "SQRT")]
)
def test_the_op_that_differs_is_named(source, tmp_path, wrong, code):
    def lower_wrongly(node):
        apply_unary(node, lambda calc, tensor: calc(code, tensor))

    lowerings = {**LOWERINGS, wrong: lower_wrongly}
    with pytest.raises(
        ConvertError, match=rf"op {wrong} \('\w+'\): output '\w' changed by"
    ) as caught:
        verify.convert_verified(
            source, tmp_path / "out.tflite", layout="NHWC", samples=[], lowerings=lowerings
        )
    assert "onnx-*" in caught.value.hint
