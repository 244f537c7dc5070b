"""Installing: what is served was verified, tested here, tuned, and switched to in one step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from agent.config import Config, Install
from agent.packages.install import install
from agent.packages.slots import Active, Slots
from edge_core.errors import (
    EdgeError,
    GateFailed,
    InputError,
    MeasureError,
    MissingExtra,
    PackageError,
    StorageError,
)  # fmt: skip
from edge_core.package import format as package
from edge_core.package import golden
from edge_core.package.manifest import MANIFEST, RuntimeNeed, Selector

ROOT = Path(__file__).resolve().parents[3]


def rewrite_package(source: Path, out: Path, files: dict[str, Path | bytes] | None = None, **facts):
    """The same package with other files or other fields in its manifest."""
    old = package.open(source)
    same = {title: old.read(title) for title in old.titles if title != MANIFEST}
    manifest = msgspec.structs.replace(old.manifest, **facts)
    return package.write(out, manifest, {**same, **(files or {})}).path


def endless(path: Path) -> Path:
    """A model that loads and then counts to 2^62."""
    ok = numpy_helper.from_array(np.array(True), "ok")
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Mul", ["h", "h"], ["k"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, ()),
            helper.make_tensor_value_info("go", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("h", TensorProto.FLOAT, (1, 4)),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("k", TensorProto.FLOAT, (1, 4)),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["often", "ok", "x"], ["y"], body=body)],
        "endless",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 4))],
        [ok, numpy_helper.from_array(np.array(2**62), "often")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def children() -> list[int]:
    """Processes that this one started and that live."""
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii")
    return [int(pid) for pid in pids.split()]


def state(config: Config) -> tuple[Active, tuple[tuple[str, bytes], ...]]:
    """What is served, and every byte below the models' folder."""
    files = sorted(path for path in (config.root / "models").rglob("*") if path.is_file())
    return Slots(config.root).active("dense"), tuple(
        (str(path), path.read_bytes()) for path in files
    )


def test_a_package_is_verified_unpacked_tested_tuned_and_switched_to(config, make_package):
    path = make_package()
    lines: list[str] = []
    done = install(config, path, progress=lines.append)
    assert [line.split()[0] for line in lines[:3]] == ["verified", "selected", "unpacked"]
    assert "3 of 3 golden samples reproduced" in lines[3]
    assert "thread(s): " in lines[4]
    assert "batching off: the batch dimension is fixed at 1" in lines[4]
    assert lines[5:] == ["dense 1.0.0 is current"]
    slots = Slots(config.root)
    assert slots.active("dense") == Active(current=done.slot)
    assert not done.already
    assert done.previous is None
    assert done.golden
    assert done.golden.ok
    assert done.slot.digest == package.open(path).digest
    assert done.slot.tuning.p50_ms[str(done.slot.tuning.threads)] > 0
    slots.check(done.slot, everything=True)
    assert slots.sweep() == ()


def test_an_oci_folder_installs_like_the_file(config, make_package, tmp_path):
    package.unpack(make_package(), tmp_path / "layout")
    assert install(config, tmp_path / "layout").slot.version == "1.0.0"


def test_what_is_current_already_is_left_as_it_is(config, make_package):
    first = install(config, make_package())
    before, stamp = state(config), Slots(config.root).stamp()
    lines: list[str] = []
    done = install(config, make_package(), progress=lines.append)
    assert done.already
    assert done.slot == first.slot
    assert lines[-1] == "dense 1.0.0 was already current"
    assert (state(config), Slots(config.root).stamp()) == (before, stamp)


def test_the_previous_package_comes_back_without_being_unpacked_or_tested(config, make_package):
    first = install(config, make_package())
    second = install(config, make_package(version="2", seed=2))
    assert second.previous == first.slot
    folder = Slots(config.root).folder(first.slot)
    inode = folder.stat().st_ino
    back = install(config, make_package())
    assert (back.slot.digest, back.slot.tuning) == (first.slot.digest, first.slot.tuning)
    assert back.previous == second.slot
    assert back.golden is None
    assert not back.already
    assert folder.stat().st_ino == inode


