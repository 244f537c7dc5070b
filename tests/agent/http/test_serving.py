"""Serving over HTTP, as tritonclient sees it: every call that a client makes, on real models."""

from __future__ import annotations

import http.client
import io
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image as Pillow
from tritonclient.utils import InferenceServerException

from agent import Agent, EncodedImage
from agent.config import Serve
from agent.http.wire import datatype_of
from agent.packages.slots import Slots
from edge_core.tensors import DTYPES, Array
from tests.agent import http_server

ROW = np.array([[0.5, -1.0, 2.0, 0.25]], np.float32)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with every small model."""
    root = tmp_path_factory.mktemp("agent")
    for make in (
        http_server.dense, http_server.echo, http_server.write_quantised, http_server.picture,
        http_server.lookup, http_server.slow,
    ):  # fmt: skip
        http_server.install(root, make(tmp_path_factory.mktemp("package")))
    return root


@pytest.fixture(scope="module")
def agent_and_address(root: Path) -> Iterator[tuple[Agent, str]]:
    with http_server.serving(root) as both:
        yield both


@pytest.fixture
def agent(agent_and_address: tuple[Agent, str]) -> Agent:
    return agent_and_address[0]


@pytest.fixture
def client(agent_and_address: tuple[Agent, str]) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(agent_and_address[1]) as client:
        yield client


def tensor(name: str, array: Array, *, binary: bool = True) -> triton.InferInput:
    tensor_input = triton.InferInput(name, list(array.shape), datatype_of(array))
    return tensor_input.set_data_from_numpy(array, binary_data=binary)


def ask(address: str, method: str, path: str, body: bytes = b"", **headers: str):
    """One plain request: (status, headers, body)."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def expect_refusal(client: triton.InferenceServerClient, *arguments: object, **more: object) -> str:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(*arguments, **more)
    return str(caught.value)


