"""A search for the few layers that are better left float, bounded in time.

search(float_path, out, recipe, samples, budget_s=60) -> Search

A layer's worth is measured: the outputs' signal to noise against the float model on calibration
samples, of the worst output. Its cost is reported in bytes, and in milliseconds of both files in
turn. mixed_precision.py decides.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from converters.tflite import flatbuffer, ranges
from converters.tflite.mixed_precision import LayerChoice, choose_float_layers
from converters.tflite.quantise import FloatModel, QuantRecipe
from converters.tflite.result import Result, write_smaller
from edge_core.errors import ConvertError
from edge_core.tensors import Array, Feeds

MAX_SAMPLES = 32  # for one trial
GAIN_DB = 3.0  # half the noise. EfficientNet-Lite0, 800 crops: agreement 0.973 -> 0.979
MAX_WORK = 0.5  # share of the multiplications that may stay float
MAX_WEIGHTS = 0.1  # share of the weights; each takes four times its bytes
TIMING_ROUNDS = 40  # of timing
MAX_DB = 200.0  # of outputs that are equal


class Search(msgspec.Struct, frozen=True):
    """The written file and what its float layers cost against the all-integer one."""

    result: Result
    kept: tuple[str, ...]  # outputs of the ops left float
    decibels: tuple[float, float]  # all integer, and as written
    size: tuple[int, int]  # bytes
    ms: tuple[float, float]  # least of ROUNDS, one thread, in turn


def search_float_layers(
    float_path: Path,
    out: Path,
    recipe: QuantRecipe,
    samples: Sequence[Feeds],
    *,
    budget_s: float = 60.0,
    gain_db: float = GAIN_DB,
) -> Search:
    """Write the recipe's file with its worst layers left float.

    Trying stops at ``gain_db`` more signal to noise, and after ``budget_s`` with what was found
    until then: a slower host may write another file. Raises ConvertError without samples, if no
    layer helps, or as quantise.write_quantised() does.
    """
    if not samples:
        raise ConvertError("a search needs calibration samples", hint="give --calibration")
    deadline = time.monotonic() + budget_s
    source = FloatModel(flatbuffer.read(float_path), float_path.name, samples)
    layers = source.layers(recipe)
    chosen = [samples[int(index)] for index in _pick_indices(len(samples))]
    expected = _run_samples(flatbuffer.to_bytes(source.model), chosen)

    def measure(kept: frozenset[int]) -> float | None:
        if kept and time.monotonic() > deadline:
            return None
        quantised, _ = source.quantise(
            _keep_layers(recipe, source, [layers[index] for index in kept])
        )
        return _compute_decibels(expected, _run_samples(flatbuffer.to_bytes(quantised), chosen))

    choice = choose_float_layers(_compute_costs(source.model, layers), gain_db, measure)
    if not choice.layers:
        raise ConvertError(
            f"no layer of {float_path.name} was found better left float in {budget_s:g} s: "
            f"{choice.before:.1f} dB as it is",
            hint="take the recipe without a search",
        )
    return _write_search(
        float_path, out, source, recipe, [layers[index] for index in choice.layers], choice
    )


def _write_search(
    float_path: Path,
    out: Path,
    source: FloatModel,
    recipe: QuantRecipe,
    kept: Sequence[flatbuffer.Op],
    choice: LayerChoice,
) -> Search:
    best = _keep_layers(recipe, source, kept)
    whole, mixed = (flatbuffer.to_bytes(source.quantise(each)[0]) for each in (recipe, best))
    ms = _time_in_turn(whole, mixed, source.samples[0])
    names = best.keep_float[len(recipe.keep_float) :]
    notes = (
        f"{len(names)} layers left float: {', '.join(names)}",
        f"signal to noise {choice.before:.1f} -> {choice.after:.1f} dB on calibration samples, "
        f"{len(mixed) - len(whole):+d} bytes ({len(mixed) / len(whole) - 1:+.1%}), "
        f"{choice.tried} files tried",
    )
    result = write_smaller(
        flatbuffer.from_bytes(mixed), flatbuffer.read(float_path), float_path, out, notes=notes
    )
    cost = f"the float layers cost {ms[1] - ms[0]:+.2f} ms here: {ms[0]:.2f} -> {ms[1]:.2f} ms"
    result = msgspec.structs.replace(result, times=(cost,))
    return Search(
        result=result,
        kept=names,
        decibels=(choice.before, choice.after),
        size=(len(whole), len(mixed)),
        ms=ms,
    )


def _keep_layers(
    recipe: QuantRecipe, source: FloatModel, kept: Sequence[flatbuffer.Op]
) -> QuantRecipe:
    tensors = source.model.subgraphs[0].tensors
    names = (flatbuffer.tensor_name(tensors[op.outputs[0]]) for op in kept)
    return msgspec.structs.replace(recipe, keep_float=(*recipe.keep_float, *names))


def _pick_indices(count: int) -> Array:
    return np.linspace(0, count - 1, min(count, MAX_SAMPLES)).round()


def _compute_costs(model: flatbuffer.Model, layers: Sequence[flatbuffer.Op]) -> list[float]:
    """What each layer takes of the allowed work or of the allowed weights, whichever is more."""
    tensors = model.subgraphs[0].tensors
    weights, work = [], []
    for op in layers:
        dims = flatbuffer.shape(tensors[op.inputs[1]])
        kind, result_dims = flatbuffer.op_name(model, op), flatbuffer.shape(tensors[op.outputs[0]])
        weights.append(float(np.prod(dims)))
        each = np.prod(dims[1:3]) if kind == "DEPTHWISE_CONV_2D" else np.prod(dims[1:])
        work.append(0.0 if kind == "EMBEDDING_LOOKUP" else float(each * np.prod(result_dims)))
    return [
        max(weight_share / sum(weights) / MAX_WEIGHTS, work_share / (sum(work) or 1.0) / MAX_WORK)
        for weight_share, work_share in zip(weights, work, strict=True)
    ]


def _run_samples(file: bytes, samples: Sequence[Feeds]) -> dict[str, Array]:
    """What the file gives for all samples, as reals, by output name."""
    runner = ranges.ModelRunner(file)
    outputs = [runner.run(feeds) for feeds in samples]
    return {
        name: np.concatenate([output[name].ravel() for output in outputs]) for name in outputs[0]
    }


def _compute_decibels(expected: dict[str, Array], actual: dict[str, Array]) -> float:
    """Signal to noise of the worst output, in dB."""
    worst = MAX_DB
    for name, reference in expected.items():
        signal = float(np.square(reference.astype(np.float64)).sum())
        noise = float(np.square(reference.astype(np.float64) - actual[name]).sum())
        if not np.isfinite(noise):
            return -MAX_DB
        if noise > 0:
            worst = min(worst, 10 * float(np.log10(max(signal, 1e-30) / noise)))
    return worst


def _time_in_turn(one: bytes, other: bytes, feeds: Feeds) -> tuple[float, float]:
    """Milliseconds of both files, in turn, the least of ROUNDS."""
    runners: list[Any] = [ranges.ModelRunner(one), ranges.ModelRunner(other)]
    least = [float("inf"), float("inf")]
    for _ in range(TIMING_ROUNDS):
        for k, runner in enumerate(runners):
            start = time.perf_counter_ns()
            runner.run(feeds)
            least[k] = min(least[k], (time.perf_counter_ns() - start) / 1e6)
    return least[0], least[1]
