"""Installing a package: verify -> select -> unpack -> self-test -> tune -> switch -> sweep.

    install(config, path) -> Installation

Whatever fails, and wherever the process is killed, the model that was served stays served: the
switch is one rename, the last thing that happens, and everything before it is in folders that
sweep() removes. The model runs in a child process only. The child gives way to the serving agent:
its niceness is 10, and it is the first that the kernel ends when memory runs out. It has no address
space limit: a runtime reserves three times what it touches (EfficientNet-Lite0 in ONNX Runtime
1.31.1: 335 MB of addresses, 109 MB resident), so such a limit refuses models that fit.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from agent.config import Config
from agent.packages import tuning
from agent.packages.slots import Active, Slot, Slots
from edge_core.errors import EdgeError, InputError, StorageError
from edge_core.facts import DeviceFacts
from edge_core.files import storage_error
from edge_core.machine import detect
from edge_core.package import format as package
from edge_core.package import golden
from edge_core.package.format import Package
from edge_core.package.manifest import Manifest, Variant
from edge_core.package.selector import find_mismatch, select_variant
from edge_core.package.verify import replay
from edge_core.runtimes import registry as runtimes
from edge_core.runtimes.child import Child

MARGIN = 1024 * 1024  # bytes beyond the files themselves
Progress = Callable[[str], None]


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """What is served now."""

    slot: Slot
    previous: Slot | None
    golden: golden.GoldenResult | None  # None: it was tested when it was installed before
    seconds: float
    already: bool  # it was current, nothing was changed


def install(
    config: Config,
    path: Path,
    *,
    force: bool = False,
    progress: Progress = lambda _: None,
    facts: DeviceFacts | None = None,
) -> Installation:
    """Serve the package at ``path``, a .edgepkg file or an OCI layout; ``force``: also if refused.

    The variant is the first that matches ``facts``, by default those of this machine.
    Raises PackageError for a damaged package, InputError for one that is not for this device or
    was rolled back, MissingExtra without its runtime, GateFailed when its answers here are not
    those of the build, MeasureError when the runtime refuses or crashes, StorageError. Then what
    was served is still served.
    """
    start = time.monotonic()
    slots = Slots(config.root)
    # 1. Every byte has its digest.
    opened = package.open(path)
    manifest = opened.manifest
    title = f"{manifest.name} {manifest.version}"
    progress(f"verified {title}, {opened.digest}")
    # 2. A variant is for this device, and what runs it is here.
    variant = _select(manifest, facts or detect.detect_facts(runtimes.installed_runtimes()))
    runtime = f"{variant.runtime.name} {runtimes.get(variant.runtime.name).version()}"
    progress(f"selected variant {variant.name}")
    try:
        with slots.installing() as work:
            active = slots.active(manifest.name) if manifest.name in slots.names() else Active()
            _check_refused(opened, active, force)
            _check_space(slots, opened, variant)
            # 3. Into a folder that nothing changes any more; recreated if it is damaged.
            folder = slots.unpack(opened, variant)
            progress(f"unpacked in {folder}")
            # 4. and 5. Self-test and tuning, unless this very runtime has been through them.
            result, slot = (
                None,
                None if force else _find_tested(active, opened.digest, variant, runtime),
            )
            if slot is None:
                result, slot = _test_and_tune(config, opened, variant, folder, work, progress)
            # 6. One rename.
            already = slot is active.current
            if not already:
                slot = msgspec.structs.replace(slot, installed_at=time.time())
                active = slots.switch(slot)
    finally:
        # 7. Nothing stays that is not named; what the disk does not let go, the next sweep tries.
        with suppress(EdgeError):
            slots.sweep()
    progress(f"{title} {'was already' if already else 'is'} current")
    return Installation(
        slot=slot,
        previous=active.previous,
        golden=result,
        seconds=time.monotonic() - start,
        already=already,
    )


def _select(manifest: Manifest, facts: DeviceFacts) -> Variant:
    """The variant for this device; raises InputError, MissingExtra if only its runtime is absent.

    One whose runtime could be installed is worth more than the news that nothing matches.
    """
    try:
        return select_variant(manifest, facts)
    except InputError:
        absent = [
            variant.runtime.name
            for variant in manifest.variants
            if _lacks_only_runtime(variant, facts)
        ]
        for name in sorted(absent, key=lambda name: name not in runtimes.by_name()):
            runtimes.get(name).version()
        raise


def _lacks_only_runtime(variant: Variant, facts: DeviceFacts) -> bool:
    name = variant.runtime.name
    with_runtime = {**facts.runtimes, name: variant.runtime.version}
    equipped = msgspec.structs.replace(facts, runtimes=with_runtime)
    return name not in facts.runtimes and not find_mismatch(variant, equipped)


def _check_refused(opened: Package, active: Active, force: bool) -> None:
    if opened.digest in active.refused and not force:
        raise InputError(
            f"{opened.manifest.name} {opened.manifest.version} was rolled back here: "
            f"{active.disabled or 'it failed in use'}",
            hint="'--force' installs it anyway",
        )


def _check_space(slots: Slots, opened: Package, variant: Variant) -> None:
    """Refuse before anything is written. The disk may still fill up: then a write says so."""
    sizes = {path: layer.size for path, layer in opened.files(variant).items()}
    unpacked = 0 if slots.has(opened, variant) else sum(sizes.values())
    need = 2 * sizes[variant.golden] + unpacked + MARGIN
    try:
        free = shutil.disk_usage(slots.root).free
    except OSError as error:
        raise storage_error(error, slots.root) from error
    if free < need:
        raise StorageError(
            f"{slots.root} has {free} bytes free; installing {opened.manifest.name} takes {need}",
            hint="free some space, or set data_dir to a larger disk",
        )


def _find_tested(active: Active, digest: str, variant: Variant, runtime: str) -> Slot | None:
    """The slot of this variant, if it was tested with the runtime that is here now."""
    for slot in (active.current, active.previous):
        tested = slot and (slot.digest, slot.variant, slot.tuning.runtime)
        if tested == (digest, variant.name, runtime):
            return slot
    return None


def _test_and_tune(
    config: Config,
    opened: Package,
    variant: Variant,
    folder: Path,  # with the variant's files
    work: Path,
    progress: Progress,
) -> tuple[golden.GoldenResult, Slot]:
    model, limits = opened.manifest.model(variant), config.install
    entry = folder / model.entry
    vectors = golden.from_bytes(opened.read(variant.title(variant.golden)))
    with Child() as child:
        child.ask("background")
        version, result = replay(child, model, entry, vectors, work, limits.self_test_s)
        progress(f"self-test on {model.runtime.name} {version}: {result.text}")
        tuned = tuning.tune(
            child, model, entry, vectors, work,
            tuning.TuningLimits(
                threads=tuning.limit_threads(limits.cpu_share),
                max_batch_size=config.limits_of(model.name).max_batch_size,
                tune_s=limits.tune_s,
                timeout_s=limits.self_test_s,
            ),
        )  # fmt: skip
    ms = tuned.p50_ms[str(tuned.threads)]
    batching = "on" if tuned.batching.pays else "off"
    progress(
        f"{tuned.threads} thread(s): {ms:.3f} ms at p50; batching {batching}: {tuned.batching.why}"
    )
    slot = Slot(
        digest=opened.digest,
        name=model.name,
        version=model.version,
        variant=model.variant,
        candidate=model.candidate,
        installed_at=time.time(),
        tuning=tuned,
    )
    return result, slot
