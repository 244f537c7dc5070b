"""What flows through a float model on calibration samples: values, and the range of each tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from converters.foreign import foreign
from converters.tflite import flat
from edge_core.extras import need
from edge_core.tensors import Array, Feeds


def activations(
    model: flat.Model, wanted: Sequence[int], samples: Sequence[Feeds]
) -> Iterator[dict[int, Array]]:
    """For each sample, the values of the wanted tensors of the first subgraph, by index."""
    if not samples:
        return
    interpreter = opened(model, preserve=True)
    inputs = {flat.tensor_name(model.subgraphs[0].tensors[i]): i for i in model.subgraphs[0].inputs}
    for feeds in samples:
        for name, value in feeds.items():
            interpreter.set_tensor(inputs[name], value)
        interpreter.invoke()
        yield {index: interpreter.get_tensor(index) for index in dict.fromkeys(wanted)}


def extremes(model: flat.Model, samples: Sequence[Feeds]) -> dict[str, tuple[float, float]]:
    """The smallest and largest value of every float tensor of the first subgraph, by its name."""
    tensors = model.subgraphs[0].tensors
    names = {
        index: flat.tensor_name(tensor)
        for index, tensor in enumerate(tensors)
        if flat.type_name(tensor) == "FLOAT32" and flat.constant(model, tensor) is None
    }
    found: dict[str, tuple[float, float]] = {}
    for values in activations(model, list(names), samples):
        for index, name in names.items():
            low, high = float(values[index].min()), float(values[index].max())
            before = found.get(name, (low, high))
            found[name] = min(low, before[0]), max(high, before[1])
    return found


def opened(model: flat.Model, *, preserve: bool = False) -> Any:
    litert = need("ai_edge_litert.interpreter", "tflite")
    with foreign("LiteRT cannot open the model"):
        interpreter = litert.Interpreter(
            model_content=flat.to_bytes(model),
            num_threads=1,
            experimental_preserve_all_tensors=preserve,
        )
        interpreter.allocate_tensors()
    return interpreter
