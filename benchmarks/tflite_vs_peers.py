"""TFLite files of EfficientNet-Lite0 and MiniLM: ours against other people's converters.

    python -m benchmarks.tflite_vs_peers [--rounds 40] [--offline]

Peers: onnx2tf, litert-torch, ai-edge-quantizer by its defaults, TFLiteConverter, ONNX Runtime's
quantizer; each in an environment of its own in the cache (about 3 GB, made at the first run). All
are calibrated on the same samples and judged on others. The time and the peak memory are those of
whole processes, from the model to the file; a file made from a float .tflite counts that one too.
Latency: one process, one thread, the files in turn; a ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from benchmarks import peer_env
from benchmarks.peer_env import Cost
from edge_core import console
from edge_core.errors import EdgeError, MeasureError
from edge_core.runtimes import registry as runtimes
from edge_core.runtimes import sample_store
from edge_core.runtimes.adapter import Session
from edge_core.tensors import Array, Feeds, TensorSpec, dequantise, quantise
from edge_sdk.build.metrics import wilson_interval
from edge_sdk.build.workspace import default_cache
from examples import data, models

MAKERS = Path(__file__).with_name("tflite_makers.py")
FLOAT, STATIC, SEARCHED, DYNAMIC = (
    "edge: tflite-fp32",
    "edge: tflite-int8-static",
    "edge: tflite-int8-static-mixed",  # with the search for layers that stay float
    "edge: tflite-int8-dynamic",
)
TABLE_INT4, BLOCK_INT4 = "edge: tflite-int8-int4-table", "edge: tflite-int4-block32"
ONNX2TF = "onnx2tf 2.6.9 flatbuffer_direct"
WARM_UP, TURN = 5, 5  # runs
Make = Callable[[Path], Cost]  # writes the file


class File(msgspec.Struct, frozen=True):
    """One row's file, or why there is none."""

    kind: str  # "float", "static" (activations by calibration), "dynamic", ...
    path: Path | None = None
    cost: Cost = Cost(0.0, 0.0)
    problem: str = ""


class Figures(msgspec.Struct, frozen=True):
    """What was measured of one file."""

    kind: str
    size: int  # bytes
    cost: Cost
    median: float  # ms
    minimum: float  # ms
    speed: float  # runs while our float file makes one
    agreement: float  # share with the original's top-1
    cosine: float  # to the original's outputs; mean over the samples


