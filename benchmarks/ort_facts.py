"""Measure what each line of ONNX Runtime loads, and write converters/onnx/ort_facts.json.

    python benchmarks/ort_facts.py [--cache DIR] [--check]

Every version is installed into a folder of its own and asked in a child process:

* the highest IR version and the highest ai.onnx opset that a one-node model may have;
* for every operator schema it knows, whether the CPU provider has a kernel for that version of
  the operator, or else inlines the operator's function body: one of ONNX's own node tests must
  load. (onnxruntime/core/framework/kernel_registry.cc: an open-ended kernel matches only the
  version it starts at.)

``--check`` writes nothing and fails if a row differs from the stored one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

from edge_sdk.build.runtime_env import provide

ROOT = Path(__file__).resolve().parent.parent
FACTS = ROOT / "converters" / "onnx" / "ort_facts.json"
# The newest release of every line that has wheels for Python 3.11 on x86-64.
VERSIONS = (
    "1.15.1", "1.16.3", "1.17.3", "1.18.1", "1.19.2", "1.20.1", "1.21.1", "1.22.1", "1.23.2",
    "1.24.4", "1.25.1", "1.26.0", "1.27.0", "1.28.0", "1.29.0", "1.30.0", "1.31.1",
)  # fmt: skip
# Older lines have no such wheel: onnxruntime.ai/docs/reference/compatibility.html.
PUBLISHED = {
    "1.10": {"opset": 15, "ir": 8},
    "1.11": {"opset": 16, "ir": 8},
    "1.12": {"opset": 17, "ir": 8},
    "1.13": {"opset": 17, "ir": 8},
    "1.14": {"opset": 18, "ir": 8},
}
# Graphs of these domains are made for one processor; no package may carry them.
PRIVATE = ("com.microsoft.nchwc", "com.ms.internal.nhwc")
HIGHEST_OPSET, HIGHEST_IR = 40, 30  # of the models that are tried
OPEN_ENDED = 2**31 - 1
Row = dict[str, dict[str, dict[int, bool]]]  # domain -> operator -> since version -> runs


def write_models(folder: Path) -> None:
    """Write the probes: ir/N.onnx, opset/N.onnx and function/<op>/<since>/<n>.onnx."""
    import onnx
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "probe", [x], [y])

    def save(path: Path, model: Any, ir: int, opset: int) -> None:
        model.ir_version = ir
        model.opset_import[0].version = opset
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(model.SerializeToString())

    for n in range(7, HIGHEST_IR + 1):
        save(folder / "ir" / f"{n}.onnx", helper.make_model(graph), n, 13)
    for n in range(7, HIGHEST_OPSET + 1):
        save(folder / "opset" / f"{n}.onnx", helper.make_model(graph), 7, n)
    functions = defaultdict(list)
    for schema in onnx.defs.get_all_schemas_with_history():
        # The type stubs of onnx lack both properties.
        in_context = schema.has_context_dependent_function  # type: ignore[attr-defined]
        if schema.domain == "" and (schema.has_function or in_context):  # type: ignore[attr-defined]
            functions[schema.name].append(schema.since_version)
    for op, n, model in node_tests():
        for since in functions[op]:
            save(folder / "function" / op / str(since) / f"{n}.onnx", model, 8, since)


def node_tests() -> list[tuple[str, int, Any]]:
    """ONNX's own tests of one standard operator each: its name, a number, the model."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():  # overflows in the tests' reference outputs
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    found = []
    for n, case in enumerate(cases):
        nodes = case.model.graph.node if case.model is not None else []
        if len(nodes) == 1 and nodes[0].domain == "":
            found.append((nodes[0].op_type, n, case.model))
    return found


