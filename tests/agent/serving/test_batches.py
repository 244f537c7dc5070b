"""Which requests run together, decided without a clock and without threads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.serving import batches
from agent.serving.batches import BatchPolicy
from edge_core.errors import InputError

ROWS = st.lists(st.integers(1, 20), min_size=1, max_size=30)
POLICIES = st.integers(1, 16).flatmap(
    lambda top: st.builds(BatchPolicy, st.just(top), st.integers(1, top), st.integers(0, 10**7))
)


@given(rows=ROWS, policy=POLICIES)
def test_a_batch_is_never_larger_than_allowed_unless_one_request_is(rows, policy):
    count = batches.count_in_batch(rows, policy)
    assert 1 <= count <= len(rows)
    assert sum(rows[:count]) <= policy.max_size or count == 1
    if count < len(rows):
        assert sum(rows[: count + 1]) > policy.max_size  # and it is as large as it can be


@given(waiting=st.integers(1, 20), age=st.integers(0, 10**8), policy=POLICIES)
def test_nothing_waits_longer_than_allowed_or_with_company_enough(waiting, age, policy):
    wait = batches.start_delay(waiting, age, policy)
    assert 0 <= wait <= policy.max_wait_ns
    if waiting >= policy.min_size or age >= policy.max_wait_ns:
        assert wait == 0
    else:
        assert age + wait == policy.max_wait_ns


@pytest.mark.parametrize(("most", "least"), [(0, 1), (4, 0), (4, 5)])
def test_sizes_that_make_no_sense_are_refused(most, least):
    with pytest.raises(InputError, match="cannot be made"):
        BatchPolicy(most, least)


def test_requests_run_together_if_only_the_number_of_rows_differs():
    one = batches.row_shapes({"x": np.zeros((1, 3), np.float32)})
    assert one == batches.row_shapes({"x": np.zeros((5, 3), np.float32)})
    assert one != batches.row_shapes({"x": np.zeros((1, 4), np.float32)})
    assert one != batches.row_shapes({"x": np.zeros((1, 3), np.float64)})
