"""Einsum, transforms, normalisations and losses as TFLite, beside the standard's own cases."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from converters.tflite import flatbuffer, lower, op_versions
from edge_core.errors import ConvertError
from edge_core.runtimes.tflite import LITERT
from tests import graphs
from tests.graphs import INT64, constant, value


@pytest.fixture
def convert_and_open(tmp_path):
    """The session of a model's float TFLite file."""

    def convert(model, layout="NCHW"):
        source = graphs.save_model(model, tmp_path / "model.onnx")
        lower.to_tflite(source, tmp_path / "model.tflite", layout=layout)
        return LITERT.open(tmp_path / "model.tflite", threads=1, options={})

    return convert


def values(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)]),
        ("bhid,bhjd->bhij", [(1, 2, 3, 4), (1, 2, 5, 4)]),
        ("bchw,kc->bkhw", [(1, 3, 4, 5), (6, 3)]),
        ("bij , bjk", [(2, 3, 4), (2, 4, 5)]),
        ("i,j->ij", [(3,), (4,)]),
        ("...i,...i", [(3, 4), (1, 4)]),
        ("iij,jk->ik", [(3, 3, 2), (2, 4)]),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)]),
        ("ab,cd->", [(2, 3), (4, 5)]),
        ("...ii->...i", [(3, 5, 5)]),
    ],
)
def test_einsum_equals_numpy(convert_and_open, equation, shapes, fixed):
    arrays = [values(*shape, seed=i) for i, shape in enumerate(shapes)]
    expected = np.einsum(equation, *arrays)
    fed = len(arrays) - (fixed and len(arrays) > 1)  # the last one may be a constant
    model = graphs.make_model(
        [
            helper.make_node(
                "Einsum", [f"x{i}" for i in range(len(arrays))], ["y"], equation=equation
            )
        ],
        [value(f"x{i}", array.shape) for i, array in enumerate(arrays[:fed])],
        [value("y", expected.shape)],
        [constant(f"x{i}", array) for i, array in enumerate(arrays) if i >= fed],
    )
    actual = convert_and_open(model).run({f"x{i}": array for i, array in enumerate(arrays[:fed])})[
        "y"
    ]
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def stft(step=16, size=64, length=256):
    window = np.hanning(size).astype(np.float32)
    frames, bins = (length - size) // step + 1, size // 2 + 1
    return graphs.make_model(
        [helper.make_node("STFT", ["x", "step", "window"], ["y"])],
        [value("x", (1, length, 1))],
        [value("y", (1, frames, bins, 2))],
        [constant("step", step), constant("window", window)],
    ), window


def test_a_spectrogram_is_one_convolution(convert_and_open, tmp_path):
    model, window = stft()
    array = values(1, 256, 1)
    actual = convert_and_open(model).run({"x": array})["y"]
    frames = np.lib.stride_tricks.sliding_window_view(array[0, :, 0], 64)[::16] * window
    expected = np.fft.rfft(frames)
    np.testing.assert_allclose(actual[0, ..., 0] + 1j * actual[0, ..., 1], expected, atol=1e-4)
    names = [
        op.name for op in op_versions.iter_operators(flatbuffer.read(tmp_path / "model.tflite"))
    ]
    assert set(names) == {"RESHAPE", "CONV_2D"}


def test_a_transform_with_too_large_a_matrix_is_refused(convert_and_open):
    model = graphs.make_model(
        [helper.make_node("DFT", ["x"], ["y"], axis=1)],
        [value("x", (1, 8192, 1))],
        [value("y", (1, 8192, 2))],
    )
    with pytest.raises(ConvertError, match="134217728 elements, and 16777216 is the limit"):
        convert_and_open(model)


