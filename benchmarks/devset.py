"""Every example model through `edge build` for several devices: the table in docs/devset.md.

    python -m benchmarks.devset [--write] [--model NAME]

A model that cannot be built is in the table with the message, which names the op and a way out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import msgspec

from converters import registry as converters
from edge_core.errors import EdgeError
from edge_core.files import write_atomic
from edge_sdk import BuildOptions, build
from edge_sdk.build.packaging import BuildResult
from edge_sdk.commands.render import format_quantity
from examples import models

PROFILES = ("raspberry-pi-4b", "x86-gateway-n100", "raspberry-pi-3b-plus-32bit")
TFLITE_PROFILE = "raspberry-pi-4b"  # once more, with TFLite candidates only
TFLITE = tuple(n for n, c in sorted(converters.by_name().items()) if c.SPEC.target == "tflite")
LSTM = Path(__file__).parent.parent / "examples" / "data" / "lstm" / "trained_lstm.tflite"
FLOATS = ("onnx-fp32", "tflite-fp32", "tflite-given")
PAGE = Path(__file__).parent.parent / "docs" / "devset.md"
MARKS = "<!-- table: python -m benchmarks.devset --write -->\n", "<!-- end of table -->\n"


class Case(msgspec.Struct, frozen=True):
    model: str  # a function of examples.models
    samples: str  # functions of examples.data: <samples>_calibration and <samples>_eval
    metric: str = "auto"
    shapes: dict[str, int | tuple[int, ...]] = {}


CASES = (
    Case("lite0", "photo_crops"),
    Case("digits", "digits"),
    Case("lstm", "lstm_digits"),
    Case("keywords", "keywords"),
    Case("minilm", "sentences", "cosine"),
    Case("magika", "magika", shapes={"bytes": (1, 2048)}),
    Case("fastestdet", "detection", "cosine"),
    Case("silero", "speech", "cosine", {"input": (1, 576), "state": (2, 1, 128), "sr": 16000}),
)


def main(write: bool, model: str) -> int:
    lines = [
        "| model | profile | verdict | winner | MB | of float | metric | lost points | ms here |",
        "|---|---|---|---|--:|--:|--:|--:|--:|",
    ]
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as folder:
        for case in (known for known in CASES if model in ("", known.model)):
            lines += _case(case, Path(folder))
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if write:
        page = PAGE.read_text("utf-8")
        before, rest = page.split(MARKS[0])
        _, after = rest.split(MARKS[1])
        write_atomic(PAGE, (before + MARKS[0] + text + MARKS[1] + after).encode())
    return 0


def _case(case: Case, out: Path) -> list[str]:
    model = LSTM if case.model == "lstm" else _build_row(case.model, out)
    rows = []
    for profiles, only in ((PROFILES, ()), ((TFLITE_PROFILE,), TFLITE)):
        note = ", TFLite only" if only else ""
        options = BuildOptions(
            out=out / "dist",
            only=only,
            calibration=f"examples.data:{case.samples}_calibration",
            evaluation=f"examples.data:{case.samples}_eval",
            metric=case.metric,
            shapes=case.shapes,
        )
        try:
            built = build(model, profiles, options)
        except EdgeError as error:
            rows.append(
                f"| {case.model} | all{note} | refused: {error.what} {error.hint} | | | | | | |"
            )
            continue
        rows += [_row(case.model, b, note) for b in built]
    return rows


def _build_row(name: str, out: Path) -> Path:
    path: Path = getattr(models, name)(out / f"{name}.onnx")
    return path


def _row(model: str, built: BuildResult, note: str) -> str:
    if not built.package:
        return f"| {model} | {built.profile}{note} | {_why(built)} | | | | | | |"
    by_name = {measurement.candidate: measurement.values for measurement in built.measurements}
    won, floats = (
        by_name[built.verdict.winner],
        next(by_name[form] for form in FLOATS if form in by_name),
    )
    share = (won["package_mb"].value or 0) / (floats["package_mb"].value or 1)
    numbers = (format_quantity(won.get(n)) if n in won else "" for n in ("metric", "loss_points"))
    return (
        f"| {model} | {built.profile}{note} | {built.verdict.outcome} | {built.verdict.winner} "
        f"| {format_quantity(won['package_mb'])} | {share:.2f} | {' | '.join(numbers)} "
        f"| {format_quantity(won['host_p50_ms'])} |"
    )


def _why(built: BuildResult) -> str:
    """What stood in the way: an op and a way out where the converters said so."""
    told = dict.fromkeys(
        measurement.error for measurement in built.measurements if measurement.error
    )
    return "; ".join([built.verdict.relaxation, *told])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the table into the docs page")
    parser.add_argument("--model", default="", help="print the rows of this model only")
    arguments = parser.parse_args()
    sys.exit(main(arguments.write and not arguments.model, arguments.model))
