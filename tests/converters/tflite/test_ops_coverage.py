"""ONNX's node tests through the importer: at least 85 % match in LiteRT, and none is wrong."""

from __future__ import annotations

import pytest

from benchmarks import op_coverage


@pytest.fixture(scope="module")
def found():
    return op_coverage.outcomes()


def test_the_cases_are_the_991_of_a_float32_runtime_and_54_of_integer_arithmetic(found):
    assert sum(not o.integer for o in found) == 991
    assert sum(o.integer for o in found) == 54


def test_none_is_wrong_and_none_crashes(found):
    assert [o for o in found if o.kind in ("wrong", "crash")] == []


def test_at_least_85_percent_match(found):
    for integer in (False, True):
        kinds = [o.kind for o in found if o.integer is integer]
        assert kinds.count("ok") >= 0.85 * len(kinds)


def test_what_is_refused_is_named(found):
    for o in found:
        assert o.kind != "refused" or o.op in o.told, o


def test_the_table_in_the_docs_is_this_one(found):
    page = op_coverage.PAGE.read_text("utf-8")
    assert "\n".join(op_coverage.table(found)) in page, "python -m benchmarks.op_coverage --write"
