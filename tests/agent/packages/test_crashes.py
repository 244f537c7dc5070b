"""Crash loops: the model that brings the agent down is rolled back; the others go on serving."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import Config
from agent.config import Crash as CrashLimits
from agent.packages import crashes
from agent.packages.crashes import FILE, AutoRollback, Crash, History, Suspect, step
from agent.packages.journal import InFlight, Journal
from agent.packages.slots import Batching, Slot, Slots, Tuning
from edge_core.errors import StorageError

ROOT = Path(__file__).resolve().parents[3]
LIMITS = CrashLimits(max_crashes=3, window_s=600.0)
OLD = Suspect("old", "sha256:" + "a" * 64, 1000.0)
NEW = Suspect("new", "sha256:" + "b" * 64, 2000.0)
OTHER = Suspect("other", "sha256:" + "c" * 64, 1500.0)


def story(*events: tuple[float, tuple[Suspect, ...]], limits: CrashLimits = LIMITS):
    """What is decided at each crash, and the history after the last one."""
    history, decided = History(), []
    for at, suspects in events:
        history, guilty = step(history, Crash(at, suspects), limits, at)
        decided.append(guilty)
    return decided, history


def test_the_third_crash_within_the_window_is_one_too_many():
    decided, history = story((0, (OLD,)), (300, (OLD,)), (600, (OLD,)))
    assert decided == [None, None, OLD]
    assert history == History()


def test_crashes_that_are_far_apart_are_forgiven():
    decided, history = story((0, (OLD,)), (300, (OLD,)), (601, (OLD,)), (902, (OLD,)))
    assert decided == [None] * 4
    assert [crash.at for crash in history.crashes] == [601, 902]


def test_crashes_of_different_models_do_not_add_up():
    decided, _ = story((0, (OLD,)), (1, (NEW,)), (2, (OLD,)), (3, (NEW,)))
    assert decided == [None] * 4


def test_another_version_of_a_model_starts_anew():
    later = msgspec.structs.replace(OLD, digest="sha256:" + "d" * 64)
    decided, _ = story((0, (OLD,)), (1, (OLD,)), (2, (later,)))
    assert decided == [None] * 3


def test_of_several_the_one_that_was_there_each_time_is_guilty():
    decided, history = story((0, (OLD, NEW)), (1, (OLD, OTHER)), (2, (OLD, NEW)))
    assert decided[-1] == OLD
    assert history == History()


def test_of_several_the_one_that_was_alone_once_is_guilty():
    decided, _ = story((0, (OLD, NEW)), (1, (OLD, NEW)), (2, (OLD,)), (3, (OLD, NEW)))
    assert decided[2] == OLD


def test_of_equals_the_one_installed_last_is_guilty():
    decided, _ = story(*((n, (OLD, NEW)) for n in range(3)))
    assert decided[-1] == NEW


def test_an_innocent_one_is_reached_only_by_crashes_of_its_own():
    """After NEW is gone its crashes do not count against OLD."""
    events = [(n, (OLD, NEW)) for n in range(3)] + [(3, (OLD,)), (4, (OLD,)), (5, (OLD,))]
    decided, _ = story(*events)
    assert decided == [None, None, NEW, None, None, OLD]


def test_a_clock_that_was_set_back_neither_hides_nor_invents_crashes():
    """A device without a battery starts in the past: earlier crashes seem to be in the future."""
    decided, history = story((10_000, (OLD,)), (100, (OLD,)), (101, (OLD,)))
    assert decided == [None, None, OLD]
    decided, history = story((10_000, (OLD,)), (100, (NEW,)))
    assert [crash.at for crash in history.crashes] == [100, 100]


EVENTS = st.lists(
    st.tuples(
        st.floats(0, 1e4),
        st.sets(st.sampled_from([OLD, NEW, OTHER])).map(lambda s: tuple(sorted(s, key=repr))),
    ),
    max_size=30,
)


@given(EVENTS, st.integers(1, 4), st.floats(1, 1e4))
def test_nobody_is_guilty_of_fewer_crashes_than_allowed(events, most, window):
    """The guilty was inside now and in enough crashes; the history holds none of its crashes."""
    limits = CrashLimits(max_crashes=most, window_s=window)
    history = History()
    for at, suspects in events:
        before, (history, guilty) = history, step(history, Crash(at, suspects), limits, at)
        if guilty is None:
            assert all(
                sum(suspect in crash.suspects for crash in history.crashes) < most
                for suspect in suspects
            )  # every one that was inside is still within its limit
            continue
        assert guilty in suspects
        assert (
            sum(guilty in crash.suspects for crash in (*before.crashes, Crash(at, suspects)))
            >= most
        )
        assert not any(guilty in crash.suspects for crash in history.crashes)


def make_slot(name: str, n: int) -> Slot:
    """The record of an installed package; nothing here opens its files."""
    batching = Batching(
        can=False, pays=False, max_batch_size=1, why="", single_per_s=0.0, batched_per_s=0.0,
        measured_at=1,
    )  # fmt: skip
    tuning = Tuning(runtime="onnxruntime 1", threads=1, p50_ms={}, batching=batching, seconds=0.0)
    return Slot(
        digest=f"sha256:{n:064x}", name=name, version=str(n), variant="here",
        candidate="onnx-fp32",
        installed_at=float(n), tuning=tuning,
    )  # fmt: skip


@pytest.fixture
def two(tmp_path: Path) -> Config:
    """Version 2 is served, version 1 is previous, and another model is beside it."""
    config = Config(data_dir=str(tmp_path / "agent"))
    for slot in (make_slot("steady", 1), make_slot("dense", 1), make_slot("dense", 2)):
        Slots(config.root).switch(slot)
    return config


def inside(config: Config, name: str = "dense") -> tuple[InFlight, ...]:
    current = Slots(config.root).active(name).current
    assert current
    return (InFlight(name, current.digest),)


def test_a_crash_loop_falls_back_to_the_previous_version_and_then_disables_it(two):
    slots = Slots(two.root)
    second, first = slots.active("dense").current, slots.active("dense").previous
    assert first
    assert second
    for now in (1.0, 2.0):
        assert crashes.auto_rollback(slots, inside(two), two.crash, now) is None
        assert slots.active("dense").current == second
    why = "the agent died 3 times within 600 s while this model was loading or computing"
    done = crashes.auto_rollback(slots, inside(two), two.crash, 3.0)
    assert done == AutoRollback("dense", second.digest, why, first.digest)
    active = slots.active("dense")
    assert (active.current, active.previous) == (first, None)
    assert active.refused == (second.digest,)

    for now in (4.0, 5.0):
        assert crashes.auto_rollback(slots, inside(two), two.crash, now) is None
    done = crashes.auto_rollback(slots, inside(two), two.crash, 6.0)
    assert done == AutoRollback("dense", first.digest, why, "")
    assert slots.active("dense").disabled == why
    for now in (7.0, 8.0, 9.0):  # what is disabled is not inside, whatever the journal says
        assert crashes.auto_rollback(slots, inside(two), two.crash, now) is None
    assert slots.active("steady").disabled == ""


def test_only_the_version_that_is_served_is_blamed(two):
    slots = Slots(two.root)
    previous = slots.active("dense").previous
    assert previous
    gone = (InFlight("dense", previous.digest), InFlight("removed", previous.digest))
    for now in range(5):
        assert crashes.auto_rollback(slots, gone, two.crash, float(now)) is None
    assert not (two.root / FILE).exists()


@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b'{"crashes": 7}', b"\xff"])
def test_a_damaged_history_is_an_empty_one(two, raw):
    (two.root / FILE).write_bytes(raw)
    assert crashes.auto_rollback(Slots(two.root), inside(two), two.crash, 1.0) is None
    assert len(msgspec.json.decode((two.root / FILE).read_bytes(), type=History).crashes) == 1
    assert stat.S_IMODE((two.root / FILE).stat().st_mode) == 0o600


def test_a_read_only_disk_is_told(small_disk):
    config = Config(data_dir=str(small_disk / "agent"))
    Slots(config.root).switch(make_slot("dense", 1))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StorageError, match="read-only"):
        crashes.auto_rollback(Slots(config.root), inside(config), config.crash, 1.0)


CRASHING = """
import os, signal, sys, time
from pathlib import Path
from agent.packages import crashes
from agent.config import Config
from agent.packages.journal import Journal
from agent.packages.slots import Slots
config, name, sig = Config(data_dir=sys.argv[1]), sys.argv[2], int(sys.argv[3])
slots = Slots(config.root)
journal, inside = Journal.open(config.root / "journal")
crashes.auto_rollback(slots, inside, config.crash, time.time())
active = slots.active(name)
if active.disabled:
    sys.exit("disabled")
journal.enter(journal.add(name, active.current.digest))
os.kill(os.getpid(), sig)
"""


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGSEGV])
def test_real_processes_that_die_inside_a_model_end_on_the_previous_version(two, sig):
    def start() -> int:
        command = [sys.executable, "-c", CRASHING, two.data_dir, "dense", str(int(sig))]
        return subprocess.run(command, cwd=ROOT, stderr=subprocess.DEVNULL, check=False).returncode

    slots = Slots(two.root)
    first = slots.active("dense").previous
    assert [start() for _ in range(3)] == [-sig] * 3
    assert slots.active("dense").previous == first  # the third crash is counted by the next start
    assert start() == -sig
    assert slots.active("dense").current == first
    assert [start() for _ in range(2)] == [-sig] * 2
    assert start() == 1  # disabled
    assert slots.active("dense").disabled
    journal, rest = Journal.open(two.root / "journal")
    journal.close()
    assert rest == ()
