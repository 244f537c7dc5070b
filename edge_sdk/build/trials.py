"""Trials: every planned candidate converted, run and timed, each profile on its own runtimes.

    run(request, materials, plans, workspace, clock) -> Trials

Profiles that ask for the same file on the same runtime share its conversion and its measurement.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from converters import registry as converters
from converters.spec import Ceiling
from edge_core.errors import EdgeError, InputError, MeasureError, StorageError
from edge_core.profile import Profile
from edge_core.runtimes.xnnpack import Delegation
from edge_sdk.build import batching, convert, io_layout, measure, metrics, planner, runtime_env
from edge_sdk.build.measure import Subject, Timing
from edge_sdk.build.request import BuildRequest, Materials
from edge_sdk.build.runtime_env import RuntimeEnv
from edge_sdk.build.stages import Artifact, Measurement, Plan, Quantity
from edge_sdk.build.workspace import Workspace

K = TypeVar("K")
T = TypeVar("T")
Envs = dict[str, RuntimeEnv | EdgeError]  # by runtime name
Artifacts = dict[str, Artifact | EdgeError]  # by candidate
Key = str  # what a subject is; see _key
FATAL = (StorageError,)  # these end a build; other errors end a candidate


class Clock:
    """Wall time by stage; nested stages count for the inner one only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to ``name``."""
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent - self._inner.pop()
            self._inner[-1] += spent


class ProfileTrials(msgspec.Struct, frozen=True):
    """What became of one profile's candidates."""

    envs: Envs
    artifacts: Artifacts
    measurements: tuple[Measurement, ...]


def run(
    request: BuildRequest,
    materials: Materials,
    plans: Mapping[str, Plan],
    workspace: Workspace,
    clock: Clock,
) -> dict[str, ProfileTrials]:
    """By profile. A candidate's error is its result; raises StorageError, and InputError for an
    original that does not run."""
    with clock.stage("set up runtimes"):
        envs = {p.name: _envs(p, plans[p.name], workspace) for p in request.profiles}
    artifacts = _convert_all(request, materials, plans, workspace, clock)
    measured = _measure_all(request, materials, artifacts, envs, workspace, clock)
    return {
        p.name: ProfileTrials(envs[p.name], artifacts[p.name], measured[p.name])
        for p in request.profiles
    }


def _envs(profile: Profile, chosen: Plan, workspace: Workspace) -> Envs:
    """The runtimes that the profile's candidates need, by name."""
    found: Envs = {}
    for runtime in dict.fromkeys(planner.planned(c, profile) for c in chosen.chosen):
        try:
            found[runtime.name] = runtime_env.provide(
                runtime.name, runtime.version, workspace.cache, offline=workspace.offline
            )
        except MeasureError as e:
            found[runtime.name] = e
    return found


def _convert_all(
    request: BuildRequest,
    materials: Materials,
    plans: Mapping[str, Plan],
    workspace: Workspace,
    clock: Clock,
) -> dict[str, Artifacts]:
    """By profile and candidate. Profiles that ask for the same file share its conversion."""
    wanted: dict[tuple[str, str], tuple[str, Ceiling, str, str]] = {}
    for p in request.profiles:
        for candidate in plans[p.name].chosen:
            runtime = planner.planned(candidate, p)
            ceiling, arch = planner.ceiling(runtime), p.platform.arch
            wanted[p.name, candidate] = candidate, ceiling, arch, runtime.version

    def work(key: tuple[str, Ceiling, str, str]) -> Artifact:
        candidate, ceiling, arch, version = key
        return convert.convert(
            workspace, materials.prepared, candidate, ceiling=ceiling, arch=arch,
            runtime_version=version, layout=request.layout, batch=request.batch,
            feeds=materials.calibration,
        )  # fmt: skip

    with clock.stage("convert"):
        jobs = {key: (lambda k=key: work(k)) for key in dict.fromkeys(wanted.values())}
        done = _side_by_side(jobs, workspace, "convert", lambda key: key[0])
    found: dict[str, Artifacts] = {p.name: {} for p in request.profiles}
    for (profile, candidate), key in wanted.items():
        found[profile][candidate] = done[key]
    return found


class _Results(msgspec.Struct, frozen=True):
    """What the subjects of all profiles did, by their keys."""

    original: Path
    answers: dict[Key, Path | EdgeError]
    timings: dict[Key, Timing | EdgeError]
    delegations: dict[Key, Delegation | None]


