"""python -m benchmarks.structure"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path, PurePosixPath

from benchmarks import structure
from benchmarks.structure.facts import Module, read_modules
from benchmarks.structure.table import build_rows, find_arrows, find_cycles, format_table
from benchmarks.structure.tree import Place, Tree, read_tree

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
            tops = ", ".join(sorted({known.partition("/")[0] for known in full}))
            raise SystemExit(f"error: no Python files in {folder}; folders are {tops}")
    return folders or [folder for folder in FOLDERS if folder in full]


def main(arguments: list[str] | None = None, root: Path | None = None) -> int:
    """Print what the options ask for; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.structure", description=structure.__doc__
    )
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
