"""Accuracy values: what they are, and what an interval promises."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_core.errors import InputError, MeasureError
from edge_sdk.build import metrics


def scores(*winners, classes=4):
    rows = np.zeros((len(winners), 1, classes), np.float32)
    for i, winner in enumerate(winners):
        rows[i, 0, winner] = 1.0
    return {"logits": rows}


def test_equal_outputs_lose_nothing():
    outputs = scores(0, 1, 2)
    values = metrics.compare(outputs, outputs, [0, 1, 2], "top1", "here")
    assert values["accuracy_drop_points"].value == 0
    assert values["cosine"].value == pytest.approx(1)
    assert values["max_error"].value == 0
    assert values["loss_points"].value == 0


def test_a_drop_is_counted_in_points_of_the_labelled_metric():
    values = metrics.compare(scores(0, 1, 2, 3), scores(0, 1, 0, 0), [0, 1, 2, 3], "top1", "here")
    assert values["metric_original"].value == 100
    assert values["metric"].value == 50
    assert values["accuracy_drop_points"].value == 50


def test_an_interval_is_one_sample_wide_on_either_side():
    values = metrics.compare(scores(0, 1, 2, 3), scores(0, 1, 2, 0), [0, 1, 2, 3], "top1", "here")
    assert (values["accuracy_drop_points"].low, values["accuracy_drop_points"].high) == (0, 50)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_single_output_that_is_not_finite_refuses_the_candidate(bad):
    broken = scores(0, 1)
    broken["logits"][1, 0, 3] = bad
    with pytest.raises(MeasureError, match="output 'logits' is not finite"):
        metrics.compare(scores(0, 1), broken, None, "agreement", "here")


def test_infinities_that_the_original_has_too_are_no_difference():
    outputs = scores(0, 1)
    outputs["logits"][:, 0, 3] = -np.inf
    values = metrics.compare(outputs, outputs, None, "cosine", "here")
    assert values["cosine"].value == pytest.approx(1)
    assert values["max_error"].value == 0


def test_the_worst_output_counts():
    rows = np.array([[[1.0, 0.0]], [[0.0, 1.0]]], np.float32)
    original, candidate = {"logits": rows, "boxes": rows}, {"logits": rows, "boxes": -rows}
    values = metrics.compare(original, candidate, None, "cosine", "here")
    assert values["cosine"].value == pytest.approx(-1)
    assert values["max_error"].value == 2


def test_single_numbers_are_compared_over_the_samples():
    original = {"y": np.array([[1.0], [2.0], [3.0]], np.float32)}
    candidate = {"y": np.array([[3.0], [2.0], [1.0]], np.float32)}
    values = metrics.compare(original, candidate, None, "cosine", "here")
    assert values["cosine"].value == pytest.approx(10 / 14)


def test_a_users_metric_that_is_no_number_refuses_the_candidate():
    def nan_unless_first(outputs, labels):
        return 1.0 if outputs[0]["logits"].argmax() == 0 else float("nan")

    with pytest.raises(MeasureError, match="m:f gives nan"):
        metrics.compare(scores(0), scores(1), None, "m:f", "here", nan_unless_first)
    with pytest.raises(InputError, match="m:f gives nan for the original"):
        metrics.compare(scores(1), scores(0), None, "m:f", "here", nan_unless_first)


def test_labels_beyond_the_classes_are_refused():
    with pytest.raises(InputError, match="label 7 is beyond the model's 4 classes"):
        metrics.compare(scores(0), scores(0), [7], "top1", "here")


@pytest.mark.parametrize("other", [{"other": scores(0)["logits"]}, scores(0, classes=5)])
def test_other_output_names_and_shapes_are_refused(other):
    with pytest.raises(MeasureError, match="the candidate's outputs are"):
        metrics.compare(scores(0), other, None, "cosine", "here")


def test_a_users_metric_is_given_samples_and_labels():
    def share_of_zero(outputs, labels):
        assert labels == [0, 0]
        return float(np.mean([sample["logits"].argmax() == 0 for sample in outputs]))

    values = metrics.compare(scores(0, 0), scores(0, 1), [0, 0], "m:f", "here", share_of_zero)
    assert values["accuracy_drop_points"].value == 50


def test_a_users_metric_that_fails_is_named():
    def fail(outputs, labels):
        raise KeyError("boxes")

    with pytest.raises(InputError, match="my:metric failed: KeyError"):
        metrics.compare(scores(0), scores(0), None, "my:metric", "here", fail)


@given(count=st.integers(1, 5000), share=st.floats(0, 1))
def test_wilson_contains_the_share_and_stays_within_0_and_1(count, share):
    hits = round(share * count)
    low, high = metrics.wilson_interval(hits, count)
    assert 0 <= low <= hits / count + 1e-12
    assert hits / count - 1e-12 <= high <= 1


def test_wilson_agrees_with_the_published_example():
    # Agresti and Coull 1998, section 1: 0 of 20 gives about 0 to 0.161.
    low, high = metrics.wilson_interval(0, 20)
    assert low == pytest.approx(0, abs=1e-9)
    assert high == pytest.approx(0.161, abs=0.001)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
def test_a_drop_lies_in_its_interval_and_changes_sign_with_its_sides(pairs):
    before, after = (np.array(hits) for hits in zip(*pairs, strict=True))
    drop, low, high = metrics.drop_interval(before, after)
    assert low <= drop <= high
    assert metrics.drop_interval(after, before)[0] == pytest.approx(-drop)
    assert drop == pytest.approx(100 * (before.mean() - after.mean()))
