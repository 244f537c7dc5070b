"""Operator versions: TensorFlow's own, ours where those let an old runtime compute garbage."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from converters.tflite import flatbuffer, lower, op_versions, quantise, versions
from edge_core.runtimes import tflite
from tests import graphs

F32, F16, I8, I16, I4 = "FLOAT32", "FLOAT16", "INT8", "INT16", "INT4"
schema = flatbuffer.schema()


def tensor(kind, shape=(1, 8), scales=0, blocks=False):
    tensor = schema.TensorT()
    tensor.type, tensor.shape, tensor.buffer = getattr(schema.TensorType, kind), list(shape), 0
    tensor.quantization = schema.QuantizationParametersT()
    if scales:
        tensor.quantization.scale, tensor.quantization.zeroPoint = [0.5] * scales, [0] * scales
    if blocks:
        tensor.quantization.detailsType = schema.QuantizationDetails.BlockwiseQuantization
    return tensor


def model(name, inputs, outputs, **options):
    """One operator; its options are those of the schema, by attribute."""
    graph, op, made = schema.SubGraphT(), schema.OperatorT(), schema.ModelT()
    graph.tensors, graph.operators = [*inputs, *outputs], [op]
    op.inputs = list(range(len(inputs)))
    op.outputs = list(range(len(inputs), len(graph.tensors)))
    op.builtinOptions = SimpleNamespace(**options)
    made.subgraphs, made.operatorCodes, made.buffers = [graph], [], [schema.BufferT()]
    op.opcodeIndex = flatbuffer.op_code(made, name)
    return made


def stamp_versions(name, inputs, outputs, **options):
    """Operator -> version after stamp(), guards too."""
    made = model(name, inputs, outputs, **options)
    versions.stamp(made)
    return codes(made)


def codes(made):
    names = {
        number: name
        for name, number in vars(schema.BuiltinOperator).items()
        if isinstance(number, int)
    }
    return {names[code.builtinCode]: code.version for code in made.operatorCodes}


IMAGE, KERNEL = (1, 8, 8, 4), (16, 3, 3, 4)
DEPTHWISE = (1, 3, 3, 4)
PLAIN = {"quantizedBiasType": 0, "dilationWFactor": 1, "dilationHFactor": 1}
DENSE = {"quantizedBiasType": 0, "keepNumDims": False, "asymmetricQuantizeInputs": False,
         "weightsFormat": 0}  # fmt: skip


@pytest.mark.parametrize(
    ("data", "weights", "version"),
    [
        (tensor(F32, IMAGE), tensor(F32, KERNEL), 1),
        (tensor(F32, IMAGE), tensor(I8, KERNEL, 1), 2),
        (tensor(I8, IMAGE, 1), tensor(I8, KERNEL, 16), 3),
        (tensor(F32, IMAGE), tensor(I8, KERNEL, 16), 5),
        (tensor(F32, (1, 8, 8, 8)), tensor(F32, KERNEL), 6),
        (tensor(I8, IMAGE, 1), tensor(I4, KERNEL, 16), 7),
        (tensor(F32, IMAGE), tensor(I4, KERNEL, 16), 8),
    ],
)
def test_convolutions(data, weights, version):
    out = tensor(flatbuffer.type_name(data), IMAGE)
    assert stamp_versions("CONV_2D", [data, weights], [out], **PLAIN)["CONV_2D"] == version


@pytest.mark.parametrize(
    ("data", "weights", "dilation", "version"),
    [
        (tensor(F32, IMAGE), tensor(F32, DEPTHWISE), 1, 1),
        (tensor(F32, IMAGE), tensor(F32, DEPTHWISE), 2, 2),
        (tensor(I8, IMAGE, 1), tensor(I8, DEPTHWISE, 4), 1, 3),
        (tensor(F32, IMAGE), tensor(I8, DEPTHWISE, 1), 1, 4),
        (tensor(F32, IMAGE), tensor(I8, DEPTHWISE, 4), 1, 6),
    ],
)
def test_depthwise_convolutions(data, weights, dilation, version):
    options = {"dilationWFactor": dilation, "dilationHFactor": 1}
    out = tensor(flatbuffer.type_name(data), IMAGE)
    found = stamp_versions("DEPTHWISE_CONV_2D", [data, weights], [out], **options)
    assert found == {"DEPTHWISE_CONV_2D": version}


@pytest.mark.parametrize(
    ("data", "weights", "options", "version"),
    [
        (tensor(F32), tensor(F32), {}, 1),
        (tensor(F32), tensor(I8, scales=1), {}, 3),
        (tensor(I8, scales=1), tensor(I8, scales=8), {}, 4),
        (tensor(F32), tensor(F32), {"keepNumDims": True}, 5),
        (tensor(F32), tensor(I8, scales=1), {"asymmetricQuantizeInputs": True}, 9),
        (tensor(I8, scales=1), tensor(I4, scales=8), {}, 10),
        (tensor(I16, scales=1), tensor(I8, scales=8), {"quantizedBiasType": 4}, 11),
        (tensor(F32), tensor(I8, scales=8), {}, 12),
        (tensor(I16, scales=1), tensor(I4, scales=8), {}, 13),
        (tensor(F32), tensor(I4, blocks=True), {}, 14),
    ],
)
def test_fully_connected_layers(data, weights, options, version):
    bias, out = tensor(F32, (8,)), tensor(flatbuffer.type_name(data))
    found = stamp_versions("FULLY_CONNECTED", [data, weights, bias], [out], **{**DENSE, **options})
    assert found == {"FULLY_CONNECTED": version}
    if version < 6:
        found = stamp_versions("FULLY_CONNECTED", [data, weights], [out], **{**DENSE, **options})
        assert found == {"FULLY_CONNECTED": 6}  # without a bias


@pytest.mark.parametrize(
    ("name", "inputs", "result", "options", "version"),
    [
        ("ADD", [tensor(F32), tensor(F32)], F32, {}, 1),
        ("ADD", [tensor(I16), tensor(I16)], I16, {}, 5),
        ("ADD", [tensor(I16, scales=1), tensor(I16, scales=1)], I16, {}, 3),
        ("BROADCAST_TO", [tensor(F32), tensor("INT32", (2,))], F32, {}, 2),
        ("CAST", [tensor("INT64")], "INT32", {}, 1),
        ("CAST", [tensor(F32)], F16, {}, 5),
        ("DEQUANTIZE", [tensor(F16)], F32, {}, 3),
        ("DEQUANTIZE", [tensor(I8, scales=1)], F32, {}, 2),
        ("DEQUANTIZE", [tensor(I8, scales=8)], F32, {}, 5),
        ("DEQUANTIZE", [tensor(I4, scales=8)], F32, {}, 6),
        ("DIV", [tensor(F32, (1, 1, 2, 2, 2)), tensor(F32, (2,))], F32, {}, 2),
        ("GATHER", [tensor(F32), tensor("INT32")], F32, {"batchDims": 1}, 5),
        ("GATHER_ND", [tensor("BOOL"), tensor("INT32")], "BOOL", {}, 5),
        ("MAXIMUM", [tensor(F32, (1, 1, 2, 2, 2)), tensor(F32, (2,))], F32, {}, 3),
        ("MUL", [tensor(I8, scales=1), tensor(I8, scales=1)], I8, {}, 2),
        ("PAD", [tensor(F32, (1, 2, 2, 2, 2)), tensor("INT32", (5, 2))], F32, {}, 4),
        ("QUANTIZE", [tensor(F32)], I16, {}, 2),
        ("RESIZE_BILINEAR", [tensor(F32, IMAGE)], F32, {"halfPixelCenters": True}, 3),
        ("SPLIT", [tensor("INT32", ()), tensor(I8, scales=1)], I8, {}, 2),
        ("STRIDED_SLICE", [tensor(F32)], F32, {"ellipsisMask": 1}, 6),
        ("TRANSPOSE", [tensor(F32, (1, 2, 3, 4, 5)), tensor("INT32", (5,))], F32, {}, 4),
        ("TRANSPOSE", [tensor(F32, (1, 2, 3, 4, 5, 6)), tensor("INT32", (6,))], F32, {}, 6),
        ("WHERE", [tensor("BOOL")], "INT64", {}, 1),
        ("WHERE", [tensor(F32)], "INT64", {}, 2),
    ],
)  # fmt: skip
def test_other_operators(name, inputs, result, options, version):
    assert stamp_versions(name, inputs, [tensor(result)], **options)[name] == version


def test_a_product_that_grows_needs_version_3():
    big, small = tensor(I8, scales=1), tensor(I8, scales=1)
    small.quantization.scale = [0.25]  # 0.5 * 0.5 / 0.25 = 1
    assert stamp_versions("MUL", [big, big], [small]) == {"MUL": 3}


def test_guards_stand_beside_what_no_version_of_its_own_protects():
    out = tensor(F32, IMAGE)
    conv = stamp_versions("CONV_2D", [tensor(F32, IMAGE), tensor(I4, KERNEL, 16)], [out], **PLAIN)
    assert conv == {"CONV_2D": 8, "CAST": 7}
    ids = tensor("INT32", (4,))
    blocks = stamp_versions("EMBEDDING_LOOKUP", [ids, tensor(I4, blocks=True)], [tensor(F32)])
    assert blocks == {"EMBEDDING_LOOKUP": 4, "PAD": 5}
    rows = stamp_versions("EMBEDDING_LOOKUP", [ids, tensor(I8, scales=8)], [tensor(F32)])
    assert rows == {"EMBEDDING_LOOKUP": 4}


def test_hybrid_layers_with_a_scale_per_channel_get_asymmetric_inputs():
    asymmetric = {}
    for scales in (1, 8):
        made = model(
            "FULLY_CONNECTED", [tensor(F32), tensor(I8, scales=scales)], [tensor(F32)], **DENSE
        )
        versions.stamp(made)
        options = made.subgraphs[0].operators[0].builtinOptions
        asymmetric[scales] = options.asymmetricQuantizeInputs
    assert asymmetric == {1: False, 8: True}


def test_the_highest_of_several_operators_counts_and_none_is_lowered():
    made = model("ADD", [tensor(F32), tensor(F32)], [tensor(F32)])
    graph = made.subgraphs[0]
    graph.tensors += [tensor("INT64"), tensor("INT64"), tensor("INT64")]
    second = schema.OperatorT()
    second.opcodeIndex, second.inputs, second.outputs = 0, [3, 4], [5]
    graph.operators.append(second)
    versions.stamp(made)
    assert codes(made) == {"ADD": 4}
    made.operatorCodes[0].version = 6
    versions.stamp(made)
    assert codes(made) == {"ADD": 6}


@pytest.fixture
def digits_file(digits, tmp_path):
    path = tmp_path / "digits.tflite"
    lower.to_tflite(digits, path)
    return path


def test_a_float_model_asks_for_nothing_new(digits_file):
    made = flatbuffer.read(digits_file)
    assert versions.find_min_runtime(made) == versions.FLOOR
    assert max(codes(made).values()) == 1


def test_the_file_says_which_release_it_needs_once_and_stamping_twice_changes_nothing(
    digits_file, tmp_path
):
    recipe = quantise.QuantRecipe(scheme="dynamic", weights={"FULLY_CONNECTED": "int8"})
    quantise.write_quantised(digits_file, tmp_path / "int8.tflite", recipe)
    once = (tmp_path / "int8.tflite").read_bytes()
    again = flatbuffer.from_bytes(once)
    assert versions.find_min_runtime(again) == "2.17.0"
    versions.stamp(again)
    assert flatbuffer.to_bytes(again) == once
    entries = [entry for entry in again.metadata if entry.name == b"min_runtime_version"]
    assert len(entries) == 1
    assert bytes(again.buffers[entries[0].buffer].data) == b"2.17.0".ljust(16, b"\0")


def test_the_newest_runtime_knows_every_version_that_a_rule_asks_for(tmp_path):
    """All of them as operator codes of one file, which a runtime checks when it loads it."""
    path = tmp_path / "relu.tflite"
    lower.to_tflite(graphs.save_model(graphs.relu(), tmp_path / "relu.onnx"), path)
    made = flatbuffer.read(path)
    asked = {name: max(by_type.values()) for name, (_, by_type) in op_versions.TYPED.items()}
    for name, by_rank in op_versions.RANKS.items():
        asked[name] = max(asked.get(name, 1), *by_rank.values())
    asked |= {"CONV_2D": 8, "DEPTHWISE_CONV_2D": 7, "FULLY_CONNECTED": 14, "EMBEDDING_LOOKUP": 5,
              "CAST": 8, "QUANTIZE": 5, "TRANSPOSE_CONV": 5, "BATCH_MATMUL": 4}  # fmt: skip
    for name, version in asked.items():
        made.operatorCodes[flatbuffer.op_code(made, name)].version = version
    flatbuffer.write(made, path)
    session = tflite.LITERT.open(path, threads=1, options={})
    answer = session.run({"x": np.full((1, 8), -1, np.float32)})
    assert not answer["y"].any()
    named = vars(schema.BuiltinOperator)
    assert all(name in named for name, _ in versions.RELEASES)
