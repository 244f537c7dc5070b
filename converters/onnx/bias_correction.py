"""Better integers at the same scales: what quantising takes from a layer is given back to it.

    weights  rounded so that each kernel keeps its sum: see rounding.py
    biases   b += (W - Wq) E[x]: the shift of the mean that is left is known, so it is taken back
             (Nagel et al. 2019, "Data-Free Quantization", section 4.2, with measured means)

Both cost nothing at run time. EfficientNet-Lite0, U8S8, logits on 200 crops of photos not
calibrated on: 19.4 dB signal to noise and top-1 agreement 0.885 as onnxruntime rounds, 23.9 dB
with biases, 24.6 dB and 0.96 with both. Rounding by measured covariances (GPTQ) was no better and
took longer; means measured on the quantised model, layer after layer, overfit the samples.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from converters.onnx.model_file import save_model
from converters.onnx.weights import read_attribute
from converters.rounding import refit_kernels
from edge_core.extras import need
from edge_core.runtimes import onnxruntime
from edge_core.tensors import Array, Feeds

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

MAX_SAMPLES = 64
MAX_POSITIONS = 256  # of one feature map: an even grid tells its mean
MAX_RUN_BYTES = 256 * 1024 * 1024  # activations held at once
LARGEST = 127


class Layer(msgspec.Struct, frozen=True):
    """One quantised Conv or Gemm. Kernels are groups x outputs of a group x weights of one."""

    node: NodeProto
    source: str  # the tensor of the float model that it takes
    kernel: Array  # float weights
    scale: Array  # of them, last axis 1
    weight: TensorProto  # int8, changed in place
    bias: TensorProto | None  # int32, changed in place
    bias_scale: Array


def correct_biases(model: ModelProto, quantised: ModelProto, samples: Sequence[Feeds]) -> int:
    """Change the integers of ``quantised``, made from ``model`` with its node names, in place.

    Returns the number of layers that were changed.
    """
    layers = list(_layers(model, quantised))
    picked = np.linspace(0, len(samples) - 1, min(len(samples), MAX_SAMPLES)).round()
    chosen = [samples[int(i)] for i in picked]
    for part in _parts(model, layers):
        for layer, mean in zip(part, _means(model, part, chosen), strict=True):
            _correct(layer, mean)
    return len(layers)


def _correct(layer: Layer, mean: Array) -> None:
    numpy_helper = need("onnx.numpy_helper", "onnx")
    rounded, lost = refit_kernels(layer.kernel, layer.scale, mean, LARGEST)
    stored = _unfolded(layer.node, rounded, layer.weight.dims).astype(np.int8)
    layer.weight.CopyFrom(numpy_helper.from_array(stored, layer.weight.name))
    if layer.bias is not None:
        bias = numpy_helper.to_array(layer.bias) + np.round(lost / layer.bias_scale)
        limits = np.iinfo(np.int32)
        bias = np.clip(bias, limits.min, limits.max).astype(np.int32)
        layer.bias.CopyFrom(numpy_helper.from_array(bias, layer.bias.name))


def _layers(model: ModelProto, quantised: ModelProto) -> Iterator[Layer]:
    to_array = need("onnx.numpy_helper", "onnx").to_array
    floats = {t.name: t for t in model.graph.initializer}
    stored = {t.name: t for t in quantised.graph.initializer}
    made = {o: n for n in quantised.graph.node for o in n.output}
    uses = Counter(i for n in quantised.graph.node for i in n.input)
    sources = {n.name: n for n in model.graph.node}

    def constant(name: str) -> NodeProto | None:
        """The DequantizeLinear of a constant that no other layer shares."""
        dq = made.get(name)
        if dq is None or dq.op_type != "DequantizeLinear" or dq.input[0] not in stored:
            return None
        return dq if uses[name] == uses[dq.input[0]] == 1 else None

    for node in quantised.graph.node:
        source = sources.get(node.name)
        if source is None or not _is_plain(node):
            continue
        if source.input[0] in floats or source.input[1] not in floats:
            continue
        weight = constant(node.input[1])
        bias = constant(node.input[2]) if len(node.input) > 2 else None
        if weight is None or any(to_array(stored[i]).any() for i in weight.input[2:]):
            continue  # shared, or asymmetric
        scale = to_array(stored[weight.input[1]]).astype(np.float64)
        kernel = _folded(node, to_array(floats[source.input[1]]).astype(np.float64))
        yield Layer(
            node=node,
            source=source.input[0],
            kernel=kernel,
            scale=scale.reshape(len(kernel), -1, 1) if scale.size > 1 else scale.reshape(1, 1, 1),
            weight=stored[weight.input[0]],
            bias=stored[bias.input[0]] if bias else None,
            bias_scale=to_array(stored[bias.input[1]]).astype(np.float64) if bias else np.ones(1),
        )


def _is_plain(node: NodeProto) -> bool:
    if node.op_type == "Gemm":
        wanted = (("transA", 0), ("alpha", 1.0), ("beta", 1.0))
        return all(read_attribute(node, name, value) == value for name, value in wanted)
    return node.op_type == "Conv"


def _folded(node: NodeProto, array: Array) -> Array:
    """Weights as stored -> groups x outputs of a group x weights of one."""
    if node.op_type == "Gemm":
        return (array if read_attribute(node, "transB", 0) else array.T)[np.newaxis]
    groups: int = read_attribute(node, "group", 1)
    return array.reshape(groups, len(array) // groups, -1)


def _unfolded(node: NodeProto, kernel: Array, dims: Sequence[int]) -> Array:
    if node.op_type == "Gemm" and not read_attribute(node, "transB", 0):
        return np.squeeze(kernel, axis=0).T
    return kernel.reshape(dims)


def _parts(model: ModelProto, layers: list[Layer]) -> Iterator[list[Layer]]:
    """Layers whose inputs together fit into MAX_RUN_BYTES."""
    sizes = {
        v.name: 4 * math.prod(max(d.dim_value, 1) for d in v.type.tensor_type.shape.dim)
        for v in (*model.graph.value_info, *model.graph.input)
    }
    part: list[Layer] = []
    for layer in layers:
        if part and sum(sizes.get(x.source, 0) for x in [*part, layer]) > MAX_RUN_BYTES:
            yield part
            part = []
        part.append(layer)
    if part:
        yield part


def _means(model: ModelProto, layers: list[Layer], samples: Sequence[Feeds]) -> list[Array]:
    """The mean of what each layer's kernel sees: groups x weights of one."""
    means = [np.zeros((len(x.kernel), x.kernel.shape[2])) for x in layers]
    for values in _inputs(model, [x.source for x in layers], samples):
        for layer, mean in zip(layers, means, strict=True):
            seen = _patches(layer, values[layer.source])
            mean += seen.mean(axis=2, dtype=np.float64) / len(samples)
    return means