class Bench:
    """The files of one model, as they are made, and the samples to judge them on."""

    def __init__(
        self,
        model: Path,
        calibration: Sequence[Feeds],
        evaluation: Sequence[Feeds],
        cache: Path,
        offline: bool,
    ) -> None:
        self.model, self.folder, self.samples = model, model.parent, evaluation
        self.files: dict[str, File] = {}
        self._cache, self._offline = cache, offline
        self._feeds = self.folder / "calibration"
        sample_store.write(self._feeds, calibration)

    def add(
        self, name: str, kind: str, make: Make, *, start: str = "", suffix: str = ".tflite"
    ) -> None:
        """Make one file. ``start``: the row whose file it is made from, whose cost it bears."""
        print(f"making {name}", file=sys.stderr, flush=True)
        out = self.folder / f"{len(self.files)}{suffix}"
        before = self.files[start].cost if start else Cost(0.0, 0.0)
        try:
            cost = make(out)
        except EdgeError as error:
            self.files[name] = File(kind, problem=error.what)
            return
        total = Cost(before.seconds + cost.seconds, max(before.peak_mb, cost.peak_mb))
        self.files[name] = File(kind, out, total)

    def ours(self, candidate: str, kind: str) -> None:
        def make(out: Path) -> Cost:
            program = [sys.executable, "-m", "benchmarks.tflite_ours"]
            command = [*program, *map(str, (self.model, candidate, self._feeds, out))]
            paths = {"PYTHONPATH": str(MAKERS.parent.parent)}
            return peer_env.run(command, log=out.with_suffix(".log"), env=paths)

        self.add(f"edge: {candidate}", kind, make)

    def onnx2tf(self, shapes: Mapping[str, str]) -> None:
        def make(out: Path) -> Cost:
            python = peer_env.provide(peer_env.ONNX2TF, self._cache, offline=self._offline)
            work = out.with_suffix("")
            work.mkdir()
            shutil.copy(self.model, work / "m.onnx")  # it rewrites its input
            given = ["-i", str(work / "m.onnx"), "-o", str(work), "-tb", "flatbuffer_direct", "-n"]
            fixed = ["-ois", *(f"{name}:{shape}" for name, shape in shapes.items())]
            log = work / "log"
            cost = peer_env.run([str(python), "-m", "onnx2tf", *given, *fixed], log=log)
            # It ends with 0 all the same, with another file or none.
            if "Failed to optimize" in log.read_text(errors="replace"):
                raise MeasureError("onnxsim did not run")
            if not (work / "m_float32.tflite").is_file():
                raise MeasureError("it wrote no file")
            shutil.move(work / "m_float32.tflite", out)
            return cost

        self.add(ONNX2TF, "float", make)

    def quantizer(self, recipe: str, kind: str, start: str, title: str) -> None:
        def make(out: Path) -> Cost:
            return self._program("quantizer", self._find_file(start), recipe, self._feeds)(out)

        whose = "our float" if start == FLOAT else "onnx2tf's"
        self.add(f"AEQ 0.10.0 {title}, on {whose}", kind, make, start=start)

    def litert_torch(self) -> None:
        make = self._program("litert_torch_lite0", env=peer_env.LITERT_TORCH)
        self.add("litert-torch 0.10.0, nn.Module", "float", make)

    def tensorflow(self, recipe: str) -> None:
        def make(out: Path) -> Cost:
            args = self._find_file(FLOAT), recipe, self._feeds
            return self._program("tensorflow", *args, env=peer_env.TENSORFLOW)(out)

        # Our file only holds the weights for it: its cost is not TensorFlow's.
        self.add(f"TFLiteConverter 2.21.0 {recipe}", recipe, make)

    def onnxruntime(self) -> None:
        def copy(out: Path) -> Cost:
            shutil.copy(self.model, out)
            return Cost(0.0, 0.0)

        self.add("ONNX Runtime float", "float", copy, suffix=".onnx")

    def onnxruntime_qdq(self) -> None:
        make = self._program("onnxruntime_qdq", self.model, self._feeds)
        self.add("ONNX Runtime QDQ, per channel, MinMax", "static", make, suffix=".onnx")

    def _find_file(self, name: str) -> Path:
        path = self.files[name].path
        if path is None:
            raise MeasureError(f"needs the file of {name}")
        return path

    def _program(self, *args: object, env: peer_env.PeerEnv | None = None) -> Make:
        """One of tflite_makers, which gets the file to write as its last argument."""

        def make(out: Path) -> Cost:
            python, paths = sys.executable, {"PYTHONPATH": str(MAKERS.parent.parent)}
            if env is not None:
                python = str(peer_env.provide(env, self._cache, offline=self._offline))
                paths = {"PYTHONPATH": ""}
            command = [python, str(MAKERS), *map(str, args), str(out)]
            return peer_env.run(command, log=out.with_suffix(".log"), env=paths)

        return make


def measure_files(
    files: Mapping[str, File], original: Path, samples: Sequence[Feeds], rounds: int
) -> dict[str, Figures | str]:
    """Figures by row, or the reason why there are none."""
    found: dict[str, Figures | str] = {key: made_file.problem for key, made_file in files.items()}
    sessions: dict[str, Session] = {}
    answers: dict[str, Array] = {}
    want = _answers(_open(original), samples)
    for name, file in files.items():
        if file.path is None:
            continue
        print(f"running {name}", file=sys.stderr, flush=True)
        try:
            session = _open(file.path)
            answers[name] = _answers(session, samples)
            sessions[name] = session
        except EdgeError as error:
            found[name] = error.what
    times = time_interleaved(sessions, samples[0], rounds)
    for name in sessions:
        file, have = files[name], answers[name]
        assert file.path is not None  # or there were no session
        norms = np.linalg.norm(want, axis=1) * np.linalg.norm(have, axis=1)
        found[name] = Figures(
            kind=file.kind,
            size=file.path.stat().st_size,
            cost=file.cost,
            median=statistics.median(np.ravel(times[name]).tolist()),
            minimum=float(times[name].min()),
            speed=ratio(times[FLOAT], times[name]) if FLOAT in times else float("nan"),
            agreement=float((want.argmax(1) == have.argmax(1)).mean()),
            cosine=float(np.mean((want * have).sum(1) / norms)),
        )
    return found


def ratio(base: Array, other: Array) -> float:
    """How many times a takes b's time: the fastest runs of each round, median of the rounds.

    A busy moment of the machine falls on both files of a round, and seldom on all runs of a turn.
    """
    return float(np.median(base.min(axis=1) / other.min(axis=1)))


