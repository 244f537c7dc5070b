"""TfIdfVectorizer: how often each sequence of a fixed pool comes in a row of numbers."""

from __future__ import annotations

import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node, op
from converters.tflite.ops.arithmetic import Math, cast
from converters.tflite.ops.broadcast import emit
from converters.tflite.ops.products import fully_connected
from edge_core.tensors import Array


@op("TfIdfVectorizer")
def _tf_idf(n: Node) -> None:
    v, m = n.value(0), Math(n)
    if not n.attr("pool_int64s") or v.dtype.kind != "i":
        raise n.refusal("its input is no integers")
    x = n.reshaped(n.place(v), v.shape if len(v.shape) == 2 else (1, *v.shape))
    found = []
    for pool in _pools(n):
        size = pool.shape[1] if pool.size else 0
        windows = _windows(x.shape[1], size, int(n.attr("max_skip_count")))
        within = int(n.attr("min_gram_length")) <= size <= int(n.attr("max_gram_length"))
        if within and len(windows):
            found.append(_counted(n, x, pool, windows))
        else:
            found.append(n.const(np.zeros((x.shape[0], len(pool)))))
    counts = found[0]
    if len(found) > 1:
        shape = (x.shape[0], sum(f.shape[1] for f in found))
        counts = n.emit("CONCATENATION", found, shape, axis=1)
    places = np.array(n.attr("ngram_indexes"))
    table = np.zeros((places.max() + 1, len(places)), np.float32)
    table[places, np.arange(len(places))] = 1
    y, mode = fully_connected(n, counts, table), n.attr("mode")
    if mode == "IDF":
        y = cast(n, m("GREATER", y, 0.0, dtype=np.bool_), np.float32)
    if mode != "TF" and n.attr("weights"):
        if not np.array_equal(places, np.arange(len(places))):
            raise n.refusal("weights of sequences in another order than their counts")
        y = emit(n, "MUL", [y, n.const(np.array(n.attr("weights"))[None])])
    n.give(n.reshaped(y, n.shape))


def _pools(n: Node) -> list[Array]:
    """[sequences, length] for each length from 1 on; the pools that are not empty."""
    numbers, starts = np.array(n.attr("pool_int64s")), [*n.attr("ngram_counts")]
    ends = [*starts[1:], len(numbers)]
    cut = [
        numbers[a:b].reshape(-1, i + 1) for i, (a, b) in enumerate(zip(starts, ends, strict=True))
    ]
    return [p for p in cut if p.size]


def _windows(count: int, size: int, skips: int) -> Array:
    """[windows, size]: what places of a row a sequence can lie at, with gaps or without."""
    found = [
        start + np.arange(size) * step
        for step in range(1, (skips if size > 1 else 0) + 2)
        for start in range(count - (size - 1) * step)
    ]
    return np.array(found, np.int32).reshape(-1, size)


def _counted(n: Node, x: Tensor, pool: Array, windows: Array) -> Tensor:
    """[rows, sequences] as float."""
    rows, (places, size), many = x.shape[0], windows.shape, len(pool)
    at = n.ints(windows.reshape(-1))
    seen = n.emit("GATHER", [x, at], (rows, places * size), axis=1)
    seen = n.reshaped(seen, (rows, 1, places, size))
    equal = emit(n, "EQUAL", [seen, n.const(pool[None, :, None], x.dtype)], np.bool_)
    whole = n.emit("REDUCE_ALL", [equal, n.ints([3])], (rows, many, places), keep_dims=False)
    return n.emit("SUM", [cast(n, whole, np.float32), n.ints([2])], (rows, many), keep_dims=False)
