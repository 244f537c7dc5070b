"""What was flushed is there after kill -9, and with FULL after a power cut too.

EDGE_KILL_ROUNDS=300 makes it a long run.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.sqlite.database import MIN_BYTES, Database
from agent.sqlite.sqlite_file import SyncLevel
from tests.agent.sqlite.test_database import INSERT, evict, table
from tests.cases import ROOT

ROUNDS = int(os.environ.get("EDGE_KILL_ROUNDS", "6"))


def open_database(path: Path, sync: SyncLevel = "FULL") -> Database:
    db = Database(path, (table,), max_bytes=MIN_BYTES, damage="keep", sync=sync, evict=evict)
    db.start()
    return db


def write_for_ever(path: Path, first: int) -> None:
    """The child: write numbers, and print the last one that is surely stored."""
    db = open_database(path)
    print("ready", flush=True)
    number = first
    while True:
        for _ in range(random.randrange(1, 50)):
            assert db.write(INSERT, (b"%d" % number,))
            number += 1
        assert db.flush()
        print(number - 1, flush=True)


def run_and_kill(path: Path, first: int, seed: int) -> int:
    """The last number that the child knew to be stored when it was killed, or ``first`` - 1."""
    script = (
        "from pathlib import Path\n"
        "from tests.agent.sqlite.test_durability import write_for_ever\n"
        f"write_for_ever(Path({str(path)!r}), {first})"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    time.sleep(random.Random(seed).uniform(0, 0.25))
    child.kill()
    output, _ = child.communicate()
    assert child.returncode == -9
    whole_lines = output[: output.rfind("\n") + 1].split()
    return int(whole_lines[-1]) if whole_lines else first - 1


def numbers(path: Path) -> list[int]:
    """All numbers stored; asserts that the file is whole."""
    plain = sqlite3.connect(path)
    assert plain.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    rows = plain.execute("SELECT v FROM t ORDER BY id").fetchall()
    plain.close()
    return [int(value) for (value,) in rows]


def test_no_flushed_row_is_lost_by_kills_and_none_is_twice_or_out_of_order(tmp_path):
    path = tmp_path / "a.db"
    expected, flushed = 0, 0
    for seed in range(ROUNDS):
        last = run_and_kill(path, expected, seed)
        flushed += last >= expected
        stored = numbers(path)
        assert len(stored) > last
        assert stored == list(range(len(stored)))
        expected = len(stored)
    assert flushed > 0
    db = open_database(path)
    assert db.flush()
    assert db.health() == ""
    assert list(tmp_path.glob("*damaged*")) == []
    db.close()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A file that is mounted as a disk: it holds what has reached the disk, and no more."""
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(32 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    return image


@contextmanager
def mount(image: Path, folder: Path) -> Iterator[Path]:
    folder.mkdir()
    # A long time until the file system writes by itself.
    subprocess.run(["mount", "-o", "loop,commit=300", image, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(("sync", "survives"), [("FULL", True), ("NORMAL", False)])
def test_full_survives_a_power_cut_where_normal_loses_the_last_rows(
    sync, survives, device, tmp_path
):
    after = tmp_path / "after.img"
    with mount(device, tmp_path / "disk") as disk:
        db = open_database(disk / "a.db", sync)
        for number in range(300):
            db.write(INSERT, (b"%d" % number,))
            if number % 100 == 99:
                assert db.flush()
        shutil.copy(device, after)  # what the disk holds at the moment of the cut
        db.close()
    with mount(after, tmp_path / "again") as disk:
        db = open_database(disk / "a.db", sync)
        assert db.flush()
        assert db.health() == ""
        stored = db.rows("SELECT v FROM t ORDER BY id")
        db.close()
    assert [int(value) for (value,) in stored] == list(range(len(stored)))
    assert (len(stored) == 300) == survives
