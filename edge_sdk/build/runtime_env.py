"""The runtime version that a profile names, in a private folder: measured on that very version.

    provide("onnxruntime", "1.19.2") -> RuntimeEnv(version="1.19.2", site=<cache>/..., exact=True)

A folder made by `pip install --target` goes first on a child's import path; the interpreter and
everything else stay the host's. Where the index has no wheel for this host, the nearest version
is used and the result says so.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import msgspec
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from edge_core.errors import MeasureError, MissingExtra
from edge_core.files import atomic_directory
from edge_core.runtimes import registry as runtimes
from edge_core.runtimes.adapter import Adapter

# NumPy is all that these runtimes import, and wheels built against NumPy 1 fail beside NumPy 2.
_NUMPY_1 = "numpy==1.26.4"
# Folders of other interpreters and systems may lie in the same cache.
_HERE = f"cp{sys.version_info.major}{sys.version_info.minor}-{sysconfig.get_platform()}"


class RuntimeEnv(msgspec.Struct, frozen=True):
    """A runtime that children can use."""

    name: str
    version: str
    site: Path | None  # None: the host's own installation
    exact: bool  # is it the version that was asked for?
    note: str = ""  # why not

    @property
    def where(self) -> str:
        """For the label of a measured value."""
        machine = sysconfig.get_platform().rpartition("-")[2]
        return f"{self.name} {self.version} on this {machine} host" + (
            f" ({self.note})" if self.note else ""
        )


def provide(name: str, version: str, cache: Path, *, offline: bool = False) -> RuntimeEnv:
    """The runtime in that version, or the nearest one there is; raises MeasureError if none."""
    adapter = runtimes.get(name)
    try:
        installed = adapter.version()
    except MissingExtra:
        installed = ""
    if installed == version:
        return RuntimeEnv(name, version, None, exact=True)
    site = _folder(cache, name, version)
    if site.is_dir():
        return RuntimeEnv(name, version, site, exact=True)
    if offline:
        return _nearest_on_disk(adapter, version, installed, cache)
    problem, available = _install(adapter, version, site)
    if not problem:
        return RuntimeEnv(name, version, site, exact=True)
    nearest = _nearest(version, [*available, *([installed] if installed else [])])
    if nearest is None:
        raise MeasureError(f"{name} {version} cannot be installed: {problem}")
    why = "has no wheel for this host" if available else f"cannot be installed: {problem}"
    note = f"the profile names {version}, which {why}"
    if nearest == installed:
        return RuntimeEnv(name, nearest, None, exact=False, note=note)
    site = _folder(cache, name, nearest)
    if not site.is_dir():
        problem, _ = _install(adapter, nearest, site)
        if problem:
            raise MeasureError(f"{name} {nearest} cannot be installed: {problem}")
    return RuntimeEnv(name, nearest, site, exact=False, note=note)


def find_installed(name: str) -> RuntimeEnv:
    """The host's own installation; raises MissingExtra."""
    return RuntimeEnv(name, runtimes.get(name).version(), None, exact=True)


def _folder(cache: Path, name: str, version: str) -> Path:
    return cache / "runtimes" / f"{name}-{version}-{_HERE}"


def _nearest_on_disk(adapter: Adapter, version: str, installed: str, cache: Path) -> RuntimeEnv:
    name = adapter.SPEC.name
    ours = (cache / "runtimes").glob(f"{name}-*-{_HERE}")
    folders = {path.name.removeprefix(f"{name}-").removesuffix(f"-{_HERE}"): path for path in ours}
    nearest = _nearest(version, [*folders, *([installed] if installed else [])])
    if nearest is None:
        raise MeasureError(
            f"{name} {version} is not at hand and --offline was given",
            hint="build once without --offline, with the same --cache",
        )
    note = f"the profile names {version}, not at hand and --offline was given"
    site = None if nearest == installed else folders[nearest]
    return RuntimeEnv(name, nearest, site, exact=False, note=note)


class _NoWheel(Exception):  # leaves atomic_directory() without making the folder
    def __init__(self, problem: str, available: list[str]) -> None:
        super().__init__(problem)
        self.problem, self.available = problem, available


def _install(adapter: Adapter, version: str, site: Path) -> tuple[str, list[str]]:
    """Install into ``site``; return ("", []) or the problem and the versions the index has."""
    try:
        with atomic_directory(site) as folder:
            _pip(_requirements(adapter, version), folder)
            _import(adapter.SPEC.module, folder)
    except _NoWheel as error:
        return error.problem, error.available
    return "", []


def _requirements(adapter: Adapter, version: str) -> list[str]:
    spec, parsed = adapter.SPEC, _parse(version)
    distribution = spec.distribution
    if parsed and parsed.is_prerelease:
        distribution = spec.prereleases or distribution
    requirements = [f"{distribution}=={version}"]
    old = None if spec.numpy_1 is None else SpecifierSet(spec.numpy_1)
    if old is not None and parsed and old.contains(parsed, prereleases=True):
        requirements.append(_NUMPY_1)
    return requirements


def _pip(wanted: list[str], folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    done = subprocess.run(
        [*pip, "--only-binary=:all:", "--target", str(folder), *wanted],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        listed = re.search(r"\(from versions: ([^)]*)\)", done.stderr)
        raise _NoWheel(_last_line(done.stderr), listed.group(1).split(", ") if listed else [])


def _import(module: str, folder: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise _NoWheel(f"it does not import here: {_last_line(done.stderr)}", [])


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("ERROR: ") if lines else "pip failed"


def _nearest(version: str, available: list[str]) -> str | None:
    """The release at the smallest distance of (major, minor); the newest patch of it."""
    wanted_version = _parse(version)
    known = [
        (parsed, text)
        for text in available
        if (parsed := _parse(text)) and not parsed.is_prerelease
    ]
    if wanted_version is None or not known:
        return None

    def distance(v: Version) -> tuple[int, int, int]:
        return abs(v.major - wanted_version.major), abs(v.minor - wanted_version.minor), -v.micro

    return min(known, key=lambda pair: distance(pair[0]))[1]


def _parse(version: str) -> Version | None:
    try:
        return Version(version)
    except InvalidVersion:
        return None
