"""Optional packages: imported inside the function that uses them, explained if they are missing."""

from __future__ import annotations

import importlib
import os
from typing import Any

from edge_core.errors import MissingExtra

# ONNX Runtime reports its use to its vendor, and keeps a database for that below HOME, unless this
# is set before it is loaded (Privacy.md of onnxruntime 1.31). The user's own value wins.
NO_TELEMETRY = {"ORT_DISABLE_TELEMETRY": "1"}


def need(package: str, extra: str) -> Any:
    """Import and return the module ``package``, which the extra ``extra`` brings.

    Raises MissingExtra if it, or a package that it imports, is not installed.
    """
    for name, value in NO_TELEMETRY.items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as e:
        missing = e.name or package
        # Where a package imports another one that is missing, the message names both.
        if missing.partition(".")[0] != package.partition(".")[0]:
            raise MissingExtra(f"{package} (which needs {missing})", extra) from e
        raise MissingExtra(package, extra) from e
