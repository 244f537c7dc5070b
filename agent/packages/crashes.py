"""A model that brings the agent down again and again is rolled back.

    step(history, crash, limits, now) -> (history, guilty?)     the decision: no files, no clock
    auto_rollback(slots, inside, limits, now)                   the shell, once at every start

A crash is a process that died without being asked to while models were inside a runtime
(agent.packages.journal): SIGSEGV, an out-of-memory kill, a watchdog's SIGABRT; not a reboot, not a
stop.
When several were inside, the one that was there most often and with the fewest others is guilty,
and of equals the one that was installed last: what changed last is the likeliest cause.
"""

from __future__ import annotations

import msgspec

from agent import config
from agent.packages.journal import InFlight
from agent.packages.slots import Slots
from edge_core.errors import EdgeError
from edge_core.files import write_atomic

FILE = "crashes.json"
MAX_KEPT = 1000  # crashes
MAX_BYTES = 16 * 1024 * 1024


class Suspect(msgspec.Struct, frozen=True):
    """A package that was inside and is still the one that is served."""

    name: str
    digest: str
    installed_at: float


class Crash(msgspec.Struct, frozen=True):
    """One death of the agent."""

    at: float  # seconds since 1970
    suspects: tuple[Suspect, ...]


class History(msgspec.Struct, frozen=True):
    """Crashes that may still count."""

    crashes: tuple[Crash, ...] = ()


class AutoRollback(msgspec.Struct, frozen=True):
    """What was done about a guilty model."""

    name: str
    digest: str
    why: str
    serves: str  # the digest that is served instead; empty: none, the model is disabled


def step(
    history: History, crash: Crash, limits: config.Crash, now: float
) -> tuple[History, Suspect | None]:
    """The history with ``crash``, and the suspect that has now crashed too often.

    A clock that was set back makes no crash younger than ``now``.
    """
    crashes = (
        msgspec.structs.replace(past, at=min(past.at, now)) for past in (*history.crashes, crash)
    )
    recent = tuple(past for past in crashes if past.suspects and now - past.at <= limits.window_s)[
        -MAX_KEPT:
    ]

    def blame(suspect: Suspect) -> tuple[float, float]:
        return sum(
            1 / len(past.suspects) for past in recent if suspect in past.suspects
        ), suspect.installed_at

    def count(suspect: Suspect) -> int:
        return sum(suspect in past.suspects for past in recent)

    often = [suspect for suspect in crash.suspects if count(suspect) >= limits.max_crashes]
    if not often:
        return History(recent), None
    guilty = max(often, key=blame)
    return History(tuple(past for past in recent if guilty not in past.suspects)), guilty


def auto_rollback(
    slots: Slots, inside: tuple[InFlight, ...], limits: config.Crash, now: float
) -> AutoRollback | None:
    """Count a crash of the last process and act on it; raises StorageError.

    The history is stored last: a death in between loses this crash and repeats nothing.
    """
    suspects = tuple(suspect for inference in inside if (suspect := _suspect(slots, inference)))
    if not suspects:
        return None
    history, guilty = step(_load(slots), Crash(now, suspects), limits, now)
    rollback = _act(slots, guilty, limits) if guilty else None
    write_atomic(slots.root / FILE, msgspec.json.encode(history), mode=0o600)
    return rollback


def _suspect(slots: Slots, inside: InFlight) -> Suspect | None:
    try:
        active = slots.active(inside.name)
    except EdgeError:  # removed, or its file is damaged: nothing to roll back
        return None
    current = active.current
    if current is None or current.digest != inside.digest or active.disabled:
        return None
    return Suspect(current.name, current.digest, current.installed_at)


def _act(slots: Slots, guilty: Suspect, limits: config.Crash) -> AutoRollback:
    why = (
        f"the agent died {limits.max_crashes} times within {limits.window_s:g} s "
        "while this model was loading or computing"
    )
    if slots.active(guilty.name).previous is None:
        slots.disable(guilty.name, why)
        return AutoRollback(guilty.name, guilty.digest, why, "")
    current = slots.rollback(guilty.name, refuse=True).current
    assert current is not None
    return AutoRollback(guilty.name, guilty.digest, why, current.digest)


def _load(slots: Slots) -> History:
    """What was stored; a history that is damaged or gone is empty."""
    try:
        with (slots.root / FILE).open("rb") as file:
            return msgspec.json.decode(file.read(MAX_BYTES), type=History)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return History()
