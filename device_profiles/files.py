"""Profile files: reading, `extends`, and merging into one table. No schema of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from device_profiles import fields
from edge_core import toml_schema
from edge_core.errors import InputError

MAX_BYTES = 64 * 1024
MAX_DEPTH = 8  # files in one chain of extends
FOLDER = Path(__file__).parent
Doc = dict[str, Any]


def list_names() -> tuple[str, ...]:
    """Names of the profiles that come with this version."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.toml")))


def resolve(name: str | os.PathLike[str]) -> tuple[Doc, str]:
    """The merged table of a profile with all that it extends, and what to call it in messages."""
    text = os.fspath(name)
    path = _find(text, Path(), "") if isinstance(name, str) else Path(text)
    return _resolve(path, ()), _label(path)


def merge(base: Doc, over: Doc) -> Doc:
    """``over`` on top of ``base``: tables are merged, everything else is replaced.

    A value that is replaced loses the source that ``base`` gave for it.
    """
    out = _merge(base, over)
    replaced = tuple(_leaves(over))
    inherited = base.get("sources", {}).items()
    kept = {field: source for field, source in inherited if not _covers(replaced, field)}
    sources = {**kept, **over.get("sources", {})}
    return {**out, "sources": sources} if sources else out


def _find(text: str, folder: Path, where: str) -> Path:
    """The file that a name or a path means; a path is relative to ``folder``."""
    if text.endswith(".toml") or "/" in text or os.sep in text:
        return folder / text
    if text not in list_names():
        raise InputError(
            f"{where}no profile '{text}'",
            hint=toml_schema.nearest(text, list_names()) + "or a path that ends in .toml",
        )
    return FOLDER / f"{text}.toml"


def _resolve(path: Path, seen: tuple[Path, ...]) -> Doc:
    doc = toml_schema.read(path, MAX_BYTES)
    where = _label(path)
    base = doc.pop("extends", None)
    fields.check(doc, where)
    if base is None:
        return doc
    if not isinstance(base, str):
        raise InputError(f"{where}: extends: expected str, got {type(base).__name__}")
    parent = _find(base, path.parent, f"{where}: extends: ")
    if not parent.is_file():
        raise InputError(f"{where}: extends: no file {parent}")
    chain = (*seen, path.resolve())
    if parent.resolve() in chain or len(chain) >= MAX_DEPTH:
        names = " -> ".join(file.name for file in (*chain, parent))
        why = "a cycle" if parent.resolve() in chain else f"more than {MAX_DEPTH} files"
        raise InputError(f"{where}: extends: {why}: {names}")
    return merge(_resolve(parent, chain), doc)


def _label(path: Path) -> str:
    return f"profile {path.stem}" if path.parent == FOLDER else str(path)


def _merge(base: Doc, over: Doc) -> Doc:
    out = dict(base)
    for key, value in over.items():
        mine = out.get(key)
        both = isinstance(mine, dict) and isinstance(value, dict)
        out[key] = _merge(mine, value) if both and isinstance(mine, dict) else value
    return out


def _leaves(doc: Doc, at: str = "") -> Iterator[str]:
    for key, value in doc.items():
        if isinstance(value, dict) and f"{at}{key}" != "sources":
            yield from _leaves(value, f"{at}{key}.")
        else:
            yield f"{at}{key}"


def _covers(replaced: tuple[str, ...], key: str) -> bool:
    return any(key == field or key.startswith(f"{field}.") for field in replaced)
