"""A custom runtime of MLServer, as `mlserver start FOLDER` loads it; serve_peers writes FOLDER.

Over HTTP MLServer knows no binary tensors. Numbers may be JSON; raw bytes may be base64 in a
tensor of BYTES, which is read here without a detour over Python's lists.
"""

import base64

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse, RequestInput


class OnnxModel(MLModel):
    async def load(self) -> bool:
        given = self.settings.parameters
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = given.extra["threads"]
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(given.uri, options, providers=providers)
        self.dtypes = given.extra["dtypes"]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        feeds = {tensor.name: self._array(tensor) for tensor in payload.inputs}
        names = [output.name for output in self.session.get_outputs()]
        answers = self.session.run(names, feeds)
        outputs = [
            NumpyCodec.encode_output(name, answer)
            for name, answer in zip(names, answers, strict=True)
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)

    def _array(self, given: RequestInput) -> np.ndarray:
        if given.datatype != "BYTES":
            return NumpyCodec.decode_input(given)
        raw = base64.b64decode(given.data[0])
        return np.frombuffer(raw, self.dtypes[given.name]).reshape(given.shape)
