"""The border to other people's packages: silent inside, ConvertError outside.

Quantisers print progress, warn through three channels and raise whatever they like. What they say
belongs neither on the user's terminal nor into the results; what they raise is turned into ours.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from edge_core.errors import ConvertError, EdgeError


@contextmanager
def translate_foreign_errors(what: str, *, hint: str = "") -> Iterator[None]:
    """Run the block silently; raise ConvertError "``what``: ..." for what it raises."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    except EdgeError:
        raise
    except Exception as error:  # these packages raise many unrelated types
        raise ConvertError(f"{what}: {describe_error(error)}", hint=hint) from error
    finally:
        logging.disable(before)


def describe_error(error: BaseException) -> str:
    """The first line of an exception's text, or its type when it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
