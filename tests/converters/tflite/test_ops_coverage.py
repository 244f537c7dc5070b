"""ONNX's node tests through the importer: at least 85 % match in LiteRT, and none is wrong."""

from __future__ import annotations

import pytest

from benchmarks import op_coverage


@pytest.fixture(scope="module")
def outcomes():
    return op_coverage.outcomes()


def test_the_cases_are_the_991_of_a_float32_runtime_and_54_of_integer_arithmetic(outcomes):
    assert sum(not outcome.integer for outcome in outcomes) == 991
    assert sum(outcome.integer for outcome in outcomes) == 54


def test_none_is_wrong_and_none_crashes(outcomes):
    assert [outcome for outcome in outcomes if outcome.kind in ("wrong", "crash")] == []


def test_at_least_85_percent_match(outcomes):
    for integer in (False, True):
        kinds = [outcome.kind for outcome in outcomes if outcome.integer is integer]
        assert kinds.count("ok") >= 0.85 * len(kinds)


def test_what_is_refused_is_named(outcomes):
    for outcome in outcomes:
        assert outcome.kind != "refused" or outcome.op in outcome.told, outcome


def test_the_table_in_the_docs_is_this_one(outcomes):
    page = op_coverage.PAGE.read_text("utf-8")
    assert "\n".join(op_coverage.table(outcomes)) in page, (
        "python -m benchmarks.op_coverage --write"
    )