def test_a_third_package_drives_out_the_first(config, make_package):
    installed = [install(config, make_package(version=str(n), seed=n)).slot for n in range(3)]
    slots = Slots(config.root)
    assert not slots.folder(installed[0]).exists()
    for slot in installed[1:]:
        slots.check(slot, everything=True)


def test_again_tests_and_tunes_the_current_package_anew(config, make_package):
    first = install(config, make_package())
    done = install(config, make_package(), force=True)
    assert done.golden
    assert not done.already
    assert done.previous is None
    assert done.slot.installed_at > first.slot.installed_at


def test_a_package_tested_on_another_runtime_version_is_tested_anew(config, make_package):
    first = install(config, make_package())
    old = msgspec.structs.replace(
        first.slot, tuning=msgspec.structs.replace(first.slot.tuning, runtime="onnxruntime 1.0")
    )
    Slots(config.root).switch(old)
    done = install(config, make_package())
    assert done.golden
    assert done.slot.tuning.runtime == first.slot.tuning.runtime


def test_a_refused_package_is_installed_by_force_only(config, make_package):
    install(config, make_package())
    install(config, make_package(version="2", seed=2))
    slots = Slots(config.root)
    slots.rollback("dense", refuse=True)
    with pytest.raises(
        InputError, match="dense 2 was rolled back here: it failed in use"
    ) as caught:
        install(config, make_package(version="2", seed=2))
    assert "--force" in caught.value.hint
    done = install(config, make_package(version="2", seed=2), force=True)
    assert slots.active("dense").refused == ()
    assert done.slot.version == "2"
    slots.disable("dense", "it crashed 3 times")
    with pytest.raises(InputError, match="rolled back here: it crashed 3 times"):
        install(config, make_package(version="2", seed=2))


def test_bit_rot_in_the_current_slot_is_repaired(config, make_package):
    first = install(config, make_package())
    slots = Slots(config.root)
    model = slots.folder(first.slot) / "model.onnx"
    good = model.read_bytes()
    model.chmod(0o600)
    model.write_bytes(good[:-1] + b"\0")
    assert install(config, make_package()).already
    assert model.read_bytes() == good


@pytest.fixture
def unchanged_config(config: Config, make_package) -> Iterator[Config]:
    """A device that serves version 1, and still does after whatever the test tried."""
    install(config, make_package())
    before = state(config)
    yield config
    assert state(config) == before
    assert Slots(config.root).sweep() == ()


def expect_refusal(config: Config, path: Path, error: type[EdgeError], match: str) -> EdgeError:
    with pytest.raises(error, match=match) as caught:
        install(config, path)
    return caught.value


def test_another_architecture_is_refused_and_both_are_named(unchanged_config, make_package):
    foreign = make_package(version="2", selector=Selector(arch="armv7l", os="linux"))
    message = r"'here' needs armv7l linux; it has (x86_64|aarch64) linux"
    expect_refusal(unchanged_config, foreign, InputError, message)
    foreign = make_package(version="2", selector=Selector(arch="x86_64", os="macos"))
    expect_refusal(unchanged_config, foreign, InputError, "needs x86_64 macos")


def test_a_package_whose_runtime_is_not_installed_says_what_to_install(
    unchanged_config, make_package
):
    need = RuntimeNeed("tflite-runtime", "2.14.0", "2.14.0")
    caught = expect_refusal(
        unchanged_config, make_package(version="2", runtime=need), MissingExtra, "is not installed"
    )
    assert "pip install" in caught.hint
    need = RuntimeNeed("abacus", "1", "1")
    expect_refusal(
        unchanged_config, make_package(version="2", runtime=need), InputError, "no runtime 'abacus'"
    )


def test_a_damaged_package_is_refused(unchanged_config, make_package, tmp_path):
    raw = bytearray(make_package(version="2").read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "bad.edgepkg").write_bytes(raw)
    expect_refusal(
        unchanged_config, tmp_path / "bad.edgepkg", PackageError, "have that digest|is not what its"
    )
    expect_refusal(unchanged_config, tmp_path / "none.edgepkg", InputError, "cannot read")


