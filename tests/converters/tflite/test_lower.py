"""TFLite files of graphs that look alike and are not: as ONNX Runtime, or refused by name."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from converters.layouts import to_artifact, to_model
from converters.tflite import lower, quantise
from edge_core.errors import ConvertError
from edge_core.runtimes import onnxruntime as ort_adapter
from edge_core.runtimes.tflite import LITERT
from tests import graphs

RNG = np.random.default_rng(3)
SQUARE = RNG.standard_normal((1, 4, 3, 3)).astype(np.float32)


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


@pytest.fixture
def check_same(tmp_path):
    """Convert for both layouts and compare with ONNX Runtime on the fed values."""

    def run(nodes, fed, outputs, constants=None, opset=18):
        kinds = {
            name: (array.shape, helper.np_dtype_to_tensor_dtype(array.dtype))
            for name, array in fed.items()
        }
        unknown = None, TensorProto.UNDEFINED
        model = graphs.make_model(
            nodes,
            [graphs.value(name, *kind) for name, kind in kinds.items()],
            [graphs.value(name, *kinds.get(name, unknown)) for name in outputs.split()],
            [graphs.constant(name, array) for name, array in (constants or {}).items()],
            opset=opset,
        )
        source = graphs.save_model(onnx.shape_inference.infer_shapes(model), tmp_path / "m.onnx")
        session = ort_adapter.open(source, threads=1, options={})
        for layout in ("NHWC", "NCHW"):
            out = tmp_path / "m.tflite"
            specs = lower.to_tflite(source, out, layout=layout)
            runner = LITERT.open(out, threads=1, options={})
            assert [spec.name for spec in runner.outputs] == outputs.split()
            actual = runner.run(to_artifact(fed, session.inputs, specs.inputs))
            actual = to_model(actual, session.outputs, specs.outputs)
            for name, expected in session.run(fed).items():
                assert actual[name].dtype == expected.dtype
                np.testing.assert_allclose(actual[name], expected, rtol=1e-4, atol=1e-4)

    return run


def test_a_moved_matrix_is_multiplied_with_itself_and_not_with_its_transpose(check_same):
    weights = {"w": RNG.standard_normal((4, 4, 1, 1)).astype(np.float32)}
    conv = node("Conv", "x w", "t")
    check_same([conv, node("MatMul", "t t", "y")], {"x": SQUARE}, "y", weights)
    turned = node("Transpose", "t", "u", perm=[0, 1, 3, 2])
    check_same([conv, turned, node("MatMul", "t u", "y")], {"x": SQUARE}, "y", weights)
    check_same([conv, turned, node("MatMul", "u u", "y")], {"x": SQUARE}, "y", weights)


@pytest.mark.parametrize("swapped", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_gemm_multiplies_what_is_computed(check_same, swapped):
    left, right = swapped
    gemm = node("Gemm", "x x", "y", transA=left, transB=right, alpha=0.5)
    check_same([gemm], {"x": SQUARE[0, 0]}, "y")


def test_a_slice_may_step_back_over_an_axis_of_one_element(check_same):
    """The runtime takes a stretch of one element with a negative step for an empty one."""
    bounds = {"s": [0, 5, 1], "e": [-(10**9), -(10**9), 8], "a": [0, 3, 2], "by": [-2, -1, 2]}
    check_same(
        [node("Slice", "x s e a by", "y")],
        {"x": RNG.standard_normal((1, 8, 6, 6)).astype(np.float32)},
        "y",
        {name: np.array(numbers) for name, numbers in bounds.items()},
    )


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(("size", "kernel", "pad"), [(4, 1, 0), (3, 2, 1), (7, 2, 0)])
def test_ceil_mode_makes_no_window_of_padding_alone(check_same, op, size, kernel, pad):
    """ONNX's shape inference counts such windows up to opset 21; runtimes do not make them."""
    pool = node(
        op, "x", "y", ceil_mode=1, kernel_shape=[kernel] * 2, strides=[2, 2], pads=[pad] * 4
    )
    fed = {"x": RNG.standard_normal((1, 2, size, size)).astype(np.float32)}
    check_same([pool, node("Relu", "y", "z")], fed, "y z")


