"""TfIdfVectorizer: how often each sequence of a fixed pool occurs in a row of numbers."""

from __future__ import annotations

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node
from converters.tflite.ops.arithmetic import Math, cast
from converters.tflite.ops.broadcast import emit_broadcast
from converters.tflite.ops.products import emit_fully_connected
from edge_core.tensors import Array


def lower_tf_idf_vectorizer(node: Node) -> None:
    """Comparisons with every sequence of the pool, counted and weighted."""
    value, calc = node.value(0), Math(node)
    if not node.attr("pool_int64s") or value.dtype.kind != "i":
        raise node.refusal("its input is not of integers")
    numbers = node.reshape(
        node.place(value), value.shape if len(value.shape) == 2 else (1, *value.shape)
    )
    counts_by_length = []
    for pool in _read_pools(node):
        size = pool.shape[1] if pool.size else 0
        windows = _sequence_places(numbers.shape[1], size, int(node.attr("max_skip_count")))
        within = int(node.attr("min_gram_length")) <= size <= int(node.attr("max_gram_length"))
        if within and len(windows):
            counts_by_length.append(_count_sequences(node, numbers, pool, windows))
        else:
            counts_by_length.append(node.const(np.zeros((numbers.shape[0], len(pool)))))
    counts = counts_by_length[0]
    if len(counts_by_length) > 1:
        shape = (numbers.shape[0], sum(part.shape[1] for part in counts_by_length))
        counts = node.emit("CONCATENATION", counts_by_length, shape, axis=1)
    places = np.array(node.attr("ngram_indexes"))
    table = np.zeros((places.max() + 1, len(places)), np.float32)
    table[places, np.arange(len(places))] = 1
    result, mode = emit_fully_connected(node, counts, table), node.attr("mode")
    if mode == "IDF":
        result = cast(node, calc("GREATER", result, 0.0, dtype=np.bool_), np.float32)
    if mode != "TF" and node.attr("weights"):
        if not np.array_equal(places, np.arange(len(places))):
            raise node.refusal("weights of sequences in another order than their counts")
        result = emit_broadcast(
            node, "MUL", [result, node.const(np.array(node.attr("weights"))[None])]
        )
    node.set_output(node.reshape(result, node.shape))


def _read_pools(node: Node) -> list[Array]:
    """[sequences, length] for each length from 1 on; the pools that are not empty."""
    numbers, starts = np.array(node.attr("pool_int64s")), [*node.attr("ngram_counts")]
    ends = [*starts[1:], len(numbers)]
    cut = [
        numbers[start:end].reshape(-1, i + 1)
        for i, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]
    return [pool for pool in cut if pool.size]


def _sequence_places(count: int, size: int, skips: int) -> Array:
    """[windows, size]: the positions of a sequence in a row, with or without gaps."""
    places = [
        start + np.arange(size) * step
        for step in range(1, (skips if size > 1 else 0) + 2)
        for start in range(count - (size - 1) * step)
    ]
    return np.array(places, np.int32).reshape(-1, size)


def _count_sequences(node: Node, tensor: Tensor, pool: Array, windows: Array) -> Tensor:
    """The occurrences of each sequence in each row, float [rows, sequences]."""
    rows, (places, size), many = tensor.shape[0], windows.shape, len(pool)
    at = node.ints(windows.reshape(-1))
    seen = node.emit("GATHER", [tensor, at], (rows, places * size), axis=1)
    seen = node.reshape(seen, (rows, 1, places, size))
    equal = emit_broadcast(
        node, "EQUAL", [seen, node.const(pool[None, :, None], tensor.dtype)], np.bool_
    )
    whole = node.emit("REDUCE_ALL", [equal, node.ints([3])], (rows, many, places), keep_dims=False)
    return node.emit(
        "SUM", [cast(node, whole, np.float32), node.ints([2])], (rows, many), keep_dims=False
    )
