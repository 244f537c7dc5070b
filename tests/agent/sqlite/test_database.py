"""A cache's database: groups commit, the file is bounded, steps are recorded, bugs stay local."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import sqlite_utils

from agent.sqlite import sqlite_file
from agent.sqlite.damage import DamagePolicy
from agent.sqlite.database import MIN_BYTES, Database
from agent.sqlite.write_queue import QUEUE_ROWS
from edge_core.errors import InputError
from tests.cases import ROOT

INSERT = "INSERT INTO t (v) VALUES (?)"


def table(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)")


def evict(db: sqlite3.Connection) -> int:
    return db.execute("DELETE FROM t WHERE id IN (SELECT id FROM t ORDER BY id LIMIT 20)").rowcount


def open_database(
    path: Path,
    *steps: sqlite_file.Migration,
    max_bytes: int = MIN_BYTES,
    damage: DamagePolicy = "recreate",
    **more: float,
) -> Database:
    db = Database(
        path, steps or (table,), max_bytes=max_bytes, damage=damage, sync="NORMAL", evict=evict,
        **more,
    )  # fmt: skip
    db.start()
    return db


def until(condition: object, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def test_what_is_written_is_found_after_its_commit_and_after_a_restart(tmp_path):
    db = open_database(tmp_path / "a.db")
    assert db.write(INSERT, (b"one",))
    assert db.flush()
    assert db.rows("SELECT v FROM t") == [(b"one",)]
    db.close()
    again = open_database(tmp_path / "a.db")
    assert again.rows("SELECT v FROM t") == [(b"one",)]
    again.close()


def test_a_row_is_committed_soon_without_anyone_asking(tmp_path):
    db = open_database(tmp_path / "a.db")
    db.write(INSERT, (b"one",), key=b"k")
    assert db.pending == {b"k": (b"one",)}
    until(lambda: db.rows("SELECT v FROM t"))
    until(lambda: not db.pending)
    db.close()


def test_closing_commits_what_waits_and_removes_the_log(tmp_path):
    db = open_database(tmp_path / "a.db")
    for i in range(500):
        db.write(INSERT, (b"%d" % i,))
    db.close()
    assert [part.name for part in tmp_path.iterdir()] == ["a.db"]
    plain = sqlite3.connect(tmp_path / "a.db")
    assert plain.execute("SELECT count(*) FROM t").fetchone() == (500,)
    plain.close()
    assert not db.write(INSERT, (b"late",))
    assert db.rows("SELECT v FROM t") == []


@pytest.mark.parametrize("size", [100, 4000, MIN_BYTES // 40 - 100])
def test_file_log_and_index_never_exceed_the_bound(size, tmp_path):
    db = open_database(tmp_path / "a.db")
    sizes: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            sizes.append(db.disk_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    while db.evicted < 300:
        if not db.write(INSERT, (os.urandom(size),), size=size):
            db.flush()
    stop.set()
    watcher.join()
    assert db.flush()
    assert MIN_BYTES / 4 < max(sizes) <= MIN_BYTES
    assert db.evicted > 0
    assert db.health() == ""
    db.close()


def test_a_lowered_bound_shrinks_the_file_and_keeps_the_newest_rows(tmp_path):
    db = open_database(tmp_path / "a.db", max_bytes=4 * MIN_BYTES)
    for _ in range(1500):
        db.write(INSERT, (os.urandom(4000),), size=10)
        if db.dropped:
            db.flush()
    db.close()
    assert (tmp_path / "a.db").stat().st_size > MIN_BYTES
    smaller = open_database(tmp_path / "a.db")
    until(lambda: smaller.disk_bytes() <= MIN_BYTES)
    ((count, low, high),) = smaller.rows("SELECT count(*), min(id), max(id) FROM t")
    assert 100 < count == high - low + 1
    assert smaller.write(INSERT, (b"still works",))
    assert smaller.flush()
    smaller.close()


def test_a_row_that_is_too_large_is_dropped_and_counted(tmp_path):
    db = open_database(tmp_path / "a.db")
    assert not db.write(INSERT, (bytes(MIN_BYTES),), size=MIN_BYTES)
    assert db.dropped == 1
    db.close()


def test_the_queue_is_bounded_while_the_disk_is_slow(tmp_path):
    db = open_database(tmp_path / "a.db")
    inside, go = threading.Event(), threading.Event()

    def slow(connection: sqlite3.Connection) -> None:
        inside.set()
        assert go.wait(20)

    caller = threading.Thread(target=db.call, args=(slow,))
    caller.start()
    assert inside.wait(20)
    accepted = sum(db.write(INSERT, (b"",), size=1) for _ in range(QUEUE_ROWS + 50))
    assert (accepted, db.dropped) == (QUEUE_ROWS, 50)
    go.set()
    caller.join()
    assert db.flush()
    assert db.rows("SELECT count(*) FROM t") == [(QUEUE_ROWS,)]
    db.close()


def test_a_job_sees_what_was_queued_before_it_and_gives_its_result(tmp_path):
    db = open_database(tmp_path / "a.db")
    db.write(INSERT, (b"one",))
    query = "SELECT count(*) FROM t"
    assert db.call(lambda connection: connection.execute(query).fetchone()) == (1,)
    db.close()


@pytest.mark.parametrize("damage", ["recreate", "keep"])
def test_a_row_that_a_constraint_rejects_is_dropped_alone(tmp_path, damage):
    db = open_database(tmp_path / "a.db", damage=damage)
    for key in (1, 1, 2):
        assert db.write("INSERT INTO t (id, v) VALUES (?, ?)", (key, b"row"))
    assert db.flush()
    assert db.rows("SELECT id FROM t ORDER BY id") == [(1,), (2,)]
    assert (db.dropped, db.replacements, db.health()) == (1, 0, "")
    db.close()


def fail_halfway(connection):
    return connection.execute(INSERT, (b"half",)).rowcount / 0


def violate_constraint(connection):
    connection.execute(INSERT, (b"half",))
    connection.execute("INSERT INTO t (id, v) VALUES ((SELECT max(id) FROM t), ?)", (b"again",))


@pytest.mark.parametrize(
    ("job", "error"),
    [(fail_halfway, ZeroDivisionError), (violate_constraint, sqlite3.IntegrityError)],
)
@pytest.mark.parametrize("damage", ["recreate", "keep"])
def test_a_job_with_a_bug_loses_its_own_writes_and_nothing_else(tmp_path, damage, job, error):
    db = open_database(tmp_path / "a.db", damage=damage)
    db.write(INSERT, (b"one",))
    with pytest.raises(error):
        db.call(job)
    assert db.write(INSERT, (b"two",))
    assert db.flush()
    assert db.replacements == 0
    assert db.rows("SELECT v FROM t ORDER BY id") == [(b"one",), (b"two",)]
    assert db.health() == ""
    db.close()


def test_all_files_are_for_their_owner_only_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        db = open_database(tmp_path / "caches" / "a.db")
        db.write(INSERT, (b"one",))
        db.flush()
        modes = {part.name: part.stat().st_mode & 0o777 for part in (tmp_path / "caches").iterdir()}
        folder = (tmp_path / "caches").stat().st_mode & 0o777
    finally:
        os.umask(before)
    db.close()
    assert modes == {"a.db": 0o600, "a.db-wal": 0o600, "a.db-shm": 0o600}
    assert folder == 0o700


def test_a_file_that_others_could_read_is_closed_to_them(tmp_path):
    open_database(tmp_path / "a.db").close()
    (tmp_path / "a.db").chmod(0o644)
    open_database(tmp_path / "a.db").close()
    assert (tmp_path / "a.db").stat().st_mode & 0o777 == 0o600


def second_step(db: sqlite3.Connection) -> None:
    sqlite_utils.Database(db)["t"].transform(rename={"v": "value"}, drop=set())


def test_an_older_file_is_brought_to_the_newest_schema_with_its_rows(tmp_path):
    old = open_database(tmp_path / "a.db", table)
    old.write(INSERT, (b"kept",))
    old.close()
    new = open_database(tmp_path / "a.db", table, second_step)
    assert new.rows("SELECT value FROM t") == [(b"kept",)]
    assert new.rows("PRAGMA user_version") == [(2,)]
    assert new.health() == ""
    new.close()


def test_a_step_that_fails_half_way_changes_nothing_and_is_tried_again(tmp_path):
    open_database(tmp_path / "a.db", table).close()
    works = threading.Event()

    def step(db: sqlite3.Connection) -> None:
        second_step(db)
        if not works.is_set():
            raise ValueError("half way")

    db = open_database(tmp_path / "a.db", table, step, retry_s=0.01)
    assert "half way" in db.health()
    plain = sqlite3.connect(tmp_path / "a.db")
    assert [column[1] for column in plain.execute("PRAGMA table_info(t)")] == ["id", "v"]
    plain.close()
    works.set()
    until(lambda: not db.health())
    assert db.rows("SELECT value FROM t") == []
    assert db.rows("PRAGMA user_version") == [(2,)]
    db.close()


def test_the_file_of_a_newer_version_is_recreated(tmp_path):
    newer = open_database(tmp_path / "a.db", table, second_step)
    newer.write("INSERT INTO t (value) VALUES (?)", (b"new",))
    newer.close()
    db = open_database(tmp_path / "a.db", table)
    assert "schema 2" in db.health()
    assert db.write(INSERT, (b"old",))
    assert db.flush()
    assert db.rows("SELECT v FROM t") == [(b"old",)]
    db.close()


def test_readers_do_not_pile_up_with_threads(tmp_path):
    db = open_database(tmp_path / "a.db")
    db.write(INSERT, (b"one",))
    db.flush()

    def files() -> int:
        links = [part for part in Path("/proc/self/fd").iterdir() if part.is_symlink()]
        return sum(str(part.readlink()).startswith(str(tmp_path)) for part in links)

    for _ in range(100):
        thread = threading.Thread(target=db.rows, args=("SELECT v FROM t",))
        thread.start()
        thread.join()
    assert files() <= 8
    db.close()
    assert files() == 0


def test_a_cache_is_shown_as_its_tables(tmp_path):
    db = open_database(tmp_path / "a.db")
    db.write(INSERT, (b"one",))
    db.flush()
    (shown,) = sqlite_file.read_tables(tmp_path / "a.db")
    db.close()
    assert (shown.name, shown.columns, shown.rows) == ("t", ("id", "v"), 1)
    assert shown.schema.startswith("CREATE TABLE t")


def test_a_bound_that_is_too_small_is_refused(tmp_path):
    with pytest.raises(InputError, match="at least"):
        open_database(tmp_path / "a.db", max_bytes=MIN_BYTES - 1)


def test_importing_caches_and_databases_loads_no_sqlite():
    """The idle agent imports them; it may never open a file."""
    script = (
        "import sys, agent.caches.near, agent.caches.embeddings, agent.sqlite.database\n"
        "assert not {'sqlite3', 'sqlite_utils'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
