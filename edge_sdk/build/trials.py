"""Trials: every planned candidate converted, run and timed, each profile on its own runtimes.

    run(request, materials, plans, workspace, clock) -> Trials

Profiles that ask for the same file on the same runtime share its conversion and its measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

import msgspec

from converters.spec import Ceiling
from edge_core.errors import EdgeError, InputError, MeasureError, StorageError
from edge_core.profile import Profile
from edge_core.runtimes.xnnpack import Delegation
from edge_sdk.build import batching, convert, io_layout, measure, metrics, runtime_env
from edge_sdk.build.clock import Clock
from edge_sdk.build.materials import Materials
from edge_sdk.build.measure import Subject, Timing
from edge_sdk.build.request import BuildRequest
from edge_sdk.build.runtime_env import RuntimeEnv
from edge_sdk.build.stages import Artifact, Candidate, Measurement, Plan, Quantity
from edge_sdk.build.workspace import Workspace

K = TypeVar("K")
T = TypeVar("T")
Envs = dict[tuple[str, str], RuntimeEnv | EdgeError]  # by name and version of the runtime
# What decides about a converted file; see _conversion_key.
ConversionKey = tuple[str, Ceiling, str, str]
Artifacts = dict[ConversionKey, Artifact | EdgeError]
Key = str  # what a subject is; see _key
FATAL = (StorageError,)  # these end a build; other errors end a candidate


class CandidateTrial(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one candidate on one profile's runtime."""

    candidate: Candidate
    measurement: Measurement  # its ``error`` says why one of the others is missing
    artifact: Artifact | None
    env: RuntimeEnv | None
    original: Path  # outputs of the original on every sample (see edge_core.runtimes.sample_store)
    outputs: Path | None  # and those of the converted file


ProfileTrials = tuple[CandidateTrial, ...]  # of one profile, in the plan's order


class _Attempt(msgspec.Struct, frozen=True):
    """A candidate with its file and its runtime, or what went wrong."""

    candidate: Candidate
    artifact: Artifact | EdgeError
    env: RuntimeEnv | EdgeError


def run(
    request: BuildRequest,
    materials: Materials,
    plans: Mapping[str, Plan],
    workspace: Workspace,
    clock: Clock,
) -> dict[str, ProfileTrials]:
    """By profile. A candidate's error is its result; raises StorageError, and InputError for an
    original that does not run."""
    candidates = [
        candidate for profile in request.profiles for candidate in plans[profile.name].chosen
    ]
    with clock.stage("set up runtimes"):
        envs = _set_up(candidates, workspace)
    with clock.stage("convert"):
        artifacts = _convert_all(request, materials, candidates, workspace)
    attempts = {
        profile.name: [
            _Attempt(
                one, artifacts[_conversion_key(one)], envs[one.runtime.name, one.runtime.version]
            )
            for one in plans[profile.name].chosen
        ]
        for profile in request.profiles
    }
    with clock.stage("measure"):
        results = _results(
            materials, [attempt for row in attempts.values() for attempt in row], workspace
        )
    with clock.stage("judge"):
        return {
            profile.name: tuple(
                _trial(materials, profile, attempt, attempts[profile.name], results)
                for attempt in attempts[profile.name]
            )
            for profile in request.profiles
        }


def _set_up(candidates: Sequence[Candidate], workspace: Workspace) -> Envs:
    """The runtimes that the candidates need."""
    envs: Envs = {}
    for name, version in dict.fromkeys(
        (one.runtime.name, one.runtime.version) for one in candidates
    ):
        try:
            envs[name, version] = runtime_env.provide(
                name, version, workspace.cache, offline=workspace.offline
            )
        except MeasureError as error:
            envs[name, version] = error
    return envs


def _conversion_key(candidate: Candidate) -> ConversionKey:
    """Equal for candidates of several profiles that are the same file."""
    return candidate.name, candidate.ceiling, candidate.arch, candidate.runtime.version


def _convert_all(
    request: BuildRequest,
    materials: Materials,
    candidates: Sequence[Candidate],
    workspace: Workspace,
) -> Artifacts:
    def convert_one(candidate: Candidate) -> Artifact:
        return convert.convert(
            workspace, materials.prepared, candidate, layout=request.layout, batch=request.batch,
            feeds=materials.calibration,
        )  # fmt: skip

    jobs = {_conversion_key(one): (lambda one=one: convert_one(one)) for one in candidates}
    return _side_by_side(jobs, workspace, "convert", lambda key: key[0])


class _Results(msgspec.Struct, frozen=True):
    """What the subjects of all profiles did, by their keys."""

    original: Path
    answers: dict[Key, Path | EdgeError]
    timings: dict[Key, Timing | EdgeError]
    delegations: dict[Key, Delegation | None]


def _key(artifact: Artifact, env: RuntimeEnv) -> Key:
    return f"{artifact.candidate} {artifact.sha256} {artifact.options} {env.name} {env.version}"


