"""The agent with the device's packages only: installed, served in process and over HTTP."""

from __future__ import annotations

import http.client
import json
from pathlib import Path

from agent import Agent, EncodedImage
from agent.config import Config, Http, Install, Serve
from agent.http.server import Server
from agent.packages.install import install

ROOT = Path(__file__).resolve().parents[2]
PHOTO = ROOT / "examples" / "data" / "photos" / "bird.jpg"


def test_a_package_is_installed_served_and_remembered(detector: Path, tmp_path: Path):
    config = Config(
        data_dir=str(tmp_path / "data"), install=Install(tune_s=0.5), serve=Serve(cache=True)
    )
    done = install(config, detector)
    assert done.slot.tuning.threads >= 1
    with Agent(config) as agent, Server(agent, Http(port=0)) as server:
        address = server.start().removeprefix("http://")
        mine = agent.infer("detector", EncodedImage(PHOTO.read_bytes()), cache=False)
        (name,) = mine.outputs
        connection = http.client.HTTPConnection(address, timeout=30)
        picture = PHOTO.read_bytes()
        size = len(picture) + 4
        head = {
            "inputs": [{"name": get_input_name(agent), "shape": [1], "datatype": "BYTES",
                        "parameters": {"binary_data_size": size}}],
            "outputs": [{"name": name}],
        }  # fmt: skip
        text = json.dumps(head).encode()
        body = text + len(picture).to_bytes(4, "little") + picture
        headers = {"Inference-Header-Content-Length": str(len(text))}
        connection.request("POST", "/v2/models/detector/infer", body, headers)
        response = connection.getresponse()
        assert response.status == 200
        (output,) = json.loads(response.read())["outputs"]
        assert output["shape"] == list(mine.outputs[name].shape)
        assert output["data"][:50] == [float(number) for number in mine.outputs[name].ravel()[:50]]
        connection.close()
    with Agent(config) as agent:  # what was said over HTTP is on disk
        assert agent.infer("detector", EncodedImage(PHOTO.read_bytes())).cached == "exact"


def get_input_name(agent: Agent) -> str:
    """The name of the detector's input."""
    return agent.packaged_model("detector").inputs[0].name
