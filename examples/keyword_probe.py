"""A keyword spotter in one graph: a public speech embedding and a probe fitted on 60 clips.

    mel (1,147,32) -> three windows of 76 frames -> embedding -> (1,288) -> linear -> logits (1,6)

The probe is multinomial logistic regression on standardised embeddings. Clips of one speaker may
be on both sides of the split, so its accuracy is good for comparing variants of this model only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edge_core.extras import need
from edge_core.runtimes import registry as runtimes
from edge_core.tensors import Array

FRAMES, BANDS = 147, 32  # of a clip
WINDOW = 76  # frames that the embedding takes
STARTS = (16, 32, 48)  # first frame of each window
CLASSES = 6
PER_CLASS = 10  # clips a class that the probe is fitted on


def clips(path: Path) -> tuple[Array, Array, Array]:
    """Log-mel clips float32 (240,147,32), class numbers (240,), and the indices of probe clips."""
    with np.load(path, allow_pickle=False) as arrays:
        mel, classes = arrays["mel"].astype(np.float32), arrays["y"].astype(np.int64)
    rng = np.random.default_rng(0)
    probe = [
        rng.permutation(np.flatnonzero(classes == label))[:PER_CLASS] for label in range(CLASSES)
    ]
    return mel, classes, np.concatenate(probe)


def build(embedding: Path, data: Path) -> bytes:
    """The ONNX file: windows, embedding and probe in one graph."""
    onnx = need("onnx", "onnx")
    mel, classes, probe = clips(data)
    features = _embed(embedding, mel[probe])
    mean, std = features.mean(0), features.std(0) + 1e-3
    weight, bias = _fit((features - mean) / std, classes[probe])
    # Fold the standardisation into the linear layer: (x - mean) / std @ w + b.
    folded = (weight / std[:, None]).astype(np.float32)
    offset = (bias - (mean / std) @ weight).astype(np.float32)
    model = onnx.load(embedding)
    _compose(onnx, model, folded, offset)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _embed(embedding: Path, mel: Array) -> Array:
    session = runtimes.get("onnxruntime").open(embedding, threads=1, options={})
    name, out = session.inputs[0].name, session.outputs[0].name
    rows = []
    for clip in mel:
        windows = np.stack([clip[start : start + WINDOW, :, None] for start in STARTS])
        rows.append(session.run({name: windows})[out].ravel())
    return np.stack(rows).astype(np.float64)


def _fit(
    features: Array, classes: Array, penalty: float = 0.05, steps: int = 3000
) -> tuple[Array, Array]:
    """Minimise c * cross-entropy + |w|^2 / 2 (the bias is free) by accelerated descent."""
    onehot = np.eye(CLASSES)[classes]
    augmented = np.hstack([features, np.ones((len(features), 1))])
    free = np.ones((augmented.shape[1], 1))
    free[-1] = 0
    rate = 1 / (
        penalty * np.linalg.norm(augmented, 2) ** 2 / 2 + 1
    )  # 1 / the gradient's Lipschitz constant
    weights = ahead = np.zeros((augmented.shape[1], CLASSES))
    for i in range(steps):
        scores = augmented @ ahead
        shares = np.exp(scores - scores.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        new = ahead - rate * (penalty * augmented.T @ (shares - onehot) + free * ahead)
        ahead = new + i / (i + 3) * (new - weights)
        weights = new
    return weights[:-1], weights[-1]


def _compose(onnx: Any, model: Any, weight: Array, bias: Array) -> None:
    """Put the windows before the embedding's graph and the probe behind it, in place."""
    helper, graph = onnx.helper, model.graph
    inside, outside = graph.input[0].name, graph.output[0].name
    constants = {
        "axis": np.array([1]),
        "windows_shape": np.array([len(STARTS), WINDOW, BANDS, 1]),
        "features_shape": np.array([1, -1]),
        "probe_weight": weight,
        "probe_bias": bias,
        **{f"start_{start}": np.array([start]) for start in STARTS},
        **{f"end_{start}": np.array([start + WINDOW]) for start in STARTS},
    }
    graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in constants.items()
    )
    before = [
        helper.make_node(
            "Slice", ["mel", f"start_{start}", f"end_{start}", "axis"], [f"window_{start}"]
        )
        for start in STARTS
    ]
    before += [
        helper.make_node("Concat", [f"window_{start}" for start in STARTS], ["windows"], axis=0),
        helper.make_node("Reshape", ["windows", "windows_shape"], [inside]),
    ]
    after = [
        helper.make_node("Reshape", [outside, "features_shape"], ["features"]),
        helper.make_node("Gemm", ["features", "probe_weight", "probe_bias"], ["logits"]),
    ]
    nodes = [*before, *graph.node, *after]
    for i, node in enumerate(nodes):
        node.name = node.name or f"{node.op_type}_{i}"
    float32 = onnx.TensorProto.FLOAT
    graph.ClearField("value_info")  # it still names the free batch dimension
    for field in (graph.node, graph.input, graph.output):
        del field[:]
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info("mel", float32, [1, FRAMES, BANDS]))
    graph.output.append(helper.make_tensor_value_info("logits", float32, [1, CLASSES]))
