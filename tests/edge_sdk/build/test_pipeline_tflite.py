"""`edge` with TFLite: devices that have nothing else, integer borders, .tflite files as models.

The runtimes are real ones in the version that the profile names, tflite-runtime 2.14.0 included
where this Python has a wheel of it.
"""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from onnx import helper
from packaging.version import Version
from PIL import Image

from converters.tflite import flatbuffer
from edge_core.errors import EdgeError
from edge_core.package import format as package
from edge_sdk.build import reader
from examples import data
from tests import graphs
from tests.cases import DIGITS, ROOT
from tests.graphs import value

PI32 = "raspberry-pi-3b-plus-32bit"  # tflite-runtime and nothing else
ON_PI32 = ["-p", PI32]
RUNTIME = "tflite-runtime 2.14.0"
STATIC, DYNAMIC = "tflite-int8-static-plain", "tflite-int8-dynamic-per-tensor"
if sys.version_info >= (3, 12):
    ON_PI32 += ["--set", 'runtimes=[{name="litert",version="2.3.0"}]']
    RUNTIME, STATIC, DYNAMIC = "litert 2.3.0", "tflite-int8-static", "tflite-int8-dynamic"
GATEWAY = "x86-gateway-n100"  # LiteRT beside ONNX Runtime
LSTM = ROOT / "examples" / "data" / "lstm" / "trained_lstm.tflite"
ROWS = (
    "--eval", "examples.data:lstm_digits_eval",
    "--calibration", "examples.data:lstm_digits_calibration",
)  # fmt: skip
SEVENS = 3600  # of digits_eval(), sorted by class


def only(*names):
    return [word for name in names for word in ("--only", name)]


def read_report(out, profile):
    (path,) = out.glob(f"*-{profile}.report.json")
    return json.loads(path.read_text())


def by_candidate(entries):
    return {entry["candidate"]: entry for entry in entries}


def open_package(out, profile):
    (path,) = out.glob(f"*-{profile}.edgepkg")
    return path, package.open(path).manifest.variants[0]


def error(process):
    """The error line and its hint; nothing else may look like one."""
    assert "Traceback" not in process.stderr
    errors = re.findall(r"^error: .*(?:\n  hint: .*)?", process.stderr, re.MULTILINE)
    assert len(errors) == 1, process.stderr
    return errors[0]


