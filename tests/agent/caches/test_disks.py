"""Full, read-only and damaged disks: never an exception, never a wrong answer, always a report."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from agent.caches.embeddings import EmbeddingCache
from agent.caches.results import ResultCache
from agent.caches.store import Store
from agent.sqlite.database import MIN_BYTES, Database
from edge_core.tensors import Feeds

MODEL = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
COUNT = 300


OPENED: list[Store | Database] = []


def open_cache(folder: Path) -> ResultCache:
    cache = ResultCache(folder / "results.db", max_bytes=2 * MIN_BYTES, ttl_s=3600)
    OPENED.append(cache.store)
    return cache


@pytest.fixture
def disk(small_disk: Path) -> Iterator[Path]:
    """A small disk on which nothing is open afterwards, so that it can go."""
    OPENED.clear()
    yield small_disk
    for file in OPENED:
        file.close()


def answer(number: int) -> Feeds:
    return {"y": np.full(1000, number, np.float32)}


def key(number: int) -> bytes:
    return b"%016d" % number


def count_right(cache: ResultCache, count: int = COUNT) -> int:
    """How many of the first answers are there; none may be wrong."""
    hits = 0
    for number in range(count):
        outputs = cache.get(MODEL, key(number))
        if outputs is not None:
            assert list(outputs) == ["y"]
            np.testing.assert_array_equal(outputs["y"], answer(number)["y"])
            hits += 1
    return hits


def fill(cache: ResultCache, count: int = COUNT) -> None:
    for number in range(count):
        cache.put(MODEL, key(number), answer(number))


def assert_works(cache: ResultCache) -> None:
    cache.put(MODEL, b"works now" + bytes(7), answer(7))
    assert cache.store.flush(), cache.store.health()
    cached = cache.get(MODEL, b"works now" + bytes(7))
    assert cached is not None
    np.testing.assert_array_equal(cached["y"], answer(7)["y"])


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


# Full


def test_a_disk_that_fills_up_costs_new_answers_but_no_old_ones(disk):
    cache = open_cache(disk / "caches")
    fill(cache, 100)
    assert cache.store.flush()
    fill(cache, 1500)
    cache.store.flush()
    assert "full" in cache.store.health()
    counters = cache.store.counters()
    assert counters.dropped > 100
    assert count_right(cache, 100) == 100
    assert count_right(cache, 1500) < 1500
    cache.store.close()


def test_a_disk_that_is_full_from_the_start_costs_all_answers(disk):
    with pytest.raises(OSError, match="No space"):
        (disk / "filler").write_bytes(bytes(4_000_000))
    cache = open_cache(disk)
    fill(cache)
    assert "full" in cache.store.health() or "no space" in cache.store.health()
    assert count_right(cache) == 0
    assert cache.store.counters().dropped == COUNT
    assert cache.store.keep_only([MODEL]) == 0
    cache.store.close()


def test_a_disk_that_stays_full_is_looked_at_now_and_then_and_not_all_the_time(disk):
    cache = open_cache(disk)
    cache.store.close()
    with pytest.raises(OSError, match="No space"):
        (disk / "filler").write_bytes(bytes(4_000_000))
    again = open_cache(disk)
    assert again.store.health()
    begin = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - begin < 0.1
    again.store.close()


def test_writing_begins_again_when_there_is_space_again(disk):
    filler = disk / "filler"
    filler.write_bytes(bytes(2_000_000))
    db = open_database(disk)
    insert = "INSERT INTO t (v) VALUES (?)"
    until(lambda: not all(db.write(insert, (bytes(4000),)) for _ in range(99)) and db.health())
    assert "full" in db.health()
    ((before,),) = db.rows("SELECT count(*) FROM t")
    assert before > 0
    filler.unlink()
    until(lambda: not db.health())
    until(lambda: db.write(insert, (b"again",)))
    assert db.flush()
    assert db.rows("SELECT v FROM t WHERE id > ?", (before,)) == [(b"again",)]
    db.close()


def open_database(folder: Path) -> Database:
    db = Database(
        folder / "t.db",
        (lambda db: db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)"),),
        max_bytes=MIN_BYTES,
        damage="recreate",
        sync="NORMAL",
        evict=lambda db: db.execute("DELETE FROM t WHERE id % 2").rowcount,
        retry_s=0.02,
    )
    db.start()
    OPENED.append(db)
    return db


# Read-only and absent


@pytest.fixture
def read_only(disk: Path) -> Iterator[Path]:
    """A file system with a filled cache that may only be read."""
    cache = open_cache(disk)
    fill(cache)
    cache.store.close()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    yield disk
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)


def test_a_read_only_disk_costs_the_cache_only(read_only):
    cache = open_cache(read_only)
    assert "read-only" in cache.store.health()
    fill(cache)
    assert count_right(cache) == 0
    assert not cache.store.flush()
    assert cache.store.counters().dropped == COUNT
    cache.store.close()


def test_a_disk_that_may_be_written_again_is_used_again(read_only):
    db = open_database(read_only)
    assert "read-only" in db.health()
    subprocess.run(["mount", "-o", "remount,rw", read_only], check=True)
    until(lambda: not db.health())
    assert db.flush()
    db.close()


def test_a_place_that_cannot_be_a_folder_costs_the_cache_only(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    cache = open_cache(tmp_path / "file" / "caches")
    fill(cache, 3)
    assert count_right(cache, 3) == 0
    assert str(tmp_path) in cache.store.health()
    assert cache.store.counters().dropped == 3
    cache.store.close()


# Damaged

Damage = Callable[[Path, random.Random], None]


def flip(path: Path, rng: random.Random) -> None:
    """Random bytes at random places, the header included now and then."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        for _ in range(rng.choice([1, 5, 50])):
            file.seek(rng.randrange(size))
            file.write(rng.randbytes(rng.choice([1, 8, 300])))


