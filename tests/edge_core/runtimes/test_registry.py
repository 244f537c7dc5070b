"""Which runtimes an interpreter has: distributions, nightly builds, and what cannot be imported."""

import subprocess
import sys

import pytest

LIST = """
from edge_core.runtimes.registry import installed_runtimes
print({r.name: r.version for r in installed_runtimes()}.get("tflite-runtime"))
"""


def read_version(folder, interpreter):
    """The version of tflite-runtime where ``folder`` holds a package without metadata."""
    package = folder / "tflite_runtime"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '2.20.0dev20250409'")
    (package / "interpreter.py").write_text(interpreter)
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{LIST}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_nightly_build_is_found_by_its_module(tmp_path):
    assert read_version(tmp_path, "class Interpreter: ...") == "2.20.0.dev20250409"


@pytest.mark.parametrize(
    "interpreter",
    ["raise ImportError('numpy.core.multiarray failed to import')", "import no_such_module"],
)
def test_a_runtime_that_cannot_be_imported_is_not_installed(tmp_path, interpreter):
    assert read_version(tmp_path, interpreter) == "None"
