"""Importing any module of the distribution loads no framework: those wait for their use."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("edge_core", "device_profiles", "converters", "edge_sdk", "agent")
HEAVY = ("matplotlib", "onnx", "onnxruntime", "onnxslim", "scipy", "sympy", "torch", "transformers")
# Walks and imports everything; reports for each heavy package the first module that loaded it.
CODE = f"""
import importlib, json, pkgutil, sys
names = []
for package in {PACKAGES}:
    top = importlib.import_module(package)
    names += [package, *(m.name for m in pkgutil.walk_packages(top.__path__, package + "."))]
loaded = {{}}
for name in names:
    if name.endswith("__main__"):  # importing that one runs it
        continue
    importlib.import_module(name)
    for heavy in {HEAVY}:
        if heavy in sys.modules:
            loaded.setdefault(heavy, name)
print(json.dumps([names, loaded]))
"""


def module_names():
    """Every module on disk by its name; a folder without __init__.py is not walked, and missed."""
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            yield ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_no_module_loads_a_framework_when_it_is_imported():
    process = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    names, loaded = json.loads(process.stdout)
    assert loaded == {}
    assert sorted(names) == sorted(module_names())
