"""A float .tflite -> integers, by a recipe: ai-edge-quantizer between our ranges and our rounding.

prepare -> choose ops -> ranges -> ai-edge-quantizer -> correct biases -> write

dynamic      weights in integers, activations rounded as they come; convolutions over each
             channel alone (DEPTHWISE_CONV_2D) stay float: hybrid they are slower than float
weight-only  weights in integers, computed in float
static       activations in 8 or 16 bits by calibrated ranges: smallest and largest value seen
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from converters.foreign_errors import translate_foreign_errors
from converters.tflite import flatbuffer, integer_ops, lookup, lstm, ranges
from converters.tflite.bias_correction import BiasCorrector
from converters.tflite.result import Result, write_smaller
from converters.tflite.scales import FORMS, compute_eight_bit_ranges, compute_four_bit_ranges
from edge_core.errors import ConvertError
from edge_core.extras import need
from edge_core.tensors import Array, Feeds

Form = Literal["int8", "int8-tensor", "int4", "int4-block32", "int4-block64"]
# Ranges are widened by this, for inputs beyond the calibrated ones. Eight bits have no step to
# spare (EfficientNet-Lite0: 24.6 dB, 23.3 dB at 1.1); sixteen have (FastestDet, 8 calibration
# photos: 14.8 dB, 22.8 dB at 4).
HEADROOM = {8: 1.0, 16: 4.0}
SLOW_16 = (
    "INT16 activations run outside XNNPACK: EfficientNet-Lite0 takes 34 times as long as in float "
    "on x86-64 (221 ms, 6.5 ms)"
)
OP_NAMES = {"TRANSPOSE_CONV": "CONV_2D_TRANSPOSE"}  # where the quantiser's differ from the schema's


class QuantRecipe(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of a float model. ``weights`` says which ops' weights are taken, and how."""

    scheme: Literal["dynamic", "weight-only", "static"]
    weights: dict[str, Form]
    activations: Literal[8, 16] = 8  # bits; static only
    integer_io: bool = False  # int8 inputs and outputs; static only
    float_tail: bool = False  # last FULLY_CONNECTED gives floats; static only
    keep_float: tuple[str, ...] = ()  # outputs of the ops that stay float, by tensor name


_CONV: dict[str, Form] = {"CONV_2D": "int8"}
_ALL: dict[str, Form] = {**_CONV, "DEPTHWISE_CONV_2D": "int8", "TRANSPOSE_CONV": "int8"}
_DENSE: dict[str, Form] = {"FULLY_CONNECTED": "int8", "EMBEDDING_LOOKUP": "int8"}

DYNAMIC = QuantRecipe(scheme="dynamic", weights={**_CONV, **_DENSE})
# tflite-runtime 2.14 computes garbage from a hybrid FULLY_CONNECTED with a scale per channel, and
# knows tables with one scale only.
DYNAMIC_PER_TENSOR = QuantRecipe(
    scheme="dynamic",
    weights={**_CONV, "FULLY_CONNECTED": "int8-tensor", "EMBEDDING_LOOKUP": "int8-tensor"},
)
WEIGHT_ONLY = QuantRecipe(scheme="weight-only", weights={**_ALL, **_DENSE})
# A hybrid last layer needs a runtime that knows scales per channel; STATIC_PLAIN runs everywhere.
STATIC = QuantRecipe(scheme="static", weights={**_ALL, **_DENSE}, float_tail=True)
STATIC_PLAIN = msgspec.structs.replace(STATIC, float_tail=False)
STATIC_INTEGER_IO = msgspec.structs.replace(STATIC_PLAIN, integer_io=True)
INT16X8 = msgspec.structs.replace(STATIC_PLAIN, activations=16)
INT4 = QuantRecipe(
    scheme="dynamic", weights={"FULLY_CONNECTED": "int4", "EMBEDDING_LOOKUP": "int4"}
)
INT4_BLOCKS = QuantRecipe(
    scheme="dynamic",
    weights={"FULLY_CONNECTED": "int4-block32", "EMBEDDING_LOOKUP": "int4-block64"},
)
INT8_INT4_EMBEDDING = QuantRecipe(
    scheme="dynamic", weights={**DYNAMIC.weights, "EMBEDDING_LOOKUP": "int4-block64"}
)


def write_quantised(
    float_path: Path, out: Path, recipe: QuantRecipe, samples: Sequence[Feeds] = ()
) -> Result:
    """Write what the recipe makes of a float file; the same inputs give the same bytes.

    Samples are in the file's own layout and dtypes. Without them biases are not corrected.
    Raises ConvertError for a model that is quantised already, a static recipe without samples, or
    a recipe that takes hardly any of the weights.
    """
    source = FloatModel(flatbuffer.read(float_path), float_path.name, samples)
    quantised, refined = source.quantise(recipe)
    notes = [f"{refined} layers corrected on calibration samples"] if refined and samples else []
    if recipe.scheme == "static" and recipe.activations == 16:
        notes.append(SLOW_16)
    return write_smaller(quantised, flatbuffer.read(float_path), float_path, out, tuple(notes))


