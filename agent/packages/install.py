"""Installing a package: verify -> fits? -> unpack -> self-test -> tune -> switch -> sweep.

    install(config, path) -> Installed

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
from edge_core.files import storage_error
from edge_core.machine import detect
from edge_core.package import format as package
from edge_core.package import golden
from edge_core.package.format import Package
from edge_core.package.manifest import Manifest
from edge_core.package.verify import replay
from edge_core.runtimes import registry as runtimes
from edge_core.runtimes.child import Child

MARGIN = 1024 * 1024  # bytes beyond the files themselves
Progress = Callable[[str], None]


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """What is served now."""

    slot: Slot
    previous: Slot | None
    golden: golden.GoldenResult | None  # None: it was tested when it was installed before
    seconds: float
    already: bool  # it was current, nothing was changed


def install(
    config: Config, path: Path, *, force: bool = False, progress: Progress = lambda _: None
) -> Installed:
    """Serve the package at ``path``, a .edgepkg file or an OCI layout; ``force``: also if refused.

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
    # 2. It is for this device, and what runs it is here.
    runtime = _runtime(manifest)
    try:
        with slots.installing() as work:
            active = slots.active(manifest.name) if manifest.name in slots.names() else Active()
            _check_refused(opened, active, force)
            _check_space(slots, opened)
            # 3. Into a folder that nothing changes any more; made anew if it is damaged.
            model = slots.unpack(opened) / manifest.file
            progress(f"unpacked in {model.parent}")
            # 4. and 5. Self-test and tuning, unless this very runtime has been through them.
            result, slot = None, None if force else _known(active, opened.digest, runtime)
            if slot is None:
                result, slot = _measured(config, opened, model, work, progress)
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
    return Installed(
        slot=slot,
        previous=active.previous,
        golden=result,
        seconds=time.monotonic() - start,
        already=already,
    )


def _runtime(manifest: Manifest) -> str:
    """The runtime and its version here; raises InputError, MissingExtra if it cannot run this."""
    wanted, here = manifest.selector, detect.here()
    if (wanted.arch, wanted.os) != (here.arch, here.os):
        raise InputError(
            f"{manifest.name} {manifest.version} is built for {wanted.arch} {wanted.os}; "
            f"this machine is {here.arch} {here.os}",
            hint="build it for the profile of a device like this one",
        )
    return f"{manifest.runtime.name} {runtimes.get(manifest.runtime.name).version()}"


def _check_refused(opened: Package, active: Active, force: bool) -> None:
    if opened.digest in active.refused and not force:
        raise InputError(
            f"{opened.manifest.name} {opened.manifest.version} was rolled back here: "
            f"{active.disabled or 'it failed in use'}",
            hint="'--force' installs it anyway",
        )


def _check_space(slots: Slots, opened: Package) -> None:
    """Refuse before anything is written. The disk may still fill up: then a write says so."""
    sizes = {title: layer.size for title, layer in opened.layers.items()}
    present = slots.folder(opened.manifest.name, opened.digest).exists()
    need = 2 * sizes["golden.npz"] + (0 if present else sum(sizes.values())) + MARGIN
    try:
        free = shutil.disk_usage(slots.root).free
    except OSError as e:
        raise storage_error(e, slots.root) from e
    if free < need:
        raise StorageError(
            f"{slots.root} has {free} bytes free; installing {opened.manifest.name} takes {need}",
            hint="free some space, or set data_dir to a larger disk",
        )


def _known(active: Active, digest: str, runtime: str) -> Slot | None:
    """The slot of this package, if it was tested with the runtime that is here now."""
    for slot in (active.current, active.previous):
        if slot and slot.digest == digest and slot.tuning.runtime == runtime:
            return slot
    return None


def _measured(
    config: Config, opened: Package, model: Path, work: Path, progress: Progress
) -> tuple[golden.GoldenResult, Slot]:
    manifest, limits = opened.manifest, config.install
    vectors = golden.from_bytes(opened.read("golden.npz"))
    with Child() as child:
        child.ask("background")
        version, result = replay(child, manifest, model, vectors, work, limits.self_test_s)
        progress(f"self-test on {manifest.runtime.name} {version}: {result.text}")
        tuned = tuning.tune(
            child, manifest, model, vectors, work,
            tuning.Limits(
                threads=tuning.allowed_threads(limits.cpu_share),
                max_batch_size=config.limits_of(manifest.name).max_batch_size,
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
        name=manifest.name,
        version=manifest.version,
        candidate=manifest.candidate,
        installed_at=time.time(),
        tuning=tuned,
    )
    return result, slot