def test_the_server_and_its_models_tell_that_they_are_ready(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("dense")
    assert client.is_model_ready("dense", "1.0.0")
    assert not client.is_model_ready("dense", "2.0.0")
    assert not client.is_model_ready("nothing")


def test_the_server_describes_itself(client):
    metadata = client.get_server_metadata()
    assert metadata["name"] == "edge-agent"
    assert {"binary_tensor_data", "classification", "statistics"} <= set(metadata["extensions"])


def test_a_model_is_described_and_a_quantised_tensor_stands_for_reals(client):
    assert client.get_model_metadata("dense", "1.0.0") == {
        "name": "dense", "versions": ["1.0.0"], "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 3]}],
    }  # fmt: skip
    assert client.get_model_metadata("echo")["inputs"][-1] == {
        "name": "in_string", "datatype": "BYTES", "shape": [-1, 2],
    }  # fmt: skip
    assert client.get_model_metadata("quantised")["inputs"][0]["datatype"] == "FP32"


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_every_datatype_goes_through_the_model_and_back(client, binary_in, binary_out):
    rng = np.random.default_rng(3)
    sent: dict[str, Array] = {}
    for dtype in DTYPES:
        if dtype == "string":
            array = np.array([["", "grün"], ["a:b", "\n"], ["x" * 300, "0"]], object)
        elif dtype == "bool":
            array = rng.integers(0, 2, (3, 2)).astype(bool)
        elif dtype.startswith("float"):
            array = rng.normal(size=(3, 2)).astype(dtype)
        else:
            limits = np.iinfo(dtype)
            array = rng.integers(limits.min, limits.max, (3, 2), dtype, endpoint=True)
        sent[dtype] = array
    answer = client.infer(
        "echo",
        [tensor(f"in_{dtype}", array, binary=binary_in) for dtype, array in sent.items()],
        outputs=[
            triton.InferRequestedOutput(f"out_{dtype}", binary_data=binary_out) for dtype in DTYPES
        ],
    )
    for dtype, array in sent.items():
        output = answer.as_numpy(f"out_{dtype}")
        if dtype == "string" and binary_out:
            output = np.array([text.decode() for text in output.flat], object).reshape(output.shape)
        assert output.dtype == array.dtype
        assert np.array_equal(output, array), dtype


def test_the_answer_is_the_one_that_the_agent_gives_in_process(agent, client):
    answer = client.infer("dense", [tensor("x", ROW)], request_id="seven")
    response = answer.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == (
        "seven",
        "dense",
        "1.0.0",
    )
    assert np.array_equal(answer.as_numpy("y"), agent.infer("dense", {"x": ROW}).outputs["y"])


def test_only_the_requested_outputs_come_in_the_requested_order(client):
    rows = np.zeros((1, 2))
    inputs = [
        tensor(f"in_{dtype}", rows.astype(object if dtype == "string" else dtype))
        for dtype in DTYPES
    ]
    outputs = [
        triton.InferRequestedOutput("out_int8", binary_data=False),
        triton.InferRequestedOutput("out_bool"),
    ]
    response_outputs = client.infer("echo", inputs, outputs=outputs).get_response()["outputs"]
    assert [output["name"] for output in response_outputs] == ["out_int8", "out_bool"]
    assert ["data" in output for output in response_outputs] == [True, False]


def test_a_quantised_model_takes_and_gives_reals_and_takes_its_integers_too(client):
    reals = np.array([[-2.5, 0.0, 3.0]], np.float32)
    integers = (reals / http_server.SCALE + http_server.ZERO).astype(np.int8)
    for values in (reals, integers):
        output = client.infer("quantised", [tensor("x", values)]).as_numpy("y")
        assert output.dtype == np.float32
        assert np.array_equal(output, reals)


def encode_png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_encoded_picture_is_prepared_by_the_recipe_and_labelled(agent, client):
    quarters = np.kron(np.array([[10, 20], [250, 40]]), np.ones((16, 16))).astype(np.uint8)
    png = encode_png(quarters)
    expected = agent.infer("picture", EncodedImage(png)).outputs["scores"]
    picture_input = tensor("pixels", np.array([png], object))
    answer = client.infer("picture", [picture_input], parameters={"top": 2})
    assert np.array_equal(answer.as_numpy("scores"), expected)
    best, second = (text.decode().split(":", 2) for text in answer.as_numpy("labels"))
    assert best[1:] == ["2", "bottom: left"]
    assert float(best[0]) == pytest.approx(expected[0, 2])
    assert second[1:] == ["3", "bottom right"]
    asked = triton.InferRequestedOutput("scores", class_count=2)
    classes = client.infer("picture", [picture_input], outputs=[asked]).as_numpy("scores")
    assert classes.shape == (1, 2)
    assert classes[0, 0].decode().split(":", 2) == best


def test_what_is_no_picture_is_refused(client):
    picture_input = tensor("pixels", np.array([b"\x89PNG but not really"], object))
    assert "is not a readable image" in expect_refusal(client, "picture", [picture_input])


@pytest.mark.parametrize(
    ("model", "name", "array", "why"),
    [
        ("nothing", "x", ROW, "[404] no model 'nothing'"),
        ("dens", "x", ROW, "did you mean 'dense'?"),
        ("dense", "z", ROW, "[400] the model has no input 'z'; inputs: x"),
        ("dense", "x", ROW[:, :3], "[400] dense: input 'x' has shape 1x3; the model takes 1x4"),
        ("dense", "x", ROW * np.nan, "[400] dense: input 'x' contains NaN"),
        ("dense", "x", np.array([["a"] * 4], object), "no preprocessing recipe"),
        ("echo", "in_int8", np.zeros((1, 2), np.int8), "is missing"),
    ],
)
def test_a_request_that_does_not_fit_is_refused_with_the_reason(client, model, name, array, why):
    assert why in expect_refusal(client, model, [tensor(name, array)])


def test_a_failure_of_the_runtime_is_told_and_the_next_request_is_answered(client):
    assert "[500] onnxruntime could not run the model" in expect_refusal(
        client, "lookup", [tensor("x", np.array([99]))]
    )
    assert client.infer("lookup", [tensor("x", np.array([2]))]).as_numpy("y") == [3]


def test_a_version_that_is_not_served_is_unknown(client):
    assert "[404] 'dense' has no version '9'; it serves 1.0.0" in expect_refusal(
        client, "dense", [tensor("x", ROW)], model_version="9"
    )
    assert client.infer("dense", [tensor("x", ROW)], model_version="1.0.0")


def test_compressed_requests_are_refused_and_compressed_answers_need_not_be(client):
    assert "[415]" in expect_refusal(
        client, "dense", [tensor("x", ROW)], request_compression_algorithm="gzip"
    )
    assert client.infer("dense", [tensor("x", ROW)], response_compression_algorithm="gzip")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404), ("GET", "/v1", 404), ("GET", "/v2/", 200), ("HEAD", "/v2", 200),
        ("GET", "/v2/models", 404), ("GET", "/v2/models/dense/config", 404),
        ("GET", "/v2/models/dense/infer", 405), ("POST", "/v2/models/dense", 405),
        ("DELETE", "/v2/models/dense", 405), ("POST", "/v2/health/live", 405),
        ("PUT", "/v2/repository/index", 405), ("GET", "/v2/repository/index", 200),
        ("GET", "/v2/%ff", 404), ("GET", "/v2/models/dense/versions", 404),
    ],
)  # fmt: skip
def test_paths_and_methods_that_are_not_offered_are_refused(
    agent_and_address, method, path, status
):
    answer_status, headers, body = ask(agent_and_address[1], method, path)
    assert answer_status == status
    if status >= 400:
        assert json.loads(body)["error"]
    assert ("allow" in headers) == (status == 405)