def time_interleaved(
    sessions: Mapping[str, Session], sample: Feeds, rounds: int
) -> dict[str, Array]:
    """Milliseconds (rounds, TURN) of each file, all in this process, in turn."""
    given = {key: fit_layout(sample, runner.inputs) for key, runner in sessions.items()}
    times = {key: np.zeros((rounds, TURN)) for key in sessions}
    for name, session in sessions.items():
        for _ in range(WARM_UP):
            session.run(given[name])
    for turn in range(rounds):
        for name, session in sessions.items():
            for i in range(TURN):
                start = time.perf_counter_ns()
                session.run(given[name])
                times[name][turn, i] = (time.perf_counter_ns() - start) / 1e6
    return times


def fit_layout(sample: Feeds, specs: Iterable[TensorSpec]) -> Feeds:
    """A sample as a file takes it: renamed (one input only), NHWC, in integers."""
    found = {}
    for spec in specs:
        array = sample[spec.name] if spec.name in sample else next(iter(sample.values()))
        if array.shape != spec.shape and array.ndim == 4:
            array = array.transpose(0, 2, 3, 1)
        found[spec.name] = quantise(np.ascontiguousarray(array), spec)
    return found


def _open(path: Path) -> Session:
    runtime = runtimes.get("onnxruntime" if path.suffix == ".onnx" else "litert")
    return runtime.open(path, threads=1, options={})


def _answers(session: Session, samples: Sequence[Feeds]) -> Array:
    (spec,) = session.outputs
    given = (fit_layout(sample, session.inputs) for sample in samples)
    return np.concatenate([dequantise(session.run(feeds)[spec.name], spec) for feeds in given])


def lite0(folder: Path, cache: Path, offline: bool) -> Bench:
    """Every file of EfficientNet-Lite0."""
    folder.mkdir()
    calibration = [{"input": image} for image in data.photo_crops_calibration()]
    evaluation = [{"input": image} for image in data.photo_crops_eval()]
    bench = Bench(models.lite0(folder / "model.onnx"), calibration, evaluation, cache, offline)
    bench.ours("tflite-fp32", "float")
    bench.ours("tflite-fp16", "fp16")
    bench.ours("tflite-int8-dynamic", "dynamic")
    bench.ours("tflite-int8-static", "static")
    bench.ours("tflite-int8-static-mixed", "static")
    bench.ours("tflite-int8-weights", "weights")
    bench.onnx2tf({"input": "1,3,224,224"})
    bench.litert_torch()
    bench.tensorflow("float")
    bench.tensorflow("dynamic")
    bench.tensorflow("static")
    for start in (FLOAT, ONNX2TF):
        bench.quantizer("dynamic", "dynamic", start, "dynamic")
        bench.quantizer("static", "static", start, "static")
        bench.quantizer("static-minmax", "static", start, "static, min_max_update")
    bench.onnxruntime()
    bench.onnxruntime_qdq()
    return bench


def minilm(folder: Path, cache: Path, offline: bool) -> Bench:
    """Every file of MiniLM."""
    folder.mkdir()
    calibration, evaluation = list(data.sentences_calibration()), list(data.sentences_eval())
    bench = Bench(models.minilm(folder / "model.onnx"), calibration, evaluation, cache, offline)
    bench.ours("tflite-fp32", "float")
    bench.ours("tflite-int8-dynamic", "dynamic")
    bench.ours("tflite-int8-int4-table", "int4")
    bench.ours("tflite-int4-block32", "int4")
    bench.ours("tflite-int4", "int4")
    bench.onnx2tf({"input_ids": "1,64", "attention_mask": "1,64"})
    for start in (FLOAT, ONNX2TF):
        bench.quantizer("dynamic", "dynamic", start, "dynamic")
    bench.onnxruntime()
    return bench


