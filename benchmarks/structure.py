"""The shape of the Python in this checkout as figures: sizes, names, docstrings, imports.

    python -m benchmarks.structure [--json] [--check] [--list KIND] [FOLDER...]

    git ls-files -> Tree of paths -> a Module of facts per file (ast, tokenize) -> Row per folder

Files are parsed, never imported; which modules are ours follows from the paths alone. The table is
for people and always exits 0; --check exits 1 for an import cycle or a hidden import.

    binding      a distinct name in a scope: parameters, targets of assignments, for, with, except,
                 import-as, walrus, comprehensions and match; `_` is none
    one-letter   `x` or `_x`, except i, j, k, n bound to integers by a loop only (index), and all of
                 a file with a line `# structure: mathematics` and a reason after it (maths)
    participle   a function whose first word is one: `found`, `_kept`, `signed_by`; not test_*
    undocumented a public module, class or function without a docstring; not test_*, not a file
                 without code
    prose        lines with a comment or in a docstring, of all lines that are not blank
    hidden       an import of ours in a function body, or by a string handed to need(),
                 import_module() and their like anywhere
    cycle        modules that import each other at run time, at module level, not below
                 TYPE_CHECKING; of a package only the module that is named
    in, out      other folders that import this one, that it imports; at `/**` other top folders, at
                 `all` the arrows between folders
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import io
import json
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from statistics import median

FOLDERS = (
    "edge_core", "edge_sdk", "agent", "converters", "device_profiles", "benchmarks", "examples",
    "tests",
)  # fmt: skip
KINDS = {  # what --list takes -> the field of Module
    "one-letter": "one_letter",
    "indices": "indices",
    "mathematics": "mathematics",
    "participles": "participles",
    "hidden": "inner_imports",
    "undocumented": "undocumented",
}

ONE_LETTER = re.compile(r"_?[^\W\d_]")
INDICES = {"i", "j", "k", "n"}
MATHEMATICS = re.compile(r"#\s*structure: mathematics\b\W*(?P<reason>\w.*)")

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

IMPORTERS = {"need", "import_module", "__import__", "importorskip", "run_module", "resolve_name"}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


@dataclass(frozen=True)
class Place:
    """Something with a name at a line of a file."""

    path: str
    line: int
    name: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.name}"


@dataclass(frozen=True)
class Import:
    """One of our modules (or a name that only looks like one), and how it is imported."""

    module: str
    line: int
    hidden: bool = False
    typing: bool = False  # below `if TYPE_CHECKING`


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


@dataclass(frozen=True)
class Spread:
    """Median, 95th percentile (nearest rank) and largest of some line counts."""

    median: float
    p95: int
    largest: int

    @classmethod
    def of(cls, counts: Iterable[int]) -> Spread:
        ordered = sorted(counts)
        if not ordered:
            return cls(0, 0, 0)
        rank = -(-len(ordered) * 95 // 100)
        return cls(median(ordered), ordered[rank - 1], ordered[-1])


@dataclass(frozen=True)
class Row:
    """One line of the table; shares are per cent."""

    folder: str
    modules: int
    file_lines: Spread
    function_lines: Spread
    one_letter: int
    one_letter_share: float
    indices: int
    mathematics: int
    participles: int
    participles_share: float
    documented_share: float
    prose_share: float
    hidden: int
    cycles: int
    arrows_in: int
    arrows_out: int


# Paths


def read_tree(root: Path) -> Tree:
    """Python files that git tracks or does not ignore, and that are there."""
    command = ["git", "ls-files", "-coz", "--exclude-standard", "*.py"]
    listing = subprocess.run(command, cwd=root, capture_output=True, check=True, text=True).stdout
    paths = sorted({path for path in listing.split("\0") if path and (root / path).is_file()})
    return Tree(root, {_module_name(path): path for path in paths})


def _module_name(path: str) -> str:
    parts = PurePosixPath(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


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
    letters, indices, bindings = _one_letter(syntax, path)
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
        imports=tuple(_imports(syntax, tree, name)),
    )


def _line_count(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def _places(path: str, nodes: Iterable[ast.AST]) -> tuple[Place, ...]:
    return _in_order(
        Place(path, getattr(node, "lineno", 1), getattr(node, "name", _module_name(path)))
        for node in nodes
    )


def _in_order(places: Iterable[Place]) -> tuple[Place, ...]:
    return tuple(sorted(places, key=lambda place: place.line))


# Words


def is_participle(function: str) -> bool:
    """Whether the first word of a function's name is a past participle."""
    word = function.lstrip("_").partition("_")[0].lower()
    return word in IRREGULAR or (word.endswith("ed") and word not in NO_PARTICIPLES)


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
    return any(_last_name(mark) in {"overload", "setter"} for mark in node.decorator_list)


