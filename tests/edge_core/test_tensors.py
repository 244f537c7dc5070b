"""Tensors: what a caller may feed, what is converted, and what is refused in which words."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from edge_core.errors import InputError
from edge_core.tensors import TensorSpec, check_feeds, dequantise, quantise

LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767)}
STEPS = st.floats(2**-13, 2**13, width=32)
IMAGE = TensorSpec("x", "float32", (1, "height", 2))


@st.composite
def integer_specs(draw):
    dtype = draw(st.sampled_from(sorted(LIMITS)))
    zero = draw(st.integers(*LIMITS[dtype]))
    return TensorSpec("x", dtype, (4,), scale=draw(STEPS), zero_point=zero)


@given(spec=integer_specs(), steps=st.lists(st.integers(-40000, 40000), min_size=1))
def test_every_integer_stands_for_a_real_that_becomes_it_again(spec, steps):
    low, high = LIMITS[spec.dtype]
    integers = np.clip(steps, low, high).astype(spec.dtype)
    reals = dequantise(integers, spec)
    assert reals.dtype == np.float32
    assert np.array_equal(quantise(reals, spec), integers)


@given(
    spec=integer_specs(),
    reals=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_a_real_is_off_by_half_a_step_at_most_and_stops_at_the_ends(spec, reals, dtype):
    low, high = (
        float(dequantise(np.array([end], spec.dtype), spec)[0]) for end in LIMITS[spec.dtype]
    )
    given_back = dequantise(quantise(np.array(reals, dtype), spec), spec)
    inside = np.clip(np.array(reals, np.float64), low, high)
    largest = max(abs(low), abs(high))
    assert np.abs(given_back - inside).max() <= spec.scale * 0.5001 + largest * 1e-6


@given(spec=integer_specs(), integers=st.lists(st.integers(0, 127), min_size=1))
def test_what_is_of_the_wanted_kind_stays_as_it_is(spec, integers):
    array = np.array(integers, spec.dtype)
    assert quantise(array, spec) is array
    reals = array.astype(np.float32)
    assert dequantise(reals, spec) is reals
    plain = TensorSpec("x", spec.dtype, (4,))
    assert quantise(array, plain) is array
    assert dequantise(array, plain) is array


# What a user feeds to a file with integer inputs

INT8 = TensorSpec("x", "int8", (4,), scale=0.5, zero_point=2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_reals_for_an_integer_input_are_quantised(dtype):
    fed = check_feeds({"x": np.array([0, 0.5, -0.5, 1000], dtype)}, (INT8,), "x.npy")["x"]
    assert fed.dtype == np.int8
    assert fed.tolist() == [2, 3, 1, 127]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64])
def test_integers_that_fit_are_taken_as_steps(dtype):
    fed = check_feeds({"x": np.array([0, 1, 2, 127], dtype)}, (INT8,), "x.npy")["x"]
    assert fed.dtype == np.int8
    assert fed.tolist() == [0, 1, 2, 127]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([0, 1, 2, 128]), "x.npy: input 'x' has dtype int64; the model takes int8"),
        (np.array([0, 1, 2, np.nan]), "x.npy: input 'x' contains NaN"),
        (np.array([0, 1, 2, -np.inf]), "x.npy: input 'x' contains infinity"),
        (np.zeros(3), "x.npy: input 'x' has shape 3; the model takes 4"),
        (np.array(["a"] * 4), "x.npy: input 'x' has dtype <U1; the model takes int8"),
    ],
)
def test_what_does_not_fit_an_integer_input_is_refused(array, message):
    with pytest.raises(InputError) as error:
        check_feeds({"x": array}, (INT8,), "x.npy")
    assert error.value.what == message


@pytest.mark.parametrize(
    ("fed", "takes", "layout"),
    [
        ((1, 3, 4, 5), (1, 4, 5, 3), "NHWC"),
        ((1, 4, 5, 3), (1, 3, 4, 5), "NCHW"),
        ((1, 3, 5, 4), (1, 4, 5, 3), ""),
        ((3, 4, 5), (4, 5, 3), ""),
    ],
)
def test_an_image_with_its_channels_at_the_other_end_is_told_so(fed, takes, layout):
    spec = TensorSpec("x", "float32", takes)
    with pytest.raises(InputError, match="; the model takes") as error:
        check_feeds({"x": np.zeros(fed, np.float32)}, (spec,), "x.npy")
    assert error.value.hint.startswith(f"the model takes images as {layout}:") == bool(layout)
    assert bool(error.value.hint) == bool(layout)


@given(reals=npst.arrays(np.float32, 4, elements=st.floats(-1e6, 1e6, width=32)))
def test_feeds_that_were_checked_pass_again_unchanged(reals):
    once = check_feeds({"x": reals}, (INT8,), "x.npy")
    twice = check_feeds(once, (INT8,), "x.npy")
    assert np.array_equal(once["x"], twice["x"])


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_reals_never_become_integers_that_stand_for_themselves(dtype):
    ids = TensorSpec("x", dtype, (2,))
    with pytest.raises(InputError, match=f"dtype float64; the model takes {dtype}"):
        check_feeds({"x": np.array([1.0, 2.0])}, (ids,), "x.npy")


# What a user feeds to any file


def test_names_that_the_model_lacks_or_that_are_missing_are_told():
    with pytest.raises(InputError, match=r"request: no input 'y'\n  hint: inputs: x"):
        check_feeds({"y": np.zeros(1)}, (IMAGE,), "request")
    with pytest.raises(InputError, match=r"request: input 'x' is missing\n  hint: it has: none"):
        check_feeds({}, (IMAGE,), "request")


def test_a_dimension_with_a_name_takes_any_size():
    assert IMAGE.dynamic == ("height",)
    for height in (1, 7):
        fed = check_feeds({"x": np.zeros((1, height, 2), np.float32)}, (IMAGE,), "request")
        assert fed["x"].shape == (1, height, 2)
    with pytest.raises(InputError, match="has shape 1x3x3; the model takes 1xheightx2"):
        check_feeds({"x": np.zeros((1, 3, 3), np.float32)}, (IMAGE,), "request")


def test_a_view_is_fed_as_a_contiguous_array_of_the_models_type():
    view = np.arange(12, dtype=np.float64).reshape(1, 2, 6)[:, :, ::3]
    fed = check_feeds({"x": view}, (IMAGE,), "request")["x"]
    assert fed.flags.c_contiguous
    assert fed.dtype == np.float32
    assert np.array_equal(fed, view)


def test_the_caller_may_look_for_nan_where_an_array_is_used_as_it_is():
    row = (TensorSpec("x", "float32", (1, 2)),)
    hostile = np.full((1, 2), np.nan, np.float32)
    assert check_feeds({"x": hostile}, row, "request", finite=False)["x"] is hostile
    with pytest.raises(InputError, match="contains NaN"):  # converted, so it is looked at
        check_feeds({"x": hostile.astype(np.float64)}, row, "request", finite=False)
