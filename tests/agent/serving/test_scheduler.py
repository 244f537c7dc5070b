"""Requests onto sessions: bounded, within their deadlines, each answered exactly once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from agent.serving.batches import BatchPolicy
from agent.serving.scheduler import Completion, Scheduler
from edge_core.errors import (
    DeadlineExceeded,
    EdgeError,
    MeasureError,
    Overloaded,
    Unavailable,
)
from edge_core.tensors import Feeds

SECOND = 1_000_000_000


def double(feeds: Feeds) -> Feeds:
    return {"y": feeds["x"] * 2}


def make_feeds(value: float, rows: int = 1) -> Feeds:
    return {"x": np.full((rows, 1), value, np.float32)}


def soon(seconds: float = 30) -> int:
    return time.perf_counter_ns() + int(seconds * SECOND)


class Gate:
    """A session that holds every run until it is opened, and notes the batches it saw."""

    def __init__(self) -> None:
        self.open, self.started, self.seen = threading.Event(), threading.Semaphore(0), []

    def run(self, feeds: Feeds) -> Feeds:
        self.seen.append(len(feeds["x"]))
        self.started.release()
        assert self.open.wait(30)
        return double(feeds)


@contextmanager
def open_scheduler(*runs: Callable[[Feeds], Feeds], queue: int = 100, **policy: int) -> Iterator:
    scheduler = Scheduler(runs, queue=queue, policy=BatchPolicy(**policy), name="test")
    try:
        yield scheduler
    finally:
        scheduler.close()


class Answers:
    """What done() was called with."""

    def __init__(self) -> None:
        self.completions: list[Completion] = []
        self._arrived = threading.Semaphore(0)

    def on_done(self, completion: Completion) -> None:
        self.completions.append(completion)
        self._arrived.release()

    def wait(self, count: int) -> list[Completion]:
        for _ in range(count):
            assert self._arrived.acquire(timeout=30)
        return self.completions


def test_a_free_session_runs_on_the_callers_own_thread():
    where = []

    def run(feeds):
        where.append(threading.current_thread())
        return double(feeds)

    with open_scheduler(run) as scheduler:
        completion = scheduler.call(make_feeds(3), soon())
    assert completion.outputs["y"] == 6
    assert where == [threading.current_thread()]


def test_many_threads_get_their_own_answers():
    lock = threading.Lock()

    def run(feeds):
        assert lock.acquire(blocking=False), "two threads in one session"
        time.sleep(0.0002)
        lock.release()
        return double(feeds)

    wrong = []

    def client(nth):
        for i in range(50):
            completion = scheduler.call(make_feeds(nth * 1000 + i), soon())
            if completion.outputs["y"] != 2 * (nth * 1000 + i):
                wrong.append((nth, i))

    with open_scheduler(run) as scheduler:
        threads = [threading.Thread(target=client, args=(nth,)) for nth in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_full_queue_refuses_at_once():
    gate, answers = Gate(), Answers()
    with open_scheduler(gate.run, queue=3) as scheduler:
        scheduler.post(make_feeds(0), soon(), answers.on_done)
        assert gate.started.acquire(timeout=30)
        for i in range(3):
            scheduler.post(make_feeds(i), soon(), answers.on_done)
        with pytest.raises(Overloaded, match="3 requests are waiting"):
            scheduler.post(make_feeds(9), soon(), answers.on_done)
        with pytest.raises(Overloaded):
            scheduler.call(make_feeds(9), soon())
        assert scheduler.waiting == 3
        gate.open.set()
        assert len(answers.wait(4)) == 4


def test_a_deadline_that_passes_in_the_queue_is_told_and_nothing_is_run():
    gate = Gate()
    with open_scheduler(gate.run) as scheduler:
        first = Answers()
        scheduler.post(make_feeds(0), soon(), first.on_done)
        assert gate.started.acquire(timeout=30)
        with pytest.raises(DeadlineExceeded, match="in the queue"):
            scheduler.call(make_feeds(1), soon(0.02))
        late = Answers()
        scheduler.post(make_feeds(2), soon(0.02), late.on_done)
        time.sleep(0.05)
        gate.open.set()
        (completion,) = late.wait(1)
        assert isinstance(completion.error, DeadlineExceeded)
        first.wait(1)
    assert gate.seen == [1]


def test_a_request_that_cannot_make_its_deadline_is_refused_before_it_waits():
    gate = Gate()
    gate.open.set()

    def slow(feeds):
        time.sleep(0.05)
        return gate.run(feeds)

    with open_scheduler(slow) as scheduler:
        scheduler.call(make_feeds(0), soon())  # now an inference is known to take 50 ms
        answers = Answers()
        for i in range(4):
            scheduler.post(make_feeds(i), soon(), answers.on_done)
        with pytest.raises(Overloaded, match="deadline would pass"):
            scheduler.post(make_feeds(9), soon(0.03), answers.on_done)
        answers.wait(4)


def test_what_waits_together_runs_together_and_gets_its_own_rows():
    gate, answers = Gate(), Answers()
    with open_scheduler(gate.run, max_size=4) as scheduler:
        scheduler.post(make_feeds(0), soon(), answers.on_done)
        assert gate.started.acquire(timeout=30)
        for i, rows in enumerate((1, 2, 1, 3, 1, 9), 1):
            scheduler.post(make_feeds(i, rows), soon(), answers.on_done)
        gate.open.set()
        completions = answers.wait(7)
    assert gate.seen == [1, 4, 4, 9]
    assert scheduler.batches == 2
    for i, rows in enumerate((1, 1, 2, 1, 3, 1, 9)):
        np.testing.assert_array_equal(completions[i].outputs["y"], np.full((rows, 1), 2.0 * i))


def test_other_shapes_do_not_run_together():
    gate, answers = Gate(), Answers()
    with open_scheduler(gate.run, max_size=4) as scheduler:
        scheduler.post(make_feeds(0), soon(), answers.on_done)
        assert gate.started.acquire(timeout=30)
        scheduler.post(make_feeds(1), soon(), answers.on_done)
        scheduler.post({"x": np.zeros((1, 2), np.float32)}, soon(), answers.on_done)
        scheduler.post(make_feeds(2), soon(), answers.on_done)
        gate.open.set()
        answers.wait(4)
    assert gate.seen == [1, 1, 1, 1]


def test_a_small_batch_waits_for_company_but_not_for_ever():
    gate, answers = Gate(), Answers()
    gate.open.set()
    wait = SECOND // 5
    with open_scheduler(gate.run, max_size=8, min_size=2, max_wait_ns=wait) as scheduler:
        start = time.perf_counter_ns()
        assert scheduler.call(make_feeds(1), soon()).outputs["y"] == 2
        assert time.perf_counter_ns() - start >= wait
        for i in range(2):
            scheduler.post(make_feeds(i), soon(), answers.on_done)
        answers.wait(2)
    assert gate.seen == [1, 2]


def test_one_bad_request_does_not_fail_the_others_of_its_batch():
    first, answers = Gate(), Answers()

    def run(feeds):
        if first.seen and (feeds["x"] < 0).any():
            raise MeasureError("negative")
        return first.run(feeds)

    with open_scheduler(run, max_size=8) as scheduler:
        scheduler.post(make_feeds(0), soon(), answers.on_done)
        assert first.started.acquire(timeout=30)
        for value in (1, -1, 2):
            scheduler.post(make_feeds(value), soon(), answers.on_done)
        first.open.set()
        completions = answers.wait(4)
    assert [type(completion.error) for completion in completions] == [
        type(None),
        type(None),
        MeasureError,
        type(None),
    ]
    assert [
        float(completion.outputs["y"].item()) for completion in completions if not completion.error
    ] == [0, 2, 4]


def test_whatever_a_session_raises_reaches_the_caller_and_the_lanes_live_on():
    def run(feeds):
        if feeds["x"] < 0:
            raise RuntimeError("unexpected")
        return double(feeds)

    answers = Answers()
    with open_scheduler(run) as scheduler:
        scheduler.post(make_feeds(-1), soon(), answers.on_done)
        (completion,) = answers.wait(1)
        assert isinstance(completion.error, MeasureError)
        assert scheduler.alive
        assert scheduler.call(make_feeds(2), soon()).outputs["y"] == 4


def test_two_sessions_run_side_by_side():
    gate, answers = Gate(), Answers()
    with open_scheduler(gate.run, gate.run) as scheduler:
        for i in range(2):
            scheduler.post(make_feeds(i), soon(), answers.on_done)
        for _ in range(2):
            assert gate.started.acquire(timeout=30)
        gate.open.set()
        answers.wait(2)


def test_closing_answers_what_waits_and_finishes_what_runs():
    gate, running, waiting = Gate(), Answers(), Answers()
    scheduler = Scheduler([gate.run], queue=9, policy=BatchPolicy(), name="test")
    scheduler.post(make_feeds(1), soon(), running.on_done)
    assert gate.started.acquire(timeout=30)
    scheduler.post(make_feeds(2), soon(), waiting.on_done)
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    (completion,) = waiting.wait(1)
    assert isinstance(completion.error, Unavailable)
    gate.open.set()
    closing.join()
    (completion,) = running.wait(1)
    assert completion.outputs["y"] == 2
    with pytest.raises(Unavailable):
        scheduler.call(make_feeds(3), soon())
    with pytest.raises(Unavailable):
        scheduler.post(make_feeds(3), soon(), running.on_done)


def test_a_callback_that_raises_takes_no_answer_from_the_others():
    gate, others = Gate(), Answers()

    def raise_error(completion):
        raise RuntimeError("the application's own")

    scheduler = Scheduler([gate.run], queue=9, policy=BatchPolicy(), name="test")
    scheduler.post(make_feeds(1), soon(), others.on_done)
    assert gate.started.acquire(timeout=30)
    scheduler.post(make_feeds(2), soon(), raise_error)
    scheduler.post(make_feeds(3), soon(), others.on_done)
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    others.wait(1)
    gate.open.set()
    closing.join()
    assert {type(result.error) for result in others.wait(1)} == {Unavailable, type(None)}


@pytest.mark.parametrize("cut", [lambda outputs: outputs[:1], lambda outputs: outputs.sum()])
def test_an_output_without_a_row_for_each_request_is_not_handed_out(cut):
    """Then each runs alone, where the output is whatever it is."""
    gate, answers = Gate(), Answers()

    def run(feeds):
        outputs = gate.run(feeds)["y"]
        return {"y": cut(outputs) if len(outputs) > 1 else outputs}

    with open_scheduler(run, max_size=8) as scheduler:
        scheduler.post(make_feeds(0), soon(), answers.on_done)
        assert gate.started.acquire(timeout=30)
        for index in (1, 2, 3):
            scheduler.post(make_feeds(index), soon(), answers.on_done)
        gate.open.set()
        completions = answers.wait(4)
        assert scheduler.alive
    assert [float(completion.outputs["y"].item()) for completion in completions] == [0, 2, 4, 6]


def test_a_deadline_that_has_passed_already_is_told_as_such():
    gate, answers = Gate(), Answers()
    with open_scheduler(gate.run) as scheduler:
        scheduler.post(make_feeds(0), soon(), answers.on_done)
        assert gate.started.acquire(timeout=30)
        with pytest.raises(DeadlineExceeded):
            scheduler.call(make_feeds(1), soon(-1))
        gate.open.set()
        answers.wait(1)


def test_every_request_is_answered_once_under_a_storm_with_tight_deadlines():
    """The invariant: refused, or answered, or told that it is late; never twice, never nothing."""
    counts = {"sent": 0, "refused": 0, "answered": 0, "late": 0, "wrong": 0}
    lock = threading.Lock()

    def count(what):
        with lock:
            counts[what] += 1

    def run(feeds):
        time.sleep(0.001)
        return double(feeds)

    def count_outcome(completion, value):
        if completion.error is None:
            count("answered" if (completion.outputs["y"] == 2 * value).all() else "wrong")
        else:
            count("late")

    def client(nth):
        for i in range(200):
            value = nth * 1000 + i
            count("sent")
            try:
                if i % 2:
                    count_outcome(scheduler.call(make_feeds(value), soon(0.004)), value)
                else:
                    scheduler.post(
                        make_feeds(value),
                        soon(0.004),
                        lambda result, expected=value: count_outcome(result, expected),
                    )
            except Overloaded:
                count("refused")
            except EdgeError:
                count("late")

    with open_scheduler(run, run, queue=4, max_size=4) as scheduler:
        threads = [threading.Thread(target=client, args=(nth,)) for nth in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        while scheduler.waiting:
            time.sleep(0.001)
    assert counts["sent"] == 1600
    assert counts["wrong"] == 0
    assert counts["answered"] > 0
    assert counts["refused"] + counts["answered"] + counts["late"] == 1600
