"""Contract: what every converter promises, ours and third-party alike. Then what each recipe adds.

Models are real where numbers count, and small graphs with one peculiarity where that counts. One
child process converts everything, and a second one with another hash seed does it again.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters import int4
from converters import registry as converters
from converters.layouts import to_artifact, to_model
from converters.onnx import ort_facts
from converters.onnx.candidate_file import read_versions
from converters.onnx.int8_static import U8S8
from converters.onnx.model_file import load_model, save_model
from converters.onnx.preparation import prepare_model
from converters.rounding import round_keeping_sums
from converters.spec import Ceiling, Conversion, Job
from edge_core.errors import ConvertError, InputError
from edge_core.runtimes import onnxruntime, sample_store
from edge_core.runtimes import registry as runtimes
from edge_core.runtimes.adapter import Session
from edge_core.tensors import Array, Feeds
from examples import data
from tests import graphs

ROOT = Path(__file__).resolve().parents[2]
NAMES = tuple(converters.by_name())
ONNX = tuple(n for n in NAMES if converters.get(n).SPEC.target == "onnx")
NEWEST = Ceiling(26, 13)
VERSIONS = {"onnx": "1.31.1", "tflite": "2.3.0"}  # of the device's runtime
NO_OP = {  # these models have hardly any weights of the kind
    ("onnx-int4", "keywords"),
    ("onnx-int8-dynamic", "keywords"),
    ("onnx-int8-dynamic-ort", "keywords"),
}
# Every TFLite recipe makes the same float file first, which takes most of its time. What depends on
# the recipe is in tests/converters/tflite/test_quantise.py and test_tflite_matrix.py.
TFLITE_CASES = {
    "digits": tuple(n for n in NAMES if n not in (*ONNX, "tflite-given")),
    "keywords": ("tflite-fp32", "tflite-int8-static", "tflite-int8-dynamic"),
    "lstm": ("tflite-given", "tflite-fp16", "tflite-int8-static", "tflite-int8-dynamic"),
}
CASES = [(n, m) for n in ONNX for m in ("digits", "keywords") if (n, m) not in NO_OP] + [
    (n, m) for m, names in TFLITE_CASES.items() for n in names
]
# Mean cosine to the original's outputs on samples not calibrated on. Two are there as bad examples.
LEAST = {
    "onnx-fp32": 0.999999, "onnx-fp16": 0.99999,
    "onnx-int4-conv": 0.98, "onnx-int8-dynamic-conv": 0.99,
}  # fmt: skip
LEAST_OTHERS = 0.998

LSTM = ROOT / "examples" / "data" / "lstm" / "trained_lstm.tflite"

CHILD = """
import json, sys
from pathlib import Path
from converters import registry as converters
from converters.spec import Ceiling, Job
from edge_core.runtimes import sample_store
from edge_sdk.build.stages import to_json
folder, made = Path(sys.argv[1]), {}
for name, model, prepared, samples, version in json.loads(sys.argv[2]):
    out = folder / f"{name} of {model}"
    out.mkdir(parents=True)
    done = converters.get(name).convert(Job(
        model=Path(prepared), out_dir=out, ceiling=Ceiling(26, 13), arch="x86_64",
        runtime_version=version, samples=sample_store.read(Path(samples)),
    ))
    made[f"{name} {model}"] = json.loads(to_json(done))
