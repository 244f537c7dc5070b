"""A build, end to end: one model and some profiles in, one package a profile out.

    read -> plan -> convert -> measure -> judge -> package

Each stage is a module of that name; this one only carries values from one to the next, side by
side where they do not disturb each other, and keeps the time of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from converters.onnx.model_file import load_model
from edge_core.errors import GateFailed, InputError
from edge_core.machine import detect
from edge_core.runtimes import registry as runtimes
from edge_core.runtimes import sample_store
from edge_core.tensors import TensorSpec
from edge_sdk.build import (
    batching,
    convert,
    fallbacks,
    judge,
    metrics,
    packaging,
    planner,
    reader,
    samples,
    trials,
)
from edge_sdk.build.packaging import Built
from edge_sdk.build.request import BuildRequest, Materials
from edge_sdk.build.samples import Samples
from edge_sdk.build.stages import Model, Verdict
from edge_sdk.build.trials import Clock, ProfileTrials
from edge_sdk.build.workspace import Workspace


def build(request: BuildRequest, workspace: Workspace) -> tuple[Built, ...]:
    """Build one package a profile; a profile that nothing fits has a report and no package.

    Raises EdgeError for what concerns the whole build: unreadable input, a full disk.
    """
    clock = Clock()
    try:
        return _build(request, workspace, clock)
    except BaseException:
        workspace.stop()  # also on Ctrl-C: no child outlives the build
        raise


def _build(request: BuildRequest, workspace: Workspace, clock: Clock) -> tuple[Built, ...]:
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
    tried = trials.run(request, materials, fallbacks.without(plans, request), workspace, clock)
    verdicts = _judge_all(request, materials, tried, clock)
    needed = fallbacks.needed(plans, verdicts, request)
    if any(p.chosen for p in needed.values()):
        again = trials.run(request, materials, needed, workspace, clock)
        tried = {name: fallbacks.joined(tried[name], again[name]) for name in tried}
        verdicts = _judge_all(request, materials, tried, clock)
    plans = fallbacks.told(plans, tried)
    built = []
    for profile in request.profiles:
        verdict = verdicts[profile.name]
        if not verdict.judged:  # no budget stands in the way, the device does
            why = plans[profile.name].decisions[0].reason
            verdict = msgspec.structs.replace(verdict, relaxation=f"no candidate: {why}")
        with clock.stage("package and report"):
            built.append(
                packaging.package_for(
                    request, materials, profile, plans[profile.name], tried[profile.name],
                    verdict, workspace, clock.seconds,
                )
            )  # fmt: skip
    return tuple(built)


def _judge_all(
    request: BuildRequest, materials: Materials, tried: Mapping[str, ProfileTrials], clock: Clock
) -> dict[str, Verdict]:
    with clock.stage("judge"):
        return {
            p.name: judge.judge(
                p, tried[p.name].measurements,
                metric=materials.metric, objective=request.objective,
            )
            for p in request.profiles
        }  # fmt: skip


def gather(request: BuildRequest, workspace: Workspace, clock: Clock) -> Materials:
    """Read the model and the samples; everything a user can get wrong fails here."""
    with clock.stage("read"):
        if not request.model.is_file():
            raise InputError(f"no model at {request.model}")
        reader.check_suffix(request.model)
        if request.model.suffix == ".onnx":
            load_model(request.model)  # a damaged file fails before anything is started
        sha256 = convert.digest(request.model)
    with clock.stage("convert"):
        prepared = convert.prepare(workspace, request.model, sha256, request.shapes, request.batch)
    with clock.stage("read"):
        model = reader.with_costs(request.model, sha256, prepared.path)
        evaluation, calibration = _samples(request, model)
        metric = _metric(request.metric, evaluation, model)
        _check_names(request.class_names, model)
        user = samples.import_callable(metric) if metric not in metrics.BUILT_IN else None
        host = detect.detect(runtimes=runtimes.installed_runtimes())
        return Materials(
            model=model,
            prepared=prepared,
            evaluation=evaluation,
            feeds=_on_disk(evaluation, workspace),
            calibration=_on_disk(calibration, workspace) if calibration else None,
            metric=metric,
            user_metric=user,
            host=host,
            rows=batching.pick(evaluation) if request.batch == "dynamic" else (),
        )


def _samples(request: BuildRequest, model: Model) -> tuple[Samples, Samples | None]:
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
        sample_store.write(folder, s.feeds)
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
    compared = metrics.compared_output(model.outputs, _kind)
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


def _kind(output: TensorSpec) -> str:
    """Of what metrics see: reals for integers that stand for them."""
    return "float32" if output.scale else output.dtype


def _check_names(names: tuple[str, ...], model: Model) -> None:
    """Class names must be as many as the scores, or every label after a gap is wrong."""
    compared = metrics.compared_output(model.outputs, _kind)
    classes = compared.shape[-1] if compared.shape else 1
    if names and isinstance(classes, int) and len(names) != classes:
        raise InputError(f"{len(names)} class names for the {classes} scores of '{compared.name}'")


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
