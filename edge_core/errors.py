"""The errors that a user or a program can act on. Anything else is a bug: let it crash.

EdgeError               exit 1
├── InputError          bad input from the caller: a file, a field, an option
│   └── UnknownModel    no such model is installed
├── MissingExtra        an optional package is not installed
├── ConvertError        a converter refused the model or failed
├── MeasureError        a runtime refused, crashed or timed out
├── PackageError        the package is damaged or unsupported
├── StorageError        the disk is full or not writable
├── Overloaded          the model's queue is full
├── Unavailable         the model or the agent cannot take a request now
├── DeadlineExceeded    the answer came, or would come, after the deadline
└── GateFailed          exit 2: converted and measured, but outside the device's budgets

Exit codes: 0 passed, 1 error, 2 a gate failed, 130 interrupted (128 + SIGINT).
"""

from __future__ import annotations


class EdgeError(Exception):
    """One problem in one line, with a hint that says what to do about it."""

    exit_code = 1
    retry = False  # may the same call succeed later, unchanged?

    def __init__(self, what: str, *, hint: str = "") -> None:
        super().__init__(what)
        self.hint = hint

    @property
    def what(self) -> str:
        """The problem without its hint."""
        return super().__str__()

    def __str__(self) -> str:
        return f"{self.what}\n  hint: {self.hint}" if self.hint else self.what


class InputError(EdgeError):
    """The caller's input is wrong; the message names it and the valid choices."""


class UnknownModel(InputError):
    """No model of that name is installed; the hint lists those that are."""


class MissingExtra(EdgeError):
    """An optional package is needed but not installed; the hint is the command that installs it."""

    def __init__(self, package: str, extra: str, *, hint: str = "") -> None:
        super().__init__(
            f"'{package}' is not installed", hint=hint or f"pip install 'edge-deploy[{extra}]'"
        )


class ConvertError(EdgeError):
    """A converter refused a model or failed on it; the message names the op or dimension."""


class MeasureError(EdgeError):
    """A runtime refused a file, crashed on it or timed out."""


class PackageError(EdgeError):
    """The package is damaged, incomplete or in a newer format."""


class StorageError(EdgeError):
    """The disk is full, read-only or failing."""

    retry = True


class Overloaded(EdgeError):
    """The model's queue is full; the request was rejected before any work was done."""

    retry = True


class Unavailable(EdgeError):
    """The model is not loaded or failed to load, or the agent is shutting down."""

    retry = True


class DeadlineExceeded(EdgeError):
    """The answer came, or would have come, after the request's deadline."""

    retry = True


class GateFailed(EdgeError):
    """No candidate meets the device's budgets; the hint names the smallest relaxation."""

    exit_code = 2
