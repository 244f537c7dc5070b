"""LitServe with an ONNX file: python litserve_ort.py JSON

The tensor travels as the body's bytes, there and back, which costs it least.
"""

import json
import sys
from typing import Annotated

import litserve
import numpy as np
import onnxruntime
from fastapi import Body, Response

Raw = Annotated[bytes, Body(media_type="application/octet-stream")]


class OnnxApi(litserve.LitAPI):
    def __init__(self, given: dict) -> None:
        super().__init__()
        self.given = given

    def setup(self, device: str) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = self.given["threads"]
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(
            self.given["model"], options, providers=providers
        )

    def decode_request(self, request: Raw) -> np.ndarray:
        return np.frombuffer(request, self.given["dtype"]).reshape(self.given["shape"])

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.session.run(None, {self.given["input"]: x})[0]

    def encode_response(self, output: np.ndarray) -> Response:
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    server = litserve.LitServer(
        OnnxApi(given),
        accelerator="cpu",
        workers_per_device=given["copies"],
        fast_queue=given["fast_queue"],
    )
    server.run(
        host="127.0.0.1", port=given["port"], generate_client_file=False, log_level="warning"
    )
