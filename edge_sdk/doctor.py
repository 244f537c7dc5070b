"""What this machine can do, and how to get the rest."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import msgspec

from converters import registry as converters
from edge_core.errors import MissingExtra
from edge_core.runtimes import registry as runtimes
from edge_core.runtimes.adapter import Adapter
from edge_sdk.build.workspace import default_cache, default_jobs

EXTRAS = (("onnx", "onnx"), ("torch", "torch"), ("tflite", "ai_edge_quantizer"))


class Check(msgspec.Struct, frozen=True):
    """One line of `edge doctor`."""

    what: str
    state: Literal["ok", "missing", "warning"]
    detail: str
    hint: str = ""


def check_machine() -> tuple[Check, ...]:
    """Every check, in order; never raises for what it finds."""
    return (
        Check("python", "ok", f"{platform.python_version()} on {platform.machine()}"),
        *check_runtimes(runtimes.by_name()),
        *(_check_extra(extra, module) for extra, module in EXTRAS),
        _check_images(),
        Check("converters", "ok", ", ".join(sorted(converters.by_name()))),
        _check_cache(),
        _check_cores(),
        _check_skopeo(),
    )


def check_runtimes(adapters: Mapping[str, Adapter]) -> Iterator[Check]:
    """Is each runtime installed, or another one that loads the same files?

    Builds fetch the version that a profile names, so one runtime for each kind of file will do.
    """
    versions = {name: _find_version(adapter) for name, adapter in adapters.items()}
    loadable = {
        suffix
        for name, adapter in adapters.items()
        if versions[name]
        for suffix in adapter.SPEC.suffixes
    }
    for name, adapter in sorted(adapters.items()):
        if versions[name]:
            yield Check(f"runtime {name}", "ok", versions[name])
        elif loadable.issuperset(adapter.SPEC.suffixes):
            yield Check(f"runtime {name}", "ok", "builds fetch the version that a profile names")
        else:
            hint = f"pip install 'edge-deploy[{adapter.SPEC.extra}]'"
            yield Check(f"runtime {name}", "missing", f"{adapter.SPEC.module} is not here", hint)


def _find_version(adapter: Adapter) -> str:
    try:
        return adapter.version()
    except MissingExtra:
        return ""


def _check_extra(extra: str, module: str) -> Check:
    try:
        if importlib.util.find_spec(module):
            return Check(f"extra {extra}", "ok", f"{module} {version(module)}")
    except PackageNotFoundError:
        pass
    return Check(
        f"extra {extra}", "missing", f"{module} is not here", f"pip install 'edge-deploy[{extra}]'"
    )


def _check_images() -> Check:
    if importlib.util.find_spec("PIL"):
        return Check("extra image", "ok", f"pillow {version('pillow')}")
    return Check("extra image", "missing", "no image decoder", "pip install 'edge-deploy[image]'")


def _check_cache() -> Check:
    cache = default_cache()
    folder = cache
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    if not os.access(folder, os.W_OK):
        return Check("cache", "warning", f"{cache} is not writable", "set EDGE_CACHE")
    state: Literal["ok", "warning"] = "ok" if free > 1 else "warning"
    return Check("cache", state, f"{cache}, {free:.1f} GB free")


def _check_cores() -> Check:
    jobs, load = default_jobs(), os.getloadavg()[0]
    if load > jobs:
        return Check(
            "cores", "warning", f"{jobs}, load {load:.1f}", "latencies measured now will be noisy"
        )
    return Check("cores", "ok", f"{jobs}, load {load:.1f}")


def _check_skopeo() -> Check:
    if shutil.which("skopeo"):
        return Check("skopeo", "ok", "for registries")
    return Check("skopeo", "missing", "only needed to push packages", "apt install skopeo")
