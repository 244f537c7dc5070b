"""The options of a build on the command line: one for each field of BuildOptions.

    @app.command("build")
    @expand_options()
    def build_packages(model: ModelFile, options: BuildOptions) -> None: ...

Type, default and help are the field's; how a kind of value is written as text is in TEXT_FORMS.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import msgspec
import typer
from msgspec import Meta
from msgspec.structs import FieldInfo

from converters.spec import Shapes
from edge_core.errors import InputError
from edge_core.package.preprocess import ImageRecipe
from edge_sdk.build.request import BuildOptions, StrPath


def parse_shapes(texts: Iterable[str]) -> dict[str, int | tuple[int, ...]]:
    """--shape options as a table of name to size or shape; raises InputError."""
    table: dict[str, int | tuple[int, ...]] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        sizes = value.split("x")
        if not name or not all(re.fullmatch("0*[1-9][0-9]{0,9}", size) for size in sizes):
            raise InputError(f"--shape {text}: write batch=1, or input=1x3x224x224")
        table[name] = int(value) if len(sizes) == 1 else tuple(map(int, sizes))
    return table


class TextForm(NamedTuple):
    """How the values of one type are written on the command line."""

    type: Any  # what typer reads; a list is a repeatable option
    parse: Callable[[Any], Any] = lambda text: text


TEXT_FORMS: dict[Any, TextForm] = {
    StrPath: TextForm(Path),
    StrPath | None: TextForm(Path | None),
    Sequence[str]: TextForm(list[str], tuple),
    StrPath | Sequence[str]: TextForm(Path | None),
    ImageRecipe | str | None: TextForm(str | None),
    Shapes: TextForm(list[str], parse_shapes),
}
FLAGS = {"evaluation": "--eval", "shapes": "--shape", "also": "--with"}  # else the field's name


def expand_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The command has an option for each of these fields of BuildOptions (none given: for all).

    The decorated function takes them as one parameter, ``options``.
    """
    fields = {
        field.name: field
        for field in msgspec.structs.fields(BuildOptions)
        if not names or field.name in names
    }

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**arguments: Any) -> None:
            texts = {name: arguments.pop(name) for name in fields}
            command(**arguments, options=parse_options(texts))

        signature = inspect.signature(command, eval_str=True)
        parameters = [
            new
            for old in signature.parameters.values()
            for new in (map(_to_parameter, fields.values()) if old.name == "options" else [old])
        ]
        parameters.sort(key=lambda one: one.default is not one.empty)  # required ones first
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def parse_options(texts: Mapping[str, Any]) -> BuildOptions:
    """Options from the command line's values, by field; raises InputError."""
    types = {field.name: _split(field)[0] for field in msgspec.structs.fields(BuildOptions)}
    chosen = {name: text for name, text in texts.items() if text not in (None, [])}
    return BuildOptions(
        **{name: _text_form(types[name]).parse(text) for name, text in chosen.items()}
    )


def _to_parameter(field: FieldInfo) -> inspect.Parameter:
    """The typer option of one field, with its type, default, flag and help."""
    kind, meta = _split(field)
    form = _text_form(kind)
    default = field.default if isinstance(field.default, str | int | Path) else None
    flag = FLAGS.get(field.name, f"--{field.name.replace('_', '-')}")
    text = meta.description or ""
    if repeatable := get_origin(form.type) is list:
        text = f"{text.removesuffix('.')}; repeatable."
    option = typer.Option(flag, help=text, min=meta.ge, case_sensitive=False)
    return inspect.Parameter(
        field.name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=[] if repeatable else default,
        annotation=Annotated[form.type, option],
    )


def _split(field: FieldInfo) -> tuple[Any, Meta]:
    """A field's own type and its Meta."""
    kind, meta = get_args(field.type)
    return kind, meta


def _text_form(kind: Any) -> TextForm:
    return TEXT_FORMS.get(kind) or TextForm(kind)
