"""Progress of a build on stderr: a bar on a terminal, lines in a log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from edge_core import console
from edge_sdk.build.workspace import Progress


@contextmanager
def show_progress() -> Iterator[Progress]:
    """A bar on stderr; on a log instead of a terminal, one line for each finished step."""
    if not console.stderr.is_terminal:
        yield _print_line
        return
    columns = (
        TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(),
    )  # fmt: skip
    with Bar(*columns, console=console.stderr, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def update_bar(stage: str, what: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            description = f"{stage} {what}".strip()
            bar.update(tasks[stage], description=description, completed=done, total=total)

        yield update_bar


def _print_line(stage: str, what: str, done: int, total: int) -> None:
    if what and (stage != "time" or done == total):
        typer.echo(f"{stage} {done}/{total} {what}", err=True)
