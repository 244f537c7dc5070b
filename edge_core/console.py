"""What both command lines share: results on stdout, everything else on stderr, exit codes.

0 passed, 1 error (usage errors included), 2 a gate failed, 130 interrupted. Typer exits with 2 for
usage errors, which a CI would read as a failed gate, so main() maps it to 1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, NoReturn

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from typer.main import get_command

from edge_core import __version__
from edge_core.errors import EdgeError, StorageError

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

INTERRUPTED = 130  # 128 + SIGINT
stderr = Console(stderr=True, highlight=False)


def stdout() -> Console:
    """A console for people: as wide as the terminal, or as COLUMNS or 160 columns in a log."""
    columns = os.environ.get("COLUMNS", "")
    log_width = int(columns) if columns.isdecimal() and int(columns) else 160
    width = None if sys.stdout.isatty() else log_width
    return Console(width=width, highlight=False, markup=False)


def new_table(*columns: str, right: Sequence[str] = (), title: str = "") -> Table:
    """An empty table in the style of all tables; ``right`` names right-aligned columns."""
    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(
            column,
            justify="right" if column in right else "left",
            overflow="fold",
            no_wrap=column == columns[0],  # a name that people copy
        )
    return table


def print_notes(notes: Iterable[str]) -> None:
    """What people should know about a result, on stderr."""
    for note in notes:
        typer.echo(f"note: {note}", err=True)


def print_json(value: object) -> None:
    """Print ``value``, a msgspec struct or plain data, as one JSON document on stdout."""
    raw = msgspec.json.encode(value, enc_hook=str)
    sys.stdout.write(msgspec.json.format(raw, indent=2).decode() + "\n")


def new_app(help_text: str) -> typer.Typer:
    """An app with the conventions of both commands: -h, --version, plain errors, no completion."""
    app = typer.Typer(
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def options(
        version: Annotated[
            bool,
            typer.Option(
                "--version", help="Print the version.", is_eager=True, callback=_print_version
            ),
        ] = False,
    ) -> None:
        pass

    return app


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(__version__)
        raise typer.Exit


def main(app: typer.Typer, name: str) -> NoReturn:
    """Run the app and exit; an expected error is one line and a hint on stderr, no traceback."""
    sys.exit(_run(app, name))


def _run(app: typer.Typer, name: str) -> int:
    try:
        code = get_command(app)(prog_name=name, standalone_mode=False)
        sys.stdout.flush()  # a reader that went away is noticed here, not at exit
        if code == INTERRUPTED:  # typer turns Ctrl-C into this
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except EdgeError as e:
        return _report(e.what, e.hint, e.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _report("interrupted; what was finished is kept", "", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as e:
        where = f" {e.filename}" if e.filename else ""
        return _report(f"{e.strerror or e}{where}", "", StorageError.exit_code)
    except Exception as e:
        # Typer may carry its own copy of click: usage errors are known by what they can do.
        message = getattr(e, "format_message", None)
        if message is None:
            raise
        context = getattr(e, "ctx", None)
        return _report(message(), f"{context.command_path if context else name} --help", 1)


def _report(what: str, hint: str, code: int) -> int:
    typer.echo(f"error: {' '.join(what.split())}", err=True)
    if hint:
        typer.echo(f"  hint: {' '.join(hint.split())}", err=True)
    return code
