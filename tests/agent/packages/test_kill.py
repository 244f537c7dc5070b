"""kill -9 during an installation, a switch, a rollback and a sweep: never half of anything.

EDGE_KILL_ROUNDS=300 for the long run; `python -m benchmarks.agent_kills` prints its table.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from benchmarks import agent_kills
from edge_core.errors import EdgeError

ROUNDS = int(os.environ.get("EDGE_KILL_ROUNDS", "8"))


def failing(act: Callable[[], object]) -> str:
    """The first line of the error that ``act`` must raise."""
    with pytest.raises((AssertionError, EdgeError)) as caught:
        act()
    return str(caught.value).splitlines()[0]


def test_a_kill_at_any_moment_leaves_one_of_the_two_valid_packages(make_package, tmp_path):
    packages = [make_package(version=str(number), seed=number) for number in (1, 2, 3)]
    results = agent_kills.rounds(ROUNDS, packages, tmp_path / "agent", seed=ROUNDS)
    assert [round_result.broken for round_result in results if round_result.broken] == []
    assert {round_result.serves for round_result in results} <= {"old", "new"}
    assert len(results) == ROUNDS


def test_the_judge_of_the_kills_sees_what_is_broken(make_package, tmp_path):
    """Were check() or tidy() blind, the rounds would prove nothing."""
    packages = [make_package(version=str(number), seed=number) for number in (1, 2, 3)]
    root = tmp_path / "agent"
    assert agent_kills.rounds(0, packages, root, seed=0) == []
    slots = agent_kills.Slots(root)
    current = slots.active("dense").current
    assert current
    assert agent_kills.check(slots, {current.digest: "old"}) == "old"
    assert failing(lambda: agent_kills.check(slots, {})) == f"{current.version} is served"
    agent_kills.tidy(slots)
    (slots.folder(current).parent / ".half").mkdir()
    assert failing(lambda: agent_kills.tidy(slots)).endswith("slots holds ['.half']")
    model = slots.folder(current) / "model.onnx"
    model.chmod(0o600)
    model.write_bytes(b"half")
    assert "is damaged" in failing(lambda: agent_kills.check(slots, {current.digest: "old"}))
