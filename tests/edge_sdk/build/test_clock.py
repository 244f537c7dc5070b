"""Stage times: each moment counts once, for the innermost stage."""

import time

from edge_sdk.build.clock import Clock


def test_an_open_stage_is_in_what_is_read_and_counts_once():
    clock = Clock()
    start = time.perf_counter()
    with clock.stage("outer"):
        time.sleep(0.02)
        with clock.stage("inner"):
            time.sleep(0.02)
            open_stages = clock.read()
        assert set(clock.seconds) == {"inner"}
    whole = time.perf_counter() - start
    assert min(open_stages.values()) > 0.019
    assert set(open_stages) == {"outer", "inner"}
    assert sum(open_stages.values()) <= whole
    assert clock.read() == clock.seconds
    assert sum(clock.seconds.values()) <= whole
