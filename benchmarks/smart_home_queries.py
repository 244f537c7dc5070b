"""What people say to a house: a stream of commands and questions, with the meaning of each.

The wordings are Home Assistant's own English sentence templates (wheel home-assistant-intents,
Apache-2.0), which many people wrote: "[<the>] {area} (light|lamp)[s] {on_off_states:state}".
A request is a meaning (a topic with values for its slots) in a random wording. Opposites, numbers
and rooms are in the templates; negated commands are made of them here by "don't" and "never".
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import msgspec

from edge_core.extras import need

NEGATED = 0.15  # of the commands
OPTIONAL = 0.4  # how often words in [ ] are said
NUMBERS = (5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 80, 90, 2700, 4000, 6500)
ITEMS = ("milk", "bread", "eggs", "apples", "rice", "coffee", "soap", "batteries")
_TOKEN = re.compile(r"[()\[\]|;]|<[^>]+>|\{[^}]+\}|[^()\[\]|;<>{}]+")
_SLOT = re.compile(r"\{([^}]+)\}")
_RULE = re.compile(r"<([^>]+)>")
_QUESTION = re.compile(
    r"(is|are|any|some|all|every|each|what|which|how|where|tell|do you)\b|\w+'s\b"
)

Values = dict[str, str]  # slot as in the template, "list:name" -> value


class House(msgspec.Struct, frozen=True):
    areas: tuple[str, ...]
    floors: tuple[str, ...]
    names: dict[str, tuple[str, ...]]  # kind of device -> its names


class Topic(msgspec.Struct, frozen=True):
    """One block of templates that mean the same."""

    intent: str
    meaning: str  # what the block fixes besides the slots
    kinds: tuple[str, ...]  # of devices that {name} may be; () = any
    slots: tuple[str, ...]
    templates: tuple[str, ...]


class Request(msgspec.Struct, frozen=True):
    text: str
    meaning: str
    topic: int


HOUSES = (
    House(
        ("kitchen", "living room", "bedroom", "bathroom", "office", "hallway", "nursery"),
        ("ground floor", "first floor", "basement", "attic"),
        {
            "light": ("bedside lamp", "porch light", "desk lamp"), "switch": ("coffee machine",),
            "fan": ("ceiling fan", "extractor"), "media_player": ("tv", "kitchen radio"),
            "climate": ("thermostat", "heater"), "cover": ("roller blind", "garage door"),
            "lock": ("front door", "garden gate"), "valve": ("sprinkler", "water main"),
            "vacuum": ("robot",), "lawn_mower": ("mower",), "scene": ("movie night", "good night"),
            "script": ("morning routine",), "sensor": ("humidity",), "todo": ("chores", "shopping"),
            "binary_sensor": ("back window", "motion sensor"), "button": ("doorbell",),
            "weather": ("home",),
        },
    ),
    House(
        ("guest room", "cellar", "pantry", "conservatory", "studio", "lounge", "playroom"),
        ("upper floor", "lower floor", "second floor", "roof"),
        {
            "light": ("reading lamp", "wall light", "chandelier"), "switch": ("kettle",),
            "fan": ("tower fan", "ventilator"), "media_player": ("projector", "record player"),
            "climate": ("radiator", "air conditioner"), "cover": ("awning", "skylight shade"),
            "lock": ("patio door", "side gate"), "valve": ("irrigation", "gas valve"),
            "vacuum": ("hoover",), "lawn_mower": ("lawn robot",), "scene": ("party", "dinner"),
            "script": ("evening routine",), "sensor": ("air quality",), "todo": ("errands", "work"),
            "binary_sensor": ("roof window", "presence sensor"), "button": ("gong",),
            "weather": ("office",),
        },
    ),
)  # fmt: skip


def topics() -> tuple[Topic, ...]:
    """Every block of templates whose slots have values here."""
    found = []
    for intent, data in _data()["intents"].items():
        for block in data["data"]:
            by_slots: dict[tuple[str, ...], list[str]] = {}
            for template in block["sentences"]:
                by_slots.setdefault(tuple(sorted(set(_slots(template)))), []).append(template)
            kinds = (block.get("requires_context") or {}).get("domain", ())
            fixed = json.dumps([intent, block.get("response"), block.get("slots")])
            found += [
                Topic(intent, fixed, tuple(kinds), slots, tuple(templates))
                for slots, templates in by_slots.items()
                if all(_is_known(slot.split(":")[0]) for slot in slots)
                and (not kinds or any(kind in HOUSES[0].names for kind in kinds))
            ]
    return tuple(found)


def stream(
    chosen: list[tuple[int, Topic]], house: House, count: int, seed: int, meanings: int = 4
) -> list[Request]:
    """``count`` different texts, each about one of ``meanings`` meanings of a random topic.

    A text has one meaning: that in which it was said first.
    """
    rng = random.Random(seed)
    known = [
        (number, topic, {slot: _value(slot, topic, house, rng) for slot in topic.slots})
        for number, topic in chosen
        for _ in range(meanings if topic.slots else 1)
    ]
    said: dict[str, Request] = {}
    while len(said) < count:
        number, topic, values = rng.choice(known)
        text = _say(topic, values, rng)
        meaning = topic.meaning + json.dumps(
            {slot_name.split(":")[-1]: value for slot_name, value in values.items()}
        )
        if not _QUESTION.match(text) and rng.random() < NEGATED:
            text = rng.choice(("don't ", "do not ", "never ", "please don't ")) + text
            meaning = f"not {meaning}"
        said.setdefault(text, Request(text, meaning, number))
    return list(said.values())


@cache
def _data() -> Any:
    return need("home_assistant_intents", "dev").get_intents("en")


def _slots(template: str) -> list[str]:
    """Every {slot} of a template, also those inside its rules."""
    inner = [
        slot
        for rule in _RULE.findall(template)
        for slot in _slots(_data()["expansion_rules"][rule])
    ]
    return [*_SLOT.findall(template), *inner]


def _is_known(name: str) -> bool:
    if name in ("area", "floor", "name") or name.endswith("_list_item"):
        return True
    return any(kind in _data()["lists"].get(name, {}) for kind in ("range", "values"))


def _value(slot: str, topic: Topic, house: House, rng: random.Random) -> str:
    name = slot.split(":")[0]
    if name == "area":
        return rng.choice(house.areas)
    if name == "floor":
        return rng.choice(house.floors)
    if name == "name":
        kinds = [kind for kind in topic.kinds or house.names if kind in house.names]
        return rng.choice(house.names[rng.choice(kinds)])
    if name.endswith("_list_item"):
        return rng.choice(ITEMS)
    values = _data()["lists"][name]
    if "values" in values:
        return json.dumps(rng.choice(values["values"])["out"])
    low, high = values["range"]["from"], values["range"]["to"]
    return str(rng.choice([number for number in NUMBERS if low <= number <= high]))


def _say(topic: Topic, values: Values, rng: random.Random) -> str:
    def slot(name: str) -> str:
        words = _data()["lists"].get(name.split(":")[0], {}).get("values")
        if not words:
            return values[name]
        same = [word["in"] for word in words if json.dumps(word["out"]) == values[name]]
        return _expand(rng.choice(same), slot, rng)

    return " ".join(_expand(rng.choice(topic.templates), slot, rng).split())


def _expand(template: str, slot: Callable[[str], str], rng: random.Random) -> str:
    """One wording of a template: (a|b) one of, [a] perhaps, (a;b) in any order."""
    tokens = _TOKEN.findall(template)

    def group(end: str) -> str:
        choices, shuffled = [""], False
        while tokens and tokens[0] != end:
            token = tokens.pop(0)
            if token in "|;":
                choices.append("")
                shuffled = shuffled or token == ";"
            elif token == "(":
                choices[-1] += group(")")
            elif token == "[":
                said = group("]")
                choices[-1] += said if rng.random() < OPTIONAL else ""
            elif token[0] == "<":
                choices[-1] += _expand(_data()["expansion_rules"][token[1:-1]], slot, rng)
            elif token[0] == "{":
                choices[-1] += slot(token[1:-1])
            else:
                choices[-1] += token
        if end and tokens:
            tokens.pop(0)
        if shuffled:
            rng.shuffle(choices)
            return " ".join(choices)
        return rng.choice(choices)

    return group("")
