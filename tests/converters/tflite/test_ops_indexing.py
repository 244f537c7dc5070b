"""Indexing, resampling and integer arithmetic as TFLite: as ONNX Runtime, or refused by name."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from converters.layouts import to_artifact, to_model
from converters.tflite import flatbuffer, lower
from edge_core.errors import ConvertError
from edge_core.runtimes import onnxruntime as ort_adapter
from edge_core.runtimes.tflite import LITERT
from tests import graphs

RNG = np.random.default_rng(20)
WRAPPING = (np.int8, np.uint8, np.int32, np.int64)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def node(op, *names, outputs=("y",), **attributes):
    return helper.make_node(op, names, outputs, **attributes)


@pytest.fixture
def lower_and_compare(tmp_path):
    """Convert one node, compare it with ONNX Runtime or the reference, and tell its operators."""

    def run(proto, fed, constants=None, *, opset=18, reference=False, exact=False):
        kinds = [
            (name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in fed.items()
        ]
        model = graphs.make_model(
            [proto],
            [graphs.value(name, shape, kind) for name, kind, shape in kinds],
            [graphs.value(name, None, TensorProto.UNDEFINED) for name in proto.output],
            [graphs.constant(name, array) for name, array in (constants or {}).items()],
            opset=opset,
        )
        model = onnx.shape_inference.infer_shapes(model)
        source, out = graphs.save_model(model, tmp_path / "m.onnx"), tmp_path / "m.tflite"
        if reference:
            with np.errstate(over="ignore"):
                expected_outputs = dict(
                    zip(proto.output, ReferenceEvaluator(model).run(None, fed), strict=True)
                )
            specs = lower.to_tflite(source, out, layout="NCHW")
            actual = LITERT.open(out, threads=1, options={}).run(fed)
        else:
            session = ort_adapter.open(source, threads=1, options={})
            expected_outputs, specs = session.run(fed), lower.to_tflite(source, out)
            actual = LITERT.open(out, threads=1, options={}).run(
                to_artifact(fed, session.inputs, specs.inputs)
            )
            actual = to_model(actual, session.outputs, specs.outputs)
        for name, expected in expected_outputs.items():
            assert actual[name].dtype == expected.dtype
            tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 2e-5}
            np.testing.assert_allclose(actual[name], expected, **tolerance)
        file = flatbuffer.read(out)
        return {flatbuffer.op_name(file, op) for _, op in flatbuffer.iter_operators(file)}

    return run


@pytest.mark.parametrize(
    ("size", "attributes", "operator"),
    [
        ((14, 20), {"mode": "linear"}, "RESIZE_BILINEAR"),
        ((3, 25), {"mode": "linear"}, "RESIZE_BILINEAR"),
        ((13, 19), {"mode": "linear", "coordinate_transformation_mode": "align_corners"}, "RESIZE_BILINEAR"),  # noqa: E501
        ((3, 4), {"mode": "linear", "antialias": 1}, "FULLY_CONNECTED"),
        ((13, 4), {"mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5}, "FULLY_CONNECTED"),  # noqa: E501
        ((14, 20), {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}, "RESIZE_NEAREST_NEIGHBOR"),  # noqa: E501
        ((13, 19), {"nearest_mode": "ceil"}, "GATHER"),
    ],
)  # fmt: skip
def test_a_resize_is_tflites_own_where_that_is_the_same_and_a_matrix_elsewhere(
    lower_and_compare, size, attributes, operator
):
    proto = node("Resize", "x", "", "", "sizes", **attributes)
    used = lower_and_compare(proto, {"x": normal(1, 3, 7, 10)}, {"sizes": np.array((1, 3, *size))})
    assert used & {"RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "FULLY_CONNECTED", "GATHER"} == {
        operator
    }


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_a_crop_beyond_the_image_has_the_extrapolation_value(lower_and_compare, mode):
    proto = node("Resize", "x", "roi", "", "sizes", mode=mode, extrapolation_value=3.5,
                coordinate_transformation_mode="tf_crop_and_resize")  # fmt: skip
    roi = np.array([0, 0, -0.2, 0.2, 1, 1, 0.8, 1.3], np.float32)
    lower_and_compare(
        proto, {"x": normal(1, 3, 7, 10)}, {"roi": roi, "sizes": np.array((1, 3, 5, 4))}
    )


@pytest.mark.parametrize(
    ("scale", "how"), [(1.3, "align_corners"), (13 / 7, "half_pixel")], ids=["corners", "rounding"]
)
def test_a_scale_that_runtimes_read_differently_is_refused(lower_and_compare, scale, how):
    proto = node("Resize", "x", "", "scales", mode="linear", coordinate_transformation_mode=how)
    scales = np.array((1, 1, scale, 1), np.float32)
    with pytest.raises(ConvertError, match=r"op Resize: scale .* of 7 elements") as error:
        lower_and_compare(proto, {"x": normal(1, 3, 7, 10)}, {"scales": scales})
    assert "sizes" in error.value.hint


@pytest.mark.parametrize("fixed", [True, False], ids=["constant", "run time"])
@pytest.mark.parametrize("how", ["none", "add", "mul", "max", "min"])
def test_scatters_combine_and_take_negative_indices(lower_and_compare, how, fixed):
    repeated = RNG.integers(-6, 6, (4, 5))
    once = np.argsort(RNG.random((6, 5)), axis=0)[:4] - 6
    for op, data, index, updates in (
        ("ScatterElements", normal(6, 7), once if how == "none" else repeated, normal(4, 5)),
        ("ScatterND", normal(6, 3, 2), np.array([[-1, 2], [0, 1], [3, -3], [0, 1]])[: 3 if how == "none" else 4], normal(4, 2)),  # noqa: E501
        ("ScatterND", RNG.integers(-9, 9, (6, 3)), np.array([[2], [-1]]), RNG.integers(-9, 9, (2, 3))),  # noqa: E501
    ):  # fmt: skip
        fed = {"x": data, "u": updates[: len(index)]}
        constants = {"i": index} if fixed else {}
        lower_and_compare(
            node(op, "x", "i", "u", reduction=how), fed | ({} if fixed else {"i": index}), constants
        )


def test_the_last_of_two_updates_of_one_place_wins_when_the_places_are_known(lower_and_compare):
    proto = node("ScatterElements", "x", "i", "u", axis=0)
    lower_and_compare(
        proto, {"x": normal(5), "u": normal(3)}, {"i": np.array([2, -1, 2])}, exact=True
    )


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_gathers_take_negative_indices_and_look_into_their_own_row(lower_and_compare, axis):
    index = RNG.integers(-3, 3, (3, 2, 3))
    lower_and_compare(
        node("GatherElements", "x", "i", axis=axis), {"x": normal(3, 4, 5), "i": index}
    )
    batched = node("GatherND", "x", "i", batch_dims=axis % 2)
    lower_and_compare(batched, {"x": RNG.random((3, 4, 5)) > 0.5, "i": index[:, :, :2]})


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("kind", [np.float32, np.int64])
def test_equal_numbers_keep_their_order_in_top_k(lower_and_compare, kind, largest):
    proto = node("TopK", "x", "k", outputs=("y", "at"), axis=1, largest=largest)
    lowest = np.iinfo(np.int64).min if kind is np.int64 else -np.inf
    numbers = RNG.integers(-3, 3, (3, 9, 2)).astype(kind)
    numbers[0, 4] = lowest
    lower_and_compare(proto, {"x": numbers}, {"k": np.array([5])}, exact=True)


def test_one_hot_counts_from_the_end_and_leaves_what_is_out_of_range(lower_and_compare):
    index = np.array([[3, -1, -9], [-10, 9, 0]])
    values = np.array([-1, 2], np.float32)
    lower_and_compare(
        node("OneHot", "x", "depth", "v", axis=1), {"x": index}, {"depth": np.array(9), "v": values}
    )


@pytest.mark.parametrize("column_major", [0, 1])
def test_pooling_tells_where_its_maxima_lie(lower_and_compare, column_major):
    image = RNG.integers(-3, 3, (2, 3, 7, 8)).astype(np.float32)  # many are equal
    proto = node("MaxPool", "x", outputs=("y", "at"), kernel_shape=[2, 3], strides=[2, 1],
                pads=[1, 0, 0, 1], storage_order=column_major)  # fmt: skip
    lower_and_compare(proto, {"x": image}, exact=True)


@pytest.mark.parametrize("kind", WRAPPING)
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Mod", "Max", "Less", "Equal"])
def test_whole_numbers_wrap_around_at_their_width(lower_and_compare, op, kind):
    bounds = np.iinfo(kind)
    left = RNG.integers(bounds.min, bounds.max, 40, dtype=kind, endpoint=True)
    right = RNG.integers(bounds.min, bounds.max, 40, dtype=kind, endpoint=True)
    right[:4], left[:4], right[right == 0] = (
        [1, 2, 3, 7],
        [bounds.min, bounds.max, bounds.max, bounds.min],
        5,
    )
    right = np.where(right == kind(-1) if bounds.min else False, kind(3), right).astype(kind)
    lower_and_compare(
        node(op, "a", "b"), {"a": left, "b": right}, opset=14, reference=True, exact=True
    )


@pytest.mark.parametrize("kind", WRAPPING)
@pytest.mark.parametrize("op", ["BitwiseAnd", "BitwiseOr", "BitwiseXor", "LEFT", "RIGHT"])
def test_bits_of_whole_numbers(lower_and_compare, op, kind):
    bounds = np.iinfo(kind)
    left, right = RNG.integers(bounds.min, bounds.max, (2, 60), dtype=kind, endpoint=True)
    proto = node(op, "a", "b")
    if op in ("LEFT", "RIGHT"):
        proto, right = (
            node("BitShift", "a", "b", direction=op),
            (np.arange(60) % bounds.bits).astype(kind),
        )
    lower_and_compare(proto, {"a": left, "b": right}, opset=28, reference=True, exact=True)


@pytest.mark.parametrize("length", [4, 2000])
@pytest.mark.parametrize("fixed", [True, False], ids=["weight", "run time"])
def test_sums_of_products_of_bytes_are_exact_at_any_length(lower_and_compare, length, fixed):
    left = RNG.integers(0, 255, (7, length), dtype=np.uint8, endpoint=True)
    right = RNG.integers(-128, 127, (length, 6), dtype=np.int8, endpoint=True)
    zeros = {"za": np.uint8(3), "zb": np.arange(6, dtype=np.int8)}
    fed, constants = ({"a": left}, {"b": right}) if fixed else ({"a": left, "b": right}, {})
    proto = node("MatMulInteger", "a", "b", "za", "zb")
    lower_and_compare(proto, fed, zeros | constants, opset=10, exact=True)


@pytest.mark.parametrize(("channels", "groups"), [(300, 1), (8, 8)])
def test_quantised_convolutions_are_those_of_onnx_to_the_last_bit(
    lower_and_compare, channels, groups
):
    each = channels // groups
    image = RNG.integers(0, 255, (1, channels, 9, 9), dtype=np.uint8, endpoint=True)
    parameters = {
        "sx": np.float32(0.01), "zx": np.uint8(120), "zw": np.zeros(8, np.int8),
        "w": RNG.integers(-128, 127, (8, each, 3, 3), dtype=np.int8, endpoint=True),
        "sw": RNG.random(8, dtype=np.float32) * 0.01, "sy": np.float32(0.5), "zy": np.uint8(100),
        "b": RNG.integers(-9999, 9999, 8, dtype=np.int32),
    }  # fmt: skip
    names = ("x", "sx", "zx", "w", "sw", "zw", "sy", "zy", "b")
    proto = node("QLinearConv", *names, group=groups, pads=[1, 1, 1, 1], strides=[2, 1])
    lower_and_compare(proto, {"x": image}, parameters, opset=10, exact=True)


def test_the_largest_sums_of_an_integer_convolution_are_exact(lower_and_compare):
    image = RNG.integers(250, 255, (1, 300, 5, 5), dtype=np.uint8, endpoint=True)
    weights = RNG.integers(250, 255, (4, 300, 3, 3), dtype=np.uint8, endpoint=True)
    lower_and_compare(
        node("ConvInteger", "x", "w"), {"x": image}, {"w": weights}, opset=10, exact=True
    )


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_grids_may_point_far_outside_the_image(lower_and_compare, mode, padding):
    grid = normal(2, 4, 7, 2) * 2
    if padding != "reflection":
        grid[0, 0, :2] = [[1e4, 0], [0, -1e4]]
    proto = node("GridSample", "x", "g", mode=mode, padding_mode=padding)
    lower_and_compare(proto, {"x": normal(2, 3, 5, 6), "g": grid}, opset=20)


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_regions_are_pooled(lower_and_compare, mode):
    rois = RNG.random((4, 4), dtype=np.float32) * 30
    proto = node("RoiAlign", "x", "rois", "of", mode=mode, output_height=3, output_width=4,
                sampling_ratio=2, spatial_scale=0.25)  # fmt: skip
    fed = {"x": np.abs(normal(2, 3, 9, 8)), "rois": rois, "of": np.array([0, 1, 1, 0])}
    lower_and_compare(proto, fed, reference=mode == "max")  # ONNX Runtime's maximum is another


def test_a_deformed_convolution_has_groups_of_channels_and_of_offsets(lower_and_compare):
    window = {"kernel_shape": [3, 2], "strides": [2, 1], "dilations": [1, 2], "pads": [0, 1, 1, 0]}
    proto = node("DeformConv", "x", "w", "o", "b", "m", group=2, offset_group=2, **window)
    fed = {"x": normal(2, 4, 7, 8), "o": normal(2, 24, 3, 7), "m": normal(2, 12, 3, 7)}
    lower_and_compare(
        proto, fed, {"w": normal(6, 2, 3, 2), "b": normal(6)}, opset=19, reference=True
    )


def test_sequences_are_counted_with_gaps_and_weights(lower_and_compare):
    proto = node("TfIdfVectorizer", "x", mode="TFIDF", min_gram_length=1, max_gram_length=2,
                max_skip_count=3, ngram_counts=[0, 3], ngram_indexes=[0, 1, 2, 3, 4],
                pool_int64s=[2, 5, 4, 5, 6, 2, 4], weights=[1.0, 0.5, 2.0, 3.0, 0.25])  # fmt: skip
    lower_and_compare(proto, {"x": RNG.integers(2, 7, (3, 12))})


@pytest.mark.parametrize(
    ("proto", "array"),
    [
        (node("NonZero", "x"), normal(3)),
        (node("ConstantOfShape", "x"), np.array([2, 3])),
        (node("Unique", "x"), normal(3)),
    ],
    ids=lambda case: case.op_type if hasattr(case, "op_type") else "",
)
def test_a_result_whose_shape_depends_on_values_is_refused(lower_and_compare, proto, array):
    with pytest.raises(ConvertError, match=f"op {proto.op_type}: the shape of its result depends"):
        lower_and_compare(proto, {"x": array})