@pytest.fixture(scope="module")
def pi32(edge, digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("pi32")
    edge("build", digits, *ON_PI32, *DIGITS, "--preprocess", "mnist", "--set",
         "budgets.accuracy_drop_points=0.5", "--out", out)  # fmt: skip
    return out


@pytest.fixture(scope="module")
def static(edge, digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("static")
    edge("build", digits, "-p", GATEWAY, *DIGITS, "--preprocess", "mnist",
         *only("tflite-fp32", "tflite-int8-static"), "--objective", "bytes", "--out",
         out)  # fmt: skip
    return out


@pytest.fixture(scope="module")
def seven(tmp_path_factory):
    """A digit as an image file, and the same as the model takes it."""
    samples = list(data.digits_eval())
    tensor, label = samples[SEVENS]
    assert label == 7
    path = tmp_path_factory.mktemp("images") / "seven.png"
    pixels = np.rint((tensor[0, 0] * 0.3081 + 0.1307) * 255)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path, tensor


# A device that has TensorFlow Lite only


def test_a_32_bit_pi_gets_a_package_measured_on_its_own_runtime(pi32):
    report = read_report(pi32, PI32)
    assert report["plan"]["runtime"] == RUNTIME
    measured = by_candidate(report["measurements"])
    assert set(measured) == {"tflite-fp32", "tflite-fp16", STATIC, DYNAMIC, "tflite-int8-weights"}
    for name, measurement in measured.items():
        assert not measurement["error"], name
        assert measurement["values"]["host_p50_ms"]["where"].startswith(f"{RUNTIME} on this")
        assert measurement["values"]["accuracy_drop_points"]["value"] <= 0.5, name
    path, manifest = open_package(pi32, PI32)
    assert f"{manifest.runtime.name} {manifest.runtime.version}" == RUNTIME
    assert manifest.runtime.measured_on == manifest.runtime.version
    assert manifest.candidate == report["verdict"]["winner"]
    assert manifest.entry == "model.tflite"
    assert path.stat().st_size < 2_000_000


def test_the_report_has_delegation_and_the_quantised_share(pi32):
    report = read_report(pi32, PI32)
    shares = {
        artifact["candidate"]: artifact["quantised_share"] for artifact in report["artifacts"]
    }
    assert shares["tflite-fp32"] is None
    assert shares[STATIC] > 0.9
    (page,) = pi32.glob("*.report.html")
    assert f"{shares[STATIC]:.1%} of the weight bytes quantised" in page.read_text()
    assert "operators in XNNPACK" in page.read_text()
    delegation = {
        measurement["candidate"]: measurement["delegation"]
        for measurement in report["measurements"]
    }
    assert delegation["tflite-fp32"]["partitions"] == 1
    assert delegation["tflite-fp32"]["outside"] == {}
    assert delegation[DYNAMIC]["ops"] >= 9
    if RUNTIME == "tflite-runtime 2.14.0":  # its XNNPACK has no hybrid kernels
        assert delegation[DYNAMIC]["outside"] == {"CONV_2D": 3, "FULLY_CONNECTED": 2}
        needed = {artifact["written_for"]["min_runtime"] for artifact in report["artifacts"]}
        assert max(map(Version, needed)) <= Version("2.14.0")


def test_a_package_for_a_runtime_that_is_not_here_is_not_verified_by_another(
    edge, static, seven, tmp_path
):
    source = package.open(open_package(static, GATEWAY)[0])
    files = {title: source.read(title) for title in source.titles if title != "manifest.json"}
    variant = source.manifest.variants[0]
    runtime = replace(variant.runtime, name="tflite-runtime", version="2.14.0")
    variants = (replace(variant, runtime=runtime),)
    path = tmp_path / "pi.edgepkg"
    package.write(path, replace(source.manifest, variants=variants), files)
    for command in (("verify", path), ("run", path, seven[0]), ("bench", path)):
        message = error(edge(*command, ok=1))
        assert "'tflite-runtime' is not installed" in message
        assert "pip install tflite-runtime 'numpy<2'" in message


def test_an_exported_program_becomes_tflite(edge, tmp_path):
    code = (
        "import torch\n"
        "net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(),"
        " torch.nn.Linear(8 * 6 * 4, 5)).eval()\n"
        "torch.export.save(torch.export.export(net, (torch.zeros(1, 3, 8, 6),)),"
        f" {str(tmp_path / 'net.pt2')!r})"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.normal(size=(16, 3, 8, 6)).astype(np.float32))
    edge("build", tmp_path / "net.pt2", *ON_PI32, "--eval", tmp_path / "x.npy", "--metric",
         "cosine", *only("tflite-fp32"), "--out", tmp_path / "out")  # fmt: skip
    (measurement,) = read_report(tmp_path / "out", PI32)["measurements"]
    assert measurement["values"]["cosine"]["value"] > 0.99999
    _, manifest = open_package(tmp_path / "out", PI32)
    assert manifest.inputs[0].shape == (1, 8, 6, 3)


def nonzero():
    nodes = [
        helper.make_node("NonZero", ["x"], ["where"], name="seek"),
        helper.make_node("Cast", ["where"], ["places"], to=1),
        helper.make_node("ReduceSum", ["places"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    return graphs.make_model(nodes, [value("x", [1, 8])], [value("y", [1, 8])])


def suppression():
    nodes = [
        helper.make_node("NonMaxSuppression", ["boxes", "scores", "three"], ["chosen"]),
        helper.make_node("Cast", ["chosen"], ["indices"], to=1),
        helper.make_node("ReduceSum", ["indices"], ["sum"], keepdims=0),
        helper.make_node("Add", ["scores", "sum"], ["y"]),
    ]
    inputs = [value("boxes", [1, 8, 4]), value("scores", [1, 1, 8])]
    constants = [graphs.constant("three", [3])]
    return graphs.make_model(nodes, inputs, [value("y", [1, 1, 8])], constants)


@pytest.mark.parametrize(
    ("op", "model"), [("NonZero", nonzero), ("NonMaxSuppression", suppression)]
)
def test_an_op_that_tflite_lacks_is_named_with_a_way_out(edge, tmp_path, op, model):
    path = graphs.save_model(model(), tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    arrays = {
        graph_input.name: rng.random(
            (4, *[dimension.dim_value for dimension in graph_input.type.tensor_type.shape.dim]),
            np.float32,
        )
        for graph_input in model().graph.input
    }
    np.savez(tmp_path / "x.npz", **arrays)
    process = edge("build", path, *ON_PI32, "--eval", tmp_path / "x.npz", "--metric", "cosine",
                   "--out", tmp_path / "out", ok=2)  # fmt: skip
    message = error(process)
    assert f"error: {PI32}: nothing fits" in message
    assert f"op {op}" in message
    assert "an ONNX package (onnx-*) runs it; or replace the op" in message
    assert not list((tmp_path / "out").glob("*.edgepkg"))


def test_layers_that_should_stay_float_are_searched_only_when_int8_lost_too_much(
    edge, keywords, pi32, tmp_path
):
    mixed = "tflite-int8-static-mixed"
    decision = by_candidate(read_report(pi32, PI32)["plan"]["decisions"])[mixed]
    assert (decision["verdict"], decision["reason"].split(":")[0]) == ("out", "not needed")
    edge("build", keywords, "-p", GATEWAY, "--set", 'runtimes=[{name="litert",version="2.3.0"}]',
         "--eval", "examples.data:keywords_eval", "--metric", "agreement", "--set",
         "budgets.agreement_min=1", "--calibration", "examples.data:keywords_calibration", "--out",
         tmp_path)  # fmt: skip
    report = read_report(tmp_path, GATEWAY)
    assert by_candidate(report["plan"]["decisions"])[mixed]["verdict"] == "in"
    judgements = by_candidate(report["verdict"]["judgements"])
    assert judgements["tflite-int8-static"]["reason"].startswith("agreement_min:")
    assert not by_candidate(report["measurements"])[mixed]["error"]
    notes = by_candidate(report["artifacts"])[mixed]["notes"]
    assert re.match(r"\d+ layers left float: ", notes[0])


# Images: layout, integers


def test_images_are_nhwc_and_the_package_answers_like_the_model(edge, static, seven):
    path, manifest = open_package(static, GATEWAY)
    assert manifest.candidate == "tflite-int8-static"
    (spec,) = manifest.inputs
    assert (spec.shape, spec.layout, spec.dtype) == ((1, 28, 28, 1), "NHWC", "float32")
    assert manifest.preprocess.layout == "NHWC"
    assert "golden vectors replayed" in edge("verify", path).stdout
    (timed,) = json.loads(edge("bench", path, "--threads", "1", "--runs", "10", "--json").stdout)
    assert timed["p50_ms"] > 0
    answer = json.loads(edge("run", path, seven[0], "--json").stdout)
    assert answer["top"][0]["index"] == 7
    assert len(answer["outputs"]["logits"][0]) == 10


def test_an_input_of_the_wrong_layout_is_refused(edge, static, seven, tmp_path):
    path, _ = open_package(static, GATEWAY)
    np.save(tmp_path / "x.npy", seven[1])
    message = error(edge("run", path, tmp_path / "x.npy", ok=1))
    assert "shape 1x1x28x28; the model takes 1x28x28x1" in message
    assert "hint: the model takes images as NHWC: transpose it" in message


def test_layout_nchw_keeps_images_as_onnx_has_them(edge, digits, seven, tmp_path):
    edge("build", digits, "-p", GATEWAY, *DIGITS, "--preprocess", "mnist", "--layout", "nchw",
         *only("tflite-fp32"), "--out", tmp_path)  # fmt: skip
    path, manifest = open_package(tmp_path, GATEWAY)
    assert (manifest.inputs[0].shape, manifest.inputs[0].layout) == ((1, 1, 28, 28), "NCHW")
    edge("verify", path)
    np.save(tmp_path / "x.npy", seven[1])
    for source in (seven[0], tmp_path / "x.npy"):
        answer = json.loads(edge("run", path, source, "--json").stdout)
        assert answer["top"][0]["index"] == 7


def test_integers_in_and_out_are_reals_to_the_user(edge, digits, static, seven, tmp_path):
    edge("build", digits, "-p", GATEWAY, *DIGITS, "--preprocess", "mnist",
         *only("tflite-int8-static-io"), "--with", "tflite-int8-static-io", "--out",
         tmp_path / "out")  # fmt: skip
    path, manifest = open_package(tmp_path / "out", GATEWAY)
    spec, scores = manifest.inputs[0], manifest.outputs[0]
    assert (spec.dtype, scores.dtype) == ("int8", "int8")
    assert spec.scale > 0
    assert scores.scale > 0
    assert "golden vectors replayed" in edge("verify", path).stdout
    image = json.loads(edge("run", path, seven[0], "--json").stdout)
    assert image["top"][0]["index"] == 7
    float_io = json.loads(edge("run", open_package(static, GATEWAY)[0], seven[0], "--json").stdout)
    np.testing.assert_allclose(
        image["outputs"]["logits"], float_io["outputs"]["logits"], atol=4 * scores.scale
    )
    steps = np.round(seven[1] / spec.scale) + spec.zero_point
    steps = np.clip(steps, -128, 127).astype(np.int8).transpose(0, 2, 3, 1)
    np.save(tmp_path / "steps.npy", steps)
    integers = json.loads(edge("run", path, tmp_path / "steps.npy", "--json").stdout)
    assert integers["outputs"] == image["outputs"]


def test_the_same_tflite_build_in_two_folders_gives_the_same_bytes(edge, digits, tmp_path):
    """int8-static-mixed searches for layers, and its notes are in the package."""
    packages = []
    for i in (1, 2):
        cache = edge.fresh_cache(tmp_path / f"cache{i}")
        out = tmp_path / f"somewhere{i}" / "out"
        edge("build", digits, "-p", GATEWAY, *ON_PI32, *DIGITS, "--preprocess", "mnist",
             *only("tflite-int8-static-mixed"), "--out", out, cache=cache,
             PYTHONHASHSEED=str(i))  # fmt: skip
        packages.append({path.name: path.read_bytes() for path in sorted(out.glob("*.edgepkg"))})
    assert len(packages[0]) == 2
    assert packages[0] == packages[1]


# A .tflite file as the model


def test_inspect_and_plan_read_a_tflite_file(edge):
    report = json.loads(edge("inspect", LSTM, "-p", PI32, "--json").stdout)
    model = report["model"]
    assert model["format"] == "tflite"
    assert model["ops"]["UNIDIRECTIONAL_SEQUENCE_LSTM"] == 1
    assert (model["inputs"][0]["name"], model["inputs"][0]["shape"]) == ("fixed_input", [1, 28, 28])
    assert model["parameters"] == 9530
    assert [support["runtime"] for support in report["support"]] == ["tflite-runtime 2.14.0"]
    (plan,) = json.loads(edge("plan", LSTM, "-p", PI32, "--json").stdout)
    verdicts = {decision["candidate"]: decision["verdict"] for decision in plan["decisions"]}
    assert verdicts["tflite-given"] == "in"
    assert not [
        name for name, verdict in verdicts.items() if verdict == "in" and name.startswith("onnx-")
    ]


def test_a_tflite_file_is_built_on_two_runtimes(edge, tmp_path):
    dynamic = "tflite-int8-dynamic"
    edge("build", LSTM, "-p", GATEWAY, *ON_PI32, *ROWS, *only("tflite-given", dynamic, DYNAMIC),
         "--objective", "bytes", "--out", tmp_path)  # fmt: skip
    for profile, small in ((GATEWAY, dynamic), (PI32, DYNAMIC)):
        measured = by_candidate(read_report(tmp_path, profile)["measurements"])
        unchanged, values = measured["tflite-given"]["values"], measured[small]["values"]
        assert unchanged["metric_original"]["value"] == pytest.approx(99.26, abs=0.005)
        assert unchanged["accuracy_drop_points"]["value"] == 0
        assert unchanged["max_error"]["value"] < 1e-4
        assert values["accuracy_drop_points"]["value"] <= 0.5
        assert values["package_mb"]["value"] < unchanged["package_mb"]["value"]
    path, manifest = open_package(tmp_path, GATEWAY)
    assert manifest.candidate == dynamic
    edge("verify", path)
    rows, label = list(data.lstm_digits_eval())[SEVENS]
    np.savez(tmp_path / "one.npz", fixed_input=rows)
    answer = json.loads(edge("run", path, tmp_path / "one.npz", "--json").stdout)
    assert answer["top"][0]["index"] == label == 7


@pytest.mark.parametrize("key", ["serving_default", "predict", ""])
def test_a_tflite_file_is_read_by_the_names_that_the_runtime_uses(edge, tmp_path, key):
    """Those of the signature serving_default; of tensors where there is another one, or none."""
    model = flatbuffer.read(LSTM)
    if key:
        model.signatureDefs[0].signatureKey = key.encode()
    else:
        model.signatureDefs = []
    path = tmp_path / "rows.tflite"
    flatbuffer.write(model, path)
    edge("build", path, "-p", GATEWAY, *ROWS, *only("tflite-int8-static"), "--out", tmp_path)
    own = {"serving_default": "fixed_input"}.get(key, "serving_default_fixed_input:0")
    assert open_package(tmp_path, GATEWAY)[1].inputs[0].name == own
    assert read_report(tmp_path, GATEWAY)["measurements"][0]["values"]["agreement"]["value"] > 0.99


def test_a_tflite_file_without_a_runtime_for_it_is_refused(edge, tmp_path):
    process = edge("build", LSTM, "-p", "jetson-xavier-nx", *ROWS, "--out", tmp_path, ok=2)
    assert re.search("no candidate: .*onnxruntime|cannot be converted to ONNX", error(process))


@pytest.mark.parametrize("command", ["build", "inspect"])
def test_a_tflite_file_has_its_shapes(edge, tmp_path, command):
    more = ("-p", PI32, *ROWS, "--out", tmp_path) if command == "build" else ()
    message = error(edge(command, LSTM, "--shape", "fixed_input=2x28x28", *more, ok=1))
    assert "trained_lstm.tflite: the shapes of a .tflite file are fixed" in message


@pytest.mark.parametrize("keep", [0, 4, 100, 20_000, 41_239])
def test_a_truncated_tflite_file_is_named(edge, tmp_path, keep):
    path = tmp_path / "cut.tflite"
    path.write_bytes(LSTM.read_bytes()[:keep])
    for command in (("inspect", path), ("build", path, "-p", PI32, *ROWS, "--out", tmp_path / "o")):
        assert error(edge(*command, ok=1)).startswith("error: cut.tflite is ")
    assert not list(tmp_path.glob("o/*"))


# The structure lies at both ends of the file, weights in between.
PLACES = st.integers(0, 2000) | st.integers(LSTM.stat().st_size - 2000, LSTM.stat().st_size - 1)


@given(changed=st.dictionaries(PLACES, st.integers(0, 255), min_size=1, max_size=4))
def test_a_damaged_tflite_file_is_a_model_or_an_error_that_names_it(tmp_path_factory, changed):
    raw = bytearray(LSTM.read_bytes())
    for place, byte in changed.items():
        raw[place] = byte
    path = tmp_path_factory.mktemp("damaged") / "rows.tflite"
    path.write_bytes(raw)
    message = path.name
    try:
        reader.read(path)
    except EdgeError as error:
        message = error.what
    assert path.name in message
