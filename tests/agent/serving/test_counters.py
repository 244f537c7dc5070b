"""One source of counts: every request appears once, wherever it was made."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import tritonclient.http as triton

from agent import Agent
from agent.config import Http
from agent.http.server import Server
from agent.serving.counters import BATCH, Counters
from edge_core.errors import InputError, Overloaded, UnknownModel

ROW = {"x": np.zeros((1, 4), np.float32)}


def test_counts_of_many_threads_add_up():
    counters = Counters()
    counters.add_model("m")

    def count() -> None:
        for i in range(1000):
            if i % 4:
                counters.count_answer("m", 10, cached=i % 4 == 1)
            else:
                counters.count_error("m", 7, Overloaded("full"))

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = counters.read_model("m")
    assert (counts.success, counts.success_ns) == (6000, 60_000)
    assert (counts.cached, counts.cached_ns) == (2000, 20_000)
    assert (counts.fail, counts.fail_ns) == (2000, 14_000)
    assert counts.last_ms > 0
    assert counters.read_errors() == {"Overloaded": 2000}
    assert counters.read_total() == counts


def test_names_that_clients_make_up_take_no_memory():
    counters = Counters()
    counters.add_model("m")
    for i in range(10 * BATCH):
        counters.count_error(f"guess {i}", 1, UnknownModel("no such model"))
    assert counters.read_errors() == {"UnknownModel": 10 * BATCH}
    assert counters.read_total().fail == 0
    assert counters.read_model("guess 1").fail == 0


def test_requests_in_process_and_over_http_are_in_the_status_and_in_the_http_statistics(
    installed_config,
):
    http = Http(port=0)
    with (
        Agent(installed_config) as agent,
        Server(agent, http) as server,
    ):
        address = server.start().removeprefix("http://")
        with triton.InferenceServerClient(address) as client:
            tensor = triton.InferInput("x", [1, 4], "FP32")
            tensor.set_data_from_numpy(ROW["x"])
            for _ in range(3):
                agent.infer("dense", ROW)
            for _ in range(2):
                client.infer("dense", [tensor])
            with pytest.raises(InputError):
                agent.infer("dense", {"z": ROW["x"]})
            tensor = triton.InferInput("x", [1, 5], "FP32")
            tensor.set_data_from_numpy(np.zeros((1, 5), np.float32))
            with pytest.raises(triton.InferenceServerException):
                client.infer("dense", [tensor])
            with pytest.raises(UnknownModel):
                agent.infer("dence", ROW)
            with pytest.raises(triton.InferenceServerException):
                client.infer("dence", [tensor])
            (statistics,) = client.get_inference_statistics("dense")["model_stats"]
        status = agent.status()
    counts = status.models[0].counts
    assert (counts.success, counts.fail) == (5, 2)
    assert status.errors == {"InputError": 2, "UnknownModel": 2}
    stages = statistics["inference_stats"]
    assert (stages["success"]["count"], stages["fail"]["count"]) == (5, 2)
    assert stages["compute_infer"]["count"] == 5
    assert statistics["last_inference"] == counts.last_ms
