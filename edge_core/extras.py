"""Optional packages, imported where they are used and explained where they are missing."""

from __future__ import annotations

import importlib
import os
from typing import Any

from edge_core.errors import MissingExtra

# ONNX Runtime reports its use to its vendor, and keeps a database for that below HOME, unless it is
# told not to before it is loaded (Privacy.md of onnxruntime 1.31). A value that is set stays.
SILENCE = {"ORT_DISABLE_TELEMETRY": "1"}


def need(package: str, extra: str) -> Any:
    """Import and return ``package``; raise MissingExtra naming ``extra`` if it is absent."""
    for name, value in SILENCE.items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as e:
        missing = e.name or package
        # A package that is there but lacks one of its own modules is a bug, not a missing extra.
        if missing.partition(".")[0] != package.partition(".")[0]:
            raise MissingExtra(f"{package} (which needs {missing})", extra) from e
        raise MissingExtra(package, extra) from e
