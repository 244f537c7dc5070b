"""The way of every request: admit -> look up -> infer -> answer -> count.

    infer(...)     all of it on the caller's thread
    submit(...)    admitted here; what may take long happens on other threads

Both admit a request in one place and end it in one place, so that each is counted once and leaves
its model once, whatever happens in between.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

from agent.serving.backend import Completion, Inputs
from agent.serving.caching import Caches
from agent.serving.counters import Counters
from agent.serving.model_table import ModelTable
from agent.serving.nan_check import NanChecker
from agent.serving.prepare_pool import PreparePool
from agent.serving.requests import Answer, InferenceRequest, Options
from edge_core.errors import EdgeError, MeasureError

log = logging.getLogger(__name__)
OnAnswer = Callable[[Answer | EdgeError], None]


class RequestFlow:
    """Requests of all models."""

    def __init__(
        self, table: ModelTable, caches: Caches, counters: Counters, *, prepare_threads: int
    ) -> None:
        self._table, self._caches, self._counters = table, caches, counters
        self._nan_checker = NanChecker()
        self._prepare_pool = PreparePool(prepare_threads)

    def infer(self, model: str, inputs: Inputs, options: Options) -> Answer:
        """Answer one request on this thread; raises EdgeErrors."""
        request = self._admit(model, inputs, options)
        try:
            answer = request.look_up()
            if answer is None:
                backend = request.serving.backend
                answer = request.complete(backend.call(request.feeds, request.deadline))
        except BaseException as error:
            self._end(request, error)
            raise
        self._end(request, answer)
        return answer

    def submit(
        self, model: str, inputs: Inputs, options: Options, on_answer: OnAnswer, *, copy: bool
    ) -> None:
        """Answer one request elsewhere; raises at once what refuses it."""
        request = self._admit(model, inputs, options)
        try:
            if copy:
                request.copy_inputs()
            if request.is_slow:
                work = partial(self._look_up_and_post, request, on_answer)
                self._prepare_pool.submit(request.deadline, work)
            else:
                request.look_up()
                self._post(request, on_answer)
        except BaseException as error:
            self._end(request, error)
            raise

    def close(self) -> None:
        """End the threads; call it when no request is in flight any more."""
        self._prepare_pool.close()
        self._nan_checker.close()

    def _admit(self, model: str, inputs: Inputs, options: Options) -> InferenceRequest:
        start = time.perf_counter_ns()
        try:
            serving = self._table.enter(model)
        except EdgeError as error:
            self._counters.count_error(model, time.perf_counter_ns() - start, error)
            raise
        return InferenceRequest(self._caches, self._nan_checker, serving, inputs, options, start)

    def _end(self, request: InferenceRequest, outcome: Answer | BaseException) -> None:
        serving = request.serving
        serving.backend.admission.leave()
        took_ns = time.perf_counter_ns() - request.start
        if isinstance(outcome, Answer):
            self._counters.count_answer(serving.slot.name, took_ns, cached=bool(outcome.cached))
        else:
            self._counters.count_error(serving.slot.name, took_ns, outcome)

    def _look_up_and_post(
        self, request: InferenceRequest, on_answer: OnAnswer, late: EdgeError | None
    ) -> None:
        outcome: Answer | EdgeError | None
        try:
            outcome = late or request.look_up()
            if outcome is None:
                self._post(request, on_answer)
        except EdgeError as error:
            outcome = error
        except Exception as error:  # a thread's root: the caller must hear of it
            log.exception("event=request_failed model=%s", request.serving.slot.name)
            outcome = _to_failure(error)
        if outcome is not None:
            self._end(request, outcome)
            on_answer(outcome)

    def _post(self, request: InferenceRequest, on_answer: OnAnswer) -> None:
        def complete(completion: Completion) -> None:
            outcome: Answer | EdgeError
            try:
                outcome = request.complete(completion)
            except EdgeError as error:
                outcome = error
            except Exception as error:  # a worker's root: the caller must hear of it
                log.exception("event=request_failed model=%s", request.serving.slot.name)
                outcome = _to_failure(error)
            self._end(request, outcome)
            on_answer(outcome)

        request.serving.backend.post(request.feeds, request.deadline, complete)


def _to_failure(error: Exception) -> MeasureError:
    return MeasureError(f"the request failed inside the agent: {error!r}")