def _inputs(model: ModelProto, names: list[str], samples: Sequence[Feeds]) -> Iterator[Feeds]:
    """The values of the named tensors for each sample."""
    onnx = need("onnx", "onnx")
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    fed = {v.name for v in model.graph.input}
    del watched.graph.output[:]
    for name in dict.fromkeys(names):
        if name not in fed:
            watched.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    if not watched.graph.output:
        watched.graph.output.extend(model.graph.output)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "watched.onnx"
        save_model(watched, file)
        # One thread: sums in another order would give other bytes.
        session = onnxruntime.open(file, threads=1, options={})
    for feeds in samples:
        yield {**feeds, **session.run(feeds)}


def _patches(layer: Layer, x: Array) -> Array:
    """What the kernel sees at an even grid of positions: groups x weights of one x positions."""
    if layer.node.op_type == "Gemm":
        return x.T[np.newaxis]
    size = layer.weight.dims[2:]
    rank = len(size)
    strides = read_attribute(layer.node, "strides", [1] * rank)
    dilations = read_attribute(layer.node, "dilations", [1] * rank)
    window = [(k - 1) * d + 1 for k, d in zip(size, dilations, strict=True)]
    padded = np.pad(x, [(0, 0), (0, 0), *_pads(layer.node, x.shape[2:], window, strides)])
    seen = np.lib.stride_tricks.sliding_window_view(padded, window, axis=tuple(range(2, 2 + rank)))
    count = len(x) * math.prod(
        -(-n // s) for n, s in zip(seen.shape[2 : 2 + rank], strides, strict=True)
    )
    skip = math.ceil((count / MAX_POSITIONS) ** (1 / rank))
    every = (1, 1, *(s * skip for s in strides), *dilations)
    seen = seen[tuple(slice(None, None, step) for step in every)]
    spatial, kernel = range(2, 2 + rank), range(2 + rank, 2 + 2 * rank)
    return seen.transpose(1, *kernel, 0, *spatial).reshape(*layer.kernel.shape[::2], -1)


def _pads(
    node: NodeProto, size: Sequence[int], window: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    how = read_attribute(node, "auto_pad", b"NOTSET")
    if how in (b"SAME_UPPER", b"SAME_LOWER"):
        total = [
            max((-(-n // s) - 1) * s + w - n, 0)
            for n, w, s in zip(size, window, strides, strict=True)
        ]
        pairs = [(t // 2, t - t // 2) for t in total]
        return pairs if how == b"SAME_UPPER" else [(b, a) for a, b in pairs]
    pads = read_attribute(node, "pads", [0] * 2 * len(size))
    return list(zip(pads[: len(size)], pads[len(size) :], strict=True))