@pytest.mark.parametrize("length", [5, 8, 12])
@pytest.mark.parametrize("inverse", [0, 1])
def test_a_transform_cuts_or_pads_its_axis(convert_and_open, inverse, length):
    model = graphs.make_model(
        [helper.make_node("DFT", ["x", "n"], ["y"], axis=1, inverse=inverse)],
        [value("x", (2, 8, 3, 2))],
        [value("y", (2, length, 3, 2))],
        [constant("n", length)],
    )
    array = values(2, 8, 3, 2)
    actual = convert_and_open(model).run({"x": array})["y"]
    transform = np.fft.ifft if inverse else np.fft.fft
    expected = transform(array[..., 0] + 1j * array[..., 1], length, axis=1)
    np.testing.assert_allclose(actual[..., 0] + 1j * actual[..., 1], expected, atol=1e-5)


@pytest.mark.parametrize("ignored", [None, -1, 2])
@pytest.mark.parametrize("how", ["none", "mean", "sum"])
def test_a_loss_skips_what_it_ignores_even_if_it_is_infinite(convert_and_open, how, ignored):
    never = -np.inf
    logs = np.array([[-0.7, -0.7, never], [-1.6, -1.2, -0.7], [0, never, never]], np.float32)
    target = np.array([0, 2, 0]) if ignored != -1 else np.array([0, -1, 0])
    attributes = {"reduction": how} | ({} if ignored is None else {"ignore_index": ignored})
    model = graphs.make_model(
        [helper.make_node("NegativeLogLikelihoodLoss", ["x", "t"], ["y"], **attributes)],
        [value("x", (3, 3)), value("t", (3,), INT64)],
        [value("y", (3,) if how == "none" else ())],
    )
    actual = convert_and_open(model).run({"x": logs, "t": target})["y"]
    loss = -logs[np.arange(3), target]
    kept = np.full(3, True) if ignored is None else target != ignored
    loss = np.where(kept, loss, 0)
    expected = {"none": loss, "sum": loss.sum(), "mean": loss.sum() / kept.sum()}[how]
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_a_group_normalisation_stays_in_the_order_of_the_image(convert_and_open, tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("GroupNormalization", ["c", "s", "b"], ["n"], num_groups=2),
        helper.make_node("Conv", ["n", "v"], ["y"]),
    ]
    model = graphs.make_model(
        nodes, [value("x", (1, 3, 5, 6))], [value("y", (1, 4, 5, 6))],
        [
            constant("w", values(8, 3, 1, 1)), constant("v", values(4, 8, 1, 1)),
            constant("s", values(8)), constant("b", values(8, seed=1)),
        ],
        opset=21,
    )  # fmt: skip
    array = values(1, 3, 5, 6)
    actual = convert_and_open(model, "NHWC").run({"x": array.transpose(0, 2, 3, 1)})["y"]
    [expected] = ReferenceEvaluator(model).run(None, {"x": array})
    np.testing.assert_allclose(actual.transpose(0, 3, 1, 2), expected, atol=1e-4)
    names = [
        op.name for op in op_versions.iter_operators(flatbuffer.read(tmp_path / "model.tflite"))
    ]
    assert "TRANSPOSE" not in names


@pytest.mark.parametrize("power", [1, 2])
def test_a_norm_of_zero_leaves_zeros(convert_and_open, power):
    model = graphs.make_model(
        [helper.make_node("LpNormalization", ["x"], ["y"], p=power, axis=0)],
        [value("x", (3, 2))],
        [value("y", (3, 2))],
    )
    array = np.array([[3, 0], [0, 0], [4, 0]], np.float32)
    actual = convert_and_open(model).run({"x": array})["y"]
    np.testing.assert_allclose(actual, array / [7 if power == 1 else 5, 1], atol=1e-6)


def test_a_window_whose_size_is_computed_is_refused(convert_and_open):
    model = graphs.make_model(
        [helper.make_node("HannWindow", ["n"], ["y"])], [value("n", (), INT64)], [value("y", (8,))]
    )
    with pytest.raises(ConvertError, match="HannWindow: it depends on a size"):
        convert_and_open(model)
