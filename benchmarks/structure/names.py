"""Names of a file: bindings of one letter, participles as names of functions."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.structure.tree import Function, Place, last_name, sort_places

ONE_LETTER = re.compile(r"_?[^\W\d_]")
INDICES = {"i", "j", "k", "n"}

NO_PARTICIPLES = frozenset(re.findall(r"\w+", """
    bed bleed breed creed deed embed exceed fed feed greed heed hundred indeed infrared kindred need
    proceed red reed sacred seed shed shred sled speed steed succeed weed wed wicked
"""))  # fmt: skip
# Not those that are also the infinitive or a common noun: cut, left, put, read, run, set, split.
IRREGULAR = frozenset(re.findall(r"\w+", """
    awoken beaten begun bent bitten blown born borne bought bound bred broken brought built burnt
    caught chosen clung crept dealt done drawn driven drunk dug eaten fallen felt fled flown
    forbidden forgiven forgotten fought found frozen given gone gotten grown heard held hidden hung
    kept known laid lain learnt led lent lost made meant met misled mistaken outgrown overdone
    overridden overwritten paid proven rebuilt redone redrawn remade repaid resent resold retaken
    retold rewound rewritten ridden risen rung said seen sent sewn shaken shown shrunk slain slept
    slid sold sought spent spoken sprung spun stolen stood stricken struck stuck stung sunk sung
    swept sworn swum swung taken taught thought thrown told torn trodden unbound undone understood
    undertaken unknown unseen unwound upheld withdrawn withheld woken won worn wound woven written
"""))  # fmt: skip

Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


def is_participle(function: str) -> bool:
    """Whether the first word of a function's name is a past participle."""
    word = function.lstrip("_").partition("_")[0].lower()
    return word in IRREGULAR or (word.endswith("ed") and word not in NO_PARTICIPLES)


@dataclass
class _Scope:
    comprehension: bool = False
    lines: dict[str, int] = dataclasses.field(default_factory=dict)  # first line of each name
    others: set[str] = dataclasses.field(default_factory=set)  # bound to more than a loop's index
    outer: set[str] = dataclasses.field(default_factory=set)  # declared global or nonlocal


class _Bindings(ast.NodeVisitor):
    """Fills `scopes` with the names that are bound in each."""

    def __init__(self) -> None:
        self.scopes: list[_Scope] = []
        self._open: list[_Scope] = []
        self._loops: set[ast.AST] = set()  # targets bound to an integer index

    def _bind(self, name: str | None, node: ast.AST, *, named: bool = False) -> None:
        scope = self._open[-1]
        if named:
            scope = next(outer for outer in reversed(self._open) if not outer.comprehension)
        if name is None or name == "_" or name in scope.outer:
            return
        scope.lines.setdefault(name, getattr(node, "lineno", 1))
        if node not in self._loops:
            scope.others.add(name)

    def visit(self, node: ast.AST) -> None:
        """Bind what the node itself binds, then go below it; scopes open and close here."""
        if isinstance(node, ast.Module | ast.ClassDef | Function | ast.Lambda | Comprehension):
            scope = _Scope(comprehension=isinstance(node, Comprehension))
            self.scopes.append(scope)
            self._open.append(scope)
            self.generic_visit(node)
            self._open.pop()
            return
        match node:
            case ast.Global() | ast.Nonlocal():
                self._open[-1].outer.update(node.names)
            case ast.For() | ast.comprehension():
                self._loops.update(_integers(node.target, node.iter))
            case ast.NamedExpr():
                self._bind(node.target.id, node.target, named=True)
                self.visit(node.value)
                return
        self._bind(_binding_name(node), node)
        self.generic_visit(node)


def _binding_name(node: ast.AST) -> str | None:
    match node:
        case ast.Name(id=name, ctx=ast.Store()):
            return name
        case ast.arg(arg=name) | ast.alias(asname=name) | ast.MatchMapping(rest=name):
            return name
        case ast.ExceptHandler(name=name) | ast.MatchAs(name=name) | ast.MatchStar(name=name):
            return name
    return None


def _integers(target: ast.expr, source: ast.expr) -> Iterator[ast.expr]:
    """The parts of a loop's target that are an integer index."""
    if not isinstance(source, ast.Call):
        return
    function = last_name(source.func)
    parts = target.elts if isinstance(target, ast.Tuple | ast.List) else []
    if function == "range":
        yield target
    elif function == "enumerate":
        yield from parts[:1]
    elif function in {"reversed", "sorted", "list", "tuple"} and source.args:
        yield from _integers(target, source.args[0])
    elif function in {"zip", "product"}:
        for part, argument in zip(parts, source.args, strict=False):
            yield from _integers(part, argument)


def list_one_letter(
    syntax: ast.Module, path: str
) -> tuple[tuple[Place, ...], tuple[Place, ...], int]:
    """Names of one letter, those of them that are a loop's index apart, and how many names."""
    visitor = _Bindings()
    visitor.visit(syntax)
    letters: list[Place] = []
    indices: list[Place] = []
    for scope in visitor.scopes:
        for name, line in scope.lines.items():
            if ONE_LETTER.fullmatch(name):
                is_index = name.lstrip("_") in INDICES and name not in scope.others
                (indices if is_index else letters).append(Place(path, line, name))
    return (
        sort_places(letters),
        sort_places(indices),
        sum(len(scope.lines) for scope in visitor.scopes),
    )
