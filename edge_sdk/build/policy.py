"""The policy file as types: rules with conditions, reasons and evidence. Pure after loading."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import msgspec
import tomllib
from packaging.version import InvalidVersion, Version

from edge_core.errors import InputError
from edge_core.profile import Profile

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of experience: which candidates, under which facts, in or out, and who says so."""

    id: str
    candidates: tuple[str, ...]
    when: dict[str, Any]
    verdict: Literal["in", "out"]
    reason: str
    evidence: str
    hard: bool = False  # a fact of the device; the user cannot overrule it

    def matches(self, candidate: str, facts: Mapping[str, Any]) -> bool:
        """Does it decide this candidate? Raises InputError for a key that is no fact."""
        return any(fnmatchcase(candidate, pattern) for pattern in self.candidates) and all(
            self._holds(key, condition, facts) for key, condition in self.when.items()
        )

    def _holds(self, key: str, condition: Any, facts: Mapping[str, Any]) -> bool:
        if key not in facts:
            raise InputError(
                f"policy rule '{self.id}': no fact '{key}'", hint=f"{', '.join(facts)}"
            )
        fact = facts[key]
        if isinstance(condition, list):
            return fact in condition
        word, _, rest = condition.partition(" ") if isinstance(condition, str) else ("", "", "")
        if word in _OPERATORS:
            if key.endswith("_version"):
                return bool(fact) and _OPERATORS[word](_version(fact), _version(rest))
            return _OPERATORS[word](fact, float(rest))
        if word in ("has", "lacks"):
            return any(option in fact for option in rest.split("|")) is (word == "has")
        return bool(fact == condition)


class Floor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A difference smaller than either bound is none."""

    value: Literal["latency", "memory", "bytes", "accuracy"]
    relative: float
    absolute: float

    def is_worse(self, cost: float, other: float) -> bool:
        """Is ``cost`` larger than ``other`` by more than noise?"""
        difference = cost - other
        return difference > self.absolute and difference > self.relative * abs(other)


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All rules, in order, and the floors of comparisons."""

    rule: tuple[Rule, ...]
    floor: tuple[Floor, ...]

    def decide(self, candidate: str, facts: Mapping[str, Any]) -> Rule:
        """The first rule that matches; the last one matches everything."""
        return next(rule for rule in self.rule if rule.matches(candidate, facts))

    def floor_of(self, value: str) -> Floor:
        """The floor for one kind of value."""
        return next(floor for floor in self.floor if floor.value == value)


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion as error:
        raise InputError(f"'{text}' is no version", hint="such as 1.23.2") from error


@cache
def load_policy() -> Policy:
    """The policy that comes with this version."""
    raw = files("edge_sdk.build").joinpath("policy.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(raw), Policy)


def find_required_features(candidate: str, profile: Profile) -> tuple[str, ...]:
    """CPU features without which the policy refuses ``candidate``: groups, "a|b" is one of two.

    Only those that the profile has: a candidate that its user forced in spite of a rule runs
    where it was built for.
    """
    groups = []
    for rule in load_policy().rule:
        word, _, group = str(rule.when.get("isa", "")).partition(" ")
        if rule.verdict != "out" or word != "lacks" or rule.when.keys() - {"arch", "isa"}:
            continue
        without = {"arch": profile.platform.arch, "isa": ()}
        if rule.matches(candidate, without) and set(group.split("|")) & set(profile.cpu.isa):
            groups.append(group)
    return tuple(groups)
