"""May the watchdog hear that all is well? Decided from signs of life; no threads, no clock.

    step(seen, pulses, now, hang_s) -> (seen, why not)

A runtime that hangs in native code cannot be interrupted: only a new process helps. All sessions of
a model busy for ``hang_s`` without one inference coming to its end is taken for that.
"""

from __future__ import annotations

from collections.abc import Mapping

from agent.serving.loaded_model import Pulse

Seen = Mapping[str, tuple[int, float]]  # model -> inferences when it was last seen to get on, when


def step(seen: Seen, pulses: Mapping[str, Pulse], now: float, hang_s: float) -> tuple[Seen, str]:
    """What was seen, and why the agent is not well; "" if it is. ``now`` in s, monotonic."""
    after: dict[str, tuple[int, float]] = {}
    why = ""
    for name, pulse in pulses.items():
        before = seen.get(name)
        stands = before is not None and before[0] == pulse.inferences and not pulse.idle
        after[name] = before if before and stands else (pulse.inferences, now)
        stood = now - after[name][1]
        if not pulse.alive:
            why = why or f"a thread of '{name}' has ended"
        elif stood > hang_s:
            why = why or f"no inference of '{name}' has come to its end for {stood:.0f} s"
    return after, why
