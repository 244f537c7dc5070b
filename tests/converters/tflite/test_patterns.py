"""Functions spelled out in many nodes, and constants that go into the layer before them."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from converters.onnx.preparation import prepare_model
from converters.tflite import flatbuffer, lower, op_versions, patterns
from edge_core.runtimes import onnxruntime as ort_adapter
from edge_core.runtimes.tflite import LITERT
from examples import data
from tests import graphs
from tests.graphs import constant, value, weight


def scalar(name, number):
    return constant(name, number, np.float32)


NUMBERS = [
    scalar("half", 0.5), scalar("one", 1.0), scalar("root", math.sqrt(2)), scalar("three", 3.0),
    scalar("inverse", 1 / math.sqrt(2)), scalar("k", math.sqrt(2 / math.pi)), scalar("six", 6.0),
    scalar("c", 0.044715), scalar("zero", 0.0), scalar("two", 2.0), scalar("nearly", 1.5),
]  # fmt: skip
# Each line: op, inputs, output.
GELUS = {
    "torch": ["Div x root a", "Erf a b", "Add b one c1", "Mul x c1 d", "Mul d half y"],
    "half first": ["Mul x half h", "Mul x inverse a", "Erf a b", "Add one b c1", "Mul h c1 y"],
    "sum halved": ["Mul x inverse a", "Erf a b", "Add b one c1", "Mul half c1 d", "Mul d x y"],
    "halved by Div": ["Div x root a", "Erf a b", "Add b one c1", "Mul c1 x d", "Div d two y"],
}
TANH_GELUS = {
    "cube by Pow": [
        "Pow x three a", "Mul a c b", "Add x b d", "Mul d k e", "Tanh e f", "Add f one g",
        "Mul x half h", "Mul h g y",
    ],
    "cube by Mul": [
        "Mul x x s", "Mul s x a", "Mul c a b", "Add b x d", "Mul k d e", "Tanh e f", "Add one f g",
        "Mul x g h", "Mul half h y",
    ],
    "factored": [
        "Mul x x s", "Mul c s b", "Add b one d", "Mul x k w", "Mul w d e", "Tanh e f",
        "Add f one g", "Mul g half h", "Mul h x y",
    ],
}  # fmt: skip
SWISHES = {
    "clip": ["Add x three a", "Clip a zero six b", "Mul x b d", "Div d six y"],
    "clip divided": ["Add x three a", "Clip a zero six b", "Div b six d", "Mul d x y"],
}
OTHERS = {
    "another scale": ["Div x nearly a", "Erf a b", "Add b one c1", "Mul x c1 d", "Mul d half y"],
    "of two tensors": ["Div x root a", "Erf a b", "Add b one c1", "Mul v c1 d", "Mul d half y"],
    "not halved": ["Div x root a", "Erf a b", "Add b one c1", "Mul x c1 y"],
}


def write_out(lines):
    nodes = []
    for line in lines:
        op, *inputs, out = line.split()
        nodes.append(helper.make_node(op, inputs, [out]))
    inputs = [
        value(name, (2, 9)) for name in ("x", "v") if any(name in line.split() for line in lines)
    ]
    return graphs.make_model(nodes, inputs, [value("y", (2, 9))], NUMBERS)


def ops(model):
    return [node.op_type for node in model.graph.node]


def codes(path):
    """Operators of a .tflite file."""
    return Counter(op.name for op in op_versions.iter_operators(flatbuffer.read(path)))


def convert_and_open(model, tmp_path):
    source = graphs.save_model(model, tmp_path / "model.onnx")
    lower.to_tflite(source, tmp_path / "model.tflite")
    return LITERT.open(tmp_path / "model.tflite", threads=1, options={})


def check(session, model, seed=0, atol=1e-5):
    rng = np.random.default_rng(seed)
    feeds = {
        entry.name: rng.standard_normal(
            [dimension.dim_value for dimension in entry.type.tensor_type.shape.dim]
        ).astype("f")
        for entry in model.graph.input
    }
    actual = session.run(feeds)
    names = [entry.name for entry in model.graph.output]
    for name, expected in zip(
        names, ort.InferenceSession(model.SerializeToString()).run(names, feeds), strict=True
    ):
        np.testing.assert_allclose(actual[name], expected, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("lines", GELUS.values(), ids=GELUS)
def test_gelu_by_erf_is_one_node(lines, tmp_path):
    model = write_out(lines)
    [node] = patterns.rewrite(model).graph.node
    assert (node.op_type, list(node.input), list(node.output)) == ("Gelu", ["x"], ["y"])
    check(convert_and_open(model, tmp_path), model)
    assert codes(tmp_path / "model.tflite") == {"GELU": 1}


@pytest.mark.parametrize("lines", TANH_GELUS.values(), ids=TANH_GELUS)
def test_gelu_by_tanh_is_one_node(lines, tmp_path):
    model = write_out(lines)
    [node] = patterns.rewrite(model).graph.node
    assert helper.get_attribute_value(node.attribute[0]) == b"tanh"
    check(convert_and_open(model, tmp_path), model)
    assert codes(tmp_path / "model.tflite") == {"GELU": 1}


@pytest.mark.parametrize("lines", SWISHES.values(), ids=SWISHES)
def test_hard_swish_is_one_node(lines, tmp_path):
    model = write_out(lines)
    assert ops(patterns.rewrite(model)) == ["HardSwish"]
    check(convert_and_open(model, tmp_path), model)
    assert codes(tmp_path / "model.tflite") == {"HARD_SWISH": 1}


@pytest.mark.parametrize("lines", OTHERS.values(), ids=OTHERS)
def test_what_only_looks_like_gelu_stays(lines, tmp_path):
    model = write_out(lines)
    assert ops(patterns.rewrite(model)) == ops(model)
    check(convert_and_open(model, tmp_path), model)


def test_a_value_in_the_middle_that_is_an_output_is_still_computed(tmp_path):
    model = write_out(GELUS["torch"])
    model.graph.output.append(value("b", (2, 9)))
    assert ops(patterns.rewrite(model)) == ["Div", "Erf", "Gelu"]
    check(convert_and_open(model, tmp_path), model)


def test_the_model_that_is_rewritten_stays_as_it_was():
    model = write_out(GELUS["torch"])
    before = model.SerializeToString()
    patterns.rewrite(model)
    assert model.SerializeToString() == before


def dense(*more, shape=(1, 5, 7)):
    """MatMul with a constant, then other nodes from "p" to "y"."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), *more]
    weights = [
        weight("w", 6, 7), weight("b", 7), weight("rows", 5, 1), weight("scale", 7),
        constant("some", [1.0, 2, 0, 4, 5, 6, 7], np.float32),
    ]  # fmt: skip
    return graphs.make_model(nodes, [value("x", (1, 5, 6))], [value("y", shape)], weights)


