"""What a database may do now, and what happens next: (state, event) -> (state, effects). Pure.

    OPENING --opened--> SETTLING --settled--> READY         open: reads and takes writes
                            ^                   |
                            |              disk failed ---> UNWRITABLE    still reads
         opened again ------+------------- read failed ---> UNREADABLE    does neither
                            |
         replaced --- DAMAGED <--- damage found, in any of these

    CLOSING, from any of these: commits what is queued; --drained--> CLOSED

Events come from every thread, so some may arrive late: a reader's complaint after the file was
replaced or closed, an opening that ends after somebody asked to close. Such pairs are in the table
and change nothing. A pair that is not in it cannot happen; step() raises ImpossibleEvent.

Effects are requests: the writer's thread carries them out, in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from types import MappingProxyType
from typing import NamedTuple


class State(Enum):
    """Where a database is in its life."""

    OPENING = auto()  # not opened yet; writes wait in the queue
    SETTLING = auto()  # open; the check after a crash and the trimming are due
    READY = auto()
    UNWRITABLE = auto()  # the disk is full, read-only or failing; tried again now and then
    UNREADABLE = auto()  # cannot be opened or read; tried again now and then
    DAMAGED = auto()  # the writer's thread is about to replace the file
    CLOSING = auto()  # what is queued is committed, nothing new is taken
    CLOSED = auto()


class Event(Enum):
    """What happened to a database."""

    OPENED = auto()  # a connection was opened, and a commit on it succeeded
    SETTLED = auto()
    DISK_FAILED = auto()  # while opening, committing or replacing
    READ_FAILED = auto()
    DAMAGE_FOUND = auto()
    REPLACED = auto()  # a new file took the damaged one's place
    CLOSE_ASKED = auto()
    DRAINED = auto()  # the queue is empty, and closing


class Effect(Enum):
    """What the writer's thread must do."""

    DISCONNECT = auto()  # close the writing connection
    DROP_QUEUE = auto()  # refuse the rows that wait
    REPLACE_FILE = auto()  # by the damage policy, with an empty one
    REPORT_FAILURE = auto()
    REPORT_RECOVERY = auto()
    CLOSE_FILE = auto()  # all connections, readers too


class Transition(NamedTuple):
    """What an event does in a state."""

    state: State
    effects: tuple[Effect, ...] = ()


class ImpossibleEvent(Exception):
    """An event that cannot happen in a state: a bug in the database."""


READABLE = frozenset({State.SETTLING, State.READY, State.UNWRITABLE})
ACCEPTING = frozenset({State.OPENING, State.SETTLING, State.READY, State.DAMAGED})
FAILING = frozenset({State.UNWRITABLE, State.UNREADABLE})  # opened again after a while
DUE = frozenset({State.SETTLING, State.CLOSING})  # the writer has something to do at once

_FAIL = (Effect.REPORT_FAILURE, Effect.DISCONNECT, Effect.DROP_QUEUE)
_FAIL_AGAIN = (Effect.DISCONNECT, Effect.DROP_QUEUE)
_REPLACE = (Effect.DISCONNECT, Effect.REPLACE_FILE)


def _build_table() -> Mapping[tuple[State, Event], Transition]:
    s, e = State, Event
    changes = {
        s.OPENING: {
            e.OPENED: Transition(s.SETTLING),
            e.DISK_FAILED: Transition(s.UNREADABLE, _FAIL),
            e.DAMAGE_FOUND: Transition(s.DAMAGED, _REPLACE),
            e.CLOSE_ASKED: Transition(s.CLOSED, (Effect.DROP_QUEUE,)),
        },
        s.SETTLING: {
            e.OPENED: Transition(s.SETTLING),
            e.SETTLED: Transition(s.READY),
            e.DISK_FAILED: Transition(s.UNWRITABLE, _FAIL),
            e.READ_FAILED: Transition(s.UNREADABLE, _FAIL),
            e.DAMAGE_FOUND: Transition(s.DAMAGED, _REPLACE),
            e.CLOSE_ASKED: Transition(s.CLOSING),
        },
        s.READY: {
            e.OPENED: Transition(s.SETTLING),
            e.DISK_FAILED: Transition(s.UNWRITABLE, _FAIL),
            e.READ_FAILED: Transition(s.UNREADABLE, _FAIL),
            e.DAMAGE_FOUND: Transition(s.DAMAGED, _REPLACE),
            e.CLOSE_ASKED: Transition(s.CLOSING),
        },
        s.UNWRITABLE: {
            e.OPENED: Transition(s.SETTLING, (Effect.REPORT_RECOVERY,)),
            e.DISK_FAILED: Transition(s.UNWRITABLE, _FAIL_AGAIN),
            e.READ_FAILED: Transition(s.UNREADABLE, _FAIL),
            e.DAMAGE_FOUND: Transition(s.DAMAGED, _REPLACE),
            e.CLOSE_ASKED: Transition(s.CLOSING),
        },
        s.UNREADABLE: {
            e.OPENED: Transition(s.SETTLING, (Effect.REPORT_RECOVERY,)),
            e.SETTLED: Transition(s.UNREADABLE),  # a reader failed meanwhile
            e.DISK_FAILED: Transition(s.UNREADABLE, _FAIL_AGAIN),
            e.READ_FAILED: Transition(s.UNREADABLE),
            e.DAMAGE_FOUND: Transition(s.DAMAGED, _REPLACE),
            e.CLOSE_ASKED: Transition(s.CLOSING),
        },
        s.DAMAGED: {
            e.OPENED: Transition(s.DAMAGED),  # a reader found damage meanwhile
            e.SETTLED: Transition(s.DAMAGED),
            e.DISK_FAILED: Transition(s.UNREADABLE, _FAIL),
            e.READ_FAILED: Transition(s.DAMAGED),
            e.DAMAGE_FOUND: Transition(s.DAMAGED),
            e.REPLACED: Transition(s.SETTLING, (Effect.REPORT_RECOVERY,)),
            e.CLOSE_ASKED: Transition(s.CLOSING),
        },
        s.CLOSING: {
            e.OPENED: Transition(s.CLOSING),
            e.SETTLED: Transition(s.CLOSING),
            e.DISK_FAILED: Transition(s.CLOSING, _FAIL),
            e.READ_FAILED: Transition(s.CLOSING),
            e.DAMAGE_FOUND: Transition(s.CLOSING, _REPLACE),
            e.REPLACED: Transition(s.CLOSING),
            e.CLOSE_ASKED: Transition(s.CLOSING),
            e.DRAINED: Transition(s.CLOSED, (Effect.CLOSE_FILE,)),
        },
        s.CLOSED: {
            e.READ_FAILED: Transition(s.CLOSED),
            e.DAMAGE_FOUND: Transition(s.CLOSED),
            e.CLOSE_ASKED: Transition(s.CLOSED),
        },
    }
    return MappingProxyType(
        {(state, event): then for state, row in changes.items() for event, then in row.items()}
    )


TABLE = _build_table()


def step(state: State, event: Event) -> Transition:
    """The next state, and what must be done to get there; raises ImpossibleEvent."""
    try:
        return TABLE[state, event]
    except KeyError:
        raise ImpossibleEvent(f"{event.name} while {state.name}") from None
