"""Checks tables of a TOML file against a struct; errors name the field and what is allowed.

    read(path, limit) -> dict         a TOML file
    check(doc, struct, where)         a partial table: fields may be missing, none may be wrong
    build(doc, struct, where)         a complete table -> the struct
    place(doc, struct, path, ...)     one value, written as text, at a path of keys
    nearest(word, known)              "did you mean ...?", or the list

Everything raises InputError, and only that; it names ``where`` (a file, an option), the dotted
field, and the nearest or the valid choices.
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import inspect as mi

from edge_core.errors import InputError
from edge_core.files import read_limited

if sys.version_info >= (3, 11):
    import tomllib
else:  # the agent's oldest Python
    import tomli as tomllib

NONE = "none"  # removes an optional value; TOML has no null
BIGGEST = 2**53  # numbers beyond it are not exact as floats
Doc = dict[str, Any]
StructType = type[msgspec.Struct]
StructT = TypeVar("StructT", bound=msgspec.Struct)


def read(path: Path, limit: int) -> Doc:
    """The table of a TOML file of at most ``limit`` bytes."""
    try:
        return tomllib.loads(read_limited(path, limit).decode("utf-8"))
    except UnicodeDecodeError as e:
        raise InputError(f"{path} is not UTF-8 text: byte {e.start}") from e
    except (ValueError, RecursionError) as e:  # TOMLDecodeError; a NUL in a path; a huge number
        raise InputError(f"{path} is not readable TOML: {e}") from e


def check(doc: Mapping[str, Any], struct: StructType, where: str) -> None:
    """Raise InputError for the first field of a partial table that is unknown or invalid."""
    _check(doc, struct, where, "")


def build(doc: Mapping[str, Any], struct: type[StructT], where: str) -> StructT:
    """The struct for a table that check() passed; raises InputError if a field is missing."""
    try:
        return msgspec.convert(_without_none(doc, struct), struct)
    except msgspec.ValidationError as e:
        raise _make_value_error(e, where, "", struct) from e


def place(doc: Doc, struct: StructType, path: tuple[str, ...], text: str, where: str) -> None:
    """Parse ``text`` and set the value at ``path``, a chain of keys; list items go by their names.

    ``where`` names the source of the text in messages. Raises InputError for an unknown key or
    a value that its field does not take.
    """
    _place(doc, struct, path, text, where, "")


def nearest(word: str, known: Iterable[str]) -> str:
    """'did you mean ...? ' or the list of what is known."""
    known = tuple(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'? " if close else f"known: {', '.join(known)}; "


def _check(doc: Mapping[str, Any], table: StructType, where: str, at: str) -> None:
    hints = _get_hints(table)
    for key, value in doc.items():
        if key not in hints:
            raise _make_unknown_field_error(key, hints, where, at)
        inner, named = _get_struct(hints[key]), _get_value_struct(hints[key])
        if value == NONE and _is_optional(hints[key]):
            continue
        if inner and isinstance(value, dict):
            _check(value, inner, where, f"{at}{key}.")
        elif (
            named
            and isinstance(value, dict)
            and all(isinstance(item, dict) for item in value.values())
        ):
            for name, item in value.items():
                _check(item, named, where, f"{at}{key}.{name}.")
        else:
            _check_value(value, hints[key], where, f"{at}{key}")


def _check_value(value: Any, hint: Any, where: str, at: str) -> None:
    """Refuse a value that its field cannot hold."""
    _check_numbers(value, where, at)
    try:
        msgspec.convert(value, hint)
    except msgspec.ValidationError as e:
        raise _make_value_error(e, where, at, hint) from e


def _check_numbers(value: Any, where: str, at: str) -> None:
    """TOML has nan, inf and integers of any size; no field of ours does."""
    if isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            _check_numbers(item, where, at)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where}: {at}: expected a finite number, got {value}")
    elif isinstance(value, int) and abs(value) > BIGGEST:
        raise InputError(f"{where}: {at}: expected a number below 2^53")


def _place(
    doc: Doc, table: StructType, path: tuple[str, ...], text: str, where: str, at: str
) -> None:
    key, *rest = path
    hints = _get_hints(table)
    if key not in hints:
        raise _make_unknown_field_error(key, hints, where, at)
    inner, item = _get_struct(hints[key]), _get_item_struct(hints[key])
    if not rest:
        doc[key] = _parse(text, hints[key], where, f"{at}{key}")
    elif inner:
        doc[key] = dict(doc[key]) if isinstance(doc.get(key), dict) else {}
        _place(doc[key], inner, tuple(rest), text, where, f"{at}{key}.")
    elif item and len(rest) > 1:
        doc[key] = [dict(entry) for entry in doc.get(key, ())]
        named = {
            entry["name"]: entry for entry in reversed(doc[key]) if "name" in entry
        }  # the first one wins
        if rest[0] not in named:
            raise _make_unknown_field_error(rest[0], named, where, f"{at}{key}.")
        _place(named[rest[0]], item, tuple(rest[1:]), text, where, f"{at}{key}.{rest[0]}.")
    elif get_origin(hints[key]) is dict:
        doc[key] = {**doc.get(key, {}), ".".join(rest): text}
    else:
        raise InputError(f"{where}: {at}{key} has no field '{rest[0]}'")


def _parse(text: str, hint: Any, where: str, at: str) -> Any:
    """A value as TOML, or the text itself where a string is wanted."""
    if text == NONE and _is_optional(hint):
        return NONE
    try:
        doc = tomllib.loads(f"v = {text}")
        value = doc["v"] if len(doc) == 1 else text
    except (ValueError, RecursionError):
        value = text
    wants_text = isinstance(_strip_metadata(mi.type_info(hint)), (mi.StrType, mi.LiteralType))
    if wants_text and not isinstance(value, str):
        value = text  # platform.glibc=2.36 looks like a number
    inner = _get_struct(hint)
    if inner and isinstance(value, dict):
        _check(value, inner, where, f"{at}.")
    else:
        _check_value(value, hint, where, at)
    return value


def _without_none(doc: Mapping[str, Any], table: StructType) -> Doc:
    hints, out = _get_hints(table), {}
    for key, value in doc.items():
        inner = _get_struct(hints[key])
        if value == NONE and _is_optional(hints[key]):
            continue
        out[key] = _without_none(value, inner) if inner else value
    return out


@cache
def _get_hints(table: StructType) -> dict[str, Any]:
    return get_type_hints(table, include_extras=True)


def _strip_annotated(hint: Any) -> Any:
    """The type hint without Annotated."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _is_optional(hint: Any) -> bool:
    return type(None) in get_args(_strip_annotated(hint))


