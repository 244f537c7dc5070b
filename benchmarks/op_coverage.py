"""ONNX's own node tests through the TFLite importer: what matches in LiteRT, and what is refused.

    python -m benchmarks.op_coverage [--only TEXT] [--write]

Eligible are the node tests for a float32 runtime: not the expanded forms of functions, nor other
element types than float32, int64, int32, uint8, int8 and bool, sequences and optionals, other
domains, training, random results, or integer arithmetic (run and counted apart). Inputs that are
parameters (weights, axes, shapes, bounds) are constants, as exporters write them; a case with no
other input is folded whole. Each case is converted and run in a process of its own and compared
with the values that come with the test, within rtol 1e-3 and atol 1e-4.

"refused" is a ConvertError that names the op. "wrong" would be a file that was written, ran and
gave other values; "crash" a dead process.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests

from converters.tflite.lower import to_tflite
from edge_core.errors import EdgeError
from edge_core.files import write_atomic
from edge_core.runtimes.tflite import LITERT

TIMEOUT_S = 60
PAGE = Path(__file__).parent.parent / "docs" / "tflite-ops.md"
MARKS = "<!-- table: python -m benchmarks.op_coverage --write -->\n", "<!-- end of table -->\n"
KINDS = onnx.TensorProto
TYPES = (KINDS.FLOAT, KINDS.INT64, KINDS.INT32, KINDS.BOOL, KINDS.UINT8, KINDS.INT8)
RANDOM = (
    "Bernoulli", "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike",
    "Multinomial",
)  # fmt: skip
ARITHMETIC = (
    "Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Pow", "BitShift", "BitwiseAnd",
    "BitwiseOr", "BitwiseXor", "BitwiseNot",
)  # fmt: skip
# Ops whose inputs are all data; of the others the first one is, and the rest are parameters.
ALL_DATA = (
    *ARITHMETIC, "Sum", "Mean", "And", "Or", "Xor", "Equal", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "Where", "Concat", "MatMul", "Attention", "Loop", "Scan", "If", "Einsum",
    "PRelu", "GatherElements", "GatherND", "ScatterND", "ScatterElements", "Scatter", "Gather",
    "NonMaxSuppression", "RoiAlign", "GridSample", "SoftmaxCrossEntropyLoss",
    "NegativeLogLikelihoodLoss", "ReverseSequence", "RotaryEmbedding", "TensorScatter",
    "MatMulInteger",
)  # fmt: skip
# Ops whose first input is a parameter, too: a size, a count, a range.
ALL_PARAMETERS = (
    "ConstantOfShape", "Range", "HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix",
)  # fmt: skip


class Outcome(NamedTuple):
    """One test: ok, refused, wrong or crash, and what was said."""

    op: str
    name: str
    integer: bool  # integer arithmetic, which is not among the eligible cases
    kind: str
    told: str


def cases() -> list[TestCase]:
    """The eligible tests, and those of integer arithmetic."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tests' own data are made by overflowing casts
        return [case for case in load_model_tests(kind="node") if _is_eligible(case)]


def _graph(case: TestCase) -> onnx.GraphProto:
    assert case.model is not None  # of a node test it never is
    return case.model.graph


def _is_eligible(case: TestCase) -> bool:
    graph = _graph(case)
    values = [value.type for value in (*graph.input, *graph.output)]
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    kinds = [value.tensor_type.elem_type for value in values]
    kinds += [attribute.i for attribute in attributes if attribute.name in ("to", "dtype")]
    kinds += [attribute.t.data_type for attribute in attributes if attribute.HasField("t")]
    return (
        "_expanded" not in case.name
        and "train" not in case.name
        and all(value.WhichOneof("value") == "tensor_type" for value in values)
        and all(kind in TYPES for kind in kinds)
        and all(
            node.domain in ("", "ai.onnx") and node.op_type not in RANDOM for node in graph.node
        )
    )


def _is_integer(case: TestCase) -> bool:
    graph = _graph(case)
    kinds = [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)]
    return graph.node[0].op_type in ARITHMETIC and KINDS.FLOAT not in kinds


