"""Slots: what is on disk is whole, private, immutable, and named by one file per model."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.packages.slots import ACTIVE, MAX_REFUSED, Active, Batching, Slot, Slots, Tuning
from edge_core.errors import InputError, PackageError, StorageError, UnknownModel
from edge_core.package import format as package

ROOT = Path(__file__).resolve().parents[3]
TUNING = Tuning(
    runtime="onnxruntime 1.31.1",
    threads=1,
    p50_ms={"1": 0.5},
    batching=Batching(
        can=False, pays=False, max_batch_size=1, why="the batch dimension is fixed at 1",
        single_per_s=0.0, batched_per_s=0.0, measured_at=1,
    ),
    seconds=1.0,
)  # fmt: skip


def slot(number: int, name: str = "dense", digest: str = "") -> Slot:
    """The record of a package that need not be on the disk."""
    return Slot(
        digest=digest or f"sha256:{number:064x}", name=name, version=str(number), variant="here",
        candidate="onnx-fp32",
        installed_at=1e9 + number, tuning=TUNING,
    )  # fmt: skip


def unpack(slots: Slots, opened_package: package.Package) -> Path:
    """Unpack the only variant."""
    return slots.unpack(opened_package, opened_package.manifest.variants[0])


@pytest.fixture
def slots(tmp_path: Path) -> Slots:
    return Slots(tmp_path / "agent")


@pytest.fixture
def opened_package(make_package) -> package.Package:
    return package.open(make_package())


@pytest.fixture
def unpacked_folder(slots: Slots, opened_package: package.Package) -> Path:
    """The dense model's folder; it is current as well."""
    folder = unpack(slots, opened_package)
    slots.switch(msgspec.structs.replace(slot(1), digest=opened_package.digest))
    return folder


def modes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): oct(stat.S_IMODE(path.stat().st_mode))
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277])
def test_a_slot_is_readable_for_its_owner_only_and_writable_for_nobody(
    slots, opened_package, umask
):
    before = os.umask(umask)
    try:
        folder = unpack(slots, opened_package)
        slots.switch(slot(1))
    finally:
        os.umask(before)
    files = opened_package.files(opened_package.manifest.variants[0])
    inside = {f"models/dense/slots/{folder.name}/{path}": "0o400" for path in files}
    assert modes(slots.root) == inside | {
        "models": "0o700",
        "models/.lock": oct(0o600 & ~umask),
        "models/dense": "0o700",
        f"models/dense/{ACTIVE}": "0o600",
        "models/dense/slots": "0o700",
        f"models/dense/slots/{folder.name}": "0o500",
        f"models/dense/slots/{folder.name}/.oci-manifest": "0o400",
    }
    assert stat.S_IMODE(slots.root.stat().st_mode) == 0o700


def test_making_slots_and_reading_them_creates_nothing(slots):
    assert slots.names() == ()
    assert slots.stamp() == ()
    assert slots.sweep() == ()
    assert not slots.root.exists()


def test_a_switch_makes_the_served_package_the_previous_one(slots):
    assert slots.switch(slot(1)) == Active(current=slot(1))
    assert slots.switch(slot(2)) == Active(current=slot(2), previous=slot(1))
    assert slots.switch(slot(3)) == slots.active("dense")
    assert slots.active("dense") == Active(current=slot(3), previous=slot(2))
    tuned_anew = msgspec.structs.replace(slot(3), installed_at=2e9)
    assert slots.switch(tuned_anew) == Active(current=tuned_anew, previous=slot(2))


def test_a_rollback_swaps_and_a_refusing_one_remembers_the_digest(slots):
    slots.switch(slot(1))
    with pytest.raises(InputError, match="'dense' has no previous version"):
        slots.rollback("dense", refuse=False)
    slots.switch(slot(2))
    assert slots.rollback("dense", refuse=False) == Active(current=slot(1), previous=slot(2))
    assert slots.rollback("dense", refuse=True) == Active(
        current=slot(2), refused=(slot(1).digest,)
    )
    assert slots.switch(slot(1)) == Active(current=slot(1), previous=slot(2))


def test_a_disabled_package_is_no_way_back(slots):
    slots.switch(slot(1))
    disabled = slots.disable("dense", "it crashed")
    assert disabled == Active(current=slot(1), refused=(slot(1).digest,), disabled="it crashed")
    assert slots.switch(slot(2)) == Active(current=slot(2), refused=(slot(1).digest,))


def test_only_the_latest_refusals_are_kept(slots):
    slots.switch(slot(0))
    for n in range(1, MAX_REFUSED + 3):
        slots.switch(slot(n))
        slots.rollback("dense", refuse=True)
    refused = slots.active("dense").refused
    assert refused == tuple(slot(n).digest for n in range(3, MAX_REFUSED + 3))


OPERATIONS = st.one_of(
    st.tuples(st.just("switch"), st.integers(1, 4)),
    st.tuples(st.just("rollback"), st.booleans()),
    st.tuples(st.just("disable"), st.just("why")),
)


