"""The documentation is checked against the code: commands, links, profiles and errors."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import tomllib

from edge_core import errors

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = sorted([README, *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
PLAIN = {
    "bash", "cat", "cd", "cp", "git", "journalctl", "jq", "ls", "mkdir", "python3", "scp", "skopeo",
    "ssh", "sudo", "systemctl",
}  # fmt: skip
OURS = {"edge": "edge_sdk.commands.app", "edge-agent": "agent.commands.app"}


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command that a ```console block shows after "$ "."""
    for block in re.findall(r"^```console\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
        joined = block.replace("\\\n", " ")
        for line in re.findall(r"^\$ (.*)$", joined, re.M):
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            lexer.commenters = "#"
            words: list[str] = []
            for token in [*lexer, ";"]:
                if set(token) <= set(";|&"):
                    if words:
                        yield words
                    words = []
                elif words or not re.fullmatch(r"\w+=.*", token):  # not an assignment before it
                    words.append(token)


@cache
def command_help(program: str, *path: str) -> str:
    """What ``edge PATH... --help`` prints, wide and plain; empty if there is no such command."""
    code = f"import sys; from {OURS[program]} import main; sys.argv[0] = {program!r}; main()"
    environment = {**os.environ, "COLUMNS": "300", "TERM": "dumb", "NO_COLOR": "1"}
    completed = subprocess.run(
        [sys.executable, "-c", code, *path, "--help"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return completed.stdout if completed.returncode == 0 else ""


def problem(words: list[str]) -> str:
    """Why the command cannot work, or nothing."""
    program, rest = Path(words[0]).name, words[1:]
    if program in OURS:
        return _ours(program, rest)
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
        unknown = [word for word in rest if word.isalpha() and word not in targets]
        return f"make has no target {unknown[0]}" if unknown else ""
    if program in {"python", "python3"} and rest[:1] == ["-m"]:
        return "" if find_spec(rest[1]) else f"no module {rest[1]}"
    if program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
        named = re.findall(r"(?:edge-deploy|\.)\[([\w,-]+)\]", " ".join(rest))
        extras = {extra for group in named for extra in group.split(",")}
        unknown = extras - set(project["optional-dependencies"])
        return f"no extra {sorted(unknown)[0]}" if unknown else ""
    return "" if program in PLAIN else f"unknown program {program}"


def _ours(program: str, rest: list[str]) -> str:
    path: list[str] = []
    known = command_help(program)
    for word in rest:
        deeper = "" if word.startswith("-") else command_help(program, *path, word)
        if deeper in {"", known}:  # an option, an argument, or a mistake
            break
        path, known = [*path, word], deeper
    name, rest = " ".join([program, *path]), rest[len(path) :]
    if not known:
        return f"{program} does not start"
    if re.search(r"Usage:.* COMMAND", known) and rest and not rest[0].startswith("-"):
        return f"{name} has no command {rest[0]}"
    options = {word.partition("=")[0] for word in rest if re.match("--.", word)}
    missing = options - set(re.findall(r"--[a-z][a-z-]*", known))
    return f"{name} has no option {sorted(missing)[0]}" if missing else ""


def test_every_command_in_the_documentation_exists():
    wrong = [
        f"{page.relative_to(ROOT)}: {shlex.join(words)}: {why}"
        for page in PAGES
        for words in commands(page)
        if (why := problem(words))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["edge", "biuld"], "edge has no command biuld"),
        (["edge", "build", "--profle", "x"], "edge build has no option --profle"),
        (["make", "demmo"], "make has no target demmo"),
        (["pip", "install", "edge-deploy[onxx]"], "no extra onxx"),
        (["python", "-m", "examples_"], "no module examples_"),
        (["edgy"], "unknown program edgy"),
    ],
)
def test_a_wrong_command_is_noticed(words, why):
    assert problem(words) == why


def test_the_readme_starts_with_the_two_commands():
    shown = [words for words in commands(README) if words[0] == "make"]
    assert shown[:2] == [["make", "demo"], ["make", "test"]]


def anchors(page: Path) -> set[str]:
    """The fragment names that a page's headings get."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_every_internal_link_leads_somewhere():
    broken = []
    for page in PAGES:
        text = re.sub(r"<!-- \[\[\[cog.*?\]\]\] -->", "", page.read_text("utf-8"), flags=re.S)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", link):
                continue
            name, _, fragment = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            if not target.exists() or (fragment and fragment not in anchors(target)):
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert broken == []


def manual() -> str:
    """All of docs/ but the decision records."""
    pages = [page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "adr"]
    return "\n".join(page.read_text("utf-8") for page in pages)


def test_every_error_is_documented():
    kinds = [
        value.__name__
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.EdgeError)
    ]
    assert len(kinds) > 5
    assert [name for name in kinds if f"`{name}`" not in manual()] == []


def test_every_shipped_profile_is_documented():
    names = [path.stem for path in (ROOT / "device_profiles").glob("*.toml")]
    assert names
    assert [name for name in names if f"`{name}`" not in manual()] == []


def test_decisions_are_numbered_without_gaps_and_in_one_form():
    records = sorted((ROOT / "docs" / "adr").glob("*.md"))
    assert [record.name[:5] for record in records] == [
        f"{number:04}-" for number in range(1, len(records) + 1)
    ]
    for record in records:
        parts = re.findall(r"^## (.+)$", record.read_text("utf-8"), re.M)
        assert parts[:3] == ["Status", "Context", "Decision"], record.name
