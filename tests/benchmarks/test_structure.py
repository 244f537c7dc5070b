"""The structure script over small trees in real git repositories."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.structure import __main__ as structure
from benchmarks.structure.names import is_participle

Write = Callable[[dict[str, str]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Files of a repository, by path; returns its root."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)

    def files(texts: dict[str, str]) -> Path:
        for name, text in texts.items():
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return files


def names(root: Path, kind: str, capsys) -> list[str]:
    assert structure.main(["a", "--list", kind], root) == 0
    return [line.partition(" ")[2] for line in capsys.readouterr().out.splitlines() if line]


def test_parameters_loops_and_captures_of_one_letter_are_bindings(write, capsys):
    root = write(
        {
            "a/x": "def f(p, _q, _):\n    with p as w:\n        s = lambda t: t\n"
            "    match w:\n        case [c, *r]: pass\n    import re as e\n"
            "    return [v for v in s]\n"
        }
    )
    assert names(root, "one-letter", capsys) == ["p", "_q", "w", "s", "t", "c", "r", "e", "v"]


def test_a_loop_index_is_listed_apart_unless_it_is_bound_otherwise_too(write, capsys):
    root = write(
        {
            "a/x": "def f(rows):\n    for i, row in enumerate(rows): pass\n"
            "    for j in range(3): pass\n    for k in rows: pass\n    for n in range(3): n = 2\n"
        }
    )
    assert names(root, "indices", capsys) == ["i", "j"]
    assert names(root, "one-letter", capsys) == ["k", "n"]


def test_a_file_declares_mathematics_with_a_reason_only(write, capsys):
    root = write(
        {
            "a/x": "# structure: mathematics: the symbols of Higham 2002\nx = 1\n",
            "a/y": "# structure: mathematics\ny = 1\n",
            "a/z": "text = '''\n# structure: mathematics: in a string\n'''\nz = 1\n",
        }
    )
    assert names(root, "mathematics", capsys) == ["x"]
    assert names(root, "one-letter", capsys) == ["y", "z"]


@pytest.mark.parametrize("name", ["found", "_kept", "signed_by", "_made_here", "embedded"])
def test_a_past_participle_is_known(name):
    assert is_participle(name)


@pytest.mark.parametrize("name", ["need", "embed", "_feed_all", "read", "run", "load", "sampling"])
def test_a_verb_or_noun_is_no_participle(name):
    assert not is_participle(name)


def test_an_import_of_ours_in_a_function_is_hidden_and_so_is_one_by_a_string(write, capsys):
    root = write(
        {
            "a/__init__": "",
            "a/x": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a import y\n"
            "def load():\n    import json\n    from . import y\n    need('numpy', 'extra')\n"
            "CODE = ['-c', 'import a.y']\nimport_module('a.z')\n__import__('a.y')\nrun('a.y')\n",
            "a/y": "",
        }
    )
    assert structure.main(["a", "--check"], root) == 1
    assert capsys.readouterr().out.splitlines() == [
        "hidden import: a/x.py:6 a.y",
        "hidden import: a/x.py:9 a",
        "hidden import: a/x.py:10 a.y",
    ]


def test_a_cycle_needs_imports_at_module_level(write, capsys):
    texts = {"a/__init__": "from a import x\n", "a/x": "from a import y\n"}
    root = write({**texts, "a/y": "from typing import TYPE_CHECKING as T\nimport a.z\n", "a/z": ""})
    assert structure.main(["a", "--check"], root) == 0
    assert capsys.readouterr().out == "4 modules: no import cycle, no hidden import\n"
    write({"a/z": "try:\n    from .x import name\nexcept ImportError:\n    pass\n"})
    assert structure.main(["a", "--check"], root) == 1
    assert capsys.readouterr().out == "cycle: a.x a.y a.z\n"


def test_the_rows_count_arrows_docstrings_and_what_git_does_not_ignore(write, capsys):
    root = write(
        {
            "a/x": '"""Text."""\nfrom a.b import y\n\ndef one():\n    """Text."""\n\n'
            "def two(): ...\n",
            "a/b/y": "import a.c\n",
            "a/c": "",
            "a/old": "",
            "b/z": "from a import x\n",
        }
    )
    (root / ".gitignore").write_text("old.py\n")
    assert structure.main(["a", "b", "--json"], root) == 0
    shape = json.loads(capsys.readouterr().out)
    rows = {row["folder"]: row for row in shape["rows"]}
    assert list(rows) == ["a", "a/b", "a/**", "b", "all"]
    assert shape["arrows"] == [["a", "a/b"], ["a/b", "a"], ["b", "a"]]
    assert rows["a"]["modules"] == 2
    assert rows["a"]["documented_share"] == 66.7
    assert (rows["a/**"]["arrows_in"], rows["a/**"]["arrows_out"]) == (1, 0)


def test_the_table_exits_0_and_a_folder_without_python_is_refused(write):
    root = write({"a/x": "import a.y\n", "a/y": "import a.x\n"})
    assert structure.main(["a"], root) == 0
    with pytest.raises(SystemExit, match="no Python files in c; folders are"):
        structure.main(["c"], root)