@settings(max_examples=30, deadline=None)
@given(operations=st.lists(OPERATIONS, max_size=8))
def test_no_order_of_changes_breaks_what_active_promises(tmp_path_factory, operations):
    """Something is current; previous is another package, and neither refused nor disabled."""
    slots = Slots(tmp_path_factory.mktemp("agent"))
    slots.switch(slot(1))
    for operation, value in operations:
        before = slots.active("dense")
        if operation == "switch":
            slots.switch(slot(value))
        elif operation == "disable":
            slots.disable("dense", value)
        elif before.previous:
            slots.rollback("dense", refuse=value)
        now = slots.active("dense")
        assert now.current
        if now.previous:
            assert now.previous.digest != now.current.digest
            assert now.previous.digest not in now.refused
        assert bool(now.disabled) <= (now.current.digest in now.refused)


def test_an_unknown_model_is_answered_with_the_nearest_and_all_others(slots):
    with pytest.raises(UnknownModel, match="no model is installed"):
        slots.active("dense")
    slots.switch(slot(1))
    slots.switch(slot(2, "detector"))
    with pytest.raises(UnknownModel, match=r"did you mean 'dense'\? installed: dense, detector"):
        slots.active("dence")
    for name in ("../dense", "", "a/b", ".dense", "dense\0"):
        with pytest.raises(UnknownModel):
            slots.active(name)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden", "a b", "ä", "x" * 101])
def test_a_name_that_is_no_safe_file_name_is_refused(slots, name):
    with pytest.raises(PackageError, match="the model's name is"):
        slots.switch(slot(1, name))
    with pytest.raises(PackageError, match="the model's name is"):
        slots.folder(slot(1, name))


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:" + "A" * 64, "../" * 24])
def test_a_digest_that_is_none_is_refused(slots, digest):
    with pytest.raises(InputError, match="is no digest of a package"):
        slots.folder(slot(1, digest=digest or "sha256"))


def test_the_stamp_changes_with_every_switch_and_with_nothing_else(slots, opened_package):
    stamps = [slots.stamp()]
    for change in (
        lambda: slots.switch(slot(1)),
        lambda: slots.switch(slot(1)),
        lambda: slots.switch(slot(2, "detector")),
        lambda: slots.switch(slot(3)),
        lambda: slots.rollback("dense", refuse=False),
        lambda: slots.disable("dense", "why"),
    ):
        change()
        stamps.append(slots.stamp())
    assert len(set(stamps)) == len(stamps)
    unpack(slots, opened_package)
    slots.sweep()
    slots.active("dense")
    assert slots.stamp() == stamps[-1]


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"{}\xff", b'{"format": 1, "current": 7}'])
def test_a_damaged_active_file_is_told_and_its_slots_are_kept(slots, unpacked_folder, raw):
    path = slots.root / "models" / "dense" / ACTIVE
    path.write_bytes(raw)
    with pytest.raises(StorageError, match=r"active\.json is not readable"):
        slots.active("dense")
    assert slots.sweep() == ()
    assert unpacked_folder.is_dir()
    assert slots.names() == ("dense",)


def test_an_active_file_of_a_newer_format_is_not_guessed_at(slots):
    slots.switch(slot(1))
    path = slots.root / "models" / "dense" / ACTIVE
    path.write_bytes(path.read_bytes().replace(b'"format": 1', b'"format": 2'))
    with pytest.raises(StorageError, match="has format 2; this version reads up to 1"):
        slots.active("dense")


def test_an_unpacked_package_has_its_manifest_and_passes_its_check(
    slots, opened_package, unpacked_folder
):
    variant = opened_package.manifest.variants[0]
    assert slots.model(slot(1, digest=opened_package.digest)) == opened_package.manifest.model(
        variant
    )
    slots.check(slot(1, digest=opened_package.digest), everything=True)
    assert unpack(slots, opened_package) == unpacked_folder


def test_every_damaged_byte_of_what_is_loaded_is_found(slots, opened_package, unpacked_folder):
    for name in (".oci-manifest", "manifest.json", "model.onnx"):
        path = unpacked_folder / name
        good = path.read_bytes()
        for bad in (good[:-1], good + b"\0", bytes([good[0] ^ 1]) + good[1:], b""):
            path.chmod(0o600)
            path.write_bytes(bad)
            with pytest.raises(PackageError, match=rf"{name} is damaged"):
                slots.check(slot(1, digest=opened_package.digest))
        path.unlink()
        with pytest.raises(PackageError, match="cannot read"):
            slots.check(slot(1, digest=opened_package.digest))
        path.write_bytes(good)
    slots.check(slot(1, digest=opened_package.digest))