def _get_struct(hint: Any) -> StructType | None:
    """The struct that a field holds, if it holds one."""
    options = get_args(_strip_annotated(hint)) if _is_optional(hint) else (_strip_annotated(hint),)
    return next(
        (
            option
            for option in options
            if isinstance(option, type) and issubclass(option, msgspec.Struct)
        ),
        None,
    )


def _get_item_struct(hint: Any) -> StructType | None:
    """The struct that a list field holds, if it holds a list of them."""
    return _get_struct(get_args(hint)[0]) if get_origin(hint) is tuple else None


def _get_value_struct(hint: Any) -> StructType | None:
    """The struct that a field holds by name, if it holds a table of them."""
    plain = _strip_annotated(hint)
    return _get_struct(get_args(plain)[1]) if get_origin(plain) is dict else None


def _make_unknown_field_error(key: str, known: Iterable[str], where: str, at: str) -> InputError:
    hint = nearest(key, known).rstrip("; ")
    return InputError(f"{where}: no field '{at}{key}'", hint=hint)


def _make_value_error(e: msgspec.ValidationError, where: str, at: str, hint: Any) -> InputError:
    """msgspec's "Expected `int`, got `str` - at `$.cores`", in our words."""
    what, _, path = str(e).partition(" - at `$")
    inside = path.rstrip("`")
    field = f"{at}{inside}".lstrip(".")
    missing = re.search(r"missing required field `(\w+)`", what)
    extra = re.search(r"contains unknown field `(.*)`", what)
    if missing:
        return InputError(f"{where}: the field '{_add_dot(field)}{missing[1]}' is missing")
    if extra:
        item = _get_item_struct(hint)
        return _make_unknown_field_error(
            extra[1], _get_hints(item) if item else (), where, _add_dot(field)
        )
    allowed = _list_choices(mi.type_info(hint), inside)
    for theirs, ours in (("`", ""), ("object", "table"), ("array", "list")):
        what = what.replace(theirs, ours)
    return InputError(
        f"{where}: {field}: {what[0].lower()}{what[1:]}",
        hint=f"one of: {', '.join(allowed)}" if allowed else "",
    )


def _add_dot(field: str) -> str:
    return f"{field}." if field else ""


def _list_choices(kind: mi.Type, path: str) -> tuple[str, ...]:
    """The words that a field takes, if it takes only some: along ``[...].name`` of an error."""
    steps = re.findall(r"\[[^]]*\]|\w+", path)
    kind = _strip_metadata(kind)
    for step in steps:
        if isinstance(kind, mi.VarTupleType):
            kind = _strip_metadata(kind.item_type)
        elif isinstance(kind, mi.StructType):
            kind = _strip_metadata(next(field.type for field in kind.fields if field.name == step))
    return tuple(map(str, kind.values)) if isinstance(kind, mi.LiteralType) else ()


def _strip_metadata(kind: mi.Type) -> mi.Type:
    return _strip_metadata(kind.type) if isinstance(kind, mi.Metadata) else kind
