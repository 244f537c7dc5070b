"""The exact cache: the same input finds its outputs, any other does not, within bytes and time."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from agent.caches.results import ResultCache, input_key, pack, unpack
from agent.sqlite.database import MIN_BYTES
from edge_core.tensors import DTYPES, Array, Feeds
from tests.cases import ROOT

HOUR = 3600.0
MODEL = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def open_cache(
    path: Path, *, max_bytes: int = MIN_BYTES, ttl_s: float = HOUR, **more
) -> ResultCache:
    return ResultCache(path / "results.db", max_bytes=max_bytes, ttl_s=ttl_s, **more)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ResultCache]:
    cache_file = open_cache(tmp_path)
    yield cache_file
    cache_file.store.close()


def answer(number: int, size: int = 1000) -> Feeds:
    """Outputs that tell which input they belong to."""
    return {"y": np.full((1, size), number, np.float32), "n": np.array([number], np.int64)}


def question(number: int) -> Feeds:
    return {"x": np.array([number], np.int32)}


def same(first: Feeds, second: Feeds) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype
        and first[name].shape == second[name].shape
        and bool((first[name] == second[name]).all())
        for name in first
    )


# What it remembers


def test_outputs_come_back_as_they_were_before_and_after_the_commit(cache):
    outputs = {
        "scores": np.arange(12, dtype=np.float32).reshape(3, 4),
        "label": np.array([["ünder", "b"]], object),
        "none": np.zeros((0, 4), np.int8),
        "flag": np.array(True),
    }
    key = cache.key(MODEL, question(1))
    assert cache.get(MODEL, key) is None
    cache.put(MODEL, key, outputs)
    assert same(cache.get(MODEL, key), outputs)
    assert cache.store.flush()
    assert same(cache.get(MODEL, key), outputs)
    counters = cache.store.counters()
    assert (counters.hits, counters.misses, counters.entries, counters.dropped) == (2, 1, 1, 0)
    assert cache.store.health() == ""


def test_what_comes_out_is_the_callers_own(cache):
    outputs = answer(1)
    cache.put(MODEL, b"k" * 16, outputs)
    outputs["y"][:] = 99
    first = cache.get(MODEL, b"k" * 16)
    assert first is not None
    first["y"][:] = 98
    cache.store.flush()
    assert same(cache.get(MODEL, b"k" * 16), answer(1))


def test_another_models_key_finds_nothing(cache):
    key = cache.key(MODEL, question(1))
    cache.put(MODEL, key, answer(1))
    cache.store.flush()
    assert cache.get(OTHER, key) is None
    assert cache.get(OTHER, cache.key(OTHER, question(1))) is None


def test_keys_answers_and_counters_survive_a_restart(tmp_path):
    first = open_cache(tmp_path)
    key = first.key(MODEL, question(1))
    first.put(MODEL, key, answer(1))
    first.get(MODEL, key)
    first.get(MODEL, b"?" * 16)
    first.store.close()
    again = open_cache(tmp_path)
    assert again.key(MODEL, question(1)) == key
    assert same(again.get(MODEL, key), answer(1))
    counters = again.store.counters()
    assert (counters.hits, counters.misses, counters.entries) == (2, 1, 1)
    again.store.close()


def test_each_file_has_a_secret_of_its_own(tmp_path):
    first, second = open_cache(tmp_path / "a"), open_cache(tmp_path / "b")
    assert first.key(MODEL, question(1)) != second.key(MODEL, question(1))
    first.store.close()
    second.store.close()


@pytest.mark.parametrize(
    "bad", [np.array([{"a": 1}], object), np.zeros(1, [("a", "i4")])], ids=["objects", "records"]
)
def test_outputs_that_are_no_plain_arrays_are_dropped_and_counted(bad, cache):
    cache.put(MODEL, b"k" * 16, {"y": bad})
    assert cache.get(MODEL, b"k" * 16) is None
    assert cache.store.counters().dropped == 1


# Time and models


def test_an_older_answer_is_stale_and_a_new_one_replaces_it(tmp_path):
    clock = Clock()
    cache = open_cache(tmp_path, ttl_s=60, clock=clock)
    cache.put(MODEL, b"k" * 16, answer(1))
    cache.store.flush()
    clock.now += 59
    assert cache.get(MODEL, b"k" * 16)
    clock.now += 2
    assert cache.get(MODEL, b"k" * 16) is None
    cache.put(MODEL, b"k" * 16, answer(2))
    cache.store.flush()
    assert same(cache.get(MODEL, b"k" * 16), answer(2))
    counters = cache.store.counters()
    assert (counters.hits, counters.misses, counters.stale, counters.entries) == (2, 1, 1, 1)
    cache.store.close()


def test_an_answer_from_the_far_future_is_stale(tmp_path):
    """A device without a battery-backed clock starts in the past."""
    clock = Clock()
    cache = open_cache(tmp_path, ttl_s=60, clock=clock)
    cache.put(MODEL, b"k" * 16, answer(1))
    clock.now -= 30
    assert cache.get(MODEL, b"k" * 16)
    clock.now = 0
    assert cache.get(MODEL, b"k" * 16) is None
    assert cache.store.counters().stale == 1
    cache.store.close()


def test_a_new_model_flushes_what_the_old_one_said_and_says_after_it(cache):
    for number in range(700):
        cache.put(MODEL, b"%016d" % number, answer(number, 10))
    cache.put(OTHER, b"o" * 16, answer(1))
    assert cache.store.keep_only([OTHER]) == 700
    assert cache.get(MODEL, b"%016d" % 5) is None
    assert cache.get(OTHER, b"o" * 16)
    cache.put(MODEL, b"late" * 4, answer(1))
    assert cache.get(MODEL, b"late" * 4) is None
    counters = cache.store.counters()
    assert (counters.flushed, counters.entries, counters.evicted) == (700, 1, 0)
    assert cache.store.keep_only([OTHER]) == 0


def test_a_flush_takes_what_was_not_even_committed(cache):
    for number in range(3):
        cache.put(MODEL, b"%016d" % number, answer(number))
    assert cache.store.keep_only([OTHER]) == 3
    assert cache.get(MODEL, b"%016d" % 0) is None


def test_what_is_asked_often_changes_ages_and_goes_like_all_else(tmp_path):
    """It is kept in memory, too."""
    clock = Clock()
    cache = open_cache(tmp_path, ttl_s=60, clock=clock)
    often = b"k" * 16

    def ask() -> Feeds | None:
        answers = [cache.get(MODEL, often) for _ in range(5)]
        assert all(hit is None for hit in answers) or all(same(hit, answers[0]) for hit in answers)
        return answers[0]

    cache.put(MODEL, often, answer(1))
    cache.store.flush()
    assert same(ask(), answer(1))
    cache.put(MODEL, often, answer(2))
    assert same(ask(), answer(2))
    cache.store.flush()
    assert same(ask(), answer(2))
    assert cache.get(OTHER, often) is None
    clock.now += 61
    assert ask() is None
    cache.put(MODEL, often, answer(3))
    cache.store.flush()
    assert same(ask(), answer(3))
    cache.store.keep_only([OTHER])
    assert ask() is None
    counters = cache.store.counters()
    assert (counters.hits, counters.misses, counters.stale, counters.flushed) == (20, 11, 5, 1)
    cache.store.close()


# Bounds


@pytest.mark.parametrize(("size", "batch"), [(10, 500), (1000, 100), (20_000, 20)])
def test_it_stays_below_its_bytes_and_evicts_the_oldest(size, batch, tmp_path):
    cache = open_cache(tmp_path)
    number = largest = 0
    while cache.store.counters().evicted < 200:
        for _ in range(batch):
            cache.put(MODEL, cache.key(MODEL, question(number)), answer(number, size))
            number += 1
        cache.store.flush()
        largest = max(largest, sum(path.stat().st_size for path in tmp_path.iterdir()))
    assert MIN_BYTES / 4 < largest <= MIN_BYTES
    counters = cache.store.counters()
    assert counters.entries == number - counters.evicted
    assert counters.bytes <= MIN_BYTES
    assert counters.dropped == 0
    held = [cache.get(MODEL, cache.key(MODEL, question(i))) for i in range(number)]
    assert held[0] is None
    assert all(cached is None or same(cached, answer(i, size)) for i, cached in enumerate(held))
    newest = held[
        number - counters.entries // 2 :
    ]  # looking at the older half moves it, and may evict
    assert all(newest)
    cache.store.close()


def test_answers_in_use_outlive_older_and_newer_ones_that_are_not(tmp_path):
    cache = open_cache(tmp_path)
    number = 0
    while cache.store.counters().evicted < 1000:
        for _ in range(20):
            cache.put(MODEL, b"%016d" % number, answer(number))
            number += 1
        cache.store.flush()
        assert cache.get(MODEL, b"%016d" % 7), f"evicted after {number} puts although in use"
    assert cache.get(MODEL, b"%016d" % 8) is None
    assert cache.get(MODEL, b"%016d" % 300) is None
    cache.store.close()
    again = open_cache(tmp_path)  # and not only in memory
    assert again.get(MODEL, b"%016d" % 7)
    again.store.close()


def test_hits_write_nothing_while_there_is_room(cache, tmp_path):
    for number in range(100):
        cache.put(MODEL, b"%016d" % number, answer(number))
    cache.store.flush()
    before = (tmp_path / "results.db-wal").read_bytes()
    for number in range(100):
        assert cache.get(MODEL, b"%016d" % number)
    assert not cache.get(MODEL, b"?" * 16)
    threading.Event().wait(0.5)
    assert (tmp_path / "results.db-wal").read_bytes() == before


# Many threads


def test_many_threads_get_right_answers_and_exact_counters(cache):
    wrong: list[object] = []
    asked = 600

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for i in range(asked):
            number = rng.randrange(300)
            key = cache.key(MODEL, question(number))
            cached = cache.get(MODEL, key)
            if cached is None:
                cache.put(MODEL, key, answer(number))
            elif not same(cached, answer(number)):
                wrong.append((number, cached))
            if i % 200 == 0:
                cache.store.counters()
            if seed == 0 and i % 300 == 0:
                cache.store.keep_only([MODEL])

    threads = [threading.Thread(target=work, args=(thread_seed,)) for thread_seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counters = cache.store.counters()
    assert not wrong
    assert counters.hits + counters.misses == 8 * asked
    assert counters.hits > counters.misses
    assert cache.store.health() == ""


# Keys


def arrays(dtype: str) -> st.SearchStrategy[Array]:
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
    if dtype == "string":
        text = st.text(max_size=3) | st.binary(max_size=3)
        return shapes.flatmap(lambda shape: st.lists(text, min_size=int(np.prod(shape, dtype=int)),
                                                  max_size=int(np.prod(shape, dtype=int)))
                              .map(lambda items: as_objects(items, shape)))  # fmt: skip
    return hnp.arrays(dtype, shapes)


def as_objects(items: list[object], shape: tuple[int, ...]) -> Array:
    array = np.empty(shape, object)
    array.flat[:] = items
    return array


FEEDS = st.dictionaries(
    st.text(max_size=3), st.sampled_from(DTYPES).flatmap(arrays), min_size=1, max_size=3
)
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def identity(feeds: Feeds) -> object:
    return sorted(
        (
            name,
            array.dtype.str,
            array.shape,
            array.tolist() if array.dtype.hasobject else array.tobytes(),
        )
        for name, array in feeds.items()
    )


@QUICK
@given(FEEDS, FEEDS)
def test_two_inputs_share_a_key_exactly_if_they_are_the_same(first, second):
    assert (input_key(1, "m", first) == input_key(1, "m", second)) == (
        repr(identity(first)) == repr(identity(second))
    )
    assert input_key(1, "m", first) == input_key(1, "m", dict(reversed(first.items())))


@QUICK
@given(FEEDS)
def test_packing_and_unpacking_changes_nothing(feeds):
    back = unpack(pack(feeds))
    assert repr(identity(back)) == repr(identity(feeds))
    assert all(array.flags.writeable and array.flags.aligned for array in back.values())


def test_a_key_depends_on_everything_that_changes_an_answer():
    values = np.arange(6, dtype=np.int32)
    keys = [
        input_key(1, "m", {"x": values}),
        input_key(2, "m", {"x": values}),
        input_key(1, "n", {"x": values}),
        input_key(1, "m", {"y": values}),
        input_key(1, "m", {"x": values.reshape(2, 3)}),
        input_key(1, "m", {"x": values.view(np.float32)}),
        input_key(1, "m", {"x": values + 1}),
        input_key(1, "m", {"x": values}, b"salt"),
        input_key(1, "m", values.tobytes()),
        input_key(1, "m", values.tobytes(), b"salt"),
        input_key(1, "m", {"a": values[:2], "b": values[2:]}),
        input_key(1, "m", {"a": values[:4], "b": values[4:]}),
        input_key(1, "m", {"a": np.array(["ab", "c"], object)}),
        input_key(1, "m", {"a": np.array(["a", "bc"], object)}),
    ]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 16 for key in keys)


def test_how_an_array_lies_in_memory_does_not_matter():
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    assert input_key(1, "m", {"x": values}) == input_key(1, "m", {"x": np.asfortranarray(values)})
    assert input_key(1, "m", {"x": values[:, ::2]}) == input_key(
        1, "m", {"x": values[:, ::2].copy()}
    )


def test_a_running_cache_does_without_the_packages_that_only_inspection_needs(tmp_path):
    code = (
        "import sys, pathlib, numpy as np\n"
        "from agent.caches.results import ResultCache\n"
        f"c = ResultCache(pathlib.Path({str(tmp_path)!r}) / 'r.db', max_bytes=4_000_000, ttl_s=1)\n"
        "c.put('m', bytes(16), {'y': np.zeros(3)}); c.store.flush(); assert c.get('m', bytes(16))\n"
        "c.store.close(); print([m for m in ('sqlite_utils', 'click', 'rich') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
