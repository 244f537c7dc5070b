"""A command line of ours: where output goes, and what each end of a command exits with."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import typer
from pathlib import Path
from edge_core import console
from edge_core.errors import GateFailed, InputError

app = console.new_app("A program.")

@app.command()
def good(as_json: console.Json = False) -> None:
    if as_json:
        console.print_json({"path": Path("a/b"), "n": 1})
    else:
        table = console.new_table("name", "ms", right=("ms",))
        table.add_row("[x]" + "a" * 100, "1.0")
        console.stdout().print(table)

@app.command()
def wrong() -> None:
    raise InputError("no file\\n  'a'", hint="give\\n one")

@app.command()
def unfit() -> None:
    raise GateFailed("nothing fits")

@app.command()
def gone() -> None:
    open("/no/such/file")

@app.command()
def stopped() -> None:
    raise KeyboardInterrupt

@app.command()
def chatty() -> None:
    for _ in range(100_000):
        print("x" * 100)

console.main(app, "program")
"""


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        ("wrong", 1, "error: no file 'a'\n  hint: give one\n"),
        ("unfit", 2, "error: nothing fits\n"),
        ("gone", 1, "error: No such file or directory /no/such/file\n"),
        ("stopped", 130, "error: interrupted; what was finished is kept\n"),
        ("xyzzy", 1, "error: No such command 'xyzzy'.\n  hint: program --help\n"),
    ],
)
def test_an_expected_end_is_one_line_on_stderr_and_an_exit_code(command, status, message):
    done = run(command)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", message)


def test_a_result_is_a_table_or_json_on_stdout():
    table = run("good", COLUMNS="160")
    assert (table.returncode, table.stderr) == (0, "")
    assert "[x]" + "a" * 100 in table.stdout  # brackets are no markup
    assert max(map(len, run("good", COLUMNS="60").stdout.splitlines())) <= 60
    assert run("good", "--json").stdout == '{\n  "path": "a/b",\n  "n": 1\n}\n'


def test_a_reader_that_goes_away_is_no_traceback():
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "chatty"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    program.stdout.read(10)
    program.stdout.close()
    assert program.wait(timeout=30) == 1
    assert program.stderr.read() == b""
    program.stderr.close()