def _measure_all(
    request: BuildRequest,
    materials: Materials,
    artifacts: Mapping[str, Artifacts],
    envs: Mapping[str, Envs],
    workspace: Workspace,
    clock: Clock,
) -> dict[str, tuple[Measurement, ...]]:
    subjects: dict[Key, Subject] = {}
    for profile in request.profiles:
        for candidate, artifact in artifacts[profile.name].items():
            env = envs[profile.name][planner.planned(candidate, profile).name]
            if isinstance(artifact, Artifact) and isinstance(env, RuntimeEnv):
                subjects[_key(artifact, env)] = measure.subject(artifact, env, materials.model)
    with clock.stage("measure"):
        results = _results(materials, subjects, workspace)
    with clock.stage("judge"):
        return {
            p.name: tuple(
                _measurement(materials, p, c, artifacts[p.name], envs[p.name], results)
                for c in artifacts[p.name]
            )
            for p in request.profiles
        }


def _key(artifact: Artifact, env: RuntimeEnv) -> Key:
    return f"{artifact.candidate} {artifact.sha256} {artifact.options} {env.name} {env.version}"


def _results(
    materials: Materials, subjects: Mapping[Key, Subject], workspace: Workspace
) -> _Results:
    first = measure.original(materials.prepared.original, materials.model)
    original = "original"
    jobs = {
        key: (lambda s=s: measure.answers(workspace, s, materials.feeds, materials.host))
        for key, s in {original: first, **subjects}.items()
    }
    answers = _side_by_side(jobs, workspace, "evaluate", lambda key: key.split(" ")[0])
    reference = answers.pop(original)
    if isinstance(reference, EdgeError):
        raise InputError(f"{first.path.name} does not run: {reference.what}", hint=reference.hint)
    answers |= _unproven(materials, subjects, answers, reference, workspace)
    ran = {k: s for k, s in subjects.items() if isinstance(answers[k], Path)}
    cores = min(workspace.jobs, materials.host.cpu.cores)
    timings: dict[Key, Timing | EdgeError] = {}
    for batch in measure.batches(ran, materials.host):
        timings |= measure.timings(workspace, batch, materials.feeds, materials.host, cores)
    delegations = {
        k: measure.delegation(workspace, s, materials.host)
        for k, s in ran.items()
        if isinstance(timings[k], Timing)
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
        key: (lambda s=s: batching.prove(
            workspace, s, materials.feeds, reference, materials.model.outputs, materials.rows,
            materials.host,
        ))
        for key, s in subjects.items()
        if s.fixed and isinstance(answers[key], Path)
    }  # fmt: skip
    if not jobs:
        return {}
    proven = _side_by_side(jobs, workspace, "batch", lambda key: key.split(" ")[0])
    return {key: result for key, result in proven.items() if isinstance(result, EdgeError)}


def _measurement(
    materials: Materials,
    profile: Profile,
    candidate: str,
    artifacts: Artifacts,
    envs: Envs,
    results: _Results,
) -> Measurement:
    """One candidate for one profile; what went wrong on the way is its error."""
    artifact = artifacts[candidate]
    if isinstance(artifact, EdgeError):
        return Measurement(candidate=candidate, error=_said(artifact))
    env = envs[planner.planned(candidate, profile).name]
    if isinstance(env, EdgeError):
        return Measurement(candidate=candidate, error=_said(env))
    key = _key(artifact, env)
    outputs, timing = results.answers[key], results.timings.get(key)
    if isinstance(outputs, EdgeError):
        return Measurement(candidate=candidate, error=_said(outputs))
    if not isinstance(timing, Timing):
        return Measurement(candidate=candidate, error=_said(timing) if timing else "not timed")
    try:
        accuracy = _accuracy(materials, artifact, results.original, outputs, env)
    except MeasureError as e:
        return Measurement(candidate=candidate, error=_said(e))
    spec = converters.get(candidate).SPEC
    float32 = artifacts.get(f"{spec.target}-fp32") or artifacts.get(f"{spec.target}-given")
    base = results.timings.get(_key(float32, env)) if isinstance(float32, Artifact) else None
    return measure.measurement(
        artifact, spec, accuracy, timing, base if isinstance(base, Timing) else None,
        env, materials.host, profile, results.delegations.get(key),
    )  # fmt: skip


def _said(e: EdgeError) -> str:
    return f"{e.what}; {e.hint}" if e.hint else e.what


def _accuracy(
    materials: Materials, artifact: Artifact, original: Path, outputs: Path, env: RuntimeEnv
) -> dict[str, Quantity]:
    model = materials.model.outputs
    return metrics.compare(
        io_layout.answered(original, model, model),
        io_layout.answered(outputs, model, artifact.outputs),
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
                except EdgeError as e:
                    results[key] = e
                workspace.progress(stage, title(key), len(results), len(jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            workspace.stop()
            raise
    return results
