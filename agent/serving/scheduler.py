"""Requests of one model, from a bounded queue onto its sessions.

    call(feeds, deadline)         on the caller's thread when a session is free, else queued
    post(feeds, deadline, done)   always queued; `done` runs on a lane

There is one lane (a thread) more than sessions: while one request's outputs are finished, the next
one's inference runs. A request is in exactly one place: refused, queued, running or answered.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from agent.serving import batches
from agent.serving.batches import Policy
from edge_core.errors import (
    DeadlineExceeded,
    EdgeError,
    MeasureError,
    Overloaded,
    Unavailable,
)
from edge_core.tensors import Feeds

log = logging.getLogger(__name__)
Run = Callable[[Feeds], Feeds]
JOIN_S = 30.0  # a lane that hangs in a runtime cannot be ended, only left
SMOOTHING = 0.2  # weight of the newest inference in the expected duration


class Completion:
    """One inference: its outputs or its error, and when it was where, in ns of perf_counter."""

    __slots__ = ("began", "ended", "error", "outputs", "queued")

    def __init__(self, queued: int) -> None:
        self.queued = self.began = self.ended = queued
        self.outputs: Feeds = {}
        self.error: EdgeError | None = None


class _Job(Completion):
    __slots__ = ("deadline", "done", "feeds", "rows", "shape")

    def __init__(
        self, feeds: Feeds, deadline: int, batching: bool, done: Callable[[Completion], None]
    ):
        super().__init__(time.perf_counter_ns())
        self.feeds, self.deadline, self.done = feeds, deadline, done
        self.rows = len(next(iter(feeds.values()))) if batching and feeds else 1
        self.shape = batches.shape(feeds) if batching else None


class Scheduler:
    """The sessions of one model and the requests that wait for them."""

    def __init__(self, runs: Sequence[Run], *, queue: int, policy: Policy, name: str) -> None:
        self._policy, self._queue = policy, queue
        self._free = list(runs)
        self._sessions = len(runs)
        self._waiting: deque[_Job] = deque()
        self._change = threading.Condition()
        self._closed = False
        self._expected_ns = 0.0  # one inference, smoothed
        self.inferences = 0  # of one request or of a batch
        self.batches = 0  # inferences that held more than one request
        self._lanes = [
            threading.Thread(target=self._lane, name=f"{name}-lane-{i}", daemon=True)
            for i in range(self._sessions + 1)
        ]
        for lane in self._lanes:
            lane.start()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Is a session free?"""
        return bool(self._free)

    @property
    def alive(self) -> bool:
        """Are all lanes running?"""
        return all(lane.is_alive() for lane in self._lanes)

    def call(self, feeds: Feeds, deadline: int) -> Completion:
        """Run and wait; ``deadline`` in ns of perf_counter. Raises what post() or the run does."""
        run = self._idle()
        if run is not None:
            ran = Completion(time.perf_counter_ns())
            try:
                ran.outputs = run(feeds)
            finally:
                ran.ended = time.perf_counter_ns()
                self._give_back(run, ran.ended - ran.began)
            return ran
        finished = threading.Event()
        job = self._put(feeds, deadline, lambda _: finished.set())
        left = (deadline - time.perf_counter_ns()) / 1e9
        if not finished.wait(max(0.0, left)) and self._withdraw(job):
            raise _late(job)
        finished.wait()  # it runs: its session ends it
        if job.error:
            raise job.error
        return job

    def post(self, feeds: Feeds, deadline: int, done: Callable[[Completion], None]) -> None:
        """Queue a request; raises Overloaded or Unavailable at once, or calls ``done`` once."""
        self._put(feeds, deadline, done)

    def close(self) -> None:
        """Answer what waits with Unavailable, let what runs end, end the lanes."""
        with self._change:
            self._closed = True
            left = list(self._waiting)
            self._waiting.clear()
            self._change.notify_all()
        for job in left:
            job.error = Unavailable("the model was unloaded")
            _tell(job)
        for lane in self._lanes:
            if lane is not threading.current_thread():
                lane.join(JOIN_S)
        self._free.clear()  # the sessions' memory goes now, not when nobody knows this object

    def _idle(self) -> Run | None:
        """A free session, unless somebody waits for one or company is waited for."""
        with self._change:
            if self._closed:
                raise Unavailable("the model was unloaded")
            if self._waiting or not self._free or self._policy.min_size > 1:
                return None
            return self._free.pop()

    def _give_back(self, run: Run, took_ns: int | None = None) -> None:
        with self._change:
            self._free.append(run)
            if took_ns is not None:
                self.inferences += 1
                was = self._expected_ns or took_ns
                self._expected_ns = was + SMOOTHING * (took_ns - was)
            if self._waiting:
                self._change.notify()

    def _put(self, feeds: Feeds, deadline: int, done: Callable[[Completion], None]) -> _Job:
        job = _Job(feeds, deadline, self._policy.max_size > 1, done)
        with self._change:
            if self._closed:
                raise Unavailable("the model was unloaded")
            if len(self._waiting) >= self._queue:
                raise Overloaded(
                    f"{self._queue} requests are waiting", hint="send fewer, or raise serve.queue"
                )
            at_once = self._sessions * self._policy.max_size
            if deadline < job.queued:
                raise _late(job)
            rounds = len(self._waiting) // at_once + (not self._free)
            expected = job.queued + rounds * self._expected_ns
            if expected > deadline:
                ms = (expected - job.queued) / 1e6
                raise Overloaded(f"the deadline would pass before its turn in about {ms:.0f} ms")
            self._waiting.append(job)
            self._change.notify()
        return job

    def _withdraw(self, job: _Job) -> bool:
        """Take a request out of the queue, if it is still there."""
        with self._change:
            try:
                self._waiting.remove(job)
            except ValueError:
                return False
            return True

    def _lane(self) -> None:
        while True:
            taken = self._next()
            if taken is None:
                return
            run, jobs, late = taken
            for job in late:
                job.error = _late(job)
                _tell(job)
            if jobs:
                began = time.perf_counter_ns()
                try:
                    self._run(run, jobs)
                finally:
                    self._give_back(run, time.perf_counter_ns() - began)
                for job in jobs:
                    _tell(job)
            else:
                self._give_back(run)

    def _next(self) -> tuple[Run, list[_Job], list[_Job]] | None:
        """Wait for a session and a batch: (session, what to run, what is too late)."""
        with self._change:
            while True:
                if self._closed:
                    return None
                if not (self._waiting and self._free):
                    self._change.wait()
                    continue
                now = time.perf_counter_ns()
                jobs = self._company()
                rows = sum(j.rows for j in jobs)
                wait = batches.delay(rows, now - jobs[0].queued, self._policy)
                if wait:
                    self._change.wait(wait / 1e9)
                    continue
                for _ in jobs:
                    self._waiting.popleft()
                if self._waiting and len(self._free) > 1:
                    self._change.notify()  # another lane for another session
                late = [j for j in jobs if j.deadline < now]
                return self._free.pop(), [j for j in jobs if j.deadline >= now], late

    def _company(self) -> list[_Job]:
        """The requests at the head of the queue that may run together."""
        head = self._waiting[0]
        if self._policy.max_size == 1:
            return [head]
        alike: list[_Job] = []
        for job in self._waiting:
            if job.shape != head.shape or len(alike) >= self._policy.max_size:
                break
            alike.append(job)
        return alike[: batches.take([j.rows for j in alike], self._policy)]

    def _run(self, run: Run, jobs: list[_Job]) -> None:
        """Run the jobs together; if that fails, each alone, so that one cannot fail another."""
        if len(jobs) > 1:
            began = time.perf_counter_ns()
            try:
                parts = _split(run(_joined(jobs)), jobs)
            except Exception:
                log.exception("event=batch_failed requests=%d", len(jobs))
            else:
                self.batches += 1
                ended = time.perf_counter_ns()
                for job, part in zip(jobs, parts, strict=True):
                    job.outputs, job.began, job.ended = part, began, ended
                return
        for job in jobs:
            job.began = time.perf_counter_ns()
            try:
                job.outputs = run(job.feeds)
            except EdgeError as e:
                job.error = e
            except Exception as e:  # the lane's root: whoever waits must hear of it
                log.exception("event=inference_failed")
                job.error = MeasureError(f"the runtime's adapter failed: {e!r}")
            job.ended = time.perf_counter_ns()


def _joined(jobs: list[_Job]) -> Feeds:
    return {name: np.concatenate([j.feeds[name] for j in jobs]) for name in jobs[0].feeds}


def _split(outputs: Feeds, jobs: list[_Job]) -> list[Feeds]:
    """Each request's rows, in memory of their own; raises MeasureError if rows are missing."""
    rows = sum(job.rows for job in jobs)
    for name, a in outputs.items():
        if a.ndim == 0 or len(a) != rows:
            raise MeasureError(f"'{name}' has shape {a.shape} for a batch of {rows}")
    parts, at = [], 0
    for job in jobs:
        parts.append({name: a[at : at + job.rows].copy() for name, a in outputs.items()})
        at += job.rows
    return parts


def _late(job: _Job) -> DeadlineExceeded:
    ms = (job.deadline - job.queued) / 1e6
    return DeadlineExceeded(f"the deadline passed in the queue, {ms:.0f} ms after the request came")


def _tell(job: _Job) -> None:
    try:
        job.done(job)
    except Exception:  # a lane outlives whatever an application's callback raises
        log.exception("event=callback_failed")