print(json.dumps(made))
"""


class Subject(NamedTuple):
    """A model, prepared if it is ONNX, with samples to calibrate and others to compare on."""

    original: Path
    prepared: Path
    calibration: list[Feeds]
    evaluation: list[Feeds]


class Run(NamedTuple):
    """What one child said and wrote."""

    done: dict[tuple[str, str], Conversion]
    stdout: str
    stderr: str


def every(samples: Iterable[Any], name: str, step: int) -> list[Feeds]:
    """Every ``step``-th sample as feeds, labels dropped."""
    plain = [sample[0] if isinstance(sample, tuple) else sample for sample in samples][::step]
    return [sample if isinstance(sample, dict) else {name: sample} for sample in plain]


@pytest.fixture(scope="module")
def subject(example_model, tmp_path_factory) -> Callable[[str], Subject]:
    sources = {
        "digits": (data.digits_calibration, data.digits_eval, "input", 4, 100),
        "keywords": (data.keywords_calibration, data.keywords_eval, "mel", 1, 4),
        "lite0": (data.photo_crops_calibration, data.photo_crops_eval, "input", 5, 5),
        "minilm": (data.sentences_calibration, data.sentences_eval, "", 16, 10),
        "lstm": (data.lstm_digits_calibration, data.lstm_digits_eval, "fixed_input", 4, 100),
    }
    made: dict[str, Subject] = {}

    def get(name: str) -> Subject:
        if name not in made:
            calibration, evaluation, tensor, some, few = sources[name]
            original = prepared = LSTM
            if name != "lstm":
                original = example_model(name)
                prepared = tmp_path_factory.mktemp("a folder") / f"{name} prepared.onnx"
                prepare_model(original, prepared, {})
            made[name] = Subject(
                original, prepared,
                every(calibration(), tensor, some), every(evaluation(), tensor, few),
            )  # fmt: skip
        return made[name]

    return get


@pytest.fixture(scope="module")
def twice(subject, tmp_path_factory) -> tuple[Run, Run]:
    """Every case, converted by two processes."""
    folder = tmp_path_factory.mktemp("conversions")
    jobs = []
    for name, model in CASES:
        samples = folder / f"{model} samples"
        if not samples.exists():
            sample_store.write(samples, subject(model).calibration)
        version = VERSIONS[converters.get(name).SPEC.target]
        jobs.append((name, model, str(subject(model).prepared), str(samples), version))
    runs = []
    for seed in ("1", "2"):
        child = subprocess.run(
            [sys.executable, "-c", CHILD, str(folder / f"run {seed}"), json.dumps(jobs)],
            cwd=ROOT, env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert child.returncode == 0, child.stderr
        told = json.loads(child.stdout.splitlines()[-1])
        done = {
            tuple(key.split()): msgspec.convert(d, Conversion, dec_hook=lambda kind, v: kind(v))
            for key, d in told.items()
        }
        runs.append(Run(done, child.stdout, child.stderr))
    return runs[0], runs[1]


def convert(
    name: str, model: Path, out: Path, samples: Sequence[Feeds] = (), *,
    ceiling: Ceiling = NEWEST, version: str = "", arch: str = "x86_64",
) -> Conversion:  # fmt: skip
    out.mkdir(exist_ok=True)
    job = Job(
        model=model, out_dir=out, ceiling=ceiling, arch=arch, samples=samples,
        runtime_version=version or VERSIONS[converters.get(name).SPEC.target],
    )  # fmt: skip
    return converters.get(name).convert(job)


def attempt(*arguments: Any, **more: Any) -> Conversion | ConvertError:
    """convert(), with a refusal as a value."""
    try:
        return convert(*arguments, **more)
    except ConvertError as refusal:
        return refusal


def open_session(path: Path, **options: str) -> Session:
    """By the runtime that is first for such files."""
    name = "litert" if path.suffix == ".tflite" else "onnxruntime"
    return runtimes.get(name).open(path, threads=1, options=options)


def outputs(path: Path, samples: Sequence[Feeds], **options: str) -> Array:
    """The first output for each sample, flat."""
    session = open_session(path, **options)
    first = session.outputs[0].name
    return np.stack([session.run(sample)[first].ravel() for sample in samples]).astype(np.float64)


def answers(name: str, done: Conversion, original: Path, samples: Sequence[Feeds]) -> Array:
    """The same of a converted file, fed and read as the original."""
    model, spec = open_session(original), converters.get(name).SPEC
    session = runtimes.get(spec.runtimes[0]).open(done.path, threads=1, options=done.options)
    takes, gives = done.inputs or model.inputs, done.outputs or model.outputs
    first = model.outputs[0].name
    said = (session.run(to_artifact(sample, model.inputs, takes)) for sample in samples)
    rows = [to_model(answer, model.outputs, gives)[first].ravel() for answer in said]
    return np.stack(rows).astype(np.float64)


def cosine(a: Array, b: Array) -> float:
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean())


def noise(want: Array, got: Array) -> float:
    """Squared error over squared values."""
    return float(((want - got) ** 2).sum() / (want**2).sum())


def agreement(want: Array, got: Array) -> float:
    return float((want.argmax(1) == got.argmax(1)).mean())


# What every converter promises


@pytest.mark.parametrize("name", NAMES)
def test_a_converter_describes_itself(name):
    converter = converters.get(name)
    spec = converter.SPEC
    assert spec.name == name
    assert re.fullmatch(rf"{spec.target}(-[a-z0-9]+)+", name)
    assert spec.runtimes
    assert all(spec.suffix in runtimes.get(r).SPEC.suffixes for r in spec.runtimes)
    assert "\n" not in spec.title
    assert spec.title
    assert spec.min_opset <= 21
    assert converter.__doc__
    assert spec.needs_samples == (spec.scheme == "static")


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="no converter 'onnx-int7'") as entry_point:
        converters.get("onnx-int7")
    assert "onnx-int8-weights" in entry_point.value.hint


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_one_file_is_written_and_the_runtime_opens_it(twice, case):
    done, spec = twice[0].done[case], converters.get(case[0]).SPEC
    assert [p.name for p in done.path.parent.iterdir()] == [f"model{spec.suffix}"]
    session = runtimes.get(spec.runtimes[0]).open(done.path, threads=1, options=done.options)
    assert session.inputs[0].dynamic == ()
    for told, found in ((done.inputs, session.inputs), (done.outputs, session.outputs)):
        assert not told or [msgspec.structs.replace(spec, layout="") for spec in told] == list(
            found
        )


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_outputs_stay_close_to_the_originals(twice, subject, case):
    name, model = case
    done, network = twice[0].done[case], subject(model)
    want = outputs(network.original, network.evaluation)
    got = answers(name, done, network.original, network.evaluation)
    assert cosine(want, got) >= LEAST.get(name.removesuffix("-ort"), LEAST_OTHERS)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_the_same_job_gives_the_same_bytes_in_another_process(twice, case):
    first, second = (run.done[case] for run in twice)
    assert first.path.read_bytes() == second.path.read_bytes()
    # Only where it lies and what it took may differ; the latter is in the report alone.
    assert msgspec.structs.replace(first, path=second.path, times=second.times) == second


def test_converters_say_nothing(twice):
    for run in twice:
        # LiteRT itself does, once a process, and has no setting against it.
        assert re.fullmatch(r"(INFO: Created TensorFlow Lite XNNPACK .*\n)?", run.stderr)
        assert len(run.stdout.splitlines()) == 1  # the child's own


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_the_share_of_quantised_weights_is_told(twice, case):
    done, spec = twice[0].done[case], converters.get(case[0]).SPEC
    if spec.precision.startswith("int"):
        assert 0.01 <= done.quantised_share <= 1
    else:
        assert done.quantised_share is None


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_that_converts_nothing_is_refused(tmp_path, subject, name):
    source = graphs.save_model(graphs.relu(), tmp_path / "relu.onnx")
    samples = [{"x": np.full((1, 8), i, np.float32)} for i in range(-2, 3)]
    if converters.get(name).SPEC.precision == "fp32":
        assert convert(name, source, tmp_path / "out", samples).path.exists()
        return
    with pytest.raises(ConvertError):
        convert(name, source, tmp_path / "out", samples)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("case", sorted(NO_OP), ids=" ".join)
def test_a_recipe_for_other_weights_is_told_to_be_a_no_op(tmp_path, subject, case):
    name, model = case
    with pytest.raises(ConvertError, match=r"^no-op: the recipe takes"):
        convert(name, subject(model).prepared, tmp_path / "out", subject(model).calibration)


@pytest.mark.parametrize("name", ["onnx-int8-weights", "onnx-int8-static-u8s8", "onnx-fp16"])
def test_what_was_converted_before_is_not_converted_again(twice, subject, tmp_path, name):
    before = twice[0].done[name, "digits"].path
    with pytest.raises(ConvertError):
        convert(name, before, tmp_path / "out", subject("digits").calibration)


@pytest.mark.parametrize("version", ["1.19.2", "1.16.3", "1.10.0"])
@pytest.mark.parametrize("name", ONNX)
def test_a_file_is_never_newer_than_the_devices_runtime(tmp_path, subject, name, version):
    network, known = subject("digits"), ort_facts.find_ceiling(version)
    ceiling = Ceiling(known.opset, known.ir)
    done = attempt(
        name,
        network.prepared,
        tmp_path / "out",
        network.calibration,
        ceiling=ceiling,
        version=version,
    )
    if isinstance(done, ConvertError):
        assert name.startswith("onnx-int4")  # the only ones that need more
        assert re.search(r"opset|MatMulNBits|no-op", done.what)
        return
    opset, ir = read_versions(done.path)
    assert opset <= ceiling.opset
    assert ir <= ceiling.ir
    if done.path.suffix == ".onnx":
        model = load_model(done.path)
        ops = {
            f"{node.domain}:{node.op_type}" if node.domain else node.op_type
            for node in model.graph.node
        }
        assert ort_facts.find_missing_ops(version, ops, opset) == ()
    got = outputs(done.path, network.evaluation, **done.options)
    assert cosine(outputs(network.original, network.evaluation), got) >= LEAST_OTHERS


PECULIAR = {
    "MatMul only, int64 input": graphs.perceptron(),
    "LSTM": graphs.recurrent("LSTM"),
    "GRU": graphs.recurrent("GRU"),
    "an If that depends on values": graphs.branches(fixed=False),
    "opset 11": graphs.convolution(opset=11),
    "grouped": graphs.convolution(group=4),
    "one dimension": graphs.convolution(rank=1),
}


FORMS = ("tflite-fp32", "tflite-int8-static", "tflite-int8-dynamic", "tflite-int4")


@pytest.mark.parametrize("graph", PECULIAR)
@pytest.mark.parametrize("name", [*ONNX, *FORMS])
def test_a_peculiar_model_is_converted_or_refused(tmp_path, name, graph):
    source = graphs.save_model(PECULIAR[graph], tmp_path / "model.onnx")
    prepared = tmp_path / "prepared.onnx"
    prepare_model(source, prepared, {})
    samples = random_samples(prepared, 8)
    done = attempt(name, prepared, tmp_path / "out", samples)
    if isinstance(done, ConvertError):
        assert converters.get(name).SPEC.precision != "fp32"
        return
    want = outputs(source, samples, graph_optimization="off")
    least = 0.9 if "int4" in name else 0.99
    assert cosine(want, answers(name, done, prepared, samples)) >= least


def random_samples(path: Path, count: int) -> list[Feeds]:
    """Seeded samples, positive like activations behind a ReLU."""
    inputs = onnxruntime.open(path, threads=1, options={}).inputs
    rng = np.random.default_rng(0)

    def one(dtype: str, shape: tuple[Any, ...]) -> Array:
        if dtype == "int64":
            return rng.integers(0, 50, shape)
        return np.abs(rng.standard_normal(shape)).astype(dtype)

    return [{i.name: one(i.dtype, i.shape) for i in inputs} for _ in range(count)]


# What single recipes promise


# onnx-int8-dynamic-conv shows what onnxruntime does by default, recurrent weights included.
FLOAT_STATES = ("onnx-int8-static-u8s8", "onnx-int8-dynamic", "onnx-int8-weights", "onnx-int4")


@pytest.mark.parametrize("name", FLOAT_STATES)
@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_recurrent_weights_stay_float(tmp_path, name, op):
    source = graphs.save_model(graphs.recurrent(op), tmp_path / "model.onnx")
    done = convert(name, source, tmp_path / "out", random_samples(source, 4))
    made = load_model(done.path)
    kinds = {t.name: t.data_type for t in made.graph.initializer}
    (node,) = (node for node in made.graph.node if node.op_type == op)
    assert [kinds[name] for name in node.input[1:3]] == [onnx.TensorProto.FLOAT] * 2


@pytest.mark.parametrize("name", [n for n in NAMES if converters.get(n).SPEC.needs_samples])
def test_static_recipes_refuse_to_guess_samples(tmp_path, subject, name):
    with pytest.raises(ConvertError, match="needs calibration samples"):
        convert(name, subject("digits").prepared, tmp_path / "out")


def convert_as_documented(network: Subject, folder: Path) -> Path:
    """What onnxruntime's own tools give at their best, calibrated on the same samples."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(network.calibration)

        def get_next(self) -> Feeds | None:
            return next(self.left, None)

    source, out = folder / "preprocessed.onnx", folder / "quantised.onnx"
    quant_pre_process(network.original, source)
    quantize_static(source, out, Reader(), per_channel=True, activation_type=QuantType.QUInt8)
    return out


