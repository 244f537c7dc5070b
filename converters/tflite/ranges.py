"""What flows through a model on samples: values, and the range of each tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from converters.foreign_errors import translate_foreign_errors
from converters.tflite import flatbuffer
from edge_core.extras import need
from edge_core.tensors import Array, Feeds


class ModelRunner:
    """A .tflite file in memory that takes and gives reals by name, on one thread.

    More threads would add in another order and give other bytes.
    """

    def __init__(self, file: bytes, *, keep_all: bool = False) -> None:
        litert = need("ai_edge_litert.interpreter", "tflite")
        with translate_foreign_errors("LiteRT cannot run the model"):
            self._interpreter: Any = litert.Interpreter(
                model_content=file, num_threads=1, experimental_preserve_all_tensors=keep_all
            )
            self._interpreter.allocate_tensors()
        self._inputs = {detail["name"]: detail for detail in self._interpreter.get_input_details()}
        self._outputs = self._interpreter.get_output_details()

    def run(self, feeds: Feeds) -> Feeds:
        """The outputs as reals; quantised inputs and outputs are converted."""
        with translate_foreign_errors("LiteRT cannot run the model"):
            for name, value in feeds.items():
                detail = self._inputs[name]
                self._interpreter.set_tensor(detail["index"], _to_stored(value, detail))
            self._interpreter.invoke()
            return {
                detail["name"]: _to_real(self.value(detail["index"]), detail)
                for detail in self._outputs
            }

    def value(self, index: int) -> Array:
        """A tensor's values after run()."""
        values: Array = self._interpreter.get_tensor(index)
        return values


def iter_activations(
    model: flatbuffer.Model, indices: Sequence[int], samples: Sequence[Feeds]
) -> Iterator[dict[int, Array]]:
    """For each sample, the values of the wanted tensors of the first subgraph, by index."""
    if not samples or not indices:
        return
    runner = ModelRunner(flatbuffer.to_bytes(model), keep_all=True)
    for feeds in samples:
        runner.run(feeds)
        yield {index: runner.value(index) for index in dict.fromkeys(indices)}


def find_extremes(
    model: flatbuffer.Model, samples: Sequence[Feeds]
) -> dict[str, tuple[float, float]]:
    """The smallest and largest value of every float tensor of the first subgraph, by its name.

    Not of results that nothing reads: XNNPACK does not keep them.
    """
    graph = model.subgraphs[0]
    read = {*graph.outputs, *(index for op in graph.operators for index in op.inputs)}
    names = {
        index: flatbuffer.tensor_name(tensor)
        for index, tensor in enumerate(graph.tensors)
        if index in read
        and flatbuffer.type_name(tensor) == "FLOAT32"
        and flatbuffer.constant(model, tensor) is None
    }
    extremes: dict[str, tuple[float, float]] = {}
    for values in iter_activations(model, list(names), samples):
        for index, name in names.items():
            if values[index].size:
                low, high = float(values[index].min()), float(values[index].max())
                before = extremes.get(name, (low, high))
                extremes[name] = min(low, before[0]), max(high, before[1])
    return extremes


def _to_stored(value: Array, detail: Any) -> Array:
    scale, zero = detail["quantization"]
    if value.dtype == detail["dtype"] or not scale:
        return value
    limits = np.iinfo(detail["dtype"])
    steps = np.round(value / scale) + zero
    stored: Array = np.clip(steps, limits.min, limits.max).astype(detail["dtype"])
    return stored


def _to_real(value: Array, detail: Any) -> Array:
    scale, zero = detail["quantization"]
    return (value.astype(np.float32) - zero) * np.float32(scale) if scale else value
