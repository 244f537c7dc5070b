"""The public Python interface: what the `edge` command does, as functions.

    import edge_sdk
    built = edge_sdk.build(
        "model.onnx",
        ["raspberry-pi-4b"],
        edge_sdk.BuildOptions(evaluation="photos/", preprocess="imagenet"),
    )
    answer = edge_sdk.run(built[0].package, "cat.jpg")

Every function raises edge_core.errors.EdgeError, and only that, for what a caller can act on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import device_profiles
from converters.spec import Shapes
from edge_core.facts import DeviceFacts
from edge_core.machine import detect
from edge_core.package.run import Answer, run_package
from edge_core.package.verify import Verification, verify_package
from edge_core.profile import Profile
from edge_core.runtimes import registry
from edge_sdk.build import inspection, pipeline, planner
from edge_sdk.build.inspection import Inspection
from edge_sdk.build.packaging import BuildResult
from edge_sdk.build.request import BuildOptions, StrPath, make_request
from edge_sdk.build.stages import Plan
from edge_sdk.build.workspace import Progress, Workspace, silent


def load_profile(name: StrPath, **budgets: float) -> Profile:
    """A profile by name or .toml file, with budgets set: ``load_profile("x", package_mb=5)``."""
    overrides = tuple(f"budgets.{key}={value}" for key, value in budgets.items())
    return device_profiles.load(str(name), overrides)


def inspect(model: StrPath, *, shapes: Shapes | None = None) -> Inspection:
    """What a model takes, gives and is made of."""
    return inspection.inspect(Path(model), dict(shapes or {}), [])


def plan(model: StrPath, profile: Profile | str, *, shapes: Shapes | None = None) -> Plan:
    """Every candidate for one profile, in or out, with its reason."""
    facts = inspection.inspect(Path(model), dict(shapes or {}), []).model
    loaded = load_profile(profile) if isinstance(profile, str) else profile
    return planner.plan(facts, loaded, samples=True)


def build(
    model: StrPath,
    profiles: Sequence[Profile | str],
    options: BuildOptions | None = None,
    *,
    progress: Progress = silent,
) -> tuple[BuildResult, ...]:
    """Build one package for each profile; where nothing fits, ``BuildResult.package`` is None.

    ``options`` are those of `edge build`: where samples are, what is measured, what wins.
    ``progress`` is called with a stage, what it works on, and how much of how much is done.
    """
    loaded = [load_profile(one) if isinstance(one, str) else one for one in profiles]
    request = make_request(model, loaded, options or BuildOptions())
    workspace = Workspace(
        request.cache, jobs=request.jobs or None, offline=request.offline, progress=progress
    )
    return pipeline.build(request, workspace)


def verify(package: StrPath, *, variant: str = "") -> Verification:
    """Check every digest and replay the golden vectors; raises GateFailed if they differ.

    ``variant`` names the one to replay; without it, it is the first that matches this machine.
    """
    return verify_package(Path(package), _detect_facts(), variant=variant)


def run(package: StrPath, source: StrPath, *, variant: str = "", top: int = 5) -> Answer:
    """Run a package on one image, .npz or .npy; ``variant`` as in verify()."""
    return run_package(Path(package), Path(source), _detect_facts(), variant=variant, top=top)


def _detect_facts() -> DeviceFacts:
    return detect.detect_facts(registry.installed_runtimes())
