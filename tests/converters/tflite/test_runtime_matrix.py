"""Recipes on old runtimes: every cell is right, or refused with a reason. None computes garbage.

The runtimes are the real wheels, each in a folder of its own, run as a build runs them. First the
hazard: the same files with the operator versions that ai-edge-quantizer leaves.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np
import pytest
from ai_edge_quantizer.qtyping import QuantGranularity, TFLOperationName
from ai_edge_quantizer.quantizer import Quantizer
from onnx import helper

from converters.layouts import to_artifact, to_model
from converters.spec import Ceiling, Job
from converters.tflite import flatbuffer, lower, recipes, versions
from edge_core.errors import MeasureError
from edge_core.runtimes import onnxruntime, sample_store
from edge_core.tensors import TensorSpec
from edge_sdk.build import runtime_env
from edge_sdk.build.workspace import Workspace
from tests import graphs
from tests.graphs import INT64, value, weight

TFR_214 = ("tflite-runtime", "2.14.0")
TFR_220 = ("tflite-runtime", "2.20.0.dev20250409")
LITERT = tuple(
    ("litert", version) for version in ("1.0.1", "1.2.0", "1.4.0", "2.0.3", "2.1.2", "2.3.0")
)
L101, L120, L140, L203, L212, L230 = LITERT
RUNTIMES = (TFR_214, TFR_220, *LITERT)
if sys.version_info >= (3, 12):  # no wheels of the others
    RUNTIMES = (L120, L140, L203, L212, L230)
if sys.version_info >= (3, 13):
    RUNTIMES = (L212, L230)
BEFORE_203 = frozenset({TFR_214, TFR_220, L101, L120, L140})
BEFORE_212 = BEFORE_203 | {L203}

SAMPLES = 4
FINE, COARSE = 0.1, 0.3  # relative error of 8 and of 4 bits; the mildest garbage has 0.58

NOBODY, OLDEST = frozenset(), frozenset({TFR_214})
# candidate -> model -> the runtimes that refuse it.
CNNS, ALL = ("digits", "mobile"), ("digits", "mobile", "encoder")
REFUSED_BY = {
    "tflite-fp32": dict.fromkeys(ALL, NOBODY),
    "tflite-fp16": dict.fromkeys(ALL, NOBODY),
    "tflite-int8-static": dict.fromkeys(ALL, OLDEST),  # its last layer has a scale per channel
    "tflite-int8-static-plain": dict.fromkeys(CNNS, NOBODY),
    "tflite-int8-static-io": dict.fromkeys(CNNS, NOBODY),
    "tflite-int16x8": {**dict.fromkeys(CNNS, NOBODY), "encoder": OLDEST},
    "tflite-int8-dynamic": dict.fromkeys(ALL, OLDEST),
    "tflite-int8-dynamic-per-tensor": dict.fromkeys(ALL, NOBODY),
    "tflite-int8-weights": dict.fromkeys(ALL, NOBODY),
    "tflite-int4": {**dict.fromkeys(CNNS, NOBODY), "encoder": OLDEST},
    "tflite-int4-block32": dict.fromkeys(ALL, BEFORE_212),
    "tflite-int8-int4-table": {"encoder": BEFORE_203},
}


class Model(NamedTuple):
    onnx: object  # Path
    samples: list
    wanted: np.ndarray  # what onnxruntime answers, one row a sample
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class File(NamedTuple):
    path: object  # Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    limit: float


def mobile():
    """A convolution, a depthwise one, a pointwise one, a fully connected head."""
    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["image", "c1", "b1"], ["x1"], strides=[2, 2], **same),
        helper.make_node("Relu", ["x1"], ["r1"]),
        helper.make_node("Conv", ["r1", "c2", "b1"], ["x2"], group=32, **same),
        helper.make_node("Relu", ["x2"], ["r2"]),
        helper.make_node("Conv", ["r2", "c3", "b3"], ["x3"], kernel_shape=[1, 1]),
        helper.make_node("Relu", ["x3"], ["r3"]),
        helper.make_node("GlobalAveragePool", ["r3"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["logits"], transB=1),
    ]
    weights = [
        weight("c1", 32, 3, 3, 3, scale=0.2), weight("c2", 32, 1, 3, 3, scale=0.3),
        weight("c3", 64, 32, 1, 1, scale=0.2), weight("b1", 32, scale=0.1),
        weight("b3", 64, scale=0.1), weight("w", 40, 64, scale=0.2), weight("b", 40, scale=0.1),
    ]  # fmt: skip
    return graphs.make_model(
        nodes, [value("image", [1, 3, 32, 32])], [value("logits", [1, 40])], weights
    )


def encoder():
    """A table of 500 rows, two fully connected layers, a residual, the mean over 16 tokens."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Gemm", ["rows", "w1", "b1"], ["wide"], transB=1),
        helper.make_node("Relu", ["wide"], ["bent"]),
        helper.make_node("Gemm", ["bent", "w2", "b2"], ["narrow"], transB=1),
        helper.make_node("Add", ["narrow", "rows"], ["sum"]),
        helper.make_node("ReduceMean", ["sum"], ["embedding"], axes=[0]),
    ]
    weights = [
        weight("table", 500, 64), weight("w1", 128, 64, scale=0.1), weight("b1", 128, scale=0.1),
        weight("w2", 64, 128, scale=0.1), weight("b2", 64, scale=0.1),
    ]  # fmt: skip
    ids, out = value("ids", [16], INT64), value("embedding", [1, 64])
    return graphs.make_model(nodes, [ids], [out], weights)


