"""Is the agent well enough to ping the watchdog? Decided from values: no threads, no clock.

    step(seen, activities, now, hang_s) -> (seen, why not)

A runtime that hangs in native code cannot be interrupted: only a new process helps. All sessions of
a model busy for ``hang_s`` without finishing one inference is taken for that.
"""

from __future__ import annotations

from collections.abc import Mapping

from agent.serving.backend import Activity

Seen = Mapping[str, tuple[int, float]]  # model -> (inferences when it last made progress, when)


def step(
    seen: Seen, activities: Mapping[str, Activity], now: float, hang_s: float
) -> tuple[Seen, str]:
    """What was seen, and why the agent is not well; "" if it is. ``now`` in s, monotonic."""
    after: dict[str, tuple[int, float]] = {}
    why = ""
    for name, activity in activities.items():
        before = seen.get(name)
        is_stuck = before is not None and before[0] == activity.inferences and not activity.idle
        after[name] = before if before and is_stuck else (activity.inferences, now)
        stuck_s = now - after[name][1]
        if not activity.alive:
            why = why or f"a thread of '{name}' has ended"
        elif stuck_s > hang_s:
            why = why or f"no inference of '{name}' has finished for {stuck_s:.0f} s"
    return after, why
