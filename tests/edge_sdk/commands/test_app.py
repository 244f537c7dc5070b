"""The command line: every command, and every bad input with its one line and exit code."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.cases import DIGITS, ROOT

PHOTO = ROOT / "examples" / "data" / "photos" / "bird.jpg"


def error(done):
    """The one error line; nothing else may look like one."""
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return errors[0]


def hint(done):
    return next(line for line in done.stderr.splitlines() if line.startswith("  hint: "))


# Commands on good input


def test_inspect_says_what_the_model_is_and_what_a_runtime_lacks(edge, digits):
    told = json.loads(edge("inspect", digits, "-p", "raspberry-pi-4b", "--json").stdout)
    assert told["model"]["inputs"][0]["shape"] == [1, 1, 28, 28]
    assert told["model"]["parameters"] == 390410
    assert told["model"]["macs"] == 7748608
    assert told["support"][0]["missing"] == []
    text = edge("inspect", digits, "-p", "raspberry-pi-4b").stdout
    assert "7.7 M MACs" in text
    assert "Conv 3" in text


def test_inspect_counts_macs_once_dimensions_are_fixed(edge, magika):
    free = json.loads(edge("inspect", magika, "--json").stdout)
    assert free["model"]["macs"] is None
    (name,) = free["model"]["dynamic"]
    fixed = json.loads(edge("inspect", magika, "--shape", f"{name}=1", "--json").stdout)
    assert fixed["model"]["macs"] > 1_000_000


def test_plan_lists_every_candidate_with_its_reason(edge, lite0):
    (told,) = json.loads(edge("plan", lite0, "-p", "x86-gateway-n100", "--json").stdout)
    made = {d["candidate"]: d for d in told["decisions"]}
    assert made["onnx-int8-static-u8s8"]["verdict"] == "in"
    assert "75.5 ms against 7.89 ms" in made["onnx-int8-dynamic-conv"]["evidence"]
    text = edge("plan", lite0, "-p", "x86-gateway-n100").stdout
    assert all(name in text for name in made)


def test_verify_run_and_bench_a_package(edge, digits_package, tmp_path):
    assert "golden vectors replayed" in edge("verify", digits_package).stdout
    told = json.loads(edge("bench", digits_package, "--runs", "20", "--json").stdout)
    assert told[0]["p50_ms"] <= told[0]["p99_ms"]
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / "digit.png")
    answer = json.loads(edge("run", digits_package, tmp_path / "digit.png", "--json").stdout)
    assert np.shape(answer["outputs"]["logits"]) == (1, 10)
    assert len(answer["top"]) == 5
    assert "score" in edge("run", digits_package, tmp_path / "digit.png").stdout


def test_profiles_list_show_check_schema_and_detect(edge, tmp_path):
    names = [p["name"] for p in json.loads(edge("profiles", "list", "--json").stdout)]
    assert len(names) >= 16
    shown = edge("profiles", "show", "raspberry-pi-4b", "--set", "budgets.package_mb=7").stdout
    assert "package_mb = 7" in shown
    (tmp_path / "mine.toml").write_text(shown)
    assert "is fine" in edge("profiles", "check", tmp_path / "mine.toml").stderr
    assert json.loads(edge("profiles", "schema").stdout)["title"]
    edge("profiles", "detect", "--out", tmp_path / "here.toml")
    edge("profiles", "check", tmp_path / "here.toml")


def test_doctor_says_what_is_here(edge):
    found = json.loads(edge("doctor", "--json").stdout)
    assert {c["what"]: c["state"] for c in found}["runtime onnxruntime"] == "ok"


def test_a_build_for_a_profile_of_this_machine_is_measured_and_not_predicted(
    edge, digits, tmp_path
):
    edge("profiles", "detect", "--out", tmp_path / "here.toml")
    done = edge("build", digits, "-p", tmp_path / "here.toml", *DIGITS, "--only", "onnx-fp32",
                "--out", tmp_path, "--json")  # fmt: skip
    (built,) = json.loads(done.stdout)
    assert built["measurements"][0]["values"]["latency_p50_ms"]["kind"] == "measured"


def test_version_and_help_exit_with_0(edge):
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", edge("--version").stdout)
    assert "Usage: edge" in edge("--help").stdout


# Bad input: models


@pytest.mark.parametrize("keep", [0, 100, 200_000])
def test_a_truncated_model(edge, digits, tmp_path, keep):
    (tmp_path / "cut.onnx").write_bytes(digits.read_bytes()[:keep])
    done = edge("build", tmp_path / "cut.onnx", "-p", "x86-64", *DIGITS, "--out",
                tmp_path / "out", ok=1)  # fmt: skip
    assert "cut.onnx" in error(done)
    assert not list((tmp_path / "out").glob("*"))


def test_a_model_that_is_not_there_or_of_another_format(edge, tmp_path):
    assert "no model at nowhere.onnx" in error(edge("inspect", "nowhere.onnx", ok=1))
    (tmp_path / "m.h5").write_bytes(b"\x89HDF")
    assert "read from .onnx or .pt2" in error(edge("inspect", tmp_path / "m.h5", ok=1))


def test_a_model_with_an_op_that_nothing_has(edge, tmp_path):
    import onnx

    node = onnx.helper.make_node("Frobnicate", ["x"], ["y"], name="here")
    x = onnx.helper.make_tensor_value_info("x", 1, [1, 4])
    y = onnx.helper.make_tensor_value_info("y", 1, [1, 4])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [x], [y]),
        opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    onnx.save(model, tmp_path / "odd.onnx")
    np.save(tmp_path / "x.npy", np.ones((2, 4), np.float32))
    done = edge("build", tmp_path / "odd.onnx", "-p", "x86-64", "--eval", tmp_path / "x.npy",
                "--out", tmp_path / "out", ok=1)  # fmt: skip
    assert "op Frobnicate (node 'here')" in error(done)
    assert "without it" in hint(done)


def test_a_dimension_that_is_still_free_names_it_and_the_option(edge, magika, tmp_path):
    done = edge("build", magika, "-p", "x86-64", "--eval", "examples.data:magika_eval", "--out",
                tmp_path, ok=1)  # fmt: skip
    assert re.search(r"--shape \S+=1|--shape", done.stderr)
    assert "unk__214" in error(done) + hint(done)


# Bad input: samples


def test_an_empty_calibration_folder(edge, lite0, tmp_path):
    (tmp_path / "empty").mkdir()
    done = edge("build", lite0, "-p", "x86-64", "--calibration", tmp_path / "empty",
                "--preprocess", "imagenet", "--out", tmp_path / "out", ok=1)  # fmt: skip
    assert "empty: no images in it" in error(done)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((4, 1, 27, 28), np.float32), "shape 1x1x27x28; the model takes 1x1x28x28"),
        (np.full((4, 1, 28, 28), np.nan, np.float32), "sample 0: input 'input' contains NaN"),
        (np.ones((4, 1, 28, 28), np.complex64), "dtype complex64; the model takes float32"),
    ],
)
def test_samples_that_do_not_fit(edge, digits, tmp_path, array, message):
    np.save(tmp_path / "x.npy", array)
    done = edge("build", digits, "-p", "x86-64", "--eval", tmp_path / "x.npy", "--out",
                tmp_path / "out", ok=1)  # fmt: skip
    assert message in error(done)
    assert not list((tmp_path / "out").glob("*"))


def test_no_samples_at_all(edge, digits, tmp_path):
    done = edge("build", digits, "-p", "x86-64", "--out", tmp_path, ok=1)
    assert "no samples" in error(done)
    assert "--eval" in hint(done)


def test_labels_and_class_names_that_do_not_fit_the_scores(edge, digits, tmp_path):
    np.savez(tmp_path / "x.npz", input=np.ones((4, 1, 28, 28), np.float32), labels=[0, 1, 2, 10])
    arguments = ("build", digits, "-p", "x86-64", "--eval", tmp_path / "x.npz", "--out", tmp_path)
    done = edge(*arguments, ok=1)
    assert "x.npz: label 10 is beyond the 10 scores of 'logits'" in error(done)
    assert "count from 0" in hint(done)
    np.savez(tmp_path / "x.npz", input=np.ones((4, 1, 28, 28), np.float32), labels=[0, 1, 2, 9])
    (tmp_path / "names.txt").write_text("zero\none\n")
    done = edge(*arguments, "--class-names", tmp_path / "names.txt", ok=1)
    assert "2 class names for the 10 scores of 'logits'" in error(done)


def test_a_metric_that_needs_labels_or_does_not_exist(edge, digits, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((4, 1, 28, 28), np.float32))
    arguments = ("build", digits, "-p", "x86-64", "--eval", tmp_path / "x.npy", "--out", tmp_path)
    assert "metric top1 needs labels" in error(edge(*arguments, "--metric", "top1", ok=1))
    done = edge(*arguments, "--metric", "f1", ok=1)
    assert "no metric 'f1'" in error(done)
    assert "agreement" in hint(done)


# Bad input: profiles, options, packages


@pytest.mark.parametrize(
    ("arguments", "message", "way_out"),
    [
        (("-p", "raspberry-pi-4"), "raspberry-pi-4", "raspberry-pi-4b"),
        (("-p", "x86-64", "--set", "budgets.latency_p99=5"), "latency_p99", "latency_p99_ms"),
        (("-p", "x86-64", "--set", "budgets.package_mb=big"), "package_mb", ""),
        (("-p", "x86-64", "--shape", "batch"), "--shape batch", ""),
        (("-p", "x86-64", "--shape", "batch=0"), "--shape batch=0", ""),
    ],
)
def test_wrong_options(edge, digits, tmp_path, arguments, message, way_out):
    done = edge("build", digits, *arguments, *DIGITS, "--out", tmp_path, ok=1)
    assert message in error(done)
    assert way_out in done.stderr


def test_wrong_usage_is_an_error_and_not_a_failed_gate(edge):
    assert "--profile" in error(edge("build", "model.onnx", ok=1))
    assert "No such command" in error(edge("biuld", ok=1))
    assert "No such option" in error(edge("doctor", "--jsn", ok=1))


def test_an_output_folder_that_cannot_be_written(edge, digits, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    done = edge("build", digits, "-p", "x86-64", *DIGITS, "--out", tmp_path / "file", ok=1)
    assert "cannot write" in error(done)


def test_a_damaged_package(edge, digits_package, tmp_path):
    raw = bytearray(digits_package.read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "bad.edgepkg").write_bytes(raw)
    for command in (("verify",), ("run",), ("bench",)):
        extra = (PHOTO,) if command == ("run",) else ()
        assert "bad.edgepkg" in error(edge(*command, tmp_path / "bad.edgepkg", *extra, ok=1))


def test_an_input_that_does_not_fit_the_package(edge, digits_package, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((2, 2), np.float32))
    assert "shape 2x2" in error(edge("run", digits_package, tmp_path / "x.npy", ok=1))
    (tmp_path / "x.txt").write_text("hello")
    assert "inputs are an image" in error(edge("run", digits_package, tmp_path / "x.txt", ok=1))
    assert "no input at" in error(edge("run", digits_package, tmp_path / "none.png", ok=1))


def test_golden_vectors_that_do_not_replay_fail_a_gate(edge, digits_package, tmp_path):
    """A package whose digests are right and whose model answers otherwise: exit code 2."""
    from edge_core.package import format as package
    from edge_core.package import golden

    opened = package.open(digits_package)
    files = {t: opened.read(t) for t in opened.titles if t != "manifest.json"}
    vectors = golden.from_bytes(files["golden.npz"])
    wrong = tuple({n: a + 5 for n, a in s.items()} for s in vectors.artifact)
    files["golden.npz"] = golden.make(
        vectors.inputs, wrong, wrong, tolerance=dict.fromkeys(vectors.tolerance, 0.01)
    ).to_bytes()
    package.write(tmp_path / "wrong.edgepkg", opened.manifest, files)
    done = edge("verify", tmp_path / "wrong.edgepkg", ok=2)
    assert "golden vectors do not replay here" in error(done)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--name", "../up"), "name '../up' cannot be part of a file name"),
        (("--version", "1/2"), "version '1/2' cannot be part of a file name"),
        (("-p", "x86-64"), "two profiles are named 'x86-64'"),
        (("--shape", "input=\u00b2"), "--shape input=\u00b2"),
    ],
)
def test_options_that_would_write_elsewhere_or_twice(edge, digits, tmp_path, arguments, message):
    out = tmp_path / "out"
    done = edge("build", digits, "-p", "x86-64", *arguments, *DIGITS, "--out", out, ok=1)
    assert message in error(done)
    assert not list(tmp_path.iterdir())


def test_wrong_usage_names_the_help_of_its_command(edge, digits_package):
    done = edge("bench", digits_package, "--threads", "100000", ok=1)
    assert "--threads" in error(done)
    assert "edge bench --help" in hint(done)


def test_a_strange_width_is_not_an_error(edge):
    for columns in ("abc", "0", "", "80"):
        assert "x86-64" in edge("profiles", "list", COLUMNS=columns).stdout


def test_detect_writes_and_prints(edge, tmp_path):
    done = edge("profiles", "detect", "--out", tmp_path / "here.toml", "--json")
    assert json.loads(done.stdout)["name"] == "this-machine"
    assert (tmp_path / "here.toml").exists()


def test_pack_and_check_print_json(edge, digits_package, tmp_path):
    edge("unpack", digits_package, tmp_path / "layout")
    told = edge("pack", tmp_path / "layout", tmp_path / "b.edgepkg", "--json").stdout
    assert json.loads(told)["bytes"] == digits_package.stat().st_size
    (tmp_path / "p.toml").write_text('extends = "x86-64"\nname = "mine"\n')
    assert json.loads(edge("profiles", "check", tmp_path / "p.toml", "--json").stdout)


def test_what_is_no_package_is_told_so(edge, tmp_path):
    (tmp_path / "zero.edgepkg").write_bytes(b"")
    done = edge("verify", tmp_path / "zero.edgepkg", ok=1)
    assert "zero.edgepkg is no .edgepkg file" in error(done)
    assert "no OCI image layout" in error(edge("verify", tmp_path, ok=1))


def test_inspect_shows_the_outputs_that_follow_from_fixed_inputs(edge, lite0):
    told = json.loads(edge("inspect", lite0, "--json").stdout)
    assert told["model"]["outputs"][0]["shape"] == [1, 1000]