def ask(models: Path) -> None:
    """Child: print this interpreter's ONNX Runtime's answers as JSON."""
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    ort.set_default_logger_severity(4)

    def loads(path: Path) -> bool:
        try:
            ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception:  # noqa: BLE001 - the binding raises many types; each means no
            return False
        return True

    highest = {
        kind: max(int(model.stem) for model in (models / kind).iterdir() if loads(model))
        for kind in ("opset", "ir")
    }
    kernels = defaultdict(set)
    registry = hasattr(state, "get_all_opkernel_def")  # since 1.16
    for kernel in state.get_all_opkernel_def() if registry else ():
        kernels[kernel.domain, kernel.op_name].add(tuple(kernel.version_range))
    row: Row = defaultdict(lambda: defaultdict(dict))
    for schema in state.get_all_operator_schema() if registry else ():
        if schema.domain in PRIVATE:
            continue
        since = schema.since_version
        row[schema.domain][schema.name][since] = (
            any(matches(since, *span) for span in kernels[schema.domain, schema.name])
            or (schema.domain, schema.name) == ("", "Constant")  # becomes an initializer
            or any(
                loads(model)
                for model in sorted((models / "function" / schema.name / str(since)).glob("*"))
            )
        )
    print(json.dumps({"version": ort.__version__, "ceiling": highest, "ops": row}))


def matches(since: int, start: int, end: int) -> bool:
    """Does a kernel registered for start..end compute the operator of version ``since``?"""
    return start == since or (start < since <= end and end != OPEN_ENDED)


def measure(version: str, cache: Path, models: Path) -> dict[str, Any]:
    """Install ``version`` if need be and ask it."""
    env = provide("onnxruntime", version, cache)
    if env.version != version:
        raise SystemExit(f"onnxruntime {version}: {env.note}")
    paths = [*([env.site] if env.site else []), ROOT]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.ort_facts", "--ask", str(models)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
        },
        stdout=subprocess.PIPE,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    if answer["version"] != version:
        raise SystemExit(f"asked for {version}, answered by {answer['version']}")
    print(version, answer["ceiling"], file=sys.stderr)
    return answer


def line_of(version: str) -> str:
    """'1.23.2' -> '1.23'."""
    return ".".join(version.split(".")[:2])


def merge(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows of all versions -> the stored document: per operator version, the lines that run it."""
    ceilings = {answer["version"]: answer["ceiling"] for answer in answers}
    answers = [answer for answer in answers if answer["ops"]]
    lines = [line_of(answer["version"]) for answer in answers]
    names = sorted(
        {
            (domain_name, op)
            for answer in answers
            for domain_name in answer["ops"]
            for op in answer["ops"][domain_name]
        }
    )
    cpu: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    for domain, op in names:
        rows = [answer["ops"].get(domain, {}).get(op, {}) for answer in answers]
        sinces = sorted({int(since) for row in rows for since in row})
        cpu[domain][op] = {
            str(since): spans([row.get(str(since), False) for row in rows], lines)
            for since in sinces
        }
    return {
        "measured": ceilings,
        "published": PUBLISHED,
        "kernels": lines,
        "cpu": cpu,
    }


def spans(runs: list[bool], lines: list[str]) -> str:
    """[no, yes, yes] -> "1.16-"; all -> "*"; none -> ""; gaps are joined by commas."""
    if all(runs):
        return "*"
    out = []
    for i, line in enumerate(lines):
        if runs[i] and (i == 0 or not runs[i - 1]):
            out.append("-" if i == 0 else f"{line}-")
        if i + 1 < len(lines) and runs[i] and not runs[i + 1]:
            out[-1] += line
    return ",".join(out)


def encode(facts: dict[str, Any]) -> str:
    """JSON with one operator a line, for diffs that can be read."""

    def entries(table: dict[str, Any]) -> str:
        return ",\n".join(
            f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in table.items()
        )

    domains = ",\n".join(
        f" {json.dumps(domain)}: {{\n{entries(table_of_domain)}\n }}"
        for domain, table_of_domain in facts["cpu"].items()
    )
    return (
        f'{{\n"measured": {{\n{entries(facts["measured"])}\n}},\n'
        f'"published": {{\n{entries(facts["published"])}\n}},\n'
        f'"kernels": {json.dumps(facts["kernels"])},\n"cpu": {{\n{domains}\n}}\n}}\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "edge-deploy")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--ask", type=Path, help=argparse.SUPPRESS)  # the child
    args = parser.parse_args()
    if args.ask:
        ask(args.ask)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder))
        text = encode(merge([measure(version, args.cache, Path(folder)) for version in VERSIONS]))
    if args.check:
        sys.exit(
            0 if FACTS.read_text(encoding="utf-8") == text else f"{FACTS} is not what was measured"
        )
    FACTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
