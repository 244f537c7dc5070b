"""The report's plot: points in proportion, labels apart, colours by loss."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.build import plot

POINTS = st.lists(
    st.builds(
        plot.Point,
        number=st.integers(1, 99), name=st.just("n"), size_mb=st.floats(1e-3, 1e5),
        latency_ms=st.floats(1e-3, 1e5), loss=st.none() | st.floats(-5, 100), fits=st.booleans(),
        front=st.booleans(),
    ),
    min_size=2, max_size=9,
)  # fmt: skip


@given(points=POINTS)
def test_every_point_is_inside_the_axes_and_in_proportion(points):
    placed = plot.plot_points(points)
    assert placed is not None
    assert {mark.point for mark in placed.marks} == set(points)
    for mark in placed.marks:
        assert plot.LEFT <= mark.x <= plot.RIGHT
        assert plot.TOP <= mark.y <= plot.BOTTOM
        share = mark.point.size_mb / float(placed.x_ticks[-1].text)
        assert mark.x == pytest.approx(plot.LEFT + (plot.RIGHT - plot.LEFT) * share, abs=0.1)
    for ticks in (placed.x_ticks, placed.y_ticks):
        assert ticks[0].text == "0"
        assert 4 <= len(ticks) <= 11


@given(points=POINTS)
def test_labels_of_near_points_do_not_cover_each_other(points):
    placed = plot.plot_points(points)
    assert placed is not None
    for i, mark in enumerate(placed.marks):
        assert mark.label_y <= plot.BOTTOM
        for other in placed.marks[:i]:
            if abs(mark.x - other.x) < plot.LABEL:
                assert abs(mark.label_y - other.label_y) >= plot.LABEL - 1e-6


def test_one_point_is_no_trade_off():
    assert plot.plot_points([]) is None
    assert plot.plot_points([plot.Point(1, "n", 1.0, 1.0, 0.0, True, True)]) is None


def test_colours_run_from_teal_to_magenta():
    assert plot.mix_colour(0.0, 10.0) == "#0f9d8a"
    assert plot.mix_colour(5.0, 10.0) == "#d69800"
    assert plot.mix_colour(10.0, 10.0) == plot.mix_colour(99.0, 10.0) == "#c2317a"
    assert plot.mix_colour(None, 10.0) == "#808080"
