"""What commands do with this device's agent, as functions: settings and names in, values out.

A command that changes what is served tells the running agent and waits until it serves it. The
agent would notice by itself within a second; asking gives the reason if it cannot.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from agent import config
from agent.config import Config
from agent.packages import install as installing
from agent.packages.slots import Active, Slot, Slots
from agent.service import client, instance_lock
from agent.service.instance_lock import Instance
from edge_core.errors import EdgeError, InputError, Unavailable
from edge_core.machine import detect
from edge_core.package import run
from edge_core.runtimes import registry as runtimes

Progress = Callable[[str], None]


class Locations(msgspec.Struct, frozen=True):
    """Where the settings and the data are."""

    config: str
    data_dir: str


class Switch(msgspec.Struct, frozen=True, kw_only=True):
    """What is current now, and what the running agent says to it."""

    current: Slot
    previous: Slot | None
    already: bool = False  # nothing was changed
    self_test: str = ""  # of an installation
    seconds: float = 0.0
    served: str = ""  # the digest that the running agent answers with; "" if none could be asked
    note: str = ""


class ModelOverview(msgspec.Struct, frozen=True, kw_only=True):
    """One installed model; without current it was disabled, or its file is damaged."""

    name: str
    current: Slot | None = None
    previous: Slot | None = None
    refused: tuple[str, ...] = ()
    why: str = ""  # it cannot be served


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """The agent as commands see it."""

    agent: Instance | None
    status: client.Document | None  # of the running agent, if it serves HTTP
    models: tuple[ModelOverview, ...]


def init_settings(path: Path | None, data_dir: Path | None) -> Locations:
    """Write settings with every default, and make the data directory; raises InputError."""
    root = os.geteuid() == 0
    named = os.environ.get(config.ENVIRONMENT)
    path = path or Path(named or (config.SYSTEM if root else config.user_config_path()))
    home = Path(Config().data_dir) if root else Path.home() / ".local" / "share" / "edge-agent"
    data = (data_dir or home).absolute()
    config.write_default(path, data)
    return Locations(str(path), str(data))


def install_package(settings: Config, path: Path, *, force: bool, progress: Progress) -> Switch:
    """Install a package and see it served; raises what installing raises, and Unavailable."""
    installed = installing.install(settings, path, force=force, progress=progress)
    served, note = _wait_served(settings, installed.slot)
    return Switch(
        current=installed.slot,
        previous=installed.previous,
        already=installed.already,
        self_test=installed.golden.text if installed.golden else "",
        seconds=installed.seconds,
        served=served,
        note=note,
    )


def roll_back(settings: Config, name: str, *, refuse: bool) -> Switch:
    """Go back to the previous package and see it served; raises InputError, Unavailable."""
    active = Slots(settings.root).rollback(name, refuse=refuse)
    assert active.current is not None
    served, note = _wait_served(settings, active.current)
    return Switch(current=active.current, previous=active.previous, served=served, note=note)


def read_models(settings: Config) -> tuple[ModelOverview, ...]:
    """What is installed, whether an agent runs or not."""
    slots = Slots(settings.root)
    return tuple(_read_model(slots, name) for name in slots.names())


def read_overview(settings: Config) -> Overview:
    """The running agent's status, and what is installed; raises Unavailable if it hangs."""
    here = instance_lock.find_instance(settings.root)
    status = client.status(here) if here and here.address else None
    return Overview(agent=here, status=status, models=read_models(settings))


def infer(
    path: Path | None, target: str, source: Path, *, top: int, variant: str = ""
) -> run.Answer:
    """One answer from a package, or from an installed model; ``path`` are other settings.

    What has a slash or ends in .edgepkg is a package. An installed model is asked of the running
    agent, and loaded in this process if none runs. ``variant`` is the one of a package to run; an
    installed model has one already: raises InputError.
    """
    package = Path(target)
    if os.sep in target or package.suffix == ".edgepkg":
        return _infer_package(package, source, top, variant)
    try:
        settings = config.load_config(config.find_config(path))
        active = Slots(settings.root).active(target)
    except EdgeError:
        if package.exists():
            return _infer_package(package, source, top, variant)
        raise
    if variant:
        raise InputError(f"'{target}' is installed, with one variant", hint="leave --variant out")
    return _infer_installed(settings, active, target, source, top)


def _infer_package(package: Path, source: Path, top: int, variant: str) -> run.Answer:
    facts = detect.detect_facts(runtimes.installed_runtimes())
    return run.run_package(package, source, facts, variant=variant, top=top)


def _infer_installed(
    settings: Config, active: Active, target: str, source: Path, top: int
) -> run.Answer:
    slots, here = Slots(settings.root), instance_lock.find_instance(settings.root)
    slot = active.current
    if slot is None or active.disabled:
        raise Unavailable(f"'{target}' cannot be served: {active.disabled or 'nothing is current'}")
    model = slots.model(slot)
    if here and here.address:
        return client.infer(here, model, source, top=top)
    slots.check(slot)
    model_path = slots.folder(slot) / model.entry
    threads = settings.limits_of(target).threads or slot.tuning.threads
    return run.infer(model_path, model, source, top=top, threads=threads)


def _wait_served(settings: Config, slot: Slot) -> tuple[str, str]:
    """The digest that the running agent serves now, and a note for people."""
    here = instance_lock.find_instance(settings.root)
    if here is None:
        return "", "no agent runs here"
    if not here.address:
        return "", "the running agent will serve it within a second"
    served = str(client.reload(here, slot.name)["digest"])
    if served != slot.digest:
        raise Unavailable(f"the agent (process {here.pid}) still serves {served}")
    return served, f"the agent (process {here.pid}) serves it"


def _read_model(slots: Slots, name: str) -> ModelOverview:
    try:
        active: Active = slots.active(name)
    except EdgeError as error:
        return ModelOverview(name=name, why=error.what)
    return ModelOverview(
        name=name,
        current=active.current,
        previous=active.previous,
        refused=active.refused,
        why=active.disabled,
    )
