"""A build, end to end: one model and some profiles in, one package a profile out.

    read -> plan -> convert -> measure -> judge -> package

Each stage is a module of that name; this one only carries values from one to the next, side by
side where they do not disturb each other, and keeps the time of each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

import converters
from converters import onnx_file
from converters.base import Ceiling
from edge_core import detect
from edge_core import feeds as feeds_file
from edge_core.errors import EdgeError, GateFailed, InputError, MeasureError, StorageError
from edge_core.profile import Profile
from edge_sdk import (
    border,
    convert,
    judge,
    measure,
    metrics,
    packaging,
    planner,
    reader,
    runtime_env,
    samples,
)
from edge_sdk.measure import Subject, Timing
from edge_sdk.packaging import Built
from edge_sdk.request import Materials, Request
from edge_sdk.runtime_env import RuntimeEnv
from edge_sdk.samples import Samples
from edge_sdk.stages import Artifact, Measurement, Model, Plan, Value
from edge_sdk.workspace import Workspace

K = TypeVar("K")
T = TypeVar("T")
Envs = dict[str, RuntimeEnv | EdgeError]  # by runtime name
ORIGINAL = "original"  # among the names of what is evaluated
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


def build(request: Request, workspace: Workspace) -> tuple[Built, ...]:
    """Build one package a profile; a profile that nothing fits has a report and no package.

    Raises EdgeError for what concerns the whole build: unreadable input, a full disk.
    """
    clock = Clock()
    try:
        return _build(request, workspace, clock)
    except BaseException:
        workspace.stop()  # also on Ctrl-C: no child outlives the build
        raise


def _build(request: Request, workspace: Workspace, clock: Clock) -> tuple[Built, ...]:
    if not request.profiles:
        raise InputError("no profile given", hint="edge profiles list")
    packaging.check_writable(request.out)
    workspace.sweep()
    materials = gather(request, workspace, clock)
    with clock.stage("plan"):
        plans = {
            p.name: planner.plan(
                materials.model, p, samples=materials.calibration is not None,
                only=request.only, also=request.also,
            )
            for p in request.profiles
        }  # fmt: skip
    with clock.stage("set up runtimes"):
        envs = {p.name: _envs(p, plans[p.name], workspace) for p in request.profiles}
    artifacts = _convert_all(request, materials, plans, workspace, clock)
    measured = _measure_all(request, materials, artifacts, envs, workspace, clock)
    built = []
    for profile in request.profiles:
        with clock.stage("judge"):
            verdict = judge.judge(
                profile, measured[profile.name],
                metric=materials.metric, objective=request.objective,
            )  # fmt: skip
            if not verdict.judged:  # no budget stands in the way, the device does
                why = plans[profile.name].decisions[0].reason
                verdict = msgspec.structs.replace(verdict, relaxation=f"no candidate: {why}")
        with clock.stage("package and report"):
            built.append(
                packaging.package_for(
                    request, materials, profile, plans[profile.name], envs[profile.name],
                    {n: a for n, a in artifacts[profile.name].items() if isinstance(a, Artifact)},
                    measured[profile.name], verdict, workspace, clock.seconds,
                )
            )  # fmt: skip
    return tuple(built)


def gather(request: Request, workspace: Workspace, clock: Clock) -> Materials:
    """Read the model and the samples; everything a user can get wrong fails here."""
    with clock.stage("read"):
        if not request.model.is_file():
            raise InputError(f"no model at {request.model}")
        reader.check_suffix(request.model)
        if request.model.suffix == ".onnx":
            onnx_file.load(request.model)  # a damaged file fails before anything is started
        sha256 = convert.digest(request.model)
    with clock.stage("convert"):
        prepared = convert.prepare(workspace, request.model, sha256, request.shapes)
    with clock.stage("read"):
        model = reader.with_costs(request.model, sha256, prepared.path)
        evaluation, calibration = _samples(request, model)
        metric = _metric(request.metric, evaluation, model)
        _check_names(request.class_names, model)
        user = samples.import_callable(metric) if metric not in metrics.BUILT_IN else None
        host = detect.detect()
        return Materials(
            model=model,
            prepared=prepared,
            evaluation=evaluation,
            feeds=_on_disk(evaluation, workspace),
            calibration=_on_disk(calibration, workspace) if calibration else None,
            metric=metric,
            user_metric=user,
            host=host,
        )


def _samples(request: Request, model: Model) -> tuple[Samples, Samples | None]:
    def load(source: str, labels: Path | None) -> Samples:
        return samples.load(source, model.inputs, recipe=request.preprocess, labels=labels)

    if not request.evaluation and not request.calibration:
        raise InputError(
            "no samples: accuracy, latency and golden vectors need real inputs",
            hint="--eval (and --calibration for static INT8): a folder of images, .npz, .npy or "
            "module:function",
        )
    evaluation = load(request.evaluation or request.calibration, request.labels)
    calibration = load(request.calibration, None) if request.calibration else None
    return evaluation, calibration


def _on_disk(s: Samples, workspace: Workspace) -> Path:
    folder = workspace.cache / "feeds" / s.digest
    if not folder.is_dir():
        feeds_file.write(folder, s.feeds)
    return folder


def _metric(wanted: str, evaluation: Samples, model: Model) -> str:
    if wanted == "auto":
        wanted = "top1" if evaluation.labels else "agreement"
    if wanted not in metrics.BUILT_IN and ":" not in wanted:
        raise InputError(
            f"no metric '{wanted}'", hint=f"{', '.join(metrics.BUILT_IN)}, or module:function"
        )
    if wanted in ("top1", "top5") and not evaluation.labels:
        raise InputError(f"metric {wanted} needs labels, and {evaluation.source} has none")
    compared = metrics.compared(model.outputs, lambda t: t.dtype)
    if wanted in ("top1", "top5", "agreement") and all(d == 1 for d in compared.shape):
        raise InputError(
            f"metric {wanted} looks for the highest of several scores, and '{compared.name}' is "
            "one number",
            hint="--metric cosine, or module:function",
        )
    if wanted in ("top1", "top5"):
        largest, classes = max(evaluation.labels or (0,)), compared.shape[-1]
        if isinstance(classes, int) and largest >= classes:
            raise InputError(
                f"{evaluation.source}: label {largest} is beyond the {classes} scores of "
                f"'{compared.name}'",
                hint="labels count from 0",
            )
    return wanted


def _check_names(names: tuple[str, ...], model: Model) -> None:
    """Class names must be as many as the scores, or every label after a gap is wrong."""
    compared = metrics.compared(model.outputs, lambda t: t.dtype)
    classes = compared.shape[-1] if compared.shape else 1
    if names and isinstance(classes, int) and len(names) != classes:
        raise InputError(f"{len(names)} class names for the {classes} scores of '{compared.name}'")


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
    request: Request,
    materials: Materials,
    plans: Mapping[str, Plan],
    workspace: Workspace,
    clock: Clock,
) -> dict[str, dict[str, Artifact | EdgeError]]:
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
            runtime_version=version, layout=request.layout, feeds=materials.calibration,
        )  # fmt: skip

    with clock.stage("convert"):
        jobs = {key: (lambda k=key: work(k)) for key in dict.fromkeys(wanted.values())}
        done = _side_by_side(jobs, workspace, "convert", lambda key: key[0])
    found: dict[str, dict[str, Artifact | EdgeError]] = {p.name: {} for p in request.profiles}
    for (profile, candidate), key in wanted.items():
        found[profile][candidate] = done[key]
    return found


def _measure_all(
    request: Request,
    materials: Materials,
    artifacts: Mapping[str, Mapping[str, Artifact | EdgeError]],
    envs: Mapping[str, Envs],
    workspace: Workspace,
    clock: Clock,
) -> dict[str, tuple[Measurement, ...]]:
    subjects: dict[str, Subject] = {}
    for profile in request.profiles:
        for candidate, artifact in artifacts[profile.name].items():
            env = envs[profile.name][planner.planned(candidate, profile).name]
            if isinstance(artifact, Artifact) and isinstance(env, RuntimeEnv):
                subjects[_name(artifact, env)] = measure.subject(artifact, env, materials.model)
    with clock.stage("measure"):
        first = measure.original(materials.prepared.original, materials.model)
        jobs = {
            name: (lambda s=s: measure.answers(workspace, s, materials.feeds, materials.host))
            for name, s in {ORIGINAL: first, **subjects}.items()
        }
        answered = _side_by_side(jobs, workspace, "evaluate", lambda name: name.split(" ")[0])
        original = answered[ORIGINAL]
        if isinstance(original, EdgeError):
            raise InputError(f"{first.path.name} does not run: {original.what}", hint=original.hint)
        ran = {n: s for n, s in subjects.items() if isinstance(answered[n], Path)}
        timed: dict[str, Timing | EdgeError] = {}
        cores = min(workspace.jobs, materials.host.cpu.cores)
        for batch in measure.batches(ran, materials.host):
            timed |= measure.timings(workspace, batch, materials.feeds, materials.host, cores)
    with clock.stage("judge"):
        return {
            p.name: tuple(
                _measurement(
                    materials,
                    a,
                    c,
                    envs[p.name][planner.planned(c, p).name],
                    answered,
                    timed,
                    original,
                    p,
                    artifacts,
                )
                for c, a in artifacts[p.name].items()
            )
            for p in request.profiles
        }


def _name(artifact: Artifact, env: RuntimeEnv) -> str:
    return f"{artifact.candidate} {artifact.sha256} {artifact.options} {env.name} {env.version}"


def _measurement(
    materials: Materials,
    artifact: Artifact | EdgeError,
    candidate: str,
    env: RuntimeEnv | EdgeError,
    answered: Mapping[str, Path | EdgeError],
    timed: Mapping[str, Timing | EdgeError],
    original: Path,
    profile: Profile,
    artifacts: Mapping[str, Mapping[str, Artifact | EdgeError]],
) -> Measurement:
    """One candidate for one profile; what went wrong on the way is its error."""
    if isinstance(artifact, EdgeError):
        return Measurement(candidate=candidate, error=artifact.what)
    if isinstance(env, EdgeError):
        return Measurement(candidate=candidate, error=env.what)
    name = _name(artifact, env)
    outputs, timing = answered[name], timed.get(name)
    if isinstance(outputs, EdgeError):
        return Measurement(candidate=candidate, error=outputs.what)
    if not isinstance(timing, Timing):
        return Measurement(candidate=candidate, error=timing.what if timing else "not timed")
    try:
        accuracy = _accuracy(materials, artifact, original, outputs, env)
    except MeasureError as e:
        return Measurement(candidate=candidate, error=e.what)
    spec = converters.get(candidate).SPEC
    own = artifacts[profile.name]
    float32 = own.get(f"{spec.target}-fp32") or own.get(f"{spec.target}-given")
    base = timed.get(_name(float32, env)) if isinstance(float32, Artifact) else None
    return measure.measurement(
        artifact, spec, accuracy, timing,
        base if isinstance(base, Timing) else None, env, materials.host, profile,
    )  # fmt: skip


def _accuracy(
    materials: Materials, artifact: Artifact, original: Path, outputs: Path, env: RuntimeEnv
) -> dict[str, Value]:
    own = border.answered(outputs, materials.model.outputs, artifact.outputs)
    return metrics.compare(
        measure.stacked(original), own, materials.evaluation.labels,
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


def check(built: Iterable[Built], *, strict: bool = False) -> None:
    """Raise GateFailed if a profile has no package (or, if ``strict``, a doubtful one)."""
    built = tuple(built)
    for b in built:
        if b.package is None:
            raise GateFailed(f"{b.profile}: nothing fits", hint=b.verdict.relaxation)
    for b in built:
        if strict and b.verdict.outcome != "pass":
            judged = next(j for j in b.verdict.judged if j.candidate == b.verdict.winner)
            why = "; ".join(f"{g.gate}: {g.why}" for g in judged.gates if g.outcome != "pass")
            raise GateFailed(f"{b.profile}: {b.verdict.winner} is inconclusive: {why}")
