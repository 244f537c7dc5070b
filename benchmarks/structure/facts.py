"""What one file holds: sizes, names, docstrings, imports."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from benchmarks.structure.imports import Import, list_imports
from benchmarks.structure.names import is_participle, list_one_letter
from benchmarks.structure.tree import Function, Place, Tree, last_name, module_name, sort_places

MATHEMATICS = re.compile(r"#\s*structure: mathematics\b\W*(?P<reason>\w.*)")


@dataclass(frozen=True)
class Module:
    """What one file holds."""

    path: str
    name: str
    lines: int
    full_lines: int  # not blank
    prose_lines: int
    function_lines: tuple[int, ...]
    bindings: int
    one_letter: tuple[Place, ...]
    indices: tuple[Place, ...]
    mathematics: tuple[Place, ...]
    reason: str  # of a file that declares mathematics
    names: int  # functions that could have a participle as their name
    participles: tuple[Place, ...]
    public: int
    undocumented: tuple[Place, ...]
    imports: tuple[Import, ...]

    @property
    def folder(self) -> str:
        return str(PurePosixPath(self.path).parent)

    @property
    def inner_imports(self) -> tuple[Place, ...]:
        return tuple(
            Place(self.path, entry.line, entry.module) for entry in self.imports if entry.hidden
        )


def read_modules(tree: Tree, folders: Iterable[str]) -> list[Module]:
    """Facts of every module below the folders, in the order of their paths."""
    inside = [PurePosixPath(folder) for folder in folders]
    return [
        read_module(tree, name)
        for name, path in sorted(tree.paths.items(), key=lambda entry: entry[1])
        if any(PurePosixPath(path).is_relative_to(folder) for folder in inside)
    ]


def read_module(tree: Tree, name: str) -> Module:
    """Facts of one module."""
    path = tree.paths[name]
    text = (tree.root / path).read_text("utf-8")
    try:
        syntax = ast.parse(text)
    except SyntaxError as error:
        raise SystemExit(f"error: {path}:{error.lineno} is not Python: {error.msg}") from error
    comments = _comments(text)
    reason = _mathematics(comments)
    letters, indices, bindings = list_one_letter(syntax, path)
    functions = [node for node in ast.walk(syntax) if isinstance(node, Function)]
    names = [function for function in functions if not function.name.startswith("test_")]
    public = list(_public(syntax, path))
    return Module(
        path=path,
        name=name,
        lines=len(text.splitlines()),
        full_lines=sum(1 for line in text.splitlines() if line.strip()),
        prose_lines=len({token.start[0] for token in comments} | _docstring_lines(syntax, text)),
        function_lines=tuple(map(_line_count, functions)),
        bindings=bindings,
        one_letter=() if reason else letters,
        indices=indices,
        mathematics=letters if reason else (),
        reason=reason,
        names=len(names),
        participles=_places(path, (node for node in names if is_participle(node.name))),
        public=len(public),
        undocumented=_places(path, (node for node in public if not ast.get_docstring(node))),
        imports=tuple(list_imports(syntax, tree, name)),
    )


def _line_count(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def _places(path: str, nodes: Iterable[ast.AST]) -> tuple[Place, ...]:
    return sort_places(
        Place(path, getattr(node, "lineno", 1), getattr(node, "name", module_name(path)))
        for node in nodes
    )


def _comments(text: str) -> list[tokenize.TokenInfo]:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return [token for token in tokens if token.type == tokenize.COMMENT]


def _mathematics(comments: Iterable[tokenize.TokenInfo]) -> str:
    for token in comments:
        declaration = MATHEMATICS.match(token.string) if token.start[1] == 0 else None
        if declaration:
            return declaration["reason"].strip()
    return ""


def _docstring_lines(syntax: ast.Module, text: str) -> set[int]:
    rows = text.splitlines()
    lines: set[int] = set()
    for node in ast.walk(syntax):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node):
            first = node.body[0]
            lines.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return {line for line in lines if rows[line - 1].strip()}


def _public(syntax: ast.Module, path: str) -> Iterator[ast.Module | ast.ClassDef | Function]:
    stem = PurePosixPath(path).stem
    if syntax.body and (not stem.startswith("_") or stem.startswith("__")):
        yield syntax
    yield from _public_in(syntax)


def _public_in(parent: ast.AST) -> Iterator[ast.ClassDef | Function]:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.ClassDef | Function):
            if node.name.startswith(("_", "test_")) or _is_repeat(node):
                continue
            yield node
            if isinstance(node, ast.ClassDef):
                yield from _public_in(node)
        elif isinstance(node, ast.If | ast.Try):
            yield from _public_in(node)


def _is_repeat(node: ast.ClassDef | Function) -> bool:
    """Overloads and setters: another definition of the name has the docstring."""
    return any(last_name(mark) in {"overload", "setter"} for mark in node.decorator_list)
