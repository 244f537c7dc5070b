"""What the agent's benchmarks make of their measurements, and the clients that measure."""

from __future__ import annotations

import http.server
import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import agent_batching, agent_overhead, agent_packages, agent_pipeline, load
from benchmarks import agent_soak as soak
from benchmarks import serve_peers as peers
from benchmarks.load import Load
from edge_core.package import format as package
from edge_core.runtimes import onnxruntime as adapter


class Handler(http.server.BaseHTTPRequestHandler):
    """Echoes the body; every path but /echo is refused, /hang-up ends the connection as well."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, body, self.client_address))
        ok = self.path == "/echo"
        self.send_response(200 if ok else 429)
        self.send_header("Content-Length", str(len(body)))
        if self.path == "/hang-up":
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        listener.seen = []
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield listener
        listener.shutdown()
        thread.join()


def measure_load(server, path: str, body: bytes, clients: int = 3) -> Load:
    request = load.post(f"http://x{path}", body, {"X-Kind": "test"})
    return load.run(server.server_address, request, clients=clients, seconds=0.5)


def test_every_client_keeps_its_connection_and_sends_whole_bodies(server):
    body = bytes(range(256)) * 3000  # several segments
    measured = measure_load(server, "/echo", body)
    assert measured.failed == 0
    assert len(measured.ms) > 10
    assert all(0 < ms < 1000 for ms in measured.ms)
    assert {received for _, received, _ in server.seen} == {body}
    assert len({address for _, _, address in server.seen}) == 3
    assert len(measured.ms) <= len(server.seen)


def test_refusals_count_as_failed_and_not_as_answers(server):
    measured = measure_load(server, "/refused", b"x")
    assert measured.ms == ()
    assert measured.failed > 10
    assert measured.quantile(0.5) == math.inf


def test_a_client_whose_connection_is_closed_comes_back(server):
    measured = measure_load(server, "/hang-up", b"x", clients=1)
    assert measured.failed > 10
    assert len({address for _, _, address in server.seen}) > 10


def test_threads_are_clients_in_a_closed_loop():
    inside, most = [0], [0]
    lock = threading.Lock()

    def call() -> None:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.01)
        with lock:
            inside[0] -= 1

    measured = load.threads(call, clients=4, seconds=0.3)
    assert most[0] == 4
    assert 8 < len(measured.ms) <= 0.3 / 0.01 * 4 + 4
    assert measured.quantile(0.0) >= 10


def test_what_a_thread_raises_ends_the_load():
    def call() -> None:
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        load.threads(call, clients=2, seconds=0.1)


def test_rounds_are_pooled_over_their_requests():
    both = load.pool_loads([Load(8, 2.0, (1.0, 2.0, 3.0), 1), Load(8, 2.0, (9.0,), 0)])
    assert (both.per_s, both.quantile(0.5), both.failed) == (1.0, 2.5, 1)


def test_calls_take_turns_and_each_begins_as_often():
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    times = agent_overhead.in_turn(calls, rounds=3)
    turn = agent_overhead.TURN
    assert [len(ms) for ms in times.values()] == [3 * turn] * 3
    rounds = order[3 * 2 * turn :]  # after warming up
    assert rounds[:: 3 * turn] == ["a", "b", "c"]


def test_what_is_added_is_measured_by_the_rounds_that_resemble_most():
    turn = agent_overhead.TURN
    bare, agent = np.full((5, turn), 1.0), np.full((5, turn), 1.1)
    bare[2], agent[2] = 90.0, 99.0  # a busy round
    agent[4, 0] = 400.0  # a busy moment
    times = {"bare": bare.ravel().tolist(), "agent": agent.ravel().tolist()}
    assert agent_overhead.against(times, "agent", "bare") == pytest.approx((1.1, 0.1))


def make_figures(p50=5.0, p99=9.0, per_s=200.0, failed=0) -> dict[int, peers.Figures]:
    return {clients: peers.Figures(p50, p99, per_s, 1.0, failed) for clients in peers.CLIENTS}


def list_missed(verdicts: dict[str, bool | None]) -> list[str]:
    return [text for text, met in verdicts.items() if met is False]


def test_ours_is_compared_with_the_best_peer_in_each_figure():
    rows = {
        peers.OURS: make_figures(),
        "quick but slow at times": make_figures(p50=4.0, p99=20.0, per_s=150.0),
        "steady": make_figures(p50=6.0, p99=8.0, per_s=190.0),
    }
    verdicts = peers.verdicts("m", rows)
    assert len(verdicts) == 1 + 3 * len(peers.CLIENTS)
    assert list_missed(verdicts)[:2] == [
        "m, 1 clients: p50 5.00 ms (quick but slow at times: 4.00)",
        "m, 1 clients: p99 9.00 ms (steady: 8.00)",
    ]
    assert len(list_missed(verdicts)) == 2 * len(peers.CLIENTS)


def test_a_failed_request_of_ours_is_a_figure_missed():
    figures = {peers.OURS: make_figures(failed=1), "peer": make_figures(p50=6, p99=10, per_s=100)}
    assert list_missed(peers.verdicts("m", figures)) == ["m: 3 failed requests"]


def test_without_any_peer_the_comparison_stays_open():
    assert peers.verdicts("m", {peers.OURS: make_figures()}) == {"m: no peer ran": None}


def test_processor_time_is_that_of_a_whole_session():
    before = peers.cpu_s(os.getsid(0))
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    assert peers.cpu_s(os.getsid(0)) - before > 0.1
    assert peers.cpu_s(2**22 + 1) == 0.0


def samples(mb, *, seconds=1800, files=20, threads=12) -> list[soak.Sample]:
    return [soak.Sample(float(second), mb(second), files, threads) for second in range(seconds)]


def make_noise(seed: int, alike: float) -> np.ndarray:
    """Each value resembles the one before it."""
    rng = np.random.default_rng(seed)
    values = np.zeros(1800)
    for i in range(1, len(values)):
        values[i] = alike * values[i - 1] + rng.normal()
    return values


@pytest.mark.parametrize("alike", [0.0, 0.8])
def test_the_interval_holds_the_true_slope_about_19_times_in_20(alike):
    held = 0
    for seed in range(100):
        error = make_noise(seed, alike)
        slope = soak.line(
            samples(lambda second, error=error: 100 + 5 * second / 3600 + error[second])
        )
        held += slope.low <= 5 <= slope.high
    assert held >= 88


def list_problems(samples, ended=(), wanted=0, swaps=(90, 90)) -> list[str]:
    return list_missed(soak.verdicts(samples, ended, wanted, soak.Swaps(*swaps)))


def test_a_leak_is_reported_and_a_flat_line_is_not():
    error = make_noise(1, 0.8) * 0.05
    assert list_problems(samples(lambda second: 100 + error[second])) == []
    (slow,) = list_problems(samples(lambda second: 100 + 10 * second / 3600 + error[second]))
    assert slow.startswith("memory +")
    fast = list_problems(samples(lambda second: 100 + 60 * second / 3600 + error[second]))
    assert [text.split()[0] for text in fast] == ["memory", "resident"]


def test_growth_within_the_warm_up_does_not_count():
    assert list_problems(samples(lambda second: min(100 + second, 250.0))) == []


def test_lost_and_failed_requests_lost_swaps_and_open_files_are_reported():
    flat = samples(lambda second: 100.0)
    one = soak.Asked("x", 1.0)
    assert list_problems(flat, [one], 2) == ["1 of 2 requests answered, 0 failed"]
    failed = soak.Asked("x", 1.0, "429")
    assert list_problems(flat, [one, failed], 2) == ["2 of 2 requests answered, 1 failed"]
    assert list_problems(flat, swaps=(90, 89)) == ["90 swaps, 89 served"]
    more = [
        soak.Sample(sample.elapsed_s, sample.mb, 20 + int(sample.elapsed_s / 100), 12)
        for sample in flat
    ]
    assert [text.split(":")[0] for text in list_problems(more)] == ["open files"]


def test_speed_is_the_ratio_of_the_same_round():
    slow, fast = Load(1, 1.0, (1.0,) * 10, 0), Load(1, 1.0, (1.0,) * 40, 0)
    busy_slow, busy_fast = Load(1, 1.0, (1.0,) * 2, 0), Load(1, 1.0, (1.0,) * 8, 0)
    rounds = {
        agent_pipeline.SEQUENTIAL: [slow, busy_slow, slow],
        "the agent": [fast, busy_fast, slow],
    }
    assert agent_pipeline.speeds(rounds)["the agent"] == 4.0


def make_batching(*, pays: bool, speed: float, p99: float = 1.0, batches: int = 0):
    loads = {}
    for where in (agent_batching.THREADS, agent_batching.HTTP):
        for clients in agent_batching.CLIENTS:
            loads[where, False, clients] = [Load(clients, 1.0, (1.0,) * 100, 0)]
            loads[where, True, clients] = [Load(clients, 1.0, (p99,) * int(100 * speed), 0)]
    return agent_batching.Found(SimpleNamespace(pays=pays, why="measured"), loads, batches)


def test_batches_are_held_to_pay_and_to_stay_off():
    good = make_batching(pays=True, speed=1.5, batches=9)
    off = make_batching(pays=False, speed=1.0)
    assert list_missed(agent_batching.verdicts(good, off)) == []
    slower = agent_batching.verdicts(make_batching(pays=True, speed=0.8), off)
    assert len(list_missed(slower)) == 6  # 2 in process, 2 over HTTP, one client of each
    later = agent_batching.verdicts(make_batching(pays=True, speed=1.5, p99=2.0), off)
    assert len(list_missed(later)) == 2
    on = agent_batching.verdicts(good, make_batching(pays=True, speed=1.0, batches=3))
    assert len(list_missed(on)) == 2


def test_a_free_batch_gives_the_answers_of_its_rows(digits: Path, tmp_path: Path):
    free = agent_packages.free_batch(digits, tmp_path / "free.onnx")
    inputs = np.random.default_rng(0).normal(size=(5, 1, 28, 28)).astype(np.float32)
    one, many = (adapter.open(path, threads=1, options={}) for path in (digits, free))
    rows = [one.run({"input": row[None]})["logits"] for row in inputs]
    assert np.allclose(many.run({"input": inputs})["logits"], np.concatenate(rows), atol=1e-5)


def test_a_package_again_has_the_same_contents_and_another_digest(tmp_path: Path):
    path = agent_packages.dense("1")
    agent_packages.again(path, tmp_path / "two.edgepkg", version="2")
    one, two = package.open(path), package.open(tmp_path / "two.edgepkg")
    assert two.manifest.version == "2"
    assert one.digest != two.digest
    assert one.read(f"{agent_packages.PROFILE}/model.onnx") == two.read(
        f"{agent_packages.PROFILE}/model.onnx"
    )
    assert agent_packages.read_golden(two).inputs
