"""The table: a row per folder, with cycles and arrows between folders."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from benchmarks.structure.facts import Module

COLUMNS = (
    "folder", "mods", "file med", "p95", "max", "func med", "p95", "max", "1-letter", "%", "index",
    "maths", "participles", "%", "docs %", "prose %", "hidden", "cycles", "in", "out",
)  # fmt: skip


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
