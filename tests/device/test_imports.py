"""The device's part loads no framework by being imported.

All tests of this folder also run with the base install, the extras rt-onnx and image, and pytest
alone (`make device`). Of the example models they may use fastestdet, which is a plain file.
"""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

import pytest

import agent
import edge_core

HEAVY = (
    "PIL", "matplotlib", "onnx", "onnxruntime", "scipy", "sympy", "tokenizers", "torch",
    "transformers",
)  # fmt: skip
MODULES = sorted(
    module.name
    for package in (edge_core, agent)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.name.endswith("__main__")  # importing that one runs it
)


@pytest.mark.parametrize("module", MODULES)
def test_a_device_module_loads_no_framework(module):
    code = (
        f"import json, sys, {module}; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
