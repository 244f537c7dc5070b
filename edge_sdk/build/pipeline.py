"""A build, end to end: one model and some profiles in, packages and reports out.

    read -> plan -> convert -> measure -> judge -> package

Each stage is a module of that name; this one only carries values from one to the next, side by
side where they do not disturb each other, and keeps the time of each.
"""

from __future__ import annotations

from collections.abc import Mapping

from edge_core.errors import InputError
from edge_core.package.format import PackageRef
from edge_sdk.build import fallbacks, judge, materials, packaging, planner, trials
from edge_sdk.build.clock import Clock
from edge_sdk.build.materials import Materials
from edge_sdk.build.packaging import BuildResult
from edge_sdk.build.request import BuildRequest
from edge_sdk.build.stages import Plan, Verdict
from edge_sdk.build.trials import ProfileTrials
from edge_sdk.build.workspace import Workspace


def build(request: BuildRequest, workspace: Workspace) -> tuple[BuildResult, ...]:
    """Build one package a profile, or one for all; what nothing fits has a report and no package.

    Raises EdgeError for what concerns the whole build: unreadable input, a full disk.
    """
    clock = Clock()
    try:
        return _build(request, workspace, clock)
    except BaseException:
        workspace.stop()  # also on Ctrl-C: no child outlives the build
        raise


def _build(request: BuildRequest, workspace: Workspace, clock: Clock) -> tuple[BuildResult, ...]:
    packaging.check_writable(request.out)
    workspace.sweep()
    shared = materials.gather(request, workspace, clock)
    with clock.stage("plan"):
        plans = {
            profile.name: planner.plan(
                shared.model, profile, samples=shared.calibration is not None,
                only=request.only, also=request.also,
            )
            for profile in request.profiles
        }  # fmt: skip
    tried = trials.run(request, shared, fallbacks.drop_fallbacks(plans, request), workspace, clock)
    verdicts = _judge_all(request, shared, tried, clock)
    needed = fallbacks.select_fallbacks(plans, verdicts, request)
    if any(plan.chosen for plan in needed.values()):
        more = trials.run(request, shared, needed, workspace, clock)
        tried = {name: fallbacks.join_trials(tried[name], more[name]) for name in tried}
        verdicts = _judge_all(request, shared, tried, clock)
    plans = fallbacks.explain_unneeded(plans, tried)
    with clock.stage("package and report"):
        return _package_all(request, shared, plans, tried, verdicts, workspace, clock)


def _package_all(
    request: BuildRequest,
    shared: Materials,
    plans: Mapping[str, Plan],
    tried: Mapping[str, ProfileTrials],
    verdicts: Mapping[str, Verdict],
    workspace: Workspace,
    clock: Clock,
) -> tuple[BuildResult, ...]:
    parts = {
        profile.name: packaging.make_part(
            request, shared, profile, tried[profile.name], verdicts[profile.name], workspace
        )
        for profile in request.profiles
    }

    def write_reports(refs: Mapping[str, PackageRef]) -> tuple[BuildResult, ...]:
        return tuple(
            packaging.write_report(
                request, shared, profile, plans[profile.name], tried[profile.name],
                judge.explain_refusal(verdicts[profile.name], plans[profile.name]),
                refs.get(profile.name), clock.read(),
            )
            for profile in request.profiles
        )  # fmt: skip

    try:
        refs = packaging.write_packages(
            request, shared, {name: part for name, part in parts.items() if part}
        )
    except InputError:  # profiles that cannot share a package: what was measured is not lost
        write_reports({})
        raise
    return write_reports(refs)


def _judge_all(
    request: BuildRequest, shared: Materials, tried: Mapping[str, ProfileTrials], clock: Clock
) -> dict[str, Verdict]:
    with clock.stage("judge"):
        return {
            profile.name: judge.judge(
                profile, [trial.measurement for trial in tried[profile.name]],
                metric=shared.metric, objective=request.objective,
            )
            for profile in request.profiles
        }  # fmt: skip
