"""kill -9 while a cache is written: afterwards it opens, is whole, and every answer is right.

EDGE_KILL_ROUNDS=300 makes it a long run.
"""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from agent.caches.results import ResultCache
from edge_core.tensors import Feeds
from tests.cases import ROOT

ROUNDS = int(os.environ.get("EDGE_KILL_ROUNDS", "6"))
MODELS = ("sha256:" + "a" * 64, "sha256:" + "b" * 64)
WRONG = 3


def open_cache(path: Path) -> ResultCache:
    return ResultCache(path, max_bytes=4_000_000, ttl_s=3600)


def answer(key: bytes) -> Feeds:
    """Outputs computed from the key alone, so that anybody can tell a wrong one."""
    rng = np.random.default_rng(list(key))
    return {"y": rng.random(rng.integers(10, 1000), np.float32), "key": np.array(list(key))}


def is_right(key: bytes, outputs: Feeds) -> bool:
    expected = answer(key)
    return outputs.keys() == expected.keys() and all(
        outputs[name].dtype == array.dtype and np.array_equal(outputs[name], array)
        for name, array in expected.items()
    )


def question(number: int) -> Feeds:
    return {"x": np.array([number])}


def write_for_ever(path: Path, seed: int, count: int, flushing: bool) -> None:
    """The child: ask, put what is missing, tell what is surely stored."""
    cache = open_cache(path)
    rng = random.Random(seed)
    model = MODELS[seed % 2]
    if flushing:
        cache.store.keep_only([model])
    print("ready", flush=True)
    put: list[int] = []
    while True:
        number = rng.randrange(count)
        key = cache.key(model, question(number))
        outputs = cache.get(model, key)
        if outputs is None:
            cache.put(model, key, answer(key))
            put.append(number)
        elif not is_right(key, outputs):
            os._exit(WRONG)
        if len(put) >= 40 and cache.store.flush():
            print(*put, flush=True)
            put.clear()


def make_for_ever(path: Path, seed: int) -> None:
    """Another child: make the file, close it, open it again, delete it."""
    print("ready", flush=True)
    while True:
        for number in range(3):
            cache = open_cache(path)
            key = cache.key(MODELS[0], question(number))
            cache.put(MODELS[0], key, answer(key))
            cache.store.close()
        path.unlink()


def run_and_kill(job: Callable[..., None], path: Path, seed: int, *more: object) -> list[int]:
    """Numbers whose answers the child knew to be stored when it was killed."""
    call = f"{job.__name__}(Path({str(path)!r}), {', '.join(map(repr, (seed, *more)))})"
    child = subprocess.Popen(
        [sys.executable, "-c", f"from tests.agent.caches.test_kill import *; {call}"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    time.sleep(random.Random(seed).uniform(0, 0.25))
    child.kill()
    output, _ = child.communicate()
    assert child.returncode == -9, f"the child saw a wrong answer or broke: {child.returncode}"
    whole_lines = output[: output.rfind("\n") + 1]
    return [int(number) for number in whole_lines.split()]


def look(path: Path, count: int, surely: dict[str, set[int]]) -> int:
    """How many answers are there; asserts that all are right and none of ``surely`` is lost."""
    plain = sqlite3.connect(path)
    assert plain.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    plain.close()
    cache = open_cache(path)
    hits = 0
    for model in MODELS:
        for number in range(count):
            key = cache.key(model, question(number))
            outputs = cache.get(model, key)
            if outputs is None:
                assert number not in surely.get(model, ()), f"{number} was committed and is lost"
            else:
                assert is_right(key, outputs)
                hits += 1
    assert cache.store.health() == ""
    assert cache.store.counters().damaged == 0
    cache.store.close()
    return hits


def test_what_was_committed_before_the_kill_is_there_and_right(tmp_path):
    path, count = tmp_path / "results.db", 150  # of each model: far from any eviction
    surely: dict[str, set[int]] = {model: set() for model in MODELS}
    for seed in range(ROUNDS):
        surely[MODELS[seed % 2]] |= set(run_and_kill(write_for_ever, path, seed, count, False))
        look(path, count, surely)
    assert sum(map(len, surely.values())) > 0


def test_nothing_is_wrong_after_kills_amid_evictions_and_flushes_of_models(tmp_path):
    path, count = tmp_path / "results.db", 3000
    before = fill_up(path, count)
    for seed in range(ROUNDS):
        run_and_kill(write_for_ever, path, seed, count, seed % 3 == 2)
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 4_000_000
        if seed % 3 == 1 or seed == ROUNDS - 1:
            assert look(path, count, {}) > 0
    cache = open_cache(path)
    counters = cache.store.counters()
    cache.store.close()
    assert counters.evicted > before
    assert counters.flushed > 0


def fill_up(path: Path, count: int) -> int:
    """Fill the file to its bound; how many were evicted for it."""
    cache = open_cache(path)
    for number in range(count):
        key = cache.key(MODELS[0], question(number))
        cache.put(MODELS[0], key, answer(key))
        if number % 500 == 0:
            cache.store.flush()
    cache.store.flush()
    evicted = cache.store.counters().evicted
    cache.store.close()
    return evicted


def test_a_kill_while_the_file_is_made_or_opened_leaves_one_that_opens(tmp_path):
    path = tmp_path / "results.db"
    for seed in range(ROUNDS):
        run_and_kill(make_for_ever, path, seed)
        look(path, 3, {})
