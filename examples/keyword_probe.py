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
    with np.load(path, allow_pickle=False) as z:
        mel, y = z["mel"].astype(np.float32), z["y"].astype(np.int64)
    rng = np.random.default_rng(0)
    probe = [rng.permutation(np.flatnonzero(y == c))[:PER_CLASS] for c in range(CLASSES)]
    return mel, y, np.concatenate(probe)


def build(embedding: Path, data: Path) -> bytes:
    """The ONNX file: windows, embedding and probe in one graph."""
    onnx = need("onnx", "onnx")
    mel, y, probe = clips(data)
    features = _embed(embedding, mel[probe])
    mean, std = features.mean(0), features.std(0) + 1e-3
    weight, bias = _fit((features - mean) / std, y[probe])
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
        windows = np.stack([clip[s : s + WINDOW, :, None] for s in STARTS])
        rows.append(session.run({name: windows})[out].ravel())
    return np.stack(rows).astype(np.float64)


def _fit(x: Array, y: Array, c: float = 0.05, steps: int = 3000) -> tuple[Array, Array]:
    """Minimise c * cross-entropy + |w|^2 / 2 (the bias is free) by accelerated descent."""
    onehot = np.eye(CLASSES)[y]
    a = np.hstack([x, np.ones((len(x), 1))])
    free = np.ones((a.shape[1], 1))
    free[-1] = 0
    rate = 1 / (c * np.linalg.norm(a, 2) ** 2 / 2 + 1)  # 1 / the gradient's Lipschitz constant
    w = ahead = np.zeros((a.shape[1], CLASSES))
    for i in range(steps):
        z = a @ ahead
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        new = ahead - rate * (c * a.T @ (p - onehot) + free * ahead)
        ahead = new + i / (i + 3) * (new - w)
        w = new
    return w[:-1], w[-1]


def _compose(onnx: Any, model: Any, weight: Array, bias: Array) -> None:
    """Put the windows before the embedding's graph and the probe behind it, in place."""
    h, g = onnx.helper, model.graph
    inside, outside = g.input[0].name, g.output[0].name
    constants = {
        "axis": np.array([1]),
        "windows_shape": np.array([len(STARTS), WINDOW, BANDS, 1]),
        "features_shape": np.array([1, -1]),
        "probe_weight": weight,
        "probe_bias": bias,
        **{f"start_{s}": np.array([s]) for s in STARTS},
        **{f"end_{s}": np.array([s + WINDOW]) for s in STARTS},
    }
    g.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in constants.items())
    before = [
        h.make_node("Slice", ["mel", f"start_{s}", f"end_{s}", "axis"], [f"window_{s}"])
        for s in STARTS
    ]
    before += [
        h.make_node("Concat", [f"window_{s}" for s in STARTS], ["windows"], axis=0),
        h.make_node("Reshape", ["windows", "windows_shape"], [inside]),
    ]
    after = [
        h.make_node("Reshape", [outside, "features_shape"], ["features"]),
        h.make_node("Gemm", ["features", "probe_weight", "probe_bias"], ["logits"]),
    ]
    nodes = [*before, *g.node, *after]
    for i, node in enumerate(nodes):
        node.name = node.name or f"{node.op_type}_{i}"
    float32 = onnx.TensorProto.FLOAT
    g.ClearField("value_info")  # it still names the free batch dimension
    for field in (g.node, g.input, g.output):
        del field[:]
    g.node.extend(nodes)
    g.input.append(h.make_tensor_value_info("mel", float32, [1, FRAMES, BANDS]))
    g.output.append(h.make_tensor_value_info("logits", float32, [1, CLASSES]))
