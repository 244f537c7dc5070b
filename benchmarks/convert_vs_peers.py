"""INT8 of EfficientNet-Lite0: ours against ONNX Runtime's own quantizer, on the same photos.

    python -m benchmarks.convert_vs_peers [--rounds 40] [--offline]

Peers: quantize_static with its defaults, and its documented recipes (quant_pre_process, QDQ, U8S8,
per channel; MinMax, Entropy, Percentile 99.99). All are calibrated on the same 160 crops and
judged on 200 crops of other photos: agreement is the share with the float model's top-1. Latency:
one process, one thread, the files in turn, medians; ratios are against float in the same rounds.
The rows of TFLite follow (benchmarks.tflite_vs_peers).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import tflite_vs_peers
from converters import registry as converters
from converters.onnx.format import ONNX
from converters.spec import Ceiling
from edge_core import console
from edge_core.files import sha256_file
from edge_core.profile import Runtime
from edge_core.runtimes import onnxruntime as adapter
from edge_core.runtimes import sample_store
from edge_sdk.build import convert
from edge_sdk.build.metrics import wilson_interval
from edge_sdk.build.stages import Candidate
from edge_sdk.build.workspace import Workspace
from examples import data, models

OURS = "edge: onnx-int8-static-u8s8"


class Reader:
    """Feeds calibration samples the way the quantizer asks for them."""

    def __init__(self, samples):
        self._samples = iter(samples)

    def get_next(self):
        return next(self._samples, None)


def peers(float_model: Path, samples: list[dict], out: Path) -> dict[str, tuple[Path, float]]:
    """Files of ONNX Runtime's quantizer, and the seconds each took."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    made = {}

    def time_sessions(name, path, call):
        start = time.perf_counter()
        call()
        made[name] = path, time.perf_counter() - start

    plain = out / "defaults.onnx"
    time_sessions(
        "ORT quantize_static, defaults",
        plain,
        lambda: quantize_static(float_model, plain, Reader(samples)),
    )
    prepared = out / "prepared.onnx"
    quant_pre_process(str(float_model), str(prepared))
    methods = {
        "MinMax": (CalibrationMethod.MinMax, {}),
        "Entropy": (CalibrationMethod.Entropy, {}),
        "Percentile 99.99": (CalibrationMethod.Percentile, {"CalibPercentile": 99.99}),
    }
    for title, (method, extra) in methods.items():
        path = out / f"{title}.onnx"
        # The histogram calibrators keep every activation; 64 samples is what they fit in memory.
        subset = samples if title == "MinMax" else samples[:64]

        def call(path=path, method=method, extra=extra, subset=subset):
            quantize_static(
                prepared, path, Reader(subset), quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True,
                calibrate_method=method, extra_options=extra,
            )  # fmt: skip

        time_sessions(f"ORT recipe, per channel, {title}", path, call)
    return made


def ours(float_model: Path, samples: list[dict], cache: Path) -> tuple[Path, float]:
    """Our file, through the same stage that `edge build` uses."""
    work = Workspace(cache, jobs=1)
    folder = work.cache / "feeds" / sample_store.digest(samples)
    sample_store.write(folder, samples)
    start = time.perf_counter()
    prepared = convert.prepare(work, float_model, ONNX, sha256_file(float_model), {})
    candidate = Candidate(
        spec=converters.get("onnx-int8-static-u8s8").SPEC,
        runtime=Runtime(name="onnxruntime", version=adapter.version()),
        ceiling=Ceiling(opset=21, ir=10),
        arch="x86_64",
    )
    artifact = convert.convert(
        work, prepared, candidate, layout="NHWC", feeds=folder,
    )  # fmt: skip
    return artifact.path, time.perf_counter() - start


def time_interleaved(files: dict[str, Path], feed: dict, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each file, all in this process, in turn."""
    sessions = {key: adapter.open(path, threads=1, options={}) for key, path in files.items()}
    for session in sessions.values():
        for _ in range(5):
            session.run(feed)
    times: dict[str, list[float]] = {key: [] for key in files}
    for _ in range(rounds):
        for name, session in sessions.items():
            for _ in range(5):
                start = time.perf_counter_ns()
                session.run(feed)
                times[name].append((time.perf_counter_ns() - start) / 1e6)
    return times


def logits(path: Path, samples: list[dict]) -> np.ndarray:
    session = adapter.open(path, threads=1, options={})
    return np.concatenate([next(iter(session.run(sample).values())) for sample in samples])


def main(rounds: int, offline: bool) -> int:
    return max(onnx_rows(rounds), tflite_vs_peers.main(rounds, offline))


def onnx_rows(rounds: int) -> int:
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as folder:
        out = Path(folder)
        float_model = models.lite0(out / "lite0.onnx")
        calibration = [{"input": image} for image in data.photo_crops_calibration()]
        evaluation = [{"input": image} for image in data.photo_crops_eval()]
        files = {"float": (float_model, 0.0)}
        files |= {OURS: ours(float_model, calibration, out / "cache")}
        files |= peers(float_model, calibration, out)
        answers = {key: logits(file, evaluation) for key, (file, _) in files.items()}
        times = time_interleaved(
            {key: file for key, (file, _) in files.items()}, evaluation[0], rounds
        )
        names = ("MB", "of float", "ms p50", "speed-up", "agreement", "95 %", "cosine", "convert s")
        table = console.new_table("file", *names, right=names)
        base = statistics.median(times["float"])
        size = float_model.stat().st_size
        results = {}
        for name, (path, seconds) in files.items():
            expected, answer = answers["float"], answers[name]
            same = int((expected.argmax(1) == answer.argmax(1)).sum())
            cosine = float(
                np.mean(
                    (expected * answer).sum(1)
                    / np.linalg.norm(expected, axis=1)
                    / np.linalg.norm(answer, axis=1)
                )
            )
            ms = statistics.median(times[name])
            low, high = wilson_interval(same, len(expected))
            results[name] = same / len(expected), base / ms, path.stat().st_size / size
            table.add_row(
                name, f"{path.stat().st_size / 1e6:.2f}", f"{path.stat().st_size / size:.3f}",
                f"{ms:.2f}", f"{base / ms:.2f}x", f"{same / len(expected):.3f}",
                f"{low:.3f}..{high:.3f}", f"{cosine:.4f}", f"{seconds:.1f}",
            )  # fmt: skip
        console.stdout().print(table)
        agreement, speed, ratio = results[OURS]
        best = max(figures[0] for key, figures in results.items() if key.startswith("ORT"))
        met = {
            f"bytes {ratio:.3f} of float (at most 0.30)": ratio <= 0.30,
            f"speed-up {speed:.2f} (at least 1.7)": speed >= 1.7,
            f"agreement {agreement:.3f} (best peer {best:.3f})": agreement >= best,
        }
        for text, ok in met.items():
            print(f"{'met    ' if ok else 'NOT MET'} {text}")
        return 0 if all(met.values()) else 2


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--offline", action="store_true", help="install no peer")
    arguments = parser.parse_args()
    sys.exit(main(arguments.rounds, arguments.offline))
