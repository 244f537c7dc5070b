"""Requests of one model, from a bounded queue onto its sessions.

    call(feeds, deadline)            on the caller's thread when a session is free, else queued
    post(feeds, deadline, on_done)   always queued; `on_done` runs on a worker

There is one worker thread more than sessions: while one request's outputs are finished, the next
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
from agent.serving.backend import Completion, OnCompletion
from agent.serving.batches import BatchPolicy
from agent.serving.wait_estimate import WaitEstimate
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
JOIN_S = 30.0  # a worker that hangs in a runtime cannot be ended, only left behind


class _Job(Completion):
    __slots__ = ("deadline", "feeds", "on_done", "rows", "shape")

    def __init__(self, feeds: Feeds, deadline: int, batching: bool, on_done: OnCompletion) -> None:
        super().__init__(time.perf_counter_ns())
        self.feeds, self.deadline, self.on_done = feeds, deadline, on_done
        self.rows = len(next(iter(feeds.values()))) if batching and feeds else 1
        self.shape = batches.row_shapes(feeds) if batching else None


class Scheduler:
    """The sessions of one model and the requests that wait for them."""

    def __init__(self, runs: Sequence[Run], *, queue: int, policy: BatchPolicy, name: str) -> None:
        self._policy, self._queue = policy, queue
        self._free = list(runs)
        self._sessions = len(runs)
        self._waiting: deque[_Job] = deque()
        self._change = threading.Condition()
        self._closed = False
        self._estimate = WaitEstimate()  # of one inference
        self.inferences = 0  # of one request or of a batch
        self.batches = 0  # inferences that held more than one request
        self._workers = [
            threading.Thread(target=self._work, name=f"{name}-worker-{i}", daemon=True)
            for i in range(self._sessions + 1)
        ]
        for worker in self._workers:
            worker.start()

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
        """Are all workers running?"""
        return all(worker.is_alive() for worker in self._workers)

    def call(self, feeds: Feeds, deadline: int) -> Completion:
        """Run and wait; ``deadline`` in ns of perf_counter. Raises what post() or the run does."""
        run = self._take_session()
        if run is not None:
            completion = Completion(time.perf_counter_ns())
            try:
                completion.outputs = run(feeds)
            finally:
                completion.ended = time.perf_counter_ns()
                self._return_session(run, completion.ended - completion.started)
            return completion
        finished = threading.Event()
        job = self._put(feeds, deadline, lambda _: finished.set())
        remaining_s = (deadline - time.perf_counter_ns()) / 1e9
        if not finished.wait(max(0.0, remaining_s)) and self._withdraw(job):
            raise _to_late_error(job)
        finished.wait()  # it runs: its session ends it
        if job.error:
            raise job.error
        return job

    def post(self, feeds: Feeds, deadline: int, on_done: OnCompletion) -> None:
        """Queue a request; raises Overloaded or Unavailable at once, or calls ``on_done`` once."""
        self._put(feeds, deadline, on_done)

    def close(self) -> None:
        """Answer what waits with Unavailable, let what runs end, end the workers."""
        with self._change:
            self._closed = True
            abandoned = list(self._waiting)
            self._waiting.clear()
            self._change.notify_all()
        for job in abandoned:
            job.error = Unavailable("the model was unloaded")
            _notify(job)
        for worker in self._workers:
            if worker is not threading.current_thread():
                worker.join(JOIN_S)
        self._free.clear()  # the sessions' memory goes now, not when nobody knows this object

    def _take_session(self) -> Run | None:
        """A free session, unless a request waits for one or batches wait for more."""
        with self._change:
            if self._closed:
                raise Unavailable("the model was unloaded")
            if self._waiting or not self._free or self._policy.min_size > 1:
                return None
            return self._free.pop()

    def _return_session(self, run: Run, took_ns: int | None = None) -> None:
        with self._change:
            self._free.append(run)
            if took_ns is not None:
                self.inferences += 1
                self._estimate.add(took_ns)
            if self._waiting:
                self._change.notify()

    def _put(self, feeds: Feeds, deadline: int, on_done: OnCompletion) -> _Job:
        job = _Job(feeds, deadline, self._policy.max_size > 1, on_done)
        with self._change:
            if self._closed:
                raise Unavailable("the model was unloaded")
            if len(self._waiting) >= self._queue:
                raise Overloaded(
                    f"{self._queue} requests are waiting", hint="send fewer, or raise serve.queue"
                )
            at_once = self._sessions * self._policy.max_size
            if deadline < job.queued:
                raise _to_late_error(job)
            rounds = len(self._waiting) // at_once + (not self._free)
            self._estimate.check_deadline(job.queued, rounds, deadline)
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

    def _work(self) -> None:
        while True:
            batch = self._next()
            if batch is None:
                return
            run, jobs, late = batch
            for job in late:
                job.error = _to_late_error(job)
                _notify(job)
            if jobs:
                started = time.perf_counter_ns()
                try:
                    self._run(run, jobs)
                finally:
                    self._return_session(run, time.perf_counter_ns() - started)
                for job in jobs:
                    _notify(job)
            else:
                self._return_session(run)

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
                jobs = self._find_batch()
                rows = sum(job.rows for job in jobs)
                wait = batches.start_delay(rows, now - jobs[0].queued, self._policy)
                if wait:
                    self._change.wait(wait / 1e9)
                    continue
                for _ in jobs:
                    self._waiting.popleft()
                if self._waiting and len(self._free) > 1:
                    self._change.notify()  # another worker for another session
                late = [job for job in jobs if job.deadline < now]
                return self._free.pop(), [job for job in jobs if job.deadline >= now], late

    def _find_batch(self) -> list[_Job]:
        """The requests at the head of the queue that may run together."""
        head = self._waiting[0]
        if self._policy.max_size == 1:
            return [head]
        alike: list[_Job] = []
        for job in self._waiting:
            if job.shape != head.shape or len(alike) >= self._policy.max_size:
                break
            alike.append(job)
        return alike[: batches.count_in_batch([job.rows for job in alike], self._policy)]

    def _run(self, run: Run, jobs: list[_Job]) -> None:
        """Run the jobs together; if that fails, each alone, so that one cannot fail another."""
        if len(jobs) > 1:
            started = time.perf_counter_ns()
            try:
                parts = _split(run(_join(jobs)), jobs)
            except Exception:
                log.exception("event=batch_failed requests=%d", len(jobs))
            else:
                self.batches += 1
                ended = time.perf_counter_ns()
                for job, part in zip(jobs, parts, strict=True):
                    job.outputs, job.started, job.ended = part, started, ended
                return
        for job in jobs:
            job.started = time.perf_counter_ns()
            try:
                job.outputs = run(job.feeds)
            except EdgeError as error:
                job.error = error
            except Exception as error:  # the worker's root: whoever waits must hear of it
                log.exception("event=inference_failed")
                job.error = MeasureError(f"the runtime's adapter failed: {error!r}")
            job.ended = time.perf_counter_ns()


def _join(jobs: list[_Job]) -> Feeds:
    return {name: np.concatenate([job.feeds[name] for job in jobs]) for name in jobs[0].feeds}


def _split(outputs: Feeds, jobs: list[_Job]) -> list[Feeds]:
    """Each request's rows, in memory of their own; raises MeasureError if rows are missing."""
    rows = sum(job.rows for job in jobs)
    for name, array in outputs.items():
        if array.ndim == 0 or len(array) != rows:
            raise MeasureError(f"'{name}' has shape {array.shape} for a batch of {rows}")
    parts, start = [], 0
    for job in jobs:
        end = start + job.rows
        parts.append({name: array[start:end].copy() for name, array in outputs.items()})
        start = end
    return parts


def _to_late_error(job: _Job) -> DeadlineExceeded:
    ms = (job.deadline - job.queued) / 1e6
    return DeadlineExceeded(f"the deadline passed in the queue, {ms:.0f} ms after the request came")


def _notify(job: _Job) -> None:
    try:
        job.on_done(job)
    except Exception:  # a worker outlives whatever an application's callback raises
        log.exception("event=callback_failed")
