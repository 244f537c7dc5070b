"""A copy of what a wheel is built from: building leaves folders behind."""

import shutil
from pathlib import Path

from tests.cases import ROOT

EXCLUDED = (".*", "*.egg-info", "__pycache__")
OUTPUTS = {
    "build",
    "dist",
    "examples",
    "out",
    "shared",
    "tests",
}  # at the top only


def copy_source(target: Path) -> None:
    """Copy this project, without outputs and what is not shipped, to ``target``."""
    patterns = shutil.ignore_patterns(*EXCLUDED)

    def ignore(folder: str, names: list[str]) -> set[str]:
        outputs = OUTPUTS if Path(folder) == ROOT else set()
        return outputs.intersection(names) | patterns(folder, names)

    shutil.copytree(ROOT, target, ignore=ignore)
