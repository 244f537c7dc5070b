"""The public Python interface: what the `edge` command does, as functions.

    import edge_sdk
    built = edge_sdk.build(
        "model.onnx", ["raspberry-pi-4b"], evaluation="photos/", preprocess="imagenet"
    )
    answer = edge_sdk.run(built[0].package, "cat.jpg")

Every function raises edge_core.errors.EdgeError, and only that, for what a caller can act on.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import device_profiles
from converters.spec import Batch, Layout
from edge_core.package.preprocess import ImageRecipe
from edge_core.package.run import Answer, run_package
from edge_core.package.verify import Verified, verify_package
from edge_core.profile import Profile
from edge_sdk.build import inspection, pipeline, planner, samples
from edge_sdk.build.inspection import Inspection
from edge_sdk.build.judge import Objective
from edge_sdk.build.packaging import Built
from edge_sdk.build.request import BuildRequest
from edge_sdk.build.stages import Plan, Shapes
from edge_sdk.build.workspace import Progress, Workspace, silent

AnyPath = str | PathLike[str]


def load_profile(name: AnyPath, **budgets: float) -> Profile:
    """A profile by name or .toml file, with budgets set: ``load_profile("x", package_mb=5)``."""
    overrides = tuple(f"budgets.{key}={value}" for key, value in budgets.items())
    return device_profiles.load(str(name), overrides)


def inspect(model: AnyPath, *, shapes: Shapes | None = None) -> Inspection:
    """What a model takes, gives and is made of."""
    return inspection.inspect(Path(model), dict(shapes or {}), [])


def plan(model: AnyPath, profile: Profile | str, *, shapes: Shapes | None = None) -> Plan:
    """Every candidate for one profile, in or out, with its reason."""
    found = inspection.inspect(Path(model), dict(shapes or {}), [])
    return planner.plan(found.model, _profile(profile), samples=True)


def build(
    model: AnyPath,
    profiles: Sequence[Profile | str],
    *,
    evaluation: str = "",
    calibration: str = "",
    preprocess: ImageRecipe | str | None = None,
    labels: AnyPath | None = None,
    out: AnyPath = "dist",
    metric: str = "auto",
    layout: Layout = "NHWC",
    batch: Batch = "fixed",
    objective: Objective = "latency",
    shapes: Shapes | None = None,
    only: Sequence[str] = (),
    also: Sequence[str] = (),
    name: str = "",
    version: str = "",
    class_names: Sequence[str] = (),
    cache: AnyPath | None = None,
    jobs: int | None = None,
    offline: bool = False,
    progress: Progress = silent,
) -> tuple[Built, ...]:
    """Build one package a profile; where nothing fits, ``Built.package`` is None.

    ``evaluation`` and ``calibration`` are a folder of images, a .npz, a .npy or 'module:function'.
    ``also`` measures candidates that the plan refuses. See edge_sdk.build.judge for what wins.
    """
    request = BuildRequest(
        model=Path(model),
        profiles=tuple(_profile(p) for p in profiles),
        out=Path(out),
        evaluation=evaluation,
        calibration=calibration,
        labels=Path(labels) if labels else None,
        preprocess=samples.recipe(preprocess) if isinstance(preprocess, str) else preprocess,
        metric=metric,
        layout=layout,
        batch=batch,
        shapes=dict(shapes or {}),
        objective=objective,
        only=tuple(only),
        also=tuple(also),
        name=name,
        version=version,
        class_names=tuple(class_names),
    )
    work = Workspace(Path(cache) if cache else None, jobs=jobs, offline=offline, progress=progress)
    return pipeline.build(request, work)


def verify(package: AnyPath) -> Verified:
    """Check every digest and replay the golden vectors; raises GateFailed if they differ."""
    return verify_package(Path(package))


def run(package: AnyPath, source: AnyPath, *, top: int = 5) -> Answer:
    """Run a package on one image, .npz or .npy."""
    return run_package(Path(package), Path(source), top=top)


def _profile(given: Profile | str) -> Profile:
    return given if isinstance(given, Profile) else device_profiles.load(given)
