"""The errors a user or a program can act on. Everything else is a bug: let it crash.

EdgeError               exit 1
├── InputError          the caller gave something wrong: a file, a field, an option
│   └── UnknownModel    no such model is installed
├── MissingExtra        an optional package is not installed
├── ConvertError        a converter refused or broke
├── MeasureError        a runtime refused, crashed or ran out of time
├── PackageError        the package is damaged or unsupported
├── StorageError        the disk is full or not writable
├── Overloaded          the model's queue is full
├── Unavailable         the model or the agent cannot take a request now
├── DeadlineExceeded    the request waited longer than its deadline allows
└── GateFailed          exit 2: converted and measured, but not fit for the device

Exit codes: 0 pass, 1 error, 2 a gate failed, 130 interrupted (128 + SIGINT).
"""

from __future__ import annotations


class EdgeError(Exception):
    """One problem, told in one line, with one thing to do about it."""

    exit_code = 1
    retry = False  # may the same call succeed later without a change?

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
    """The caller gave something wrong; the message names it and the valid choices."""


class UnknownModel(InputError):
    """No model of that name is installed; the hint lists those that are."""


class MissingExtra(EdgeError):
    """An optional package is needed and is not installed."""

    def __init__(self, package: str, extra: str, *, hint: str = "") -> None:
        super().__init__(
            f"'{package}' is not installed", hint=hint or f"pip install 'edge-deploy[{extra}]'"
        )


class ConvertError(EdgeError):
    """A converter refused a model or broke on it; the message names the op or dimension."""


class MeasureError(EdgeError):
    """A runtime refused a file, crashed on it or exceeded its time."""


class PackageError(EdgeError):
    """The package is damaged, incomplete or of a newer format."""


class StorageError(EdgeError):
    """The disk is full, read-only or failing."""

    retry = True


class Overloaded(EdgeError):
    """The model's queue is full: the request was refused at once and nothing was computed."""

    retry = True


class Unavailable(EdgeError):
    """The model is not loaded, failed to load, or the agent is stopping."""

    retry = True


class DeadlineExceeded(EdgeError):
    """The answer would have come, or came, after the request's deadline."""

    retry = True


class GateFailed(EdgeError):
    """Nothing that was built fits the device; the message names the smallest relaxation."""

    exit_code = 2
