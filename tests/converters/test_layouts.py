"""Layouts and integers at a file's border: what goes in comes out, element by element."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from converters.layouts import has_same_interface, to_artifact, to_model
from edge_core.tensors import TensorSpec

SHAPES = npst.array_shapes(min_dims=4, max_dims=4, max_side=5)
IMAGES = npst.arrays(np.float32, SHAPES, elements=st.floats(-9, 9, width=32))


def image(name="x", layout="", **more):
    return TensorSpec(name, "float32", (1, 3, 4, 5), layout, **more)


@given(array=IMAGES)
def test_a_channel_moves_to_the_end_and_keeps_its_pixels(array):
    moved = to_artifact({"x": array}, [image()], [image(layout="NHWC")])["x"]
    name, channels, height, width = array.shape
    assert moved.shape == (name, height, width, channels)
    assert all(np.array_equal(moved[..., i], array[:, i]) for i in range(channels))
    assert moved.flags.c_contiguous


@given(
    array=IMAGES,
    model=st.sampled_from(["", "NCHW", "NHWC"]),
    file=st.sampled_from(["", "NCHW", "NHWC"]),
)
def test_what_goes_in_comes_out(array, model, file):
    here, there = [image(layout=model)], [image(layout=file)]
    back = to_model(to_artifact({"x": array}, here, there), here, there)["x"]
    assert np.array_equal(back, array)
    changed = ("NHWC" in (model, file)) and model != file
    assert has_same_interface(here, there) is not changed


def test_tensors_are_matched_by_name_and_come_in_the_order_of_the_other_side():
    model = [image("a"), TensorSpec("b", "int64", (1, 6))]
    file = [TensorSpec("b", "int64", (1, 6)), image("a", "NHWC")]
    sample = {"a": np.ones((1, 3, 4, 5), np.float32), "b": np.arange(6)[None]}
    moved = to_artifact(sample, model, file)
    assert [(name, array.shape) for name, array in moved.items()] == [
        ("b", (1, 6)),
        ("a", (1, 4, 5, 3)),
    ]
    assert moved["b"].dtype == np.int64
    back = to_model({**moved, "debug": np.zeros(1)}, model, file)
    assert [(name, array.shape) for name, array in back.items()] == [
        ("a", (1, 3, 4, 5)),
        ("b", (1, 6)),
    ]


def test_an_input_that_the_file_has_not_is_not_passed_on():
    sample = {"x": np.ones((1, 3, 4, 5), np.float32), "unused": np.zeros(3)}
    assert list(to_artifact(sample, [image(), image("unused")], [image()])) == ["x"]


def test_layout_and_integers_change_together():
    model = [image()]
    file = [TensorSpec("x", "int8", (1, 4, 5, 3), "NHWC", scale=0.5, zero_point=-3)]
    array = np.arange(60, dtype=np.float32).reshape(1, 3, 4, 5)
    moved = to_artifact({"x": array}, model, file)["x"]
    assert (moved.dtype, moved.shape) == (np.int8, (1, 4, 5, 3))
    assert moved[0, 0, 0].tolist() == [-3, 37, 77]  # 0, 20 and 40, in steps of 0.5
    assert np.array_equal(to_model({"x": moved}, model, file)["x"], array)
    assert not has_same_interface(model, file)
