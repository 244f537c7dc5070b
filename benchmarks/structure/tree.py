"""Paths of our modules, and the places in them that are listed."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Place:
    """Something with a name at a line of a file."""

    path: str
    line: int
    name: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.name}"


@dataclass(frozen=True)
class Tree:
    """Paths of our modules by dotted name."""

    root: Path
    paths: dict[str, str]

    def is_ours(self, dotted: str) -> bool:
        """Whether the name begins with one of our top folders."""
        return dotted.partition(".")[0] in self._tops

    @cached_property
    def _tops(self) -> set[str]:
        return {name.partition(".")[0] for name in self.paths}

    def module(self, dotted: str) -> str:
        """The longest part of the name that is a module of ours; the name itself if none is."""
        part = dotted
        while part and part not in self.paths:
            part = part.rpartition(".")[0]
        return part or dotted


def read_tree(root: Path) -> Tree:
    """Python files that git tracks or does not ignore, and that are there."""
    command = ["git", "ls-files", "-coz", "--exclude-standard", "*.py"]
    listing = subprocess.run(command, cwd=root, capture_output=True, check=True, text=True).stdout
    paths = sorted({path for path in listing.split("\0") if path and (root / path).is_file()})
    return Tree(root, {module_name(path): path for path in paths})


def module_name(path: str) -> str:
    """The dotted name of the module in that file."""
    parts = PurePosixPath(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def sort_places(places: Iterable[Place]) -> tuple[Place, ...]:
    """By line."""
    return tuple(sorted(places, key=lambda place: place.line))


def last_name(node: ast.AST) -> str:
    """`c` of a.b.c or of c; empty for anything else."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