def table(
    title: str, found: Mapping[str, Figures | str], count: int, *, classes: bool = True
) -> None:
    """Print one model's rows; a row without figures says why. ``count``: of the samples."""
    names = ("s", "peak MB", "MB", "of float", "ms p50", "min", "speed", "agreement", "95 %")
    lines = console.new_table(title, *names, "cosine", right=(*names, "cosine"))
    base = found[FLOAT]
    for name, figures in found.items():
        if isinstance(figures, str):
            lines.add_row(name, "none")
            continue
        share = figures.size / base.size if isinstance(base, Figures) else 0.0
        low, high = wilson_interval(round(figures.agreement * count), count)
        same = (f"{figures.agreement:.3f}", f"{low:.3f}..{high:.3f}") if classes else ("", "")
        lines.add_row(
            name, f"{figures.cost.seconds:.1f}", f"{figures.cost.peak_mb:.0f}",
            f"{figures.size / 1e6:.2f}", f"{share:.3f}", f"{figures.median:.2f}",
            f"{figures.minimum:.2f}", f"{figures.speed:.2f}x", *same, f"{figures.cosine:.4f}",
        )  # fmt: skip
    console.stdout().print(lines)
    for name, figures in found.items():
        if isinstance(figures, str):
            print(f"{name}: {figures}")


Verdicts = dict[str, bool | None]  # is what it says met? None: no peer to compare with


def lite0_targets(found: Mapping[str, Figures | str]) -> Verdicts:
    """What EfficientNet-Lite0's figures are held to."""
    verdicts: Verdicts = {}
    base, ours = found[FLOAT], found[STATIC]
    if not isinstance(base, Figures) or not isinstance(ours, Figures):
        verdicts[f"{FLOAT} and {STATIC}: not both were made"] = False
    else:
        share = ours.size / base.size
        verdicts[f"INT8 has {share:.3f} of the float bytes (at most 0.30)"] = share <= 0.30
        verdicts[f"INT8 is {ours.speed:.2f}x as fast as float (at least 1.7)"] = ours.speed >= 1.7
    for name in (STATIC, SEARCHED, DYNAMIC):
        verdicts |= _not_below_peers(name, found)
    return verdicts | _float_speed(found, "EfficientNet-Lite0")


def minilm_targets(found: Mapping[str, Figures | str]) -> Verdicts:
    """What MiniLM's figures are held to."""
    verdicts: Verdicts = {}
    for name, megabytes, cosine in (
        (DYNAMIC, None, 0.997),
        (TABLE_INT4, 17.5, 0.997),
        (BLOCK_INT4, 13.0, 0.96),
    ):
        figures = found[name]
        if not isinstance(figures, Figures):
            verdicts[f"{name}: {figures}"] = False
            continue
        verdicts[f"{name}: cosine {figures.cosine:.4f} (at least {cosine})"] = (
            figures.cosine >= cosine
        )
        if megabytes:
            size = figures.size / 1e6
            verdicts[f"{name}: {size:.2f} MB (at most {megabytes})"] = size <= megabytes
    return verdicts | _float_speed(found, "MiniLM")


def _not_below_peers(name: str, found: Mapping[str, Figures | str]) -> Verdicts:
    ours = found[name]
    if not isinstance(ours, Figures):
        return {f"{name}: {ours}": False}
    peers = {
        key: figures.agreement
        for key, figures in found.items()
        if isinstance(figures, Figures)
        and figures.kind == ours.kind
        and not key.startswith("edge:")
    }
    if not peers:
        return {f"{name}: no peer ran": None}
    best = max(peers, key=lambda key: peers[key])
    text = f"{name}: agreement {ours.agreement:.3f} (best peer {peers[best]:.3f}, {best})"
    return {text: ours.agreement >= peers[best]}


def _float_speed(found: Mapping[str, Figures | str], model: str) -> Verdicts:
    peer = found[ONNX2TF]
    if not isinstance(peer, Figures):
        return {f"{model} float against onnx2tf: {peer}": None}
    text = f"{model} float takes {peer.speed:.3f} of onnx2tf's time (at most 1.05)"
    return {text: peer.speed <= 1.05}


def main(rounds: int, offline: bool = False) -> int:
    cache = default_cache()
    benches = {
        "EfficientNet-Lite0": (lite0, lite0_targets, True),
        "MiniLM": (minilm, minilm_targets, False),
    }
    verdicts: Verdicts = {}
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as folder:
        for title, (build, targets, classes) in benches.items():
            bench = build(Path(folder) / title, cache, offline)
            found = measure_files(bench.files, bench.model, bench.samples, rounds)
            table(title, found, len(bench.samples), classes=classes)
            verdicts |= targets(found)
    words = {True: "PASS   ", False: "NOT MET", None: "OPEN   "}
    for text, met in verdicts.items():
        print(words[met], text)
    return 2 if False in verdicts.values() else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--offline", action="store_true", help="install no peer")
    given = parser.parse_args()
    sys.exit(main(given.rounds, given.offline))