@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        ("Add", ["p", "b"]), ("Add", ["b", "p"]), ("Sub", ["p", "b"]), ("Sub", ["b", "p"]),
        ("Mul", ["scale", "p"]), ("Div", ["p", "scale"]),
    ],
)  # fmt: skip
def test_arithmetic_with_a_constant_goes_into_the_layer(op, inputs, tmp_path):
    model = dense(helper.make_node(op, inputs, ["y"]))
    check(convert_and_open(model, tmp_path), model)
    assert set(codes(tmp_path / "model.tflite")) == {"RESHAPE", "FULLY_CONNECTED"}


@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        ("Add", ["p", "rows"]),  # a number for each row is none for each channel
        ("Div", ["b", "p"]),
        ("Add", ["p", "p"]),
        ("Div", ["p", "some"]),  # weights of infinity are no weights
    ],
)
def test_other_arithmetic_stays(op, inputs, tmp_path):
    model = dense(helper.make_node(op, inputs, ["y"]))
    check(convert_and_open(model, tmp_path), model)
    assert codes(tmp_path / "model.tflite")[op.upper()] == 1


def test_a_result_that_somebody_else_reads_is_not_changed(tmp_path):
    model = dense(helper.make_node("Add", ["p", "b"], ["y"]))
    model.graph.output.append(value("p", (1, 5, 7)))
    check(convert_and_open(model, tmp_path), model)


