"""Is this device fit to serve, and what can be done if not? Reads everything, changes nothing.

check_device(path) -> tuple[Check, ...]     never raises for what it finds
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sqlite3
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import msgspec

from agent import config
from agent.config import Config
from agent.packages.slots import Slot, Slots
from agent.service import client, instance_lock
from agent.serving.caching import cache_files
from edge_core.errors import EdgeError, MissingExtra
from edge_core.machine import linux
from edge_core.runtimes import registry as runtimes

LOW_DISK_MB, LOW_MEMORY_MB = 200, 100
UNIT = "edge-agent.service"
State = Literal["ok", "warn", "fail"]


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    what: str
    state: State
    detail: str
    hint: str = ""


def check_device(path: Path | None = None) -> tuple[Check, ...]:
    """Every check, in order; ``path`` is the settings file that was asked for."""
    checks = [_python(), *_runtimes(), _images(), _memory(Path("/")), _unit()]
    try:
        where = config.find_config(path)
        settings = config.load_config(where)
    except EdgeError as error:
        return (*checks, Check("settings", "fail", error.what, error.hint))
    checks += [Check("settings", "ok", str(where)), *_data_dir(settings.root)]
    if settings.root.is_dir():
        checks += [*_models(settings), *_caches(settings), _agent(settings)]
    return tuple(checks)


def _python() -> Check:
    return Check("python", "ok", f"{platform.python_version()} on {platform.machine()}")


def _runtimes() -> Iterator[Check]:
    missing = []
    for name, adapter in sorted(runtimes.by_name().items()):
        try:
            yield Check(f"runtime {name}", "ok", adapter.version())
        except MissingExtra as error:
            missing.append(error)
    if len(missing) == len(runtimes.by_name()):
        yield Check("runtime", "warn", "none is here, so no model can run", missing[0].hint)


def _images() -> Check:
    if importlib.util.find_spec("PIL"):
        return Check("images", "ok", f"pillow {version('pillow')}")
    hint = "pip install 'edge-deploy[image]'"
    return Check("images", "warn", "no decoder: requests must be tensors", hint)


def _memory(root: Path) -> Check:
    try:
        memory = linux.read_memory(root)
    except EdgeError as error:
        return Check("memory", "warn", error.what)
    low = memory.available_mb < LOW_MEMORY_MB
    detail = f"{memory.available_mb:.0f} of {memory.total_mb:.0f} MB available"
    return Check("memory", "warn" if low else "ok", detail, "end something" if low else "")


def _unit() -> Check:
    properties = "--property=LoadState,UnitFileState,ActiveState,WatchdogUSec"
    try:
        shown = subprocess.run(
            ["systemctl", "show", UNIT, properties],
            capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return Check("service", "warn", "systemd does not run here: nobody restarts the agent")
    return check_unit(dict(line.split("=", 1) for line in shown.stdout.splitlines() if "=" in line))


def check_unit(facts: dict[str, str]) -> Check:
    """Judge what ``systemctl show`` says about the unit."""
    if facts.get("LoadState") != "loaded":
        return Check(
            "service", "warn", f"no unit {UNIT}", "install it with agent/system/install.sh"
        )
    detail = f"{facts.get('ActiveState')}, watchdog {facts.get('WatchdogUSec')}"
    if facts.get("ActiveState") == "failed":
        return Check("service", "fail", detail, f"journalctl -u {UNIT}")
    if facts.get("WatchdogUSec", "0") in ("0", "infinity"):
        return Check("service", "warn", "no watchdog", "set WatchdogSec=30 in the unit")
    if facts.get("UnitFileState") != "enabled":
        return Check("service", "warn", "does not start by itself", f"systemctl enable {UNIT}")
    return Check("service", "ok", detail)


def _data_dir(root: Path) -> Iterator[Check]:
    if not root.is_dir():
        yield Check("data", "fail", f"there is no {root}", "edge-agent init")
        return
    facts = root.stat()
    if facts.st_uid != os.geteuid():
        who = f"user {facts.st_uid}"
        yield Check("data", "fail", f"{root} belongs to {who}", f"sudo -u '#{facts.st_uid}' ...")
        return
    if not os.access(root, os.W_OK) or os.statvfs(root).f_flag & os.ST_RDONLY:
        yield Check("data", "fail", f"{root} is read-only", "remount it, or look at the disk")
    free = shutil.disk_usage(root).free // 10**6
    hint = "" if free >= LOW_DISK_MB else "remove something, or lower cache.max_mb"
    yield Check("data", "ok" if free >= LOW_DISK_MB else "warn", f"{root}, {free} MB free", hint)
    exposed = [path for path in (root, *root.rglob("*")) if _is_open_to_others(path)]
    if exposed:
        detail = f"others may use {exposed[0]}" + (
            f" and {len(exposed) - 1} more" * bool(exposed[1:])
        )
        yield Check("privacy", "fail", detail, f"chmod -R go= {root}")


def _is_open_to_others(path: Path) -> bool:
    facts = path.lstat()
    return not stat.S_ISLNK(facts.st_mode) and bool(facts.st_mode & 0o077)


def _models(settings: Config) -> Iterator[Check]:
    slots, newest = Slots(settings.root), 0.0
    for name in slots.names():
        try:
            active = slots.active(name)
            for slot in filter(None, (active.current, active.previous)):
                newest = max(newest, slot.installed_at)
                slots.check(slot, everything=True)
            yield _model(name, active.current, active.disabled, slots)
        except EdgeError as error:
            yield Check(
                f"model {name}", "fail", error.what, error.hint or "install the package again"
            )
    if not slots.names():
        yield Check("models", "warn", "none is installed", "edge-agent install PACKAGE")
    yield check_clock(time.time(), newest)


def _model(name: str, slot: Slot | None, disabled: str, slots: Slots) -> Check:
    """Can the model run here?"""
    if slot is None or disabled:
        why = disabled or "nothing is installed"
        return Check(f"model {name}", "fail", why, f"install another version of {name}")
    need = slots.model(slot).runtime
    here = runtimes.get(need.name).version()  # raises MissingExtra
    return Check(f"model {name}", "ok", f"{slot.version} on {need.name} {here}, files intact")


def check_clock(now: float, newest: float) -> Check:
    """Is ``now`` possible, if a package was installed at ``newest``? Seconds since 1970."""
    shown = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
    if now < newest:
        then = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(newest))
        return Check("clock", "warn", f"{shown}, yet a package is from {then}", "set the clock")
    return Check("clock", "ok", shown)


def _caches(settings: Config) -> Iterator[Check]:
    for name, path in cache_files(settings.root).items():
        size = f"{path.stat().st_size / 1e6:.1f} MB"
        try:
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as db:
                db.execute("PRAGMA query_only=1")
                (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.Error as error:
            verdict = str(error)
        if verdict == "ok":
            yield Check(f"cache {name}", "ok", size)
        else:  # the agent recreates it by itself
            yield Check(f"cache {name}", "warn", f"{verdict}", "edge-agent cache clear")


def _agent(settings: Config) -> Check:
    here = instance_lock.find_instance(settings.root)
    if here is None:
        return Check(
            "agent", "warn", "does not run", "edge-agent run, or systemctl start edge-agent"
        )
    if not here.address:
        return Check("agent", "ok", f"process {here.pid}, HTTP is off")
    try:
        is_ready = client.is_ready(here)
    except EdgeError as error:
        return Check("agent", "fail", f"process {here.pid}: {error.what}", error.hint)
    if not is_ready:
        return Check("agent", "warn", "not every model is served", "edge-agent status")
    return Check("agent", "ok", f"process {here.pid} answers at {here.address}")