def test_the_index_tells_every_model_or_the_ready_ones(agent_and_address, client):
    index = client.get_model_repository_index()
    assert {"name": "dense", "version": "1.0.0", "state": "READY", "reason": ""} in index
    _, _, body = ask(agent_and_address[1], "POST", "/v2/repository/index", b'{"ready": true}')
    assert json.loads(body) == index
    status, _, _ = ask(agent_and_address[1], "POST", "/v2/repository/index", b'{"ready": 1}')
    assert status == 400


def test_statistics_count_requests_failures_and_stages(root):
    with (
        http_server.serving(root) as (_, address),
        triton.InferenceServerClient(address) as client,
    ):
        for _ in range(3):
            client.infer("dense", [tensor("x", ROW)])
        expect_refusal(client, "dense", [tensor("x", ROW[:, :2])])
        (statistics,) = client.get_inference_statistics("dense")["model_stats"]
        everything = client.get_inference_statistics()["model_stats"]
    assert statistics in everything
    assert len(everything) == 6
    assert (statistics["name"], statistics["version"]) == ("dense", "1.0.0")
    assert (statistics["inference_count"], statistics["execution_count"]) == (3, 3)
    stats = statistics["inference_stats"]
    counts = {name: duration["count"] for name, duration in stats.items()}
    assert counts == {
        "success": 3, "fail": 1, "queue": 3, "compute_input": 3, "compute_infer": 3,
        "compute_output": 3, "cache_hit": 0,
    }  # fmt: skip
    assert stats["success"]["ns"] > stats["compute_infer"]["ns"] > 0
    assert statistics["last_inference"] > 1_700_000_000_000


def test_a_remembered_answer_is_told_and_can_be_declined(root):
    with (
        http_server.serving(root, serve=Serve(cache=True)) as (_, address),
        triton.InferenceServerClient(address) as client,
    ):
        inputs = [tensor("x", ROW + np.float32(0.125))]
        first = again = client.infer("dense", inputs)
        end = time.monotonic() + 10
        while "parameters" not in again.get_response():  # it is written beside the requests
            assert time.monotonic() < end
            again = client.infer("dense", inputs)
        anew = client.infer("dense", inputs, parameters={"cache": False})
        (statistics,) = client.get_inference_statistics("dense")["model_stats"]
    assert again.get_response()["parameters"] == {"cached": "exact"}
    assert "parameters" not in anew.get_response()
    assert np.array_equal(first.as_numpy("y"), again.as_numpy("y"))
    assert statistics["inference_stats"]["cache_hit"]["count"] == 1


def test_the_status_is_the_agents_own(agent, agent_and_address):
    _, _, body = ask(agent_and_address[1], "GET", "/v2/edge/status")
    status = json.loads(body)
    assert status["ready"]
    assert [model["name"] for model in status["models"]] == [model.name for model in agent.models()]
    assert "p99_ms" in status["models"][0]["stages"]["infer"]


def test_load_serves_what_was_installed_while_requests_go_on(tmp_path):
    root = tmp_path / "agent"
    root.mkdir()
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
    http_server.install(root, http_server.dense(tmp_path / "1", version="1"))
    stop, answers = threading.Event(), []

    def go_on(address: str) -> None:
        with triton.InferenceServerClient(address) as client:
            while not stop.is_set():
                response = client.infer("dense", [tensor("x", ROW)]).get_response()
                answers.append(response["model_version"])

    with http_server.serving(root) as (_, address), ThreadPoolExecutor() as threads:
        asking = threads.submit(go_on, address)
        http_server.install(root, http_server.dense(tmp_path / "2", version="2"))
        with triton.InferenceServerClient(address) as client:
            while len(answers) < 20:
                assert not asking.done(), asking.result()
            client.load_model("dense")
            assert client.get_model_metadata("dense")["versions"] == ["2"]
            answer_count = len(answers)
            while len(answers) < answer_count + 20:
                assert not asking.done(), asking.result()
            stop.set()
            asking.result()
            with pytest.raises(InferenceServerException, match="404"):
                client.load_model("nothing")
            with pytest.raises(InferenceServerException, match="400"):
                client.unload_model("dense")
            with pytest.raises(InferenceServerException, match="400"):
                client.load_model("dense", config="{}")
    assert set(answers) == {"1", "2"}
    assert answers == sorted(answers)


