"""Near pictures have near vectors, others have not; the search finds the nearest, exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from agent.caches.descriptors import (
    Described,
    Index,
    InputDescriptor,
    describe,
    describe_image,
    unit,
)
from edge_core.package.preprocess import BUILT_IN, normalise
from edge_core.tensors import Array
from examples.data import CALIBRATION_PHOTOS, EVALUATION_PHOTOS, PHOTOS

RECIPE = BUILT_IN["efficientnet-lite0"]
NAMES = (*CALIBRATION_PHOTOS, *EVALUATION_PHOTOS)


def view(name: str, dx: float = 0, dy: float = 0) -> Array:
    """224 x 224 pixels of a photo's middle, moved by so many of them."""
    with Image.open(PHOTOS / f"{name}.jpg") as opened:
        photo = opened.convert("RGB")
    side = min(photo.size) * 0.8
    step = side / 224
    left, top = ((whole - side) / 2 for whole in photo.size)
    box = (left + dx * step, top + dy * step, left + dx * step + side, top + dy * step + side)
    return np.asarray(photo.resize((224, 224), Image.Resampling.BICUBIC, box=box))


def vector(pixels: Array) -> Array:
    descriptor = describe_image(normalise(pixels, RECIPE), "NCHW")
    assert descriptor is not None
    return descriptor


def chord(first: Array, second: Array) -> float:
    return float(np.linalg.norm(first - second))


@pytest.mark.parametrize("name", NAMES)
def test_noise_brightness_and_a_small_shift_move_less_than_another_picture(name):
    rng = np.random.default_rng(1)
    pixels = view(name)
    mine = vector(pixels)
    noisy = np.clip(pixels + rng.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)
    darker = (pixels * 0.8).astype(np.uint8)
    others = min(chord(mine, vector(view(other))) for other in NAMES if other != name)
    assert chord(mine, vector(noisy)) < 0.03
    assert chord(mine, vector(darker)) < 0.03
    for dx, dy in ((2, 0), (0, 2), (-2, 2)):
        assert chord(mine, vector(view(name, dx, dy))) < others / 3
    assert others > 0.4


def test_recipe_layout_and_integer_type_make_no_difference():
    pixels = view("owl")
    mine = vector(pixels)
    imagenet = normalise(pixels, BUILT_IN["imagenet"])
    assert chord(mine, unit_of(imagenet / np.std(imagenet), "NCHW")) < 0.05  # channels weigh alike
    last = np.ascontiguousarray(normalise(pixels, RECIPE).transpose(0, 2, 3, 1))
    assert chord(mine, unit_of(last, "NHWC")) < 1e-4
    assert chord(mine, unit_of(pixels[None], "NHWC")) < 1e-4
    signed = (pixels[None].astype(np.int16) - 128).astype(np.int8)
    assert chord(mine, unit_of(signed, "NHWC")) < 1e-4


def unit_of(tensor: Array, layout: str) -> Array:
    descriptor = describe_image(tensor, layout)
    assert descriptor is not None
    return descriptor


@pytest.mark.parametrize("shape", [(1, 1, 28, 28), (1, 4, 50, 31), (1, 3, 5, 300), (1, 1, 1, 2)])
def test_any_size_and_number_of_channels_has_a_vector_of_length_one(shape):
    descriptor = describe_image(np.random.default_rng(2).random(shape, np.float32), "NCHW")
    assert descriptor is not None
    assert np.linalg.norm(descriptor) == pytest.approx(1, abs=1e-5)


def test_what_cannot_be_compared_has_no_vector():
    image = InputDescriptor(kind="image", input="x", layout="NCHW")
    blank = np.full((1, 3, 32, 32), 0.7, np.float32)
    picture = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    nan = picture.copy()
    nan[0, 0, 0, 0] = np.nan
    for tensor in (blank, nan, np.concatenate([picture, picture]), picture[0], picture > 0.5):
        assert describe(image, {"x": tensor}) is None
    assert describe(image, {"y": picture}) is None
    assert describe(image, {"x": picture}) is not None
    assert unit(np.zeros(4)) is None
    assert unit(np.array([1.0, np.inf])) is None


def test_every_other_input_of_the_model_must_be_the_same():
    image = InputDescriptor(kind="image", input="x", layout="NCHW")
    pixels = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)

    def tag(size: int) -> str:
        descriptor = describe(image, {"x": pixels, "size": np.array([size])})
        assert descriptor is not None
        return descriptor.tag

    assert tag(1) == tag(1) != tag(2)


ITEMS = st.lists(
    st.tuples(st.lists(st.floats(-1, 1), min_size=3, max_size=3), st.sampled_from(("a", "b"))),
    max_size=40,
)


@settings(deadline=None)
@given(
    items=ITEMS, query=st.tuples(st.lists(st.floats(-1, 1), min_size=3, max_size=3), st.just("a"))
)
def test_the_index_finds_what_a_search_through_everything_finds(items, query):
    index, entries = Index(16), {}
    for i, (numbers, tag) in enumerate(items):
        row = unit(np.array(numbers))
        if row is None:
            continue
        key = bytes([i])
        gone = index.add(key, Described(row, tag), reach=float(i))
        entries[key] = (row, tag, float(i))
        if gone is not None:
            assert gone == min(entries)  # nothing was touched: the oldest goes
            del entries[gone]
    assert len(index) == len(entries) <= 16
    needle = unit(np.array(query[0]))
    if needle is None:
        return
    nearest = index.nearest(Described(needle, "a"))
    same = {row_key: chord(row, needle) for row_key, (row, tag, _) in entries.items() if tag == "a"}
    if not same:
        assert nearest is None
        return
    assert nearest is not None
    key, distance, reach = nearest
    assert distance == pytest.approx(min(same.values()), abs=2e-3)
    assert same[key] == pytest.approx(min(same.values()), abs=2e-3)
    assert reach == entries[key][2]


def test_what_was_used_stays_and_what_was_removed_is_gone():
    index = Index(2)
    first, second, third = (Described(np.eye(3, dtype=np.float32)[i]) for i in range(3))
    index.add(b"a", first)
    index.add(b"b", second)
    index.touch(b"a")
    assert index.add(b"c", third) == b"b"
    assert index.nearest(first) == (b"a", 0.0, 1.0)
    index.remove(b"a")
    index.remove(b"a")
    index.touch(b"a")
    assert len(index) == 1
    nearest = index.nearest(first)
    assert nearest is not None
    assert nearest[0] == b"c"
    assert index.nearest(Described(np.ones(5, np.float32))) is None
