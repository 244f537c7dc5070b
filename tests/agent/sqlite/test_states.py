"""The state table: complete, every failure can be recovered from, closed stays closed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.sqlite.states import (
    ACCEPTING,
    DUE,
    FAILING,
    READABLE,
    TABLE,
    Effect,
    Event,
    ImpossibleEvent,
    State,
    step,
)

# Any thread may cause these at any time; the others come from the writer's thread alone.
FROM_ANYWHERE = (Event.READ_FAILED, Event.DAMAGE_FOUND, Event.CLOSE_ASKED)
POSSIBLE = {state: [event for at, event in TABLE if at is state] for state in State}


@st.composite
def lives(draw: st.DrawFn) -> list[tuple[State, Event]]:
    """The events of a database's life, each possible in its state."""
    state, life = State.OPENING, []
    for _ in range(draw(st.integers(1, 30))):
        event = draw(st.sampled_from(POSSIBLE[state]))
        life.append((state, event))
        state = step(state, event).state
    return life


@given(lives())
def test_a_failure_is_reported_once_and_its_recovery_too(life):
    failing = False
    for state, event in life:
        effects = step(state, event).effects
        after = step(state, event).state
        if after in FAILING and state not in FAILING:
            assert Effect.REPORT_FAILURE in effects
            failing = True
        if failing and after in (State.SETTLING, State.READY):
            assert Effect.REPORT_RECOVERY in effects
            failing = False


@given(lives())
def test_nothing_waits_where_nothing_is_written(life):
    for state, event in life:
        after, effects = step(state, event)
        if after in FAILING and state not in FAILING:
            assert {Effect.DISCONNECT, Effect.DROP_QUEUE} <= set(effects)
        if after is State.CLOSED and state is not State.CLOSED:
            assert Effect.CLOSE_FILE in effects or Effect.DROP_QUEUE in effects


@given(lives())
def test_a_file_is_replaced_because_damage_was_found_and_for_nothing_else(life):
    for state, event in life:
        after, effects = step(state, event)
        if Effect.REPLACE_FILE in effects:
            assert event is Event.DAMAGE_FOUND
            assert effects.index(Effect.DISCONNECT) < effects.index(Effect.REPLACE_FILE)
        if after is State.DAMAGED and state is not State.DAMAGED:
            assert Effect.REPLACE_FILE in effects


@given(lives())
def test_after_close_was_asked_nothing_is_accepted_and_no_state_but_closed_follows(life):
    asked = False
    for state, event in life:
        asked = asked or event is Event.CLOSE_ASKED
        if asked:
            assert step(state, event).state in (State.CLOSING, State.CLOSED)
    assert not {State.CLOSING, State.CLOSED} & (ACCEPTING | READABLE | FAILING)


@pytest.mark.parametrize("state", State)
def test_what_another_thread_finds_is_possible_in_every_state(state):
    expected = set(FROM_ANYWHERE) - ({Event.READ_FAILED} if state is State.OPENING else set())
    assert expected <= set(POSSIBLE[state])


@pytest.mark.parametrize("state", [s for s in State if s is not State.CLOSED])
def test_every_state_leads_to_ready_and_to_closed(state):
    assert (State.READY in reachable(state)) == (state is not State.CLOSING)
    assert State.CLOSED in reachable(state)


def test_closed_is_the_end():
    assert reachable(State.CLOSED) == {State.CLOSED}
    assert all(not step(State.CLOSED, event).effects for event in POSSIBLE[State.CLOSED])


@pytest.mark.parametrize(
    ("state", "event"), [(s, e) for s in State for e in Event if (s, e) not in TABLE]
)
def test_an_event_that_cannot_happen_is_refused(state, event):
    with pytest.raises(ImpossibleEvent, match=event.name):
        step(state, event)


def test_the_groups_of_states_say_what_a_database_does():
    assert {State.READY, State.SETTLING} <= ACCEPTING & READABLE
    assert State.UNWRITABLE in READABLE - ACCEPTING
    assert State.DAMAGED in ACCEPTING - READABLE  # a queued row goes into the new file
    assert not FAILING & (ACCEPTING | DUE)


def reachable(state: State) -> set[State]:
    """All states that may follow, this one included."""
    states, new = set(), {state}
    while new:
        states |= new
        new = {then.state for (at, _), then in TABLE.items() if at in states} - states
    return states
