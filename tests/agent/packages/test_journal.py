"""The journal: what a process leaves behind, however it dies."""

from __future__ import annotations

import mmap
import os
import signal
import stat
import struct
import subprocess
import sys
import textwrap
import threading
import timeit
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.packages.journal import MAX_MODELS, InFlight, Journal
from edge_core.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
DIGEST = "sha256:" + "0" * 64


def kill_process(path: Path, script: str, sig: int = signal.SIGKILL) -> tuple[InFlight, ...]:
    """What the journal says after a process that ran ``script`` died of ``sig`` there."""
    code = textwrap.dedent(
        f"""
        import os, signal, sys, threading
        from pathlib import Path
        from agent.packages.journal import Journal
        journal, _ = Journal.open(Path(sys.argv[1]))
        assert journal.health() == ""
        a, b = (journal.add(name, {DIGEST!r}) for name in ("a", "b"))
        """
    ) + textwrap.dedent(script)
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -sig, done.stderr
    journal, inside = Journal.open(path)
    assert journal.health() == ""
    journal.close()
    return inside


KILL = "os.kill(os.getpid(), signal.SIGKILL)"


def test_a_process_that_is_killed_inside_a_model_leaves_its_name(tmp_path):
    assert kill_process(tmp_path / "j", f"journal.enter(a); {KILL}") == (InFlight("a", DIGEST),)


def test_a_segmentation_fault_leaves_the_name_as_well(tmp_path):
    script = "import ctypes; journal.enter(b); ctypes.string_at(0)"
    assert kill_process(tmp_path / "j", script, signal.SIGSEGV) == (InFlight("b", DIGEST),)


def test_every_model_that_was_inside_is_told(tmp_path):
    script = f"journal.enter(a); journal.enter(b); {KILL}"
    assert kill_process(tmp_path / "j", script) == (InFlight("a", DIGEST), InFlight("b", DIGEST))


@pytest.mark.parametrize(
    "script",
    [
        "",
        "journal.enter(a); journal.leave(a)",
        "journal.enter(a); journal.leave(a); journal.remove(a)",
        "journal.enter(a); journal.stop()",  # asked to end: what comes then is no crash
        "journal.enter(a); journal.close()",
    ],
)
def test_a_process_that_is_killed_outside_or_after_a_stop_blames_nobody(tmp_path, script):
    assert kill_process(tmp_path / "j", f"{script}; {KILL}" if script else KILL) == ()


def test_a_model_is_inside_until_the_last_thread_has_left(tmp_path):
    script = f"journal.enter(a); journal.enter(a); journal.leave(a); {KILL}"
    assert kill_process(tmp_path / "j", script) == (InFlight("a", DIGEST),)
    script = f"journal.enter(a); journal.enter(a); journal.leave(a); journal.leave(a); {KILL}"
    assert kill_process(tmp_path / "j", script) == ()


def test_many_threads_lose_no_count(tmp_path):
    """200,000 entries by 8 threads: were one lost, the model would look inside, or not."""
    journal, _ = Journal.open(tmp_path / "j")
    entry = journal.add("a", DIGEST)

    def work() -> None:
        for _ in range(25_000):
            journal.enter(entry)
            journal.leave(entry)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    raw = (tmp_path / "j").read_bytes()
    journal.enter(entry)
    assert (tmp_path / "j").read_bytes() != raw
    journal.leave(entry)
    assert (tmp_path / "j").read_bytes() == raw
    with pytest.raises(ValueError, match="invalid value"):  # the count is zero, no less
        journal.leave(entry)
    journal.close()


def test_a_reboot_is_no_crash(tmp_path):
    """After a power cut the file may say anything; it names a boot that is over."""
    first, _ = Journal.open(tmp_path / "j", boot_id="monday")
    first.enter(first.add("a", DIGEST))
    raw = (tmp_path / "j").read_bytes()
    first.close()
    for boot, expected in (("monday", (InFlight("a", DIGEST),)), ("tuesday", ()), ("", ())):
        (tmp_path / "j").write_bytes(raw)
        journal, inside = Journal.open(tmp_path / "j", boot_id=boot)
        journal.close()
        assert inside == expected