def test_a_name_that_is_no_file_name_is_refused(unchanged_config, make_package):
    expect_refusal(
        unchanged_config,
        make_package(name="../dense"),
        PackageError,
        r"the model's name is '\.\./dense'",
    )


def test_golden_vectors_that_do_not_replay_stop_the_installation(
    unchanged_config, make_package, tmp_path
):
    source = make_package(version="2", seed=2)
    vectors = golden.from_bytes(package.open(source).read("here/golden.npz"))
    off = tuple({"y": outputs["y"] + np.float32(0.1)} for outputs in vectors.artifact)
    wrong = golden.make(vectors.inputs, off, off).to_bytes()
    path = rewrite_package(source, tmp_path / "wrong.edgepkg", {"here/golden.npz": wrong})
    caught = expect_refusal(
        unchanged_config, path, GateFailed, "the golden vectors do not replay here: 'y' is off by"
    )
    assert "this machine has" in caught.hint


def test_a_file_that_the_runtime_refuses_is_a_measure_error(
    unchanged_config, make_package, tmp_path
):
    path = rewrite_package(
        make_package(), tmp_path / "bad.edgepkg", {"here/model.onnx": b"no model"}
    )
    expect_refusal(unchanged_config, path, MeasureError, r"cannot load model\.onnx")


def test_a_self_test_that_does_not_end_is_ended(unchanged_config, make_package, tmp_path):
    source = make_package()
    feeds = golden.from_bytes(package.open(source).read("here/golden.npz")).inputs
    model = endless(tmp_path / "endless.onnx")
    path = rewrite_package(
        source, tmp_path / "endless.edgepkg",
        {"here/model.onnx": model, "here/golden.npz": golden.make(feeds, feeds, feeds).to_bytes()},
    )  # fmt: skip
    quick = msgspec.structs.replace(unchanged_config, install=Install(self_test_s=2.0))
    start = time.monotonic()
    expect_refusal(quick, path, MeasureError, "did not finish 'run' in time")
    assert time.monotonic() - start < 10
    assert children() == []


@pytest.mark.parametrize("after", ["unpacked", "self-test"])
def test_a_runtime_that_crashes_is_a_measure_error(unchanged_config, make_package, after):
    """In the self-test and in the tuning: the signal is a real one, sent to the child."""

    def strike(line: str) -> None:
        if line.startswith(after):
            threading.Thread(target=kill_child).start()

    def kill_child() -> None:
        while not (pids := children()):
            time.sleep(0.001)
        os.kill(pids[0], signal.SIGSEGV)

    with pytest.raises(MeasureError, match="crashed with SIGSEGV"):
        install(unchanged_config, make_package(version="2", seed=2), progress=strike)


def test_a_child_that_the_kernel_killed_is_told_with_the_likely_reason(
    unchanged_config, make_package
):
    def strike(line: str) -> None:
        if line.startswith("self-test"):
            os.kill(children()[0], signal.SIGKILL)

    with pytest.raises(MeasureError, match="crashed with SIGKILL") as caught:
        install(unchanged_config, make_package(version="2", seed=2), progress=strike)
    assert "memory runs out" in caught.value.hint


def test_the_model_runs_in_a_child_that_gives_way(config, make_package):
    """The serving agent keeps its processors, and its life when memory runs out."""
    samples: list[tuple[int, str]] = []

    def look(line: str) -> None:
        if line.startswith("self-test"):
            (pid,) = children()
            score = Path(f"/proc/{pid}/oom_score_adj").read_text(encoding="ascii").strip()
            samples.append((os.getpriority(os.PRIO_PROCESS, pid), score))

    install(config, make_package(), progress=look)
    assert samples == [(os.getpriority(os.PRIO_PROCESS, 0) + 10, "1000")]


