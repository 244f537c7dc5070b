"""What a failed command says: one error line, and perhaps a hint."""

from __future__ import annotations

from subprocess import CompletedProcess


def error_line(completed: CompletedProcess[str]) -> str:
    """The one error line; nothing else may look like one."""
    errors = [line for line in completed.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, completed.stderr
    assert "Traceback" not in completed.stderr
    return errors[0]


def hint_line(completed: CompletedProcess[str]) -> str:
    """The line below the error that says what to do."""
    return next(line for line in completed.stderr.splitlines() if line.startswith("  hint: "))
