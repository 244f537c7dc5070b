"""No request is lost while a model is swapped. The full count is benchmarks.agent_swap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import agent_daemon, agent_packages
from benchmarks.agent_swap import Tally, in_process, over_http, pair

VERSIONS = ("1", "2")


@pytest.fixture(scope="module")
def packages() -> list[Path]:
    return [agent_packages.dense(version) for version in VERSIONS]


@pytest.mark.parametrize("cache", [False, True], ids=["computed", "remembered"])
def test_in_process_every_request_is_answered_by_one_of_the_two_versions(
    packages: list[Path], tmp_path: Path, cache: bool
):
    outcome = in_process(pair(tmp_path, packages, cache=cache), requests=3000, swaps=15)
    assert outcome.ok, outcome
    assert (outcome.swaps, outcome.requests >= 3000) == (15, True)
    assert outcome.during > 100
    assert (outcome.cached > 100) == cache


def test_over_http_every_request_is_answered_by_one_of_the_two_versions(
    packages: list[Path], tmp_path: Path
):
    both = pair(tmp_path, packages, port=agent_daemon.free_port())
    outcome = over_http(both, requests=1000, swaps=6)
    assert outcome.ok, outcome
    assert (outcome.swaps, outcome.requests >= 1000) == (6, True)
    assert outcome.during > 100


def test_an_answer_of_neither_version_and_a_wrong_name_are_noticed(
    packages: list[Path], tmp_path: Path
):
    both = pair(tmp_path, packages)
    one, two = both.versions
    assert both.whose(3, one.answers[3]) == one.slot
    assert both.whose(3, two.answers[3]) == two.slot
    assert both.whose(3, (one.answers[3] + two.answers[3]) / 2) is None
    assert both.whose(3, np.zeros((2, 3), np.float32)) is None
    tally = Tally(3)
    for whose in (one.slot, two.slot):
        tally.judge(whose, whose.digest, whose.digest)
    assert tally.outcome(1, 1.0).ok
    for spoil in (
        lambda tester: tester.judge(None, one.slot.digest, ""),
        lambda tester: tester.judge(one.slot, two.slot.digest, one.slot.digest),
        lambda tester: tester.fail("429"),
    ):
        tally = Tally(3)
        for whose in (one.slot, two.slot):
            tally.judge(whose, whose.digest, whose.digest)
        spoil(tally)
        assert not tally.outcome(1, 1.0).ok