@pytest.fixture
def small(small_disk: Path, make_package) -> Config:
    """A device with a disk of 3 MB that serves version 1."""
    config = Config(data_dir=str(small_disk / "agent"), install=Install(tune_s=0.2))
    install(config, make_package())
    return config


def fill(disk: Path) -> None:
    """Not a byte is left."""
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return


def test_a_package_that_does_not_fit_is_refused_before_anything_is_written(small, make_package):
    before = state(small)
    big = make_package(version="2", width=250_000)  # 3 MB of weights
    with pytest.raises(StorageError, match=r"has \d+ bytes free; installing dense takes \d+"):
        install(small, big)
    assert state(small) == before
    assert Slots(small.root).sweep() == ()


@pytest.mark.parametrize("stage", ["verified", "unpacked", "self-test", "1 thread(s)"])
def test_a_disk_that_fills_up_at_any_stage_leaves_what_is_served(
    small, small_disk, make_package, stage
):
    before = state(small)
    one = msgspec.structs.replace(small, install=Install(tune_s=0.2, cpu_share=0.01))

    def strike(line: str) -> None:
        if line.startswith(stage):
            fill(small_disk)

    with pytest.raises(StorageError, match=r"no space left|bytes free"):
        install(one, make_package(version="2", seed=2), progress=strike)
    assert state(small) == before
    assert Slots(small.root).sweep() == ()
    (small_disk / "filler").unlink()
    assert install(small, make_package(version="2", seed=2)).slot.version == "2"


def test_a_disk_without_room_for_another_file_leaves_what_is_served(
    small, small_disk, make_package
):
    """Bytes are free, so the check passes: the unpacking itself runs out."""
    before = state(small)
    used = int(
        subprocess.run(
            ["df", "--output=iused", small_disk], capture_output=True, text=True, check=True
        ).stdout.split()[-1]
    )
    subprocess.run(["mount", "-o", f"remount,nr_inodes={used + 5}", small_disk], check=True)
    with pytest.raises(StorageError, match="no space left"):
        install(small, make_package(version="2", seed=2))
    assert state(small) == before
    assert Slots(small.root).sweep() == ()


@pytest.mark.parametrize("stage", ["", "verified", "unpacked", "self-test", "1 thread(s)"])
def test_a_disk_that_turns_read_only_at_any_stage_leaves_what_is_served(
    small, small_disk, make_package, stage
):
    before = Slots(small.root).active("dense")
    one = msgspec.structs.replace(small, install=Install(tune_s=0.2, cpu_share=0.01))
    remount = ["mount", "-o", "remount,ro", str(small_disk)]

    def strike(line: str) -> None:
        if line.startswith(stage):
            subprocess.run(remount, check=True)

    if not stage:
        subprocess.run(remount, check=True)
    with pytest.raises(StorageError, match="the file system is read-only"):
        install(one, make_package(version="2", seed=2), progress=strike if stage else print)
    slots = Slots(small.root)
    assert slots.active("dense") == before
    assert before.current
    slots.check(before.current, everything=True)
    with pytest.raises(StorageError, match="the file system is read-only"):
        slots.disable("dense", "why")

    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    slots.sweep()
    assert slots.sweep() == ()
    assert install(small, make_package(version="2", seed=2)).slot.version == "2"


def test_two_installations_at_once_come_one_after_the_other(config, make_package):
    paths = [make_package(version=version, seed=int(version)) for version in ("1", "2")]
    code = """
import sys
from pathlib import Path
from agent.config import Config, Install
from agent.packages.install import install
install(Config(data_dir=sys.argv[1], install=Install(tune_s=0.2)), Path(sys.argv[2]))
"""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, config.data_dir, path],
            cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )
        for path in paths
    ]  # fmt: skip
    for process in running:
        assert process.communicate()[1] == ""
        assert process.returncode == 0
    slots = Slots(config.root)
    active = slots.active("dense")
    assert active.current
    assert active.previous
    assert {active.current.version, active.previous.version} == {"1", "2"}
    for slot in (active.current, active.previous):
        slots.check(slot, everything=True)
    assert slots.sweep() == ()