def test_an_answer_for_a_version_is_never_one_of_another_that_came_meanwhile(tmp_path):
    root = tmp_path / "agent"
    root.mkdir()
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
    http_server.install(root, http_server.dense(tmp_path / "1", version="1"))
    tensor_json = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    body = json.dumps({"inputs": [tensor_json]}).encode()
    with http_server.serving(root) as (agent, address):
        asking = [http.client.HTTPConnection(address, timeout=30) for _ in range(2)]
        for connection, pin in zip(asking, ("/versions/1", ""), strict=True):
            connection.putrequest("POST", f"/v2/models/dense{pin}/infer")
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders()  # the model is looked up
            connection.send(body[:10])
        time.sleep(0.5)
        http_server.install(root, http_server.dense(tmp_path / "2", version="2"))
        assert agent.reload() == ("dense",)
        answers = []
        for connection in asking:
            connection.send(body[10:])
            response = connection.getresponse()
            answers.append((response.status, json.loads(response.read())))
            connection.close()
    (pinned, why), (free, answer) = answers
    assert (pinned, "'dense' was swapped to 2 meanwhile" in why["error"]) == (503, True)
    assert (free, answer["model_version"]) == (200, "2")


def test_loads_that_wait_take_no_threads_from_the_others(root):
    with (
        http_server.serving(root) as (agent, address),
        ThreadPoolExecutor(40) as threads,
    ):
        path = "/v2/repository/models/dense/load"
        with agent._switching:  # a slow model is being loaded
            loads = [threads.submit(ask, address, "POST", path) for _ in range(40)]
            time.sleep(0.5)
            start = time.monotonic()
            assert ask(address, "GET", "/v2/edge/status")[0] == 200
            assert time.monotonic() - start < 5
            assert not any(load.done() for load in loads)
        assert {load.result()[0] for load in loads} == {200}


def test_a_model_that_cannot_be_loaded_is_told_and_the_others_serve(tmp_path):
    root = tmp_path / "agent"
    root.mkdir()
    (tmp_path / "a").mkdir()
    http_server.install(root, http_server.dense(tmp_path / "a"))
    (tmp_path / "b").mkdir()
    slot = http_server.install(root, http_server.write_quantised(tmp_path / "b"))
    damaged = Slots(root).folder(slot) / "model.onnx"
    damaged.chmod(0o600)
    damaged.write_bytes(b"no model")
    with (
        http_server.serving(root) as (_, address),
        triton.InferenceServerClient(address) as client,
    ):
        assert not client.is_server_ready()
        assert not client.is_model_ready("quantised")
        index = {model["name"]: model for model in client.get_model_repository_index()}
        states = index["quantised"]["state"], index["dense"]["state"]
        assert states == ("UNAVAILABLE", "READY")
        assert index["quantised"]["reason"]
        tensor_input = tensor("x", np.zeros((1, 3), np.float32))
        assert "[503] 'quantised' cannot be served" in expect_refusal(
            client, "quantised", [tensor_input]
        )
        with pytest.raises(InferenceServerException, match="503"):
            client.load_model("quantised")
        assert client.infer("dense", [tensor("x", ROW)])


def slowly(address: str, **parameters: object) -> tuple[int, dict[str, object], float]:
    """One request to the slow model: (status, document, Retry-After)."""
    document = {
        "inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [0]}],
        "parameters": parameters,
    }
    status, headers, body = ask(
        address, "POST", "/v2/models/slow/infer", json.dumps(document).encode()
    )
    return status, json.loads(body), float(headers.get("retry-after", 0))


def test_a_request_whose_deadline_passes_in_the_queue_gets_504_and_the_loop_stays_free(
    agent_and_address,
):
    with ThreadPoolExecutor() as threads:
        first = threads.submit(slowly, agent_and_address[1])
        while not agent_and_address[0].model("slow").requests:
            pass
        late = threads.submit(slowly, agent_and_address[1], deadline_ms=20)
        alive = [ask(agent_and_address[1], "GET", "/v2/health/live")[0] for _ in range(5)]
        assert alive == [200] * 5
        assert not first.done()
        assert first.result()[0] == 200
        status, body, _ = late.result()
    assert (status, "deadline" in str(body["error"])) == (504, True)


def test_a_full_queue_refuses_at_once(root):
    with (
        http_server.serving(root, serve=Serve(queue=1)) as (agent, address),
        ThreadPoolExecutor(8) as threads,
    ):
        results = [
            future.result() for future in [threads.submit(slowly, address) for _ in range(8)]
        ]
        assert agent.model("slow").requests == 0
    statuses = [status for status, _, _ in results]
    assert set(statuses) == {200, 429}
    assert 1 <= statuses.count(200) <= 3
    assert {retry for status, _, retry in results if status == 429} == {1.0}
    assert all("error" in body for status, body, _ in results if status == 429)
