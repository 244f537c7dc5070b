"""Float against quantised on labelled data and on text; every candidate, nothing left out.

    python -m benchmarks.accuracy

Digits by a CNN and by an LSTM: 5,000 labelled; keywords: 180 labelled clips; MiniLM: cosine on 400
sentences. Candidates
that the plan refuses are measured here all the same, so that each refusal has its figure.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from edge_core import console
from edge_sdk import BuildOptions, build, load_profile
from edge_sdk.build.packaging import BuildResult
from edge_sdk.build.stages import Measurement
from edge_sdk.commands.render import format_quantity
from examples import models

PROFILE = "x86-64"
EVERY = (
    "onnx-fp16", "onnx-int8-static-u8s8", "onnx-int8-static-s8s8", "onnx-int8-static-per-tensor",
    "onnx-int8-dynamic", "onnx-int8-dynamic-conv",
    "onnx-int8-weights", "onnx-int4", "onnx-int4-conv",
    "tflite-int8-static-io", "tflite-int8-weights", "tflite-int16x8",
)  # fmt: skip
LSTM = Path(__file__).parent.parent / "examples" / "data" / "lstm" / "trained_lstm.tflite"


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as folder:
        out = Path(folder)
        rows = {
            "EfficientNet-Lite0": one(out, "lite0", "photo_crops", "auto"),
            "digits": one(out, "digits", "digits", "top1"),
            "LSTM digits": one(out, "lstm", "lstm_digits", "top1"),
            "keywords": one(out, "keywords", "keywords", "top1"),
            "MiniLM": one(out, "minilm", "sentences", "cosine"),
        }
    table = console.new_table(
        "model", "candidate", "plan", "MB", "ms", "metric", "lost points", "cosine",
        right=("MB", "ms", "metric", "lost points", "cosine"),
    )  # fmt: skip
    for model, built in rows.items():
        ruled = {decision.candidate: decision.verdict for decision in built.plan.decisions}
        ruled |= {
            decision.candidate: "out"
            for decision in built.plan.decisions
            if "--with" in decision.reason
        }
        for measurement in sorted(
            built.measurements, key=lambda measurement: measurement.candidate
        ):
            table.add_row(
                model, measurement.candidate, ruled[measurement.candidate], *_numbers(measurement)
            )
    console.stdout().print(table)
    return check(rows)


def one(out: Path, model: str, samples: str, metric: str) -> BuildResult:
    """Build one model with every candidate that exists."""
    path = LSTM if model == "lstm" else getattr(models, model)(out / f"{model}.onnx")
    options = BuildOptions(
        out=out / "dist",
        calibration=f"examples.data:{samples}_calibration",
        evaluation=f"examples.data:{samples}_eval",
        metric=metric,
        also=EVERY,
    )
    return build(path, [load_profile(PROFILE)], options)[0]


def check(rows: dict[str, BuildResult]) -> int:
    """The figures that the project holds itself to."""

    def value(model: str, candidate: str, name: str) -> float:
        measurement = next(
            measurement
            for measurement in rows[model].measurements
            if measurement.candidate == candidate
        )
        found = measurement.values[name].value
        assert found is not None
        return found

    both = ("digits", "keywords")
    pairs = {
        "onnx-int8-static-u8s8": both,
        "onnx-int8-weights": both,
        "tflite-int8-static": (*both, "LSTM digits"),
        "tflite-int8-dynamic": (*both, "LSTM digits"),
    }
    met = {}
    for name, named in pairs.items():
        for model in named:
            lost, left = (
                value(model, name, quantity) for quantity in ("accuracy_drop_points", "metric")
            )
            text = f"{model}: float {left + lost:.2f}, {name} {left:.2f}: {lost:.2f} points lost"
            met[f"{text} (at most 0.5)"] = lost <= 0.5
    mb, cosine = value("MiniLM", "onnx-int4", "package_mb"), value("MiniLM", "onnx-int4", "cosine")
    met[f"MiniLM INT4 {mb:.2f} MB (at most 15), cosine {cosine:.4f} (at least 0.97)"] = (
        mb <= 15 and cosine >= 0.97
    )
    for text, ok in met.items():
        print(f"{'met    ' if ok else 'NOT MET'} {text}")
    return 0 if all(met.values()) else 2


def _numbers(measurement: Measurement) -> list[str]:
    if measurement.error:
        return ["", "", "", measurement.error, ""]
    names = ("package_mb", "host_p50_ms", "metric", "loss_points", "cosine")
    return [format_quantity(measurement.values.get(name)) for name in names]


if __name__ == "__main__":
    sys.exit(main())
