"""Optional packages, imported where they are used and explained where they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from edge_core.errors import MissingExtra


def need(package: str, extra: str) -> Any:
    """Import and return ``package``; raise MissingExtra naming ``extra`` if it is absent."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as e:
        missing = e.name or package
        # A package that is there but lacks one of its own modules is a bug, not a missing extra.
        if missing.partition(".")[0] != package.partition(".")[0]:
            raise MissingExtra(f"{package} (which needs {missing})", extra) from e
        raise MissingExtra(package, extra) from e
