"""Tables against a struct: nested structs, lists and tables of them, and values written as text."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta

from edge_core import toml_schema
from edge_core.errors import InputError


class Disk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    kind: Literal["ssd", "sd"] = "sd"


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    cores: Annotated[int, Meta(ge=1)] = 1
    limit: float | None = None
    boot: Disk | None = None
    disks: tuple[Disk, ...] = ()
    users: dict[str, Disk] = {}
    notes: dict[str, str] = {}


def test_a_checked_table_becomes_the_struct():
    doc = {"name": "a", "limit": "none", "disks": [{"name": "x"}], "users": {"u": {"name": "y"}}}
    toml_schema.check(doc, Machine, "a.toml")
    machine = toml_schema.build(doc, Machine, "a.toml")
    assert machine == Machine("a", disks=(Disk("x"),), users={"u": Disk("y")})


@pytest.mark.parametrize(
    ("doc", "message"),
    [
        ({"coers": 1}, "a.toml: no field 'coers'\n  hint: did you mean 'cores'?"),
        ({"cores": "2"}, "a.toml: cores: expected int, got str"),
        (
            {"boot": {"kind": "tape"}},
            "a.toml: boot.kind: invalid enum value 'tape'\n  hint: one of: sd, ssd",
        ),
        (
            {"users": {"u": {"nam": "y"}}},
            "a.toml: no field 'users.u.nam'\n  hint: did you mean 'name'?",
        ),
        ({"disks": [{"name": 1}]}, "a.toml: disks[0].name: expected str, got int"),
        ({"limit": float("inf")}, "a.toml: limit: expected a finite number, got inf"),
        ({"cores": 2**60}, "a.toml: cores: expected a number below 2^53"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_allowed(doc, message):
    with pytest.raises(InputError) as error:
        toml_schema.check(doc, Machine, "a.toml")
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("path", "text", "field", "expected"),
    [
        ("cores", "4", "cores", 4),
        ("name", "4", "name", "4"),
        ("boot.name", "x", "boot", {"name": "x"}),
        ("disks.x.kind", "ssd", "disks", [{"name": "x", "kind": "ssd"}]),
        ("notes.a.b", "text", "notes", {"a.b": "text"}),
        ("limit", "none", "limit", "none"),
    ],
)
def test_a_value_is_placed_by_its_path(path, text, field, expected):
    doc = {"name": "a", "disks": [{"name": "x"}]}
    toml_schema.place(doc, Machine, tuple(path.split(".")), text, "--set")
    assert doc[field] == expected


def test_placing_leaves_tables_that_are_shared_alone():
    disks = [{"name": "x"}]
    doc = {"name": "a", "disks": disks}
    toml_schema.place(doc, Machine, ("disks", "x", "kind"), "ssd", "--set")
    assert disks == [{"name": "x"}]


def test_a_missing_field_is_named_by_its_path():
    with pytest.raises(InputError, match=r"a\.toml: the field 'boot\.name' is missing"):
        toml_schema.build({"name": "a", "boot": {}}, Machine, "a.toml")