def test_layers_that_share_weights_keep_sharing_them(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Mul", ["p", "scale"], ["q"]),
        helper.make_node("MatMul", ["q", "w"], ["r"]),
        helper.make_node("Add", ["r", "b"], ["y"]),
    ]
    model = graphs.make_model(
        nodes, [value("x", (2, 64))], [value("y", (2, 64))],
        [weight("w", 64, 64, scale=0.1), weight("scale", 64), weight("b", 64)],
    )  # fmt: skip
    check(convert_and_open(model, tmp_path), model)
    assert codes(tmp_path / "model.tflite") == {"FULLY_CONNECTED": 2, "MUL": 1}
    assert (tmp_path / "model.tflite").stat().st_size < 1.5 * 64 * 64 * 4


@pytest.mark.parametrize(
    ("axis", "starts", "ends", "kept"),
    [(0, 2, 4, 0), (0, 4, 6, 0), (0, 0, 4, 1), (0, 1, 3, 1), (1, 0, 4, 1)],
)
def test_a_part_is_read_where_it_was_before_it_was_joined(axis, starts, ends, kept, tmp_path):
    nodes = [
        *(helper.make_node(op, ["x"], [op]) for op in ("Exp", "Neg", "Abs")),
        helper.make_node("Concat", ["Exp", "Neg", "Abs"], ["all"], axis=axis),
        helper.make_node("Slice", ["all", "starts", "ends", "axes"], ["y"]),
    ]
    numbers = {"starts": starts, "ends": ends, "axes": axis}
    shape = (ends - starts, 4) if axis == 0 else (2, ends - starts)
    model = graphs.make_model(
        nodes, [value("x", (2, 4))], [value("y", shape)],
        [constant(name, [number]) for name, number in numbers.items()],
    )  # fmt: skip
    check(convert_and_open(model, tmp_path), model)
    assert codes(tmp_path / "model.tflite")["CONCATENATION"] == kept


@pytest.mark.parametrize("groups", [1, 8])
def test_a_batch_normalization_goes_into_the_convolution(groups, tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], group=groups),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"]),
        helper.make_node("Relu", ["n"], ["y"]),
    ]
    variance = onnx.numpy_helper.to_array(weight("v", 8)) ** 2 + 0.1
    model = graphs.make_model(
        nodes, [value("x", (1, 8, 6, 6))], [value("y", (1, 8, 6, 6))],
        [
            weight("w", 8, 8 // groups, 3, 3), weight("s", 8), weight("b", 8), weight("m", 8),
            constant("v", variance),
        ],
    )  # fmt: skip
    source = graphs.save_model(model, tmp_path / "model.onnx")
    lower.to_tflite(source, tmp_path / "model.tflite", layout="NCHW")
    check(LITERT.open(tmp_path / "model.tflite", threads=1, options={}), model, atol=1e-4)
    layer = "CONV_2D" if groups == 1 else "DEPTHWISE_CONV_2D"
    assert set(codes(tmp_path / "model.tflite")) == {"TRANSPOSE", layer}


def test_minilm_has_its_gelus_and_no_bias_on_its_own(minilm, tmp_path):
    source, out = tmp_path / "prepared.onnx", tmp_path / "minilm.tflite"
    prepare_model(minilm, source, {})
    lower.to_tflite(source, out)
    counts = codes(out)
    assert (counts["GELU"], counts["FULLY_CONNECTED"]) == (6, 36)
    # Attention masks, residuals, and in each of 13 normalisations an epsilon and a bias.
    assert counts["ADD"] <= 6 + 12 + 2 * 13 + 2
    session = LITERT.open(out, threads=1, options={})
    original = ort_adapter.open(source, threads=1, options={})
    for _, feeds in zip(range(4), data.sentences_eval(), strict=False):
        actual, expected = session.run(feeds)["embedding"], original.run(feeds)["embedding"]
        np.testing.assert_allclose(actual, expected, atol=1e-5)