def _results(materials: Materials, attempts: Sequence[_Attempt], workspace: Workspace) -> _Results:
    subjects: dict[Key, Subject] = {}
    for attempt in attempts:
        if isinstance(attempt.artifact, Artifact) and isinstance(attempt.env, RuntimeEnv):
            subjects[_key(attempt.artifact, attempt.env)] = measure.make_subject(
                attempt.artifact, attempt.env, materials.model
            )
    first = measure.original(materials.prepared, materials.model)
    original = "original"
    jobs = {
        key: (
            lambda subject=subject: measure.answers(
                workspace, subject, materials.feeds, materials.host
            )
        )
        for key, subject in {original: first, **subjects}.items()
    }
    answers = _side_by_side(jobs, workspace, "evaluate", lambda key: key.split(" ")[0])
    reference = answers.pop(original)
    if isinstance(reference, EdgeError):
        raise InputError(f"{first.path.name} does not run: {reference.what}", hint=reference.hint)
    answers |= _unproven(materials, subjects, answers, reference, workspace)
    ran = {key: subject for key, subject in subjects.items() if isinstance(answers[key], Path)}
    cores = min(workspace.jobs, materials.host.cpu.cores)
    timings: dict[Key, Timing | EdgeError] = {}
    for batch in measure.batches(ran, materials.host):
        timings |= measure.timings(workspace, batch, materials.feeds, materials.host, cores)
    delegations = {
        key: measure.delegation(workspace, subject, materials.host)
        for key, subject in ran.items()
        if isinstance(timings[key], Timing)
    }
    return _Results(reference, answers, timings, delegations)


def _unproven(
    materials: Materials,
    subjects: Mapping[Key, Subject],
    answers: Mapping[Key, Path | EdgeError],
    reference: Path,
    workspace: Workspace,
) -> dict[Key, EdgeError]:
    """What is wrong with files that should take any number of rows."""
    jobs = {
        key: (lambda subject=subject: batching.prove(
            workspace, subject, materials.feeds, reference, materials.model.outputs, materials.rows,
            materials.host,
        ))
        for key, subject in subjects.items()
        if subject.fixed and isinstance(answers[key], Path)
    }  # fmt: skip
    if not jobs:
        return {}
    proven = _side_by_side(jobs, workspace, "batch", lambda key: key.split(" ")[0])
    return {key: result for key, result in proven.items() if isinstance(result, EdgeError)}


def _trial(
    materials: Materials,
    profile: Profile,
    attempt: _Attempt,
    others: Sequence[_Attempt],
    results: _Results,
) -> CandidateTrial:
    """One candidate for one profile; what went wrong on the way is its measurement's error."""
    artifact, env = attempt.artifact, attempt.env
    outputs: Path | EdgeError | None = None
    if isinstance(artifact, Artifact) and isinstance(env, RuntimeEnv):
        outputs = results.answers[_key(artifact, env)]
    return CandidateTrial(
        candidate=attempt.candidate,
        measurement=_measurement(materials, profile, attempt, others, results),
        artifact=artifact if isinstance(artifact, Artifact) else None,
        env=env if isinstance(env, RuntimeEnv) else None,
        original=results.original,
        outputs=outputs if isinstance(outputs, Path) else None,
    )


def _measurement(
    materials: Materials,
    profile: Profile,
    attempt: _Attempt,
    others: Sequence[_Attempt],
    results: _Results,
) -> Measurement:
    artifact, env = attempt.artifact, attempt.env
    if isinstance(artifact, EdgeError):
        return _report_failure(attempt, artifact)
    if isinstance(env, EdgeError):
        return _report_failure(attempt, env)
    key = _key(artifact, env)
    outputs, timing = results.answers[key], results.timings.get(key)
    if isinstance(outputs, EdgeError):
        return _report_failure(attempt, outputs)
    if not isinstance(timing, Timing):
        return _report_failure(attempt, timing or MeasureError("not timed"))
    try:
        accuracy = _accuracy(materials, artifact, results.original, outputs, env)
    except MeasureError as error:
        return _report_failure(attempt, error)
    return measure.measurement(
        artifact, attempt.candidate.spec, accuracy, timing,
        _reference_timing(attempt, others, env, results), env, materials.host, profile,
        results.delegations.get(key),
    )  # fmt: skip


def _report_failure(attempt: _Attempt, error: EdgeError) -> Measurement:
    return Measurement(candidate=attempt.candidate.name, error=_text(error))


def _reference_timing(
    attempt: _Attempt, others: Sequence[_Attempt], env: RuntimeEnv, results: _Results
) -> Timing | None:
    """What the float form of the same target took, if it was timed."""
    target = attempt.candidate.spec.target
    for other in others:
        spec, artifact = other.candidate.spec, other.artifact
        if spec.is_reference and spec.target == target and isinstance(artifact, Artifact):
            timing = results.timings.get(_key(artifact, env))
            return timing if isinstance(timing, Timing) else None
    return None


def _text(error: EdgeError) -> str:
    return f"{error.what}; {error.hint}" if error.hint else error.what


def _accuracy(
    materials: Materials, artifact: Artifact, original: Path, outputs: Path, env: RuntimeEnv
) -> dict[str, Quantity]:
    model = materials.model.outputs
    return metrics.compare(
        io_layout.stack_answers(original, model, model),
        io_layout.stack_answers(outputs, model, artifact.outputs),
        materials.evaluation.labels,
        materials.metric, env.where, materials.user_metric,
    )  # fmt: skip


def _side_by_side(
    jobs: Mapping[K, Callable[[], T]],
    workspace: Workspace,
    stage: str,
    title: Callable[[K], str],
) -> dict[K, T | EdgeError]:
    """Run jobs up to the cores; an EdgeError is that job's result, unless it is fatal."""
    results: dict[K, T | EdgeError] = {}
    workspace.progress(stage, "", 0, len(jobs))
    with ThreadPoolExecutor(max_workers=workspace.jobs) as pool:
        futures = {pool.submit(job): key for key, job in jobs.items()}
        try:
            for future in as_completed(futures):
                key = futures[future]
                try:
                    results[key] = future.result()
                except FATAL:
                    raise
                except EdgeError as error:
                    results[key] = error
                workspace.progress(stage, title(key), len(results), len(jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            workspace.stop()
            raise
    return results
