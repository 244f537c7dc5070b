"""TfIdfVectorizer: how often each sequence of a fixed pool comes in a row of numbers."""

from __future__ import annotations

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node
from converters.tflite.ops.arithmetic import Math, cast
from converters.tflite.ops.broadcast import emit_broadcast
from converters.tflite.ops.products import emit_fully_connected
from edge_core.tensors import Array


def lower_tf_idf_vectorizer(node: Node) -> None:
    v, calc = node.value(0), Math(node)
    if not node.attr("pool_int64s") or v.dtype.kind != "i":
        raise node.refusal("its input is no integers")
    x = node.reshape(node.place(v), v.shape if len(v.shape) == 2 else (1, *v.shape))
    found = []
    for pool in _read_pools(node):
        size = pool.shape[1] if pool.size else 0
        windows = _sequence_places(x.shape[1], size, int(node.attr("max_skip_count")))
        within = int(node.attr("min_gram_length")) <= size <= int(node.attr("max_gram_length"))
        if within and len(windows):
            found.append(_count_sequences(node, x, pool, windows))
        else:
            found.append(node.const(np.zeros((x.shape[0], len(pool)))))
    counts = found[0]
    if len(found) > 1:
        shape = (x.shape[0], sum(f.shape[1] for f in found))
        counts = node.emit("CONCATENATION", found, shape, axis=1)
    places = np.array(node.attr("ngram_indexes"))
    table = np.zeros((places.max() + 1, len(places)), np.float32)
    table[places, np.arange(len(places))] = 1
    y, mode = emit_fully_connected(node, counts, table), node.attr("mode")
    if mode == "IDF":
        y = cast(node, calc("GREATER", y, 0.0, dtype=np.bool_), np.float32)
    if mode != "TF" and node.attr("weights"):
        if not np.array_equal(places, np.arange(len(places))):
            raise node.refusal("weights of sequences in another order than their counts")
        y = emit_broadcast(node, "MUL", [y, node.const(np.array(node.attr("weights"))[None])])
    node.set_output(node.reshape(y, node.shape))


def _read_pools(node: Node) -> list[Array]:
    """[sequences, length] for each length from 1 on; the pools that are not empty."""
    numbers, starts = np.array(node.attr("pool_int64s")), [*node.attr("ngram_counts")]
    ends = [*starts[1:], len(numbers)]
    cut = [
        numbers[a:b].reshape(-1, i + 1) for i, (a, b) in enumerate(zip(starts, ends, strict=True))
    ]
    return [p for p in cut if p.size]


def _sequence_places(count: int, size: int, skips: int) -> Array:
    """[windows, size]: what places of a row a sequence can lie at, with gaps or without."""
    found = [
        start + np.arange(size) * step
        for step in range(1, (skips if size > 1 else 0) + 2)
        for start in range(count - (size - 1) * step)
    ]
    return np.array(found, np.int32).reshape(-1, size)


def _count_sequences(node: Node, x: Tensor, pool: Array, windows: Array) -> Tensor:
    """[rows, sequences] as float."""
    rows, (places, size), many = x.shape[0], windows.shape, len(pool)
    at = node.ints(windows.reshape(-1))
    seen = node.emit("GATHER", [x, at], (rows, places * size), axis=1)
    seen = node.reshape(seen, (rows, 1, places, size))
    equal = emit_broadcast(
        node, "EQUAL", [seen, node.const(pool[None, :, None], x.dtype)], np.bool_
    )
    whole = node.emit("REDUCE_ALL", [equal, node.ints([3])], (rows, many, places), keep_dims=False)
    return node.emit(
        "SUM", [cast(node, whole, np.float32), node.ints([2])], (rows, many), keep_dims=False
    )