@pytest.fixture(scope="module")
def models(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    paths = {
        "digits": digits,
        "mobile": graphs.save_model(mobile(), folder / "mobile.onnx"),
        "encoder": graphs.save_model(encoder(), folder / "encoder.onnx"),
    }
    return {name: _model(path) for name, path in paths.items()}


def _model(path):
    rng = np.random.default_rng(0)
    session = onnxruntime.open(path, threads=1, options={})
    (spec,) = session.inputs
    samples = [
        {spec.name: rng.integers(0, 500, spec.shape)}
        if spec.dtype == "int64"
        else {spec.name: rng.random(spec.shape, np.float32)}
        for _ in range(SAMPLES)
    ]
    wanted = [next(iter(session.run(sample).values())) for sample in samples]
    return Model(path, samples, np.concatenate(wanted), session.inputs, session.outputs)


@pytest.fixture(scope="module")
def candidates(models, tmp_path_factory):
    """(model, candidate) -> File, made as a build makes it."""
    found = {}
    made_by = {recipe.SPEC.name: recipe for recipe in recipes.TFLITE_CONVERTERS}
    for candidate, by_model in REFUSED_BY.items():
        recipe = made_by[candidate]
        for name in by_model:
            model = models[name]
            job = Job(
                model=model.onnx,
                out_dir=tmp_path_factory.mktemp(candidate),
                ceiling=Ceiling(opset=0, ir=0),
                arch="aarch64",
                runtime_version="2.3.0",
                samples=model.samples,
            )
            made = recipe.convert(job)
            limit = COARSE if recipe.SPEC.precision == "int4" else FINE
            found[name, candidate] = File(made.path, made.inputs, made.outputs, limit)
    return found


@pytest.fixture(scope="module")
def workspace(edge):
    return Workspace(edge.cache)


class Runner:
    """One runtime in a child that is started anew when it died."""

    def __init__(self, workspace, runtime, folder):
        self.name, version = runtime
        self.site = runtime_env.provide(self.name, version, workspace.cache).site
        self.workspace, self.folder = workspace, folder

    def outcomes(self, cells, models):
        """cell -> "right", "refused: why", "wrong by 0.93" or "crashed with SIGSEGV"."""
        found, left = {}, dict(cells)
        while left:
            with self.workspace.measuring_child(self.site) as child:
                for cell in tuple(left):
                    found[cell] = self._outcome(child, left.pop(cell), models[cell[0]])
                    if "crashed" in found[cell]:
                        break
        return found

    def _outcome(self, child, file, model):
        given, answers = (
            self.folder / f"{len(list(self.folder.iterdir()))}-{name}" for name in "ia"
        )
        sample_store.write(
            given, [to_artifact(sample, model.inputs, file.inputs) for sample in model.samples]
        )
        try:
            child.ask("open", path=str(file.path), runtime=self.name, threads=1, options={})
        except MeasureError as e:
            return f"refused: {e.what}" if "cannot load" in e.what else e.what
        try:
            child.ask("run", feeds=str(given), out=str(answers))
        except MeasureError as e:
            return e.what
        rows = [
            to_model(answer, model.outputs, file.outputs) for answer in sample_store.read(answers)
        ]
        got = np.concatenate([next(iter(row.values())) for row in rows])
        error = float(np.linalg.norm(got - model.wanted) / np.linalg.norm(model.wanted))
        return "right" if error < file.limit else f"wrong by {error:.3g}"  # NaN is wrong


@pytest.mark.parametrize("runtime", RUNTIMES, ids=" ".join)
def test_every_candidate_is_right_or_refused(runtime, candidates, models, workspace, tmp_path):
    found = Runner(workspace, runtime, tmp_path).outcomes(candidates, models)
    told = {cell: outcome.partition(":")[0] for cell, outcome in found.items()}
    refused = {
        (model, candidate)
        for candidate, by in REFUSED_BY.items()
        for model in by
        if runtime in by[model]
    }
    assert told == {
        candidate: "refused" if candidate in refused else "right" for candidate in candidates
    }, found
    reasons = [outcome for outcome in found.values() if outcome.startswith("refused")]
    assert all("Didn't find op for builtin opcode '" in reason for reason in reasons)


class Hazard(NamedTuple):
    model: str
    op: str
    bits: int
    scales: str  # what has one of its own
    limit: float
    wrong_on: frozenset  # runtimes that load the file as ai-edge-quantizer leaves it
    refused_by: frozenset  # ... and once it is stamped


# With blocks in layers, tflite-runtime 2.14 and litert 1.0 read beyond the scales' end: garbage, a
# crash or, by chance, a refusal.
HAZARDS = {
    "int8 layers, a scale a channel": Hazard(
        # The nightly is right after stamping, by asymmetric inputs: it knows every version that
        # litert 1.2 knows.
        "digits", "FULLY_CONNECTED", 8, "CHANNELWISE", FINE, OLDEST | {TFR_220}, OLDEST,
    ),
    "int4 layers in blocks": Hazard(
        "digits", "FULLY_CONNECTED", 4, "BLOCKWISE_32", COARSE,
        frozenset({L120, L140, L203}), BEFORE_212,
    ),
    "int8 tables, a scale a row": Hazard(
        "encoder", "EMBEDDING_LOOKUP", 8, "CHANNELWISE", FINE, OLDEST, OLDEST,
    ),
    "int4 tables in blocks": Hazard(
        "encoder", "EMBEDDING_LOOKUP", 4, "BLOCKWISE_32", COARSE,
        frozenset({TFR_220, L101, L120}), BEFORE_203,
    ),
    "int4 convolutions": Hazard(
        "digits", "CONV_2D", 4, "CHANNELWISE", COARSE, OLDEST | {L101}, OLDEST | {L101},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def hazards(models, tmp_path_factory):
    """(model, what) -> the file with ai-edge-quantizer's versions, and the same one stamped."""
    folder = tmp_path_factory.mktemp("hazards")
    found = {}
    for i, (what, hazard) in enumerate(HAZARDS.items()):
        original, as_left, stamped = (
            folder / f"{i}-{name}.tflite" for name in ("float", "left", "ours")
        )
        lowered = lower.to_tflite(models[hazard.model].onnx, original)
        tool = Quantizer(str(original))
        kind, scales = TFLOperationName[hazard.op], QuantGranularity[hazard.scales]
        tool.add_dynamic_config(".*", kind, hazard.bits, granularity=scales)
        tool.quantize(enable_progress_report=False).export_model(str(as_left))
        model = flatbuffer.read(as_left)
        versions.stamp(model)
        flatbuffer.write(model, stamped)
        found[hazard.model, what] = [
            File(path, lowered.inputs, lowered.outputs, hazard.limit) for path in (as_left, stamped)
        ]
    return found


@pytest.mark.parametrize("runtime", RUNTIMES, ids=" ".join)
def test_what_was_garbage_or_a_crash_is_refused(runtime, hazards, models, workspace, tmp_path):
    runner = Runner(workspace, runtime, tmp_path)
    for cell, (as_left, _) in hazards.items():
        if runtime in HAZARDS[cell[1]].wrong_on:
            (outcome,) = runner.outcomes({cell: as_left}, models).values()
            assert outcome.startswith("wrong by") or "crashed with SIG" in outcome, cell
    found = runner.outcomes({cell: stamped for cell, (_, stamped) in hazards.items()}, models)
    for (_, what), outcome in found.items():
        expected = "refused" if runtime in HAZARDS[what].refused_by else "right"
        assert outcome.partition(":")[0] == expected, (what, outcome)
        assert expected == "right" or "Didn't find op for builtin opcode '" in outcome
