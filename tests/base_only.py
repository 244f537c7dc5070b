"""The base install by itself: every module of the device's part imports, and extras explain
themselves. `make device` runs this in an environment that has nothing else, not even pytest.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable
from importlib.util import find_spec

import agent
import edge_core
from edge_core.errors import MissingExtra
from edge_core.package import preprocess
from edge_core.runtimes import registry as runtimes

NOT_IN_THE_BASE = ("onnx", "onnxruntime", "torch", "PIL", "jinja2", "matplotlib", "pytest")


def main() -> None:
    """Raise AssertionError for what is wrong; print one line if nothing is."""
    present = list(filter(find_spec, NOT_IN_THE_BASE))
    assert not present, f"this is not a base install: it has {present}"
    names = [
        module.name
        for package in (edge_core, agent)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not module.name.endswith("__main__")  # importing that one runs it
    ]
    for name in names:
        importlib.import_module(name)
    for adapter in runtimes.OURS:
        on_every_index = adapter.SPEC.name != "tflite-runtime"  # its hint is for 32-bit Arm
        assert_missing_extra_is_explained(
            adapter.version, adapter.SPEC.distribution, adapter.SPEC.extra if on_every_index else ""
        )
    recipe = preprocess.BUILT_IN["mnist"]
    assert_missing_extra_is_explained(
        lambda: preprocess.to_tensor(b"", recipe), "PIL.Image", "image"
    )
    python = ".".join(map(str, sys.version_info[:3]))
    print(f"base install on Python {python}: {len(names)} modules import, extras are explained")


def assert_missing_extra_is_explained(call: Callable[[], object], package: str, extra: str) -> None:
    """Assert that ``call`` names the missing package and the extra that brings it, if one does."""
    message = "nothing"
    try:
        call()
    except MissingExtra as e:
        message = str(e)
    hint = f"pip install 'edge-deploy[{extra}]'" if extra else ""
    assert message.startswith(f"'{package}' is not installed\n  hint: {hint}"), message


if __name__ == "__main__":
    main()