class FloatModel:
    """A float model ready to be quantised, once or many times, and what was measured on it.

    ``model`` is changed: rows of tables are looked up, and every tensor has a name of its own.
    """

    def __init__(self, model: flatbuffer.Model, name: str, samples: Sequence[Feeds]) -> None:
        if any(
            flatbuffer.has_scale(tensor) for graph in model.subgraphs for tensor in graph.tensors
        ):
            raise ConvertError(f"{name} is quantised already", hint="start from the float model")
        lookup.use_lookups(model)
        make_names_unique(model)
        self.model, self.name, self.samples = model, name, samples
        self._corrector = BiasCorrector(model, samples)

    @cached_property
    def _extremes(self) -> dict[str, tuple[float, float]]:
        return ranges.find_extremes(self.model, self.samples)

    def quantise(self, recipe: QuantRecipe) -> tuple[flatbuffer.Model, int]:
        """The quantised model, and how many layers were refined."""
        _check_recipe(self.model, recipe, self.samples)
        plan = _plan_steps(self.model, recipe)
        if not plan and not lstm.count_lstms(self.model):
            kinds = ", ".join(recipe.weights)
            raise ConvertError(f"no-op: {self.name} has no weights in ops of the recipe: {kinds}")
        ops = [
            (self.model.subgraphs[0].operators[step.position], step) for step in plan if step.form
        ]
        lookup.separate_tables(self.model, [(op, step.form) for op, step in ops])
        qsv = compute_four_bit_ranges(self.model, [(op, step.form) for op, step in ops])
        if recipe.scheme == "static":
            qsv |= _to_statistics(self._extremes, HEADROOM[recipe.activations])
            if recipe.activations == 8:
                static = [op for op, step in ops if step.static]
                qsv |= compute_eight_bit_ranges(self.model, static, self._extremes)
        quantised = flatbuffer.from_bytes(_quantise(self.model, recipe, plan, qsv))
        _restore_names(self.model, quantised)
        _type_unread(quantised)
        if recipe.scheme == "dynamic":
            lstm.quantise_lstms(quantised)
        return quantised, self._corrector.correct(quantised)

    def layers(self, recipe: QuantRecipe) -> list[flatbuffer.Op]:
        """The ops with weights that the recipe quantises, in order."""
        steps = [step for step in _plan_steps(self.model, recipe) if step.form]
        return [self.model.subgraphs[0].operators[step.position] for step in steps]


def _check_recipe(model: flatbuffer.Model, recipe: QuantRecipe, samples: Sequence[Feeds]) -> None:
    if recipe.scheme == "static" and not samples:
        raise ConvertError("a static recipe needs calibration samples", hint="give --calibration")
    graph = model.subgraphs[0]
    for index in (*graph.inputs, *graph.outputs) if recipe.integer_io else ():
        if (kind := flatbuffer.type_name(graph.tensors[index])) != "FLOAT32":
            raise ConvertError(
                f"'{flatbuffer.tensor_name(graph.tensors[index])}' is {kind}; int8 inputs and "
                "outputs stand for float ones",
                hint="take the recipe with float inputs and outputs",
            )


class _Step(msgspec.Struct, frozen=True):
    """One op and how it is quantised; form "" for one without weights."""

    position: int  # in the first subgraph
    kind: str
    form: str
    static: bool


def _plan_steps(model: flatbuffer.Model, recipe: QuantRecipe) -> list[_Step]:
    """The ops that are quantised, in order."""
    graph = model.subgraphs[0]
    kinds = [flatbuffer.op_name(model, op) for op in graph.operators]
    integer, tail = [], []
    if recipe.scheme == "static":
        integer = integer_ops.find_integer_ops(
            model, recipe.activations, integer_io=recipe.integer_io, kept=recipe.keep_float
        )
        tail = integer_ops.find_float_tail(model, integer) if recipe.float_tail else []
    steps = []
    for position, (kind, op) in enumerate(zip(kinds, graph.operators, strict=True)):
        form = recipe.weights.get(kind, "")
        if position in integer:
            steps.append(_Step(position, kind, form, position not in tail))
        # A table has no static form: its rows are floats again when they are looked up.
        elif recipe.scheme == "static" and kind != "EMBEDDING_LOOKUP":
            continue
        elif (
            form
            and _find_table(model, op) is not None
            and flatbuffer.tensor_name(graph.tensors[op.outputs[0]]) not in recipe.keep_float
        ):
            steps.append(_Step(position, kind, _choose_form(model, op, form), False))
    return steps


def _find_table(model: flatbuffer.Model, op: flatbuffer.Op) -> flatbuffer.Tensor | None:
    """The op's float weights."""
    tensor = model.subgraphs[0].tensors[op.inputs[1]]
    is_float = flatbuffer.type_name(tensor) == "FLOAT32"
    return tensor if is_float and flatbuffer.constant(model, tensor) is not None else None