def test_a_death_is_told_once(tmp_path):
    assert kill_process(tmp_path / "j", f"journal.enter(a); {KILL}")
    journal, inside = Journal.open(tmp_path / "j")
    journal.close()
    assert inside == ()


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=300), st.tuples(st.integers(0, 51199), st.binary(max_size=64))))
def test_no_content_of_the_file_stops_a_start(tmp_path_factory, content):
    """Invariant: open() never raises, and the journal works afterwards."""
    path = tmp_path_factory.getbasetemp() / "journal-fuzz"
    first, _ = Journal.open(path, boot_id="b")
    first.enter(first.add("a", DIGEST))
    raw = bytearray(path.read_bytes())
    first.close()
    if isinstance(content, tuple):
        at, patch = content
        raw[at : at + len(patch)] = patch
        path.write_bytes(raw)
    else:
        path.write_bytes(content)
    journal, inside = Journal.open(path, boot_id="b")
    assert all(isinstance(entry.name, str) for entry in inside)
    journal.enter(journal.add("b", DIGEST))
    journal.close()


def test_the_file_is_private(tmp_path):
    (tmp_path / "j").touch(0o644)
    journal, _ = Journal.open(tmp_path / "j")
    assert stat.S_IMODE((tmp_path / "j").stat().st_mode) == 0o600
    journal.close()


def works(journal: Journal) -> bool:
    entry = journal.add("a", DIGEST)
    journal.enter(entry)
    journal.leave(entry)
    journal.remove(entry)
    journal.close()
    return True


def test_a_full_disk_costs_the_attribution_and_not_the_service(small_disk):
    (small_disk / "filler").write_bytes(bytes(3 * 2**20 - 8192))
    journal, inside = Journal.open(small_disk / "j")
    assert inside == ()
    assert "no space left" in journal.health()
    assert works(journal)


def test_a_read_only_disk_costs_the_attribution_and_not_the_service(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    journal, _ = Journal.open(small_disk / "j")
    assert "crashes are not attributed to models" in journal.health()
    assert "read-only" in journal.health()
    assert works(journal)


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_what_is_no_plain_file_is_left_alone(tmp_path, kind):
    path, target = tmp_path / "j", tmp_path / "target"
    target.write_bytes(b"precious")
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(target)
    else:
        os.mkfifo(path)
    journal, _ = Journal.open(path)
    assert str(path) in journal.health()
    assert works(journal)
    assert target.read_bytes() == b"precious"


def test_a_second_agent_leaves_the_first_ones_journal_alone(tmp_path):
    first, _ = Journal.open(tmp_path / "j")
    entry = first.add("a", DIGEST)
    first.enter(entry)
    second, inside = Journal.open(tmp_path / "j")
    assert inside == ()
    assert "another agent uses it" in second.health()
    assert works(second)
    first.leave(entry)
    first.close()
    first.close()


def test_numbers_are_given_again_and_there_is_a_limit(tmp_path):
    journal, _ = Journal.open(tmp_path / "j")
    numbers = [journal.add(f"m{n}", DIGEST) for n in range(MAX_MODELS)]
    assert len(set(numbers)) == MAX_MODELS
    with pytest.raises(InputError, match="256 models are loaded"):
        journal.add("more", DIGEST)
    journal.remove(numbers[7])
    assert journal.add("more", DIGEST) == numbers[7]
    with pytest.raises(InputError, match="too long a name"):
        journal.add("x" * 200, DIGEST)
    journal.close()


def test_entering_and_leaving_cost_a_few_stores_to_mapped_memory(tmp_path):
    journal, _ = Journal.open(tmp_path / "j")
    number = journal.add("a", DIGEST)
    page = mmap.mmap(-1, mmap.PAGESIZE)

    def enter_and_leave() -> None:
        journal.enter(number)
        journal.leave(number)

    def store_twice() -> None:
        struct.pack_into("I", page, 128, 1)
        struct.pack_into("I", page, 128, 0)

    journal_s, store_s = [], []
    for _ in range(50):  # in turn, so that a busy machine slows both alike
        journal_s.append(timeit.timeit(enter_and_leave, number=1000))
        store_s.append(timeit.timeit(store_twice, number=1000))
    journal.close()
    page.close()
    assert min(journal_s) < 10 * min(store_s)  # about 3; with a write to the file 12, synced 300