def test_a_damaged_slot_is_unpacked_anew(slots, opened_package, unpacked_folder):
    golden = unpacked_folder / "golden.npz"
    golden.chmod(0o600)
    golden.write_bytes(b"rotten")
    slots.check(slot(1, digest=opened_package.digest))  # not loaded by the agent
    with pytest.raises(PackageError, match=r"golden\.npz is damaged"):
        slots.check(slot(1, digest=opened_package.digest), everything=True)
    unpack(slots, opened_package)
    slots.check(slot(1, digest=opened_package.digest), everything=True)
    assert slots.sweep() == ()


def test_sweep_removes_what_no_active_file_names_and_nothing_else(
    slots, opened_package, make_package
):
    named = unpack(slots, opened_package)
    slots.switch(msgspec.structs.replace(slot(1), digest=opened_package.digest))
    home = slots.root / "models" / "dense"
    unnamed = unpack(slots, package.open(make_package(version="2", seed=2)))
    half = home / "slots" / f".{'0' * 64}.abcdefgh"
    half.mkdir()
    (half / "model.onnx").write_bytes(b"half")
    half.chmod(0o500)
    temp = home / f".{ACTIVE}.abcdefgh"
    temp.write_bytes(b"half")
    gone = home / "slots" / f".gone.{'1' * 64}.00"
    gone.mkdir()
    work = slots.root / "models" / ".work.abcdefgh"
    (work / "in").mkdir(parents=True)
    first = slots.root / "models" / "newcomer"  # its first installation was killed
    (first / "slots" / ".x").mkdir(parents=True)
    strange = slots.root / "models" / "lost+found"
    strange.mkdir()

    assert set(slots.sweep()) == {unnamed, half, temp, gone, work, first}
    assert slots.sweep() == ()
    assert sorted(p.name for p in (slots.root / "models").iterdir()) == [
        ".installing", ".lock", "dense", "lost+found",
    ]  # fmt: skip
    assert sorted(p.name for p in home.iterdir()) == [ACTIVE, "slots"]
    assert list((home / "slots").iterdir()) == [named]
    slots.check(slot(1, digest=opened_package.digest), everything=True)


def test_sweep_leaves_an_installation_of_another_process_alone(slots):
    """A real one: it holds the lock and a scratch folder until its input ends."""
    code = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from agent.packages.slots import Slots
        with Slots(Path(sys.argv[1])).installing() as work:
            print(work, flush=True)
            sys.stdin.read()
        """
    )
    command = [sys.executable, "-c", code, str(slots.root)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin
        assert other.stdout
        work = Path(other.stdout.readline().strip())
        assert slots.sweep() == ()
        assert work.is_dir()
        other.kill()
        other.wait()
    assert slots.sweep() == (work,)
    assert not work.exists()


def test_the_data_directory_of_another_user_is_left_alone(slots, opened_package):
    """root would leave files that the agent cannot read."""
    slots.switch(slot(1))
    os.chown(slots.root, 65534, 65534)
    for change in (
        lambda: slots.switch(slot(2)),
        lambda: unpack(slots, opened_package),
        lambda: slots.rollback("dense", refuse=True),
    ):
        with pytest.raises(InputError, match="belongs to nobody, and this is root") as caught:
            change()
        assert caught.value.hint.startswith("sudo -u nobody")
    assert slots.active("dense") == Active(current=slot(1))


def test_models_that_cannot_be_listed_are_not_taken_for_none(slots):
    slots.root.mkdir()
    (slots.root / "models").write_bytes(b"")
    for read in (slots.names, slots.stamp, lambda: slots.active("dense")):
        with pytest.raises(StorageError, match="cannot read"):
            read()


def test_a_user_without_privileges_can_unpack_repair_switch_and_sweep(tmp_path, make_package):
    """Folders without write permission: root would not notice what goes wrong with them."""
    code = textwrap.dedent(
        """
        import os, pwd, sys
        from pathlib import Path
        from agent.packages.slots import Slots
        from edge_core.package import format as package
        opened = package.open(Path(sys.argv[2]))
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        slots = Slots(Path(sys.argv[1]))
        variant = opened.manifest.variants[0]
        folder = slots.unpack(opened, variant)
        (folder / "golden.npz").chmod(0o600)
        (folder / "golden.npz").write_bytes(b"rotten")
        assert slots.unpack(opened, variant) == folder  # repaired
        try:
            (folder / "new").write_bytes(b"")
        except PermissionError:
            print("immutable")
        assert slots.sweep() == (folder.parent.parent,)  # nothing was switched to
        assert not folder.exists()
        print("swept", [p.name for p in (slots.root / "models").iterdir()])
        """
    )
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    for parent in tmp_path.parents[:3]:  # pytest's folders are closed to others
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)
    tmp_path.chmod(0o755)
    readable = tmp_path / "dense.edgepkg"
    readable.write_bytes(make_package().read_bytes())
    readable.chmod(0o644)
    done = subprocess.run(
        [sys.executable, "-c", code, home / "agent", readable],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "immutable"
    assert "swept" in done.stdout
