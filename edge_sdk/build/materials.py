"""What the profiles of one build share: the model, read and prepared, the samples, the metric.

    gather(request, workspace, clock) -> Materials

Everything that a user can get wrong about them fails here, before anything is converted.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from converters import registry as converters
from edge_core.errors import InputError
from edge_core.machine import detect
from edge_core.profile import Profile
from edge_core.runtimes import registry as runtimes
from edge_core.runtimes import sample_store
from edge_core.tensors import TensorSpec
from edge_sdk.build import batching, convert, metrics, reader, samples
from edge_sdk.build.clock import Clock
from edge_sdk.build.convert import Prepared
from edge_sdk.build.request import BuildRequest
from edge_sdk.build.samples import Samples
from edge_sdk.build.stages import Model
from edge_sdk.build.workspace import Workspace


class Materials(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the profiles of one build share."""

    model: Model
    prepared: Prepared
    evaluation: Samples
    feeds: Path
    calibration: Path | None
    metric: str
    user_metric: metrics.UserMetric | None
    host: Profile
    rows: tuple[int, ...] = ()  # samples that a dynamic batch is tried on


def gather(request: BuildRequest, workspace: Workspace, clock: Clock) -> Materials:
    """Read the model and the samples, prepare the model, check that the metric fits both."""
    with clock.stage("read"):
        if not request.model.is_file():
            raise InputError(f"no model at {request.model}")
        source = converters.find_format(request.model)
        sha256 = source.digest(request.model)  # a damaged file fails before anything is started
    with clock.stage("convert"):
        prepared = convert.prepare(
            workspace, request.model, source, sha256, request.shapes, request.batch
        )
    with clock.stage("read"):
        description = prepared.format.describe(prepared.path, {})
        model = reader.make_model(request.model, source, sha256, description)
        evaluation, calibration = _samples(request, model)
        metric = _metric(request.metric, evaluation, model)
        _check_names(request.class_names, model)
        user = samples.import_callable(metric) if metric not in metrics.BUILT_IN else None
        host = detect.detect(runtimes=runtimes.installed_runtimes())
        return Materials(
            model=model,
            prepared=prepared,
            evaluation=evaluation,
            feeds=_write_feeds(evaluation, workspace),
            calibration=_write_feeds(calibration, workspace) if calibration else None,
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


def _write_feeds(samples: Samples, workspace: Workspace) -> Path:
    folder = workspace.cache / "feeds" / samples.digest
    if not folder.is_dir():
        sample_store.write(folder, samples.feeds)
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
    compared = metrics.pick_scored_output(model.outputs, _kind)
    if wanted in ("top1", "top5", "agreement") and all(size == 1 for size in compared.shape):
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
    compared = metrics.pick_scored_output(model.outputs, _kind)
    classes = compared.shape[-1] if compared.shape else 1
    if names and isinstance(classes, int) and len(names) != classes:
        raise InputError(f"{len(names)} class names for the {classes} scores of '{compared.name}'")