def _choose_form(model: flatbuffer.Model, op: flatbuffer.Op, form: str) -> str:
    """The form, or int8 where rows do not divide into blocks."""
    tensor, block = _find_table(model, op), FORMS[form][2]
    divides = tensor is None or not block or flatbuffer.shape(tensor)[-1] % block == 0
    return form if divides else "int8"


def _to_statistics(
    ranges: dict[str, tuple[float, float]], headroom: float
) -> dict[str, dict[str, Array]]:
    """Ranges in the quantiser's words."""
    return {
        name: {
            "min": np.array([low * headroom], np.float32),
            "max": np.array([high * headroom], np.float32),
        }
        for name, (low, high) in ranges.items()
    }


def _quantise(
    model: flatbuffer.Model,
    recipe: QuantRecipe,
    plan: Sequence[_Step],
    qsv: dict[str, dict[str, Array]],
) -> bytes:
    package = "ai_edge_quantizer"
    api = need(f"{package}.quantizer", "tflite")
    words = need(f"{package}.qtyping", "tflite")
    none = need(f"{package}.algorithm_manager", "tflite").AlgorithmName.NO_QUANTIZE
    graph = model.subgraphs[0]
    scopes = defaultdict(list)
    for step in plan:
        scopes[step.kind, step.form, step.static].append(graph.operators[step.position].outputs)
    with translate_foreign_errors(
        "ai-edge-quantizer could not quantise the model", hint="try another recipe"
    ):
        tool = api.Quantizer(flatbuffer.to_bytes(model))
        for (kind, form, static), outputs in scopes.items():
            op = words.TFLOperationName[OP_NAMES.get(kind, kind)]
            bits, each, _ = FORMS[form or "int8"]
            each = words.QuantGranularity[each]
            scope = _make_scope(graph, outputs)
            if static:
                tool.add_static_config(scope, op, recipe.activations, bits, each)
            elif recipe.scheme == "weight-only":
                tool.add_weight_only_config(scope, op, bits, each)
            else:
                tool.add_dynamic_config(scope, op, bits, each)
        for kind, ends in (("INPUT", graph.inputs), ("OUTPUT", graph.outputs)):
            op, scope = words.TFLOperationName[kind], _make_scope(graph, [ends])
            if recipe.integer_io:
                tool.add_static_config(scope, op, recipe.activations, 8)
            else:
                tool.update_quantization_recipe(scope, op, algorithm_key=none)
        outcome = tool.quantize(
            qsv or None, enable_progress_bar=False, enable_progress_report=False
        )
        return bytes(outcome.quantized_model)


def _make_scope(graph: Any, outputs: Iterable[Sequence[int]]) -> str:
    """A pattern that matches exactly the ops with these outputs."""
    names = (
        "".join(flatbuffer.tensor_name(graph.tensors[index]) + ";" for index in indices)
        for indices in outputs
    )
    return f"^(?:{'|'.join(re.escape(name) for name in names)})$"


def make_names_unique(model: flatbuffer.Model) -> None:
    """Give every tensor a name of its own, which the quantiser needs; inputs and outputs keep
    theirs."""
    first = model.subgraphs[0]
    seen = {
        flatbuffer.tensor_name(first.tensors[index]) for index in (*first.inputs, *first.outputs)
    }
    for number, graph in enumerate(model.subgraphs):
        ends = {*first.inputs, *first.outputs} if number == 0 else set()
        for index, tensor in enumerate(graph.tensors):
            name = flatbuffer.tensor_name(tensor)
            if index in ends:
                continue
            if not name or name in seen:
                name = f"{name}#{number}.{index}"
                tensor.name = name.encode()
            seen.add(name)


def _restore_names(model: flatbuffer.Model, quantised: flatbuffer.Model) -> None:
    """Give inputs and outputs their names back: the quantiser names what it puts before them."""
    old, new = model.subgraphs[0], quantised.subgraphs[0]
    names = {flatbuffer.tensor_name(tensor): tensor for tensor in new.tensors}
    pairs = [*zip(old.inputs, new.inputs, strict=True), *zip(old.outputs, new.outputs, strict=True)]
    for before, now in pairs:
        end, name = new.tensors[now], flatbuffer.tensor_name(old.tensors[before])
        if flatbuffer.tensor_name(end) != name:
            names[name].name, end.name = end.name, name.encode()


def _type_unread(model: flatbuffer.Model) -> None:
    """Give results that nothing reads the type of those beside them: the quantiser leaves them
    float, and XNNPACK refuses such a SPLIT."""
    graph = model.subgraphs[0]
    read = {*graph.outputs, *(index for op in graph.operators for index in op.inputs)}
    for op in graph.operators:
        beside = next(
            (t for index in op.outputs if flatbuffer.has_scale(t := graph.tensors[index])), None
        )
        for tensor in (graph.tensors[index] for index in op.outputs if index not in read):
            if beside and flatbuffer.type_name(tensor) == "FLOAT32":
                tensor.type, tensor.quantization = beside.type, beside.quantization