def test_static_int8_keeps_more_than_the_documented_recipe(tmp_path, subject):
    network = subject("lite0")
    done = convert("onnx-int8-static-u8s8", network.prepared, tmp_path / "out", network.calibration)
    want = outputs(network.original, network.evaluation)
    ours, theirs = (
        outputs(p, network.evaluation)
        for p in (done.path, convert_as_documented(network, tmp_path))
    )
    assert noise(want, ours) < 0.5 * noise(want, theirs)
    assert agreement(want, ours) >= agreement(want, theirs)
    assert done.path.stat().st_size <= 0.30 * network.original.stat().st_size


def test_int8_weights_alone_keep_the_model(tmp_path, subject):
    network = subject("lite0")
    done = convert("onnx-int8-weights", network.prepared, tmp_path / "out")
    want = outputs(network.original, network.evaluation)
    assert cosine(want, outputs(done.path, network.evaluation, **done.options)) >= 0.998
    assert done.path.stat().st_size <= 0.27 * network.original.stat().st_size


LAYERS = {
    "plain": {},
    "strided": {"strides": [2, 2]},
    "padded": {"pads": [1, 1, 2, 0]},
    "same upper": {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    "same lower": {"auto_pad": "SAME_LOWER"},
    "dilated": {"dilations": [2, 3]},
    "grouped": {"group": 4},
    "depthwise": {"group": 16},
    "one dimension": {"rank": 1},
    "three dimensions": {"rank": 3},
    "without bias": {"bias": False},
}


@pytest.mark.parametrize("layer", LAYERS)
def test_correcting_a_layer_lowers_its_error(tmp_path, layer):
    source = graphs.save_model(graphs.convolution(**LAYERS[layer]), tmp_path / "model.onnx")
    samples = random_samples(source, 24)
    done = convert("onnx-int8-static-u8s8", source, tmp_path / "out", samples[:16])
    model = load_model(source)
    plain = U8S8._quantise(model, samples[:16])
    save_model(plain, tmp_path / "plain.onnx")
    want = outputs(source, samples[16:])
    corrected = noise(want, outputs(done.path, samples[16:]))
    assert corrected < noise(want, outputs(tmp_path / "plain.onnx", samples[16:]))


def test_a_4_bit_sentence_model_fits_15_mb(tmp_path, subject):
    network = subject("minilm")
    done = convert("onnx-int4", network.prepared, tmp_path / "out")
    want = outputs(network.original, network.evaluation)
    assert done.path.stat().st_size <= 15_000_000
    assert cosine(want, outputs(done.path, network.evaluation)) >= 0.97
    assert done.notes == ()


def test_4_bit_tables_become_8_bit_where_the_runtime_is_too_old(tmp_path):
    source = graphs.save_model(graphs.perceptron(), tmp_path / "model.onnx")
    for version, ceiling in (("1.19.2", Ceiling(21, 10)), ("1.23.2", Ceiling(19, 9))):
        done = convert("onnx-int4", source, tmp_path / "out", ceiling=ceiling, version=version)
        assert "lookup tables take 8 bits, not 4" in done.notes[0]
        assert "GatherBlockQuantized" not in {
            node.op_type for node in load_model(done.path).graph.node
        }


def test_ort_format_is_made_for_the_devices_architecture(tmp_path, twice):
    digits = twice[0].done["onnx-int8-static-s8s8", "digits"].path
    made = {
        arch: convert("onnx-fp32-ort", digits, tmp_path / arch, arch=arch).path.read_bytes()
        for arch in ("x86_64", "aarch64", "armv7l")
    }
    assert made["aarch64"] == made["armv7l"] != made["x86_64"]


def test_ort_format_computes_what_its_onnx_form_does(twice, subject):
    for model in ("digits", "keywords"):
        network = subject(model)
        plain, ort = (twice[0].done[f"onnx-fp32{form}", model].path for form in ("", "-ort"))
        np.testing.assert_allclose(
            outputs(ort, network.evaluation),
            outputs(plain, network.evaluation),
            rtol=1e-4,
            atol=1e-4,
        )


EXPORT = """
import hashlib, sys, torch
from pathlib import Path
from converters.onnx import torch_export
folder = Path(sys.argv[1])
torch.manual_seed(0)
net = torch.nn.Sequential(
    torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten(),
    torch.nn.Linear(8 * 36, 5),
).eval()
x = torch.arange(192.0).reshape(1, 3, 8, 8) / 192
torch.export.save(torch.export.export(net, (x,)), folder / "net.pt2")
torch_export.export_program(folder / "net.pt2", folder / "net.onnx")
print(net(x).tolist()[0])
for content in (b"", b"PK no zip"):
    (folder / "bad.pt2").write_bytes(content)
    try:
        torch_export.export_program(folder / "bad.pt2", folder / "bad.onnx")
    except torch_export.InputError as e:
        print(e.what)
"""


def test_an_exported_torch_program_becomes_onnx(tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", EXPORT, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    want, *refused = child.stdout.splitlines()
    prepare_model(tmp_path / "net.onnx", tmp_path / "prepared.onnx", {})
    x = (np.arange(192, dtype=np.float32) / 192).reshape(1, 3, 8, 8)
    (name,) = (
        i.name for i in onnxruntime.open(tmp_path / "net.onnx", threads=1, options={}).inputs
    )
    got = outputs(tmp_path / "prepared.onnx", [{name: x}])
    np.testing.assert_allclose(got[0], json.loads(want), atol=1e-5)
    assert len(refused) == 2
    assert all("is not a program that torch.export.save wrote" in line for line in refused)


# Arithmetic

STEPS = st.lists(st.floats(-100, 100), min_size=1, max_size=40)


@given(values=STEPS)
def test_rounding_keeps_sums_and_limits(values):
    steps = np.array([values])
    rounded = round_keeping_sums(steps, 127)
    assert np.array_equal(rounded, np.round(rounded))
    assert np.abs(rounded).max() <= 127
    assert np.abs(rounded - steps).max() <= 1.5
    assert abs((rounded - steps).sum()) <= 0.5 * (1 + np.log(len(values)))


@given(
    rows=st.lists(
        st.lists(st.floats(-4, 4, width=32), min_size=45, max_size=45), min_size=1, max_size=3
    )
)
def test_four_bits_are_within_half_a_step_of_an_unclipped_block(rows):
    values = np.array(rows, np.float32)
    made = int4.quantise_blocks(values)
    steps = made.codes.astype(np.float32) - made.zero[..., None]
    given_back = (steps * made.scale[..., None]).reshape(len(rows), -1)[:, :45]
    spread = max(float(values.max()), 0.0) - min(float(values.min()), 0.0)
    assert made.codes.max() <= 15
    assert np.sqrt(np.mean((given_back - values) ** 2)) <= spread / 15 * 0.75 + 1e-6


@given(codes=st.lists(st.integers(0, 15), min_size=1, max_size=9))
def test_packed_codes_come_back(codes):
    joined = int4.pack_nibbles(np.array(codes, np.uint8))
    apart = [half for byte in joined for half in (byte & 15, byte >> 4)]
    assert apart[: len(codes)] == codes
    assert len(joined) == (len(codes) + 1) // 2