def header(path: Path, rng: random.Random) -> None:
    """One byte of the hundred that describe the file."""
    with path.open("r+b") as file:
        file.seek(rng.randrange(100))
        file.write(rng.randbytes(1))


def schema(path: Path, rng: random.Random) -> None:
    """A few bytes of the first page, where the tables are described."""
    with path.open("r+b") as file:
        for _ in range(3):
            file.seek(rng.randrange(100, 4096))
            file.write(rng.randbytes(1))


def cut(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def zero_pages(path: Path, rng: random.Random) -> None:
    """What a flash card gives back after a power cut."""
    pages = path.stat().st_size // 4096
    with path.open("r+b") as file:
        for _ in range(pages // 4):
            file.seek(4096 * rng.randrange(pages))
            file.write(bytes(4096))


def swap_pages(path: Path, rng: random.Random) -> None:
    """Two pages that are sound, each in the other's place."""
    raw = path.read_bytes()
    first, second = (4096 * rng.randrange(1, len(raw) // 4096) for _ in range(2))
    with path.open("r+b") as file:
        file.seek(first)
        file.write(raw[second : second + 4096])
        file.seek(second)
        file.write(raw[first : first + 4096])


def read_only_header(path: Path, rng: random.Random) -> None:
    with path.open("r+b") as file:
        file.seek(18)
        file.write(bytes([9]))


def another_format(path: Path, rng: random.Random) -> None:
    path.write_text("This is no database.\n" * 1000)


DAMAGES = (
    *((flip, seed) for seed in range(12)), *((header, seed) for seed in range(8)),
    *((schema, seed) for seed in range(5)), *((cut, seed) for seed in range(5)),
    *((zero_pages, seed) for seed in range(3)), *((swap_pages, seed) for seed in range(5)),
    (read_only_header, 0), (another_format, 0),
)  # fmt: skip


@pytest.fixture(scope="module")
def filled_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filled")
    cache = open_cache(folder)
    fill(cache)
    cache.store.close()
    return folder / "results.db"


@pytest.mark.parametrize(("damage", "seed"), DAMAGES, ids=lambda x: getattr(x, "__name__", str(x)))
def test_a_damaged_file_gives_no_wrong_answer_and_is_used_or_recreated(
    damage, seed, filled_file, tmp_path
):
    shutil.copy(filled_file, tmp_path)
    damage(tmp_path / "results.db", random.Random(seed))
    cache = open_cache(tmp_path)
    count_right(cache)
    fill(cache)  # whoever meets the damage, all that comes after it is stored
    count_right(cache)
    cache.store.flush()
    fill(cache)
    assert cache.store.flush(), cache.store.health()
    assert count_right(cache) > 0.9 * COUNT  # a damaged index may hide a few for ever
    assert_works(cache)
    anew = bool(cache.store.health())
    cache.store.close()
    assert is_sound(tmp_path / "results.db") or not anew


@pytest.mark.parametrize("seed", range(6))
def test_damage_under_a_running_cache_gives_no_wrong_answer(seed, filled_file, tmp_path):
    shutil.copy(filled_file, tmp_path)
    cache = open_cache(tmp_path)
    count_right(cache, 5)
    flip(tmp_path / "results.db", random.Random(seed))
    count_right(cache)
    for start in range(0, COUNT, 50):
        for number in range(start, start + 50):
            cache.put(MODEL, key(number), answer(number))
        cache.store.flush()
        count_right(cache)
    cache.store.close()
    again = open_cache(tmp_path)
    count_right(again)
    assert_works(again)
    again.store.close()


def test_a_file_that_is_no_database_is_replaced_and_reported(filled_file, tmp_path):
    shutil.copy(filled_file, tmp_path)
    another_format(tmp_path / "results.db", random.Random())
    cache = open_cache(tmp_path)
    assert "recreated" in cache.store.health()
    assert count_right(cache) == 0
    assert_works(cache)
    cache.store.close()
    again = open_cache(tmp_path)
    assert again.store.health() == ""
    assert_works(again)
    again.store.close()


def test_a_changed_byte_in_an_answer_is_noticed_and_the_answer_forgotten(filled_file, tmp_path):
    shutil.copy(filled_file, tmp_path)
    plain = sqlite3.connect(tmp_path / "results.db")
    ((value,),) = plain.execute("SELECT value FROM entries WHERE key = ?", (key(5),)).fetchall()
    with plain:
        changed = value[:100] + bytes([value[100] ^ 1]) + value[101:]
        plain.execute("UPDATE entries SET value = ? WHERE key = ?", (changed, key(5)))
        plain.execute("UPDATE entries SET value = zeroblob(3) WHERE key = ?", (key(6),))
        plain.execute("UPDATE entries SET value = 'text' WHERE key = ?", (key(7),))
        plain.execute("UPDATE entries SET key = ? WHERE key = ?", (b"x" * 16, key(8)))
        plain.execute("DELETE FROM entries WHERE key = ?", (key(9),))
        plain.execute("UPDATE entries SET key = ? WHERE key = ?", (key(9), key(10)))
    plain.close()
    cache = open_cache(tmp_path)
    assert count_right(cache, 11) == 5
    assert cache.get(MODEL, b"x" * 16) is None
    counters = cache.store.counters()
    assert (counters.damaged, counters.misses) == (5, 7)
    cache.store.flush()
    assert cache.store.counters().entries == COUNT - 6
    cache.store.close()


def test_after_a_crash_the_whole_file_is_checked(filled_file, tmp_path):
    """A page that no query reads: only the check after an unclean end finds it."""
    shutil.copy(filled_file, tmp_path)
    plain = sqlite3.connect(tmp_path / "results.db")
    (root,) = plain.execute(
        "SELECT rootpage FROM sqlite_master WHERE name = 'entries_model'"
    ).fetchone()
    plain.execute("CREATE TABLE unrelated (a)")  # leaves a log behind, as a crash does
    plain.commit()
    shutil.copytree(tmp_path, tmp_path / "crashed")
    plain.close()
    for folder, expected in ((tmp_path, False), (tmp_path / "crashed", True)):
        with (folder / "results.db").open("r+b") as file:
            file.seek(4096 * (root - 1))
            file.write(b"\xff" * 4096)
        cache = open_cache(folder)
        assert cache.store.flush() or expected
        until(lambda cache=cache, expected=expected: bool(cache.store.health()) == expected)
        cache.store.close()


def test_a_file_whose_entries_are_mostly_wrong_is_recreated(filled_file, tmp_path):
    shutil.copy(filled_file, tmp_path)
    plain = sqlite3.connect(tmp_path / "results.db")
    with plain:
        plain.execute("UPDATE entries SET value = CAST(value || x'00' AS BLOB)")
    plain.close()
    cache = open_cache(tmp_path)
    assert count_right(cache) == 0
    until(cache.store.health)
    assert "checksums" in cache.store.health()
    fill(cache)
    assert cache.store.flush()
    assert count_right(cache) == COUNT
    cache.store.close()


def test_a_complaint_that_cannot_be_decoded_is_a_complaint(filled_file, tmp_path):
    """SQLite quotes the damaged schema, and sqlite3 raises UnicodeDecodeError instead."""
    shutil.copy(filled_file, tmp_path)
    cache = open_cache(tmp_path)
    plain = sqlite3.connect(tmp_path / "results.db")
    with plain:
        plain.execute("PRAGMA writable_schema=1")
        plain.execute(
            "UPDATE sqlite_master SET sql = CAST(x'435245415445dcdc' AS TEXT) WHERE name = 'meta'"
        )
        (version,) = plain.execute("PRAGMA schema_version").fetchone()
        plain.execute(f"PRAGMA schema_version={version + 1}")
    plain.close()
    assert count_right(cache) == 0
    until(cache.store.health)
    assert "recreated" in cache.store.health()
    assert_works(cache)
    cache.store.close()


def test_embeddings_of_a_file_recreated_under_way_are_found(tmp_path):
    path = tmp_path / "e.db"
    cache = EmbeddingCache(path, max_bytes=MIN_BYTES, ttl_s=3600)
    for number in range(50):
        cache.put(MODEL, f"text {number}", np.full(4, number + 1, np.float32))
    cache.store.close()
    cache = EmbeddingCache(path, max_bytes=MIN_BYTES, ttl_s=3600)
    assert len(cache.nearest(MODEL, np.ones(4, np.float32), limit=50)) == 50
    with path.open("r+b") as file:
        file.write(b"damaged " * 4096)
    until(
        lambda: (cache.get(MODEL, "text 1") is None and cache.store.health()) or write_more(cache)
    )
    cache.put(MODEL, "new", np.ones(4, np.float32))
    matches = cache.nearest(MODEL, np.ones(4, np.float32), limit=50)
    assert "new" in [match.text for match in matches]
    assert len(matches) < 50
    cache.store.close()


def write_more(cache: EmbeddingCache) -> None:
    """Readers look at the file again."""
    cache.put(OTHER, "other", np.ones(4, np.float32))
    cache.store.flush()


def test_embeddings_survive_a_damaged_file_too(tmp_path):
    cache = EmbeddingCache(tmp_path / "e.db", max_bytes=MIN_BYTES, ttl_s=3600)
    cache.put(MODEL, "a text", np.ones(4, np.float32))
    cache.store.close()
    (tmp_path / "e.db").write_bytes(b"damaged" * 1000)
    again = EmbeddingCache(tmp_path / "e.db", max_bytes=MIN_BYTES, ttl_s=3600)
    assert again.get(MODEL, "a text") is None
    assert again.nearest(MODEL, np.ones(4, np.float32)) == ()
    again.put(MODEL, "a text", np.ones(4, np.float32))
    assert [match.text for match in again.nearest(MODEL, np.ones(4, np.float32))] == ["a text"]
    assert "recreated" in again.store.health()
    again.store.close()


def is_sound(path: Path) -> bool:
    db = sqlite3.connect(path)
    complaints = db.execute("PRAGMA integrity_check").fetchall()
    db.close()
    return complaints == [("ok",)]
