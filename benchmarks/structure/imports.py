"""Imports of our own modules: hidden ones, cycles, and arrows between folders."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.structure.tree import Function, Tree, last_name

IMPORTERS = {"need", "import_module", "__import__", "importorskip", "run_module", "resolve_name"}


@dataclass(frozen=True)
class Import:
    """One of our modules (or a name that only looks like one), and how it is imported."""

    module: str
    line: int
    hidden: bool = False
    typing: bool = False  # below `if TYPE_CHECKING`


def list_imports(
    node: ast.AST, tree: Tree, name: str, *, inside: bool = False, typing: bool = False
) -> Iterator[Import]:
    """Every import of ours below a node; `inside` a function, below `if TYPE_CHECKING`."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        for dotted in _targets(node, tree, name):
            if tree.is_ours(dotted):
                hidden = inside and not typing
                yield Import(tree.module(dotted), node.lineno, hidden, typing)
    elif isinstance(node, ast.Call):
        for dotted in _strings(node, tree, name):
            yield Import(tree.module(dotted), node.lineno, not typing, typing)
    for field, value in ast.iter_fields(node):
        below = {
            "inside": inside or isinstance(node, Function | ast.Lambda),
            "typing": typing or (field == "body" and _is_typing(node)),
        }
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from list_imports(child, tree, name, **below)


def _is_typing(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and last_name(node.test) == "TYPE_CHECKING"


def _targets(node: ast.Import | ast.ImportFrom, tree: Tree, name: str) -> Iterator[str]:
    """Dotted names that a statement imports, absolute."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = _absolute("." * node.level + (node.module or ""), tree, name)
    yield from dict.fromkeys(
        dotted if (dotted := f"{base}.{alias.name}") in tree.paths else base
        for alias in node.names
    )  # fmt: skip


def _absolute(dotted: str, tree: Tree, name: str) -> str:
    level = len(dotted) - len(dotted.lstrip("."))
    if not level:
        return dotted
    parts = name.split(".")
    is_package = tree.paths[name].endswith("__init__.py")
    package = parts[: len(parts) - level + is_package]
    return ".".join([*package, *filter(None, [dotted[level:]])])


def _strings(call: ast.Call, tree: Tree, name: str) -> Iterator[str]:
    """Names of ours that are handed to an importing function as strings, absolute."""
    if last_name(call.func) not in IMPORTERS:
        return
    for argument in [*call.args, *(keyword.value for keyword in call.keywords)]:
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            dotted = _absolute(argument.value, tree, name)
            if tree.is_ours(dotted):
                yield dotted