def _with_constants(case: TestCase) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The model with its parameters as constants, and what is fed."""
    assert case.model is not None
    assert case.data_sets is not None
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    node = model.graph.node[0]
    feeds = {}
    for i, (value, array) in enumerate(
        zip(list(model.graph.input), case.data_sets[0][0], strict=True)
    ):
        data = i == 0 or node.op_type in ALL_DATA or len(model.graph.node) > 1
        if data and node.op_type not in ALL_PARAMETERS:
            feeds[value.name] = np.asarray(array)
        else:
            constant = numpy_helper.from_array(np.asarray(array), value.name)
            model.graph.initializer.append(constant)
            model.graph.input.remove(value)
    return model, feeds


def _try_case(case: TestCase, folder: Path) -> tuple[str, str]:
    model, feeds = _with_constants(case)
    assert case.data_sets is not None
    source, out = folder / f"{case.name}.onnx", folder / f"{case.name}.tflite"
    onnx.save(model, source)
    try:
        to_tflite(source, out, layout="NCHW")
        got = LITERT.open(out, threads=1, options={}).run(feeds)
    except EdgeError as error:
        return "refused", error.what
    for value, want in zip(model.graph.output, case.data_sets[0][1], strict=True):
        have, want = got[value.name], np.asarray(want)
        if have.shape != want.shape:
            return "wrong", f"shape {have.shape} instead of {want.shape}"
        actual, expected = have.astype(np.float64), want.astype(np.float64)
        if not np.allclose(actual, expected, rtol=1e-3, atol=1e-4, equal_nan=True):
            return "wrong", f"off by {np.nanmax(np.abs(actual - expected)):.2g}"
    return "ok", ""


def _fork_case(case: TestCase, folder: Path) -> Outcome:
    """In a process of its own: a runtime may abort on a file that it should refuse."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(TIMEOUT_S)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the runtime's chatter
        try:
            os.write(writer, json.dumps(_try_case(case, folder)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    status = os.waitpid(pid, 0)[1]
    kind, text = json.loads(told) if told else ("crash", f"status {status}")
    return Outcome(_graph(case).node[0].op_type, case.name, _is_integer(case), kind, text)


def outcomes(wanted: str = "") -> list[Outcome]:
    """Every case whose name contains ``wanted``, in order."""
    chosen = [case for case in cases() if wanted in case.name]
    with tempfile.TemporaryDirectory() as folder:
        return [_fork_case(case, Path(folder)) for case in chosen]


def table(found: Sequence[Outcome]) -> Iterator[str]:
    """Markdown: totals, then a row for each op."""
    eligible = [outcome for outcome in found if not outcome.integer]
    integer = [outcome for outcome in found if outcome.integer]
    for title, group in (("eligible", eligible), ("integer arithmetic", integer)):
        kinds = Counter(outcome.kind for outcome in group)
        share = kinds["ok"] / max(len(group), 1)
        yield (
            f"- {title}: {len(group)} cases, {kinds['ok']} match ({share:.1%}), "
            f"{kinds['refused']} refused by name, {kinds['wrong']} wrong, {kinds['crash']} crashed"
        )
    yield ""
    yield "| op | cases | match | refused | why |"
    yield "|---|--:|--:|--:|---|"
    families = defaultdict(list)
    for outcome in found:
        families[outcome.op].append(outcome)
    for op, group in sorted(families.items()):
        kinds = Counter(outcome.kind for outcome in group)
        why = {
            outcome.told.partition(": ")[2] or outcome.told
            for outcome in group
            if outcome.kind != "ok"
        }
        bad = kinds.total() - kinds["ok"]
        yield f"| {op} | {len(group)} | {kinds['ok']} | {bad or ''} | {'; '.join(sorted(why))} |"


def main(wanted: str, write: bool) -> int:
    """Run, print, perhaps write; the exit code is 1 if anything was wrong or crashed."""
    found = outcomes(wanted)
    lines = "\n".join(table(found)) + "\n"
    sys.stdout.write(lines)
    if write:
        page = PAGE.read_text("utf-8")
        head, rest = page.split(MARKS[0])
        write_atomic(PAGE, (head + MARKS[0] + lines + MARKS[1] + rest.split(MARKS[1])[1]).encode())
    return int(any(outcome.kind in ("wrong", "crash") for outcome in found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    arguments = parser.parse_args()
    sys.exit(main(arguments.only, arguments.write))
