"""What commands do with caches, as functions: settings and names in, values out."""

from __future__ import annotations

from pathlib import Path

import msgspec

from agent.caches.calibrate_model import calibrate_model, read_clips
from agent.caches.calibration import Calibration, write_calibration
from agent.caches.rules import AnswerRule
from agent.config import Config
from agent.packages.slots import Slots
from agent.service import client, instance_lock
from agent.serving.caching import cache_files, calibration_file
from agent.sqlite import sqlite_file
from agent.sqlite.damage import delete_file
from agent.sqlite.sqlite_file import Table
from edge_core.errors import StorageError, Unavailable
from edge_core.files import storage_error
from edge_core.runtimes import registry as runtimes
from edge_core.tensors import Feeds, dequantise


class CacheFile(msgspec.Struct, frozen=True, kw_only=True):
    """One cache's file."""

    name: str  # "exact", or "near MODEL"
    bytes: int
    tables: tuple[Table, ...] = ()
    counters: client.Document = {}  # of the running agent


def read_caches(settings: Config) -> tuple[CacheFile, ...]:
    """The caches' files; with counters if an agent runs. Raises StorageError for a damaged one."""
    here = instance_lock.find_instance(settings.root)
    counters = client.status(here)["caches"] if here and here.address else {}
    return tuple(
        CacheFile(
            name=name,
            bytes=sqlite_file.file_bytes(path),
            tables=_inspect(path),
            counters=counters.get(name, {}),
        )
        for name, path in cache_files(settings.root).items()
    )


def clear_caches(settings: Config) -> tuple[str, ...]:
    """Delete every remembered answer; names of the caches. Calibrations stay.

    Raises InputError while an agent runs: SQLite must not have a file open that is deleted.
    """
    with instance_lock.hold(settings.root):
        files = cache_files(settings.root)
        for path in files.values():
            try:
                delete_file(path)
            except OSError as error:
                raise storage_error(error, path) from error
    return tuple(files)


def calibrate_cache(
    settings: Config,
    name: str,
    samples: Path,
    *,
    rule: AnswerRule,
    epsilon: float,
    confidence: float,
) -> Calibration:
    """Find how near is near enough for a model, on the user's samples, and use it.

    ``epsilon`` is the largest share of wrong reuses, ``confidence`` that of the proof, ``rule``
    says which answers are equal. The file is written in any case: without a proof it keeps the
    cache off. Raises InputError.
    """
    slots = Slots(settings.root)
    slot = slots.active(name).current
    if slot is None:
        raise Unavailable(f"'{name}' has no version that is current")
    slots.check(slot)
    model = slots.model(slot)
    session = runtimes.get(model.runtime.name).open(
        slots.folder(slot) / model.entry,
        threads=slot.tuning.threads,
        options=model.runtime.options,
    )

    def answer(feeds: Feeds) -> Feeds:
        outputs = session.run(feeds)
        return {spec.name: dequantise(outputs[spec.name], spec) for spec in model.outputs}

    calibration = calibrate_model(
        answer,
        read_clips(samples, model),
        model=slot.model_id,
        inputs=model.inputs,
        rule=rule,
        epsilon=epsilon,
        confidence=confidence,
    )
    write_calibration(calibration_file(settings.root, name), calibration)
    here = instance_lock.find_instance(settings.root)
    if here and here.address:
        client.reload(here, name)
    return calibration


def _inspect(path: Path) -> tuple[Table, ...]:
    try:
        return sqlite_file.read_tables(path)
    except Exception as error:  # sqlite-utils lets sqlite3's errors through
        raise StorageError(f"cannot read {path}: {error}", hint="edge-agent cache clear") from error
