"""A reshape of a value that is stored in another order: kept in place only where that is right."""

from __future__ import annotations

import numpy as np
import pytest

from converters.tflite.ops.movement import carry_order
from converters.tflite.values import memory_shape

IMAGE, NHWC = (1, 6, 4, 5), (0, 2, 3, 1)


@pytest.mark.parametrize(
    ("after", "kept"),
    [
        ((1, 2, 3, 4, 5), True),  # channels are split, as in a channel shuffle
        ((1, 6, 20), True),  # height and width are neighbours in memory, too
        ((6, 4, 5), True),  # an axis of one element moves nothing
        ((1, 120), False),  # channels come last in memory and first in the model
        ((1, 24, 5), False),
    ],
)
def test_a_reshape_moves_data_only_where_it_must(after, kept):
    assert (carry_order(IMAGE, NHWC, after) is not None) is kept


def test_what_stays_in_place_is_the_same_value():
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(400):
        before = tuple(int(size) for size in rng.integers(1, 4, rng.integers(1, 5)))
        axes = tuple(int(axis) for axis in rng.permutation(len(before)))
        cut = int(rng.integers(0, len(before)))
        after = (*before[:cut], int(np.prod(before[cut:])))  # the last axes joined
        order = carry_order(before, axes, after)
        if order is None:
            continue
        seen += 1
        array = np.arange(np.prod(before)).reshape(before)
        stored = array.transpose(axes).reshape(memory_shape(after, order))
        np.testing.assert_array_equal(stored.transpose(np.argsort(order)), array.reshape(after))
    assert seen > 50
