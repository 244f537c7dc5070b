"""A build, end to end: one model and some profiles in, one package a profile out.

    read -> plan -> convert -> measure -> judge -> package

Each stage is a module of that name; this one only carries values from one to the next, side by
side where they do not disturb each other, and keeps the time of each.
"""

from __future__ import annotations

from collections.abc import Mapping

from edge_sdk.build import fallbacks, judge, materials, packaging, planner, trials
from edge_sdk.build.clock import Clock
from edge_sdk.build.materials import Materials
from edge_sdk.build.packaging import Built
from edge_sdk.build.request import BuildRequest
from edge_sdk.build.stages import Verdict
from edge_sdk.build.trials import ProfileTrials
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
    packaging.check_writable(request.out)
    workspace.sweep()
    shared = materials.gather(request, workspace, clock)
    with clock.stage("plan"):
        plans = {
            p.name: planner.plan(
                shared.model, p, samples=shared.calibration is not None,
                only=request.only, also=request.also,
            )
            for p in request.profiles
        }  # fmt: skip
    tried = trials.run(request, shared, fallbacks.without(plans, request), workspace, clock)
    verdicts = _judge_all(request, shared, tried, clock)
    needed = fallbacks.needed(plans, verdicts, request)
    if any(plan.chosen for plan in needed.values()):
        more = trials.run(request, shared, needed, workspace, clock)
        tried = {name: fallbacks.join(tried[name], more[name]) for name in tried}
        verdicts = _judge_all(request, shared, tried, clock)
    plans = fallbacks.explain(plans, tried)
    built = []
    for profile in request.profiles:
        name = profile.name
        with clock.stage("package and report"):
            built.append(
                packaging.package_for(
                    request, shared, profile, plans[name], tried[name],
                    judge.explain_refusal(verdicts[name], plans[name]), workspace, clock.seconds,
                )
            )  # fmt: skip
    return tuple(built)


def _judge_all(
    request: BuildRequest, shared: Materials, tried: Mapping[str, ProfileTrials], clock: Clock
) -> dict[str, Verdict]:
    with clock.stage("judge"):
        return {
            p.name: judge.judge(
                p, [t.measurement for t in tried[p.name]],
                metric=shared.metric, objective=request.objective,
            )
            for p in request.profiles
        }  # fmt: skip