def test_an_output_may_be_an_input_and_keeps_its_name(check_same, tmp_path):
    """Also once quantised, although two tensors of a file cannot share the name."""
    weights = {"w": RNG.standard_normal((64, 32)).astype(np.float32)}
    fed = {"x": RNG.standard_normal((1, 64)).astype(np.float32)}
    check_same([node("Gemm", "x w", "y")], fed, "x y", weights)
    quantise.write_quantised(tmp_path / "m.tflite", tmp_path / "q.tflite", quantise.DYNAMIC)
    session = LITERT.open(tmp_path / "q.tflite", threads=1, options={})
    assert [spec.name for spec in session.outputs] == ["x", "y"]
    assert np.array_equal(session.run(fed)["x"], fed["x"])


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_powers_of_integers_are_exact(check_same, kind):
    """In float32, as POW computes them, 5001 squared is 25010000."""
    fed = {"x": np.array([[5001, -4097, 0, 1]], kind)}
    check_same([node("Pow", "x e", "y")], fed, "y", {"e": np.array(2, kind)})
    check_same([node("Pow", "x e", "y")], fed, "y", {"e": np.array([2, 1, 0, 63], kind)})
    check_same([node("Pow", "x e", "y")], fed, "y", {"e": np.array([[0], [2]], kind)})


def test_powers_of_integers_with_computed_exponents_are_refused(check_same):
    fed = {"x": np.array([5001, 3]), "e": np.array([2, 3])}
    with pytest.raises(ConvertError, match=r"op Pow: .* constant whole exponents"):
        check_same([node("Pow", "x e", "y")], fed, "y")


@pytest.mark.parametrize("recipe", [quantise.INT8_INT4_EMBEDDING, quantise.INT4_BLOCKS])
def test_layers_that_share_weights_may_take_them_in_different_forms(check_same, recipe, tmp_path):
    table = RNG.standard_normal((100, 64)).astype(np.float32)
    tied = [
        node("Gather", "table ids", "rows"),
        node("Transpose", "table", "turned", perm=[1, 0]),
        node("MatMul", "rows turned", "scores"),
    ]
    fed = {"ids": np.arange(8)[None]}
    check_same(tied, fed, "scores", {"table": table})
    quantise.write_quantised(tmp_path / "m.tflite", tmp_path / "q.tflite", recipe)
    before, after = (
        LITERT.open(tmp_path / name, threads=1, options={}).run(fed)["scores"].ravel()
        for name in ("m.tflite", "q.tflite")
    )
    assert before @ after / np.linalg.norm(before) / np.linalg.norm(after) > 0.98


def test_an_int8_model_is_like_itself_and_offline_a_missing_runtime_is_its_profiles_own(
    edge, tmp_path
):
    layers = [node("Gemm", "x w", "h"), node("Relu", "h", "r"), node("Gemm", "r v", "scores")]
    model = graphs.make_model(
        layers, [graphs.value("x", [1, 64])], [graphs.value("scores", [1, 4])],
        [graphs.weight("w", 64, 64), graphs.weight("v", 64, 4)],
    )  # fmt: skip
    rows = RNG.standard_normal((20, 64)).astype(np.float32)
    lower.to_tflite(graphs.save_model(model, tmp_path / "m.onnx"), tmp_path / "float.tflite")
    source = tmp_path / "integers.tflite"
    quantise.write_quantised(
        tmp_path / "float.tflite",
        source,
        quantise.STATIC_INTEGER_IO,
        [{"x": row[None]} for row in rows],
    )
    np.save(tmp_path / "rows.npy", rows[:, None])
    gateway, pi32 = "x86-gateway-n100", "raspberry-pi-3b-plus-32bit"
    (tmp_path / "cache").mkdir()  # without any runtime
    edge(
        "build", source, "-p", gateway, "-p", pi32, "--offline", "--eval", tmp_path / "rows.npy",
        "--metric", "cosine", "--out", tmp_path / "out", cache=tmp_path / "cache", ok=2,
    )  # fmt: skip
    reports = {profile: report(tmp_path / "out", profile) for profile in (gateway, pi32)}
    (measured,) = reports[gateway]["measurements"]
    assert measured["values"]["cosine"]["value"] == pytest.approx(1.0, abs=1e-6)
    assert measured["values"]["max_error"]["value"] == 0.0
    (missing,) = reports[pi32]["measurements"]
    assert "tflite-runtime 2.14.0 is not at hand and --offline was given" in missing["error"]


def report(out, profile):
    (path,) = out.glob(f"*-{profile}.report.json")
    return json.loads(path.read_text())
