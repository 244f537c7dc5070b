"""Rows that must be kept: a damaged file is never deleted, its copies are few, work goes on."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from agent.sqlite.damage import MAX_COPIES, set_aside
from agent.sqlite.database import MIN_BYTES, Database
from agent.sqlite.states import State
from tests.agent.sqlite.test_database import INSERT, evict, table, until


def open_kept(path: Path) -> Database:
    db = Database(
        path, (table,), max_bytes=MIN_BYTES, damage="keep", sync="FULL", evict=evict, retry_s=0.02
    )
    db.start()
    return db


def write_row(path: Path, value: bytes) -> None:
    db = open_kept(path)
    assert db.write(INSERT, (value,))
    assert db.flush()
    db.close()


def copies(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir() if "damaged" in file.name)


def break_header(path: Path) -> bytes:
    """Overwrite the first page; returns the whole damaged file."""
    with path.open("r+b") as file:
        file.write(b"damaged " * 512)
    return path.read_bytes()


def break_page(path: Path) -> None:
    """Overwrite a page that only the check of the structure reads."""
    plain = sqlite3.connect(path)
    plain.execute("CREATE INDEX t_v ON t (v)")
    ((root,),) = plain.execute("SELECT rootpage FROM sqlite_master WHERE name = 't_v'").fetchall()
    plain.close()
    with path.open("r+b") as file:
        file.seek(4096 * (root - 1))
        file.write(b"\xff" * 4096)


def test_a_damaged_file_is_set_aside_whole_and_a_new_one_is_used(tmp_path):
    path = tmp_path / "a.db"
    write_row(path, b"one")
    damaged = break_header(path)
    db = open_kept(path)
    assert "set aside as a.db.damaged-1" in db.health()
    assert (tmp_path / "a.db.damaged-1").read_bytes() == damaged
    assert db.write(INSERT, (b"two",))
    assert db.flush()
    assert db.rows("SELECT v FROM t") == [(b"two",)]
    db.close()


def test_what_a_damaged_file_still_holds_can_be_read_from_its_copy(tmp_path):
    path = tmp_path / "a.db"
    write_row(path, b"one")
    break_page(path)
    db = open_kept(path)
    db.report_damage("an index is broken")
    until(lambda: db.health() and db.state is State.READY)
    plain = sqlite3.connect(tmp_path / "a.db.damaged-1")
    assert plain.execute("SELECT v FROM t NOT INDEXED").fetchall() == [(b"one",)]
    plain.close()
    db.close()


def test_a_log_goes_with_its_file(tmp_path):
    path = tmp_path / "a.db"
    db = open_kept(path)
    db.write(INSERT, (b"only in the log",))
    db.flush()
    for part in tmp_path.iterdir():  # as a crash leaves them
        (tmp_path / f"crashed-{part.name}").write_bytes(part.read_bytes())
    db.close()
    assert (tmp_path / "crashed-a.db-wal").stat().st_size > 0
    copy = set_aside(tmp_path / "crashed-a.db")
    assert not [
        file for file in tmp_path.iterdir() if file.name in ("crashed-a.db", "crashed-a.db-wal")
    ]
    plain = sqlite3.connect(copy)
    assert plain.execute("SELECT v FROM t").fetchall() == [(b"only in the log",)]
    plain.close()


def test_copies_are_bounded_and_none_is_deleted_for_another(tmp_path):
    path = tmp_path / "a.db"
    for number in range(MAX_COPIES):
        write_row(path, b"%d" % number)
        break_header(path)
    open_kept(path).close()
    before = {name: (tmp_path / name).read_bytes() for name in copies(path)}
    assert len(before) == MAX_COPIES
    damaged = break_header(path)
    db = open_kept(path)
    assert f"{MAX_COPIES} damaged copies" in db.health()
    assert not db.write(INSERT, (b"refused",))
    assert db.rows("SELECT v FROM t") == []
    assert path.read_bytes() == damaged
    assert before == {name: (tmp_path / name).read_bytes() for name in copies(path)}
    (tmp_path / "a.db.damaged-2").rename(tmp_path / "elsewhere")
    until(lambda: db.write(INSERT, (b"accepted",)))
    assert db.flush()
    assert (tmp_path / "a.db.damaged-2").read_bytes() == damaged
    db.close()


def test_damage_under_a_running_database_costs_no_file_either(tmp_path):
    path = tmp_path / "a.db"
    db = open_kept(path)
    for number in range(200):
        db.write(INSERT, (b"%d" % number * 1000,))
    assert db.flush()
    db.close()
    size = path.stat().st_size
    db = open_kept(path)
    with path.open("r+b") as file:
        file.write(b"damaged " * (size // 8))
    until(lambda: (db.rows("SELECT count(*), max(v) FROM t"), db.replacements)[1])
    until(lambda: db.write(INSERT, (b"new",)) and db.flush())
    assert (b"new",) in db.rows("SELECT v FROM t")
    db.close()
    assert (tmp_path / "a.db.damaged-1").stat().st_size >= size


@pytest.mark.parametrize("damage", ["recreate", "keep"])
def test_a_failing_disk_is_no_damage(damage, small_disk):
    db = Database(
        small_disk / "a.db", (table,), max_bytes=MIN_BYTES, damage=damage, sync="FULL",
        evict=lambda db: 0, retry_s=0.02,
    )  # fmt: skip
    db.start()
    assert db.write(INSERT, (b"one",))
    assert db.flush()
    with pytest.raises(OSError, match="No space"):
        (small_disk / "filler").write_bytes(bytes(4_000_000))
    until(lambda: not db.write(INSERT, (bytes(50_000),)) or db.health())
    until(lambda: "full" in db.health())
    assert db.state is State.UNWRITABLE
    assert db.rows("SELECT v FROM t WHERE id = 1") == [(b"one",)]
    assert db.replacements == 0
    assert copies(small_disk / "a.db") == []
    db.close()