def _last_name(node: ast.AST) -> str:
    """`c` of a.b.c or of c; empty for anything else."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


# Bindings


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
    function = _last_name(source.func)
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


def _one_letter(syntax: ast.Module, path: str) -> tuple[tuple[Place, ...], tuple[Place, ...], int]:
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
    return _in_order(letters), _in_order(indices), sum(len(scope.lines) for scope in visitor.scopes)


# Imports


def _imports(
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
                yield from _imports(child, tree, name, **below)


def _is_typing(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and _last_name(node.test) == "TYPE_CHECKING"


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
    if _last_name(call.func) not in IMPORTERS:
        return
    for argument in [*call.args, *(keyword.value for keyword in call.keywords)]:
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            dotted = _absolute(argument.value, tree, name)
            if tree.is_ours(dotted):
                yield dotted


def find_cycles(modules: list[Module]) -> list[list[str]]:
    """Groups of modules that reach each other by imports that run when a module is loaded."""
    edges = {
        module.name: {
            entry.module for entry in module.imports if not entry.hidden and not entry.typing
        }
        for module in modules
    }
    reach = {name: _reach(name, edges) for name in edges}
    groups = {
        frozenset(other for other in reach[name] if name in reach.get(other, ())) for name in edges
    }
    return sorted(sorted(group) for group in groups if len(group) > 1)


def _reach(name: str, edges: dict[str, set[str]]) -> set[str]:
    reach: set[str] = set()
    ahead = list(edges[name])
    while ahead:
        if (step := ahead.pop()) not in reach:
            reach.add(step)
            ahead += edges.get(step, ())
    return reach


def find_arrows(modules: list[Module]) -> set[tuple[str, str]]:
    """Folder to folder, for imports of any kind; both are among the folders of the modules."""
    folders = {module.name: module.folder for module in modules}
    return {
        (module.folder, folders[entry.module])
        for module in modules
        for entry in module.imports
        if folders.get(entry.module, module.folder) != module.folder
    }


# Rows


def build_rows(
    modules: list[Module], cycles: list[list[str]], arrows: set[tuple[str, str]]
) -> list[Row]:
    """A row per folder, one per top folder that has others below it, and one for all."""
    rows = []
    for top in dict.fromkeys(_top(module.folder) for module in modules):
        below = [module for module in modules if _top(module.folder) == top]
        folders = sorted({module.folder for module in below})
        for folder in folders:
            own = [module for module in below if module.folder == folder]
            rows.append(_row(folder, own, cycles, _ends(arrows, folder)))
        if len(folders) > 1:
            tops = {(_top(start), _top(end)) for start, end in arrows}
            tops = {(start, end) for start, end in tops if start != end}
            rows.append(_row(f"{top}/**", below, cycles, _ends(tops, top)))
    return [*rows, _row("all", modules, cycles, (len(arrows), len(arrows)))]


def _top(folder: str) -> str:
    return folder.partition("/")[0]


def _ends(arrows: set[tuple[str, str]], folder: str) -> tuple[int, int]:
    return (
        sum(1 for _, end in arrows if end == folder),
        sum(1 for start, _ in arrows if start == folder),
    )


def _row(
    folder: str, modules: list[Module], cycles: list[list[str]], arrows: tuple[int, int]
) -> Row:
    names = {module.name for module in modules}
    one_letter = sum(len(module.one_letter) for module in modules)
    participles = sum(len(module.participles) for module in modules)
    public = sum(module.public for module in modules)
    undocumented = sum(len(module.undocumented) for module in modules)
    return Row(
        folder=folder,
        modules=len(modules),
        file_lines=Spread.of(module.lines for module in modules),
        function_lines=Spread.of(lines for module in modules for lines in module.function_lines),
        one_letter=one_letter,
        one_letter_share=_share(one_letter, sum(module.bindings for module in modules)),
        indices=sum(len(module.indices) for module in modules),
        mathematics=sum(len(module.mathematics) for module in modules),
        participles=participles,
        participles_share=_share(participles, sum(module.names for module in modules)),
        documented_share=_share(public - undocumented, public, empty=100.0),
        prose_share=_share(
            sum(module.prose_lines for module in modules),
            sum(module.full_lines for module in modules),
        ),
        hidden=sum(len(module.inner_imports) for module in modules),
        cycles=sum(1 for cycle in cycles if names & set(cycle)),
        arrows_in=arrows[0],
        arrows_out=arrows[1],
    )


def _share(part: int, whole: int, empty: float = 0.0) -> float:
    return round(100 * part / whole, 1) if whole else empty


# Output

COLUMNS = (
    "folder", "mods", "file med", "p95", "max", "func med", "p95", "max", "1-letter", "%", "index",
    "maths", "participles", "%", "docs %", "prose %", "hidden", "cycles", "in", "out",
)  # fmt: skip


def _cells(row: Row) -> list[str]:
    spreads = [
        f"{size:g}"
        for spread in (row.file_lines, row.function_lines)
        for size in (spread.median, spread.p95, spread.largest)
    ]
    return [
        row.folder, str(row.modules), *spreads, str(row.one_letter), f"{row.one_letter_share:.1f}",
        str(row.indices), str(row.mathematics), str(row.participles),
        f"{row.participles_share:.1f}", f"{row.documented_share:.0f}", f"{row.prose_share:.0f}",
        str(row.hidden), str(row.cycles), str(row.arrows_in), str(row.arrows_out),
    ]  # fmt: skip


def format_table(rows: list[Row]) -> str:
    """The rows as aligned text."""
    lines = [list(COLUMNS), *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        )
        for line in lines
    )


def list_places(modules: list[Module], kind: str) -> list[Place]:
    """All places of one kind."""
    return [place for module in modules for place in getattr(module, KINDS[kind])]


def check(modules: list[Module], cycles: list[list[str]]) -> int:
    """Print cycles and hidden imports, or one line; the exit code."""
    hidden = list_places(modules, "hidden")
    for cycle in cycles:
        print(f"cycle: {' '.join(cycle)}")
    for place in hidden:
        print(f"hidden import: {place}")
    if not cycles and not hidden:
        print(f"{len(modules)} modules: no import cycle, no hidden import")
    return 1 if cycles or hidden else 0


def report(modules: list[Module], cycles: list[list[str]], as_json: bool) -> None:
    """Print the table, the cycles and the files that declare mathematics."""
    arrows = find_arrows(modules)
    rows = build_rows(modules, cycles, arrows)
    reasons = {module.path: module.reason for module in modules if module.reason}
    if as_json:
        shape = {
            "rows": [dataclasses.asdict(row) for row in rows],
            "cycles": cycles,
            "arrows": sorted(arrows),
            "mathematics": reasons,
        }
        print(json.dumps(shape, indent=2))
        return
    print(format_table(rows))
    for cycle in cycles:
        print(f"cycle: {' '.join(cycle)}")
    for path, reason in reasons.items():
        print(f"mathematics: {path} ({reason})")


def _folders(tree: Tree, names: list[str]) -> list[str]:
    """The folders that are asked for; refuses one without Python files."""
    full = {str(parent) for path in tree.paths.values() for parent in PurePosixPath(path).parents}
    folders = [str(PurePosixPath(name)) for name in names]
    for folder in folders:
        if folder not in full:
            tops = ", ".join(sorted({_top(known) for known in full}))
            raise SystemExit(f"error: no Python files in {folder}; folders are {tops}")
    return folders or [folder for folder in FOLDERS if folder in full]


def main(arguments: list[str] | None = None, root: Path | None = None) -> int:
    """Print what the options ask for; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.structure", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folders", nargs="*", metavar="FOLDER")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--check", action="store_true", help="only cycles and hidden imports")
    parser.add_argument("--list", choices=list(KINDS), help="print path:line name of each")
    options = parser.parse_args(arguments)
    tree = read_tree(root or _root())
    modules = read_modules(tree, _folders(tree, options.folders))
    if options.list:
        places = list_places(modules, options.list)
        if options.json:
            print(json.dumps([dataclasses.asdict(place) for place in places], indent=2))
        else:
            print("\n".join(map(str, places)))
        return 0
    cycles = find_cycles(modules)
    if options.check:
        return check(modules, cycles)
    report(modules, cycles, options.json)
    return 0


def _root() -> Path:
    command = ["git", "rev-parse", "--show-toplevel"]
    return Path(subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip())


if __name__ == "__main__":
    sys.exit(main())
