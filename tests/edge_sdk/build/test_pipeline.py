"""`edge build` on real models: gates, versions, determinism, resumption."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edge_core.errors import MeasureError
from edge_core.machine.detect import detect
from edge_sdk.build import measure, runtime_env
from edge_sdk.build.workspace import Workspace
from tests.cases import DIGITS, PHOTOS, ROOT

GATEWAY = "x86-gateway-n100"
ONNX_ONLY = ("--set", 'runtimes=[{name="onnxruntime",version="1.31.1"}]')
PLUGINS = str(ROOT / "tests" / "plugins")


def read_report(out, profile):
    (path,) = out.glob(f"*-{profile}.report.json")
    return json.loads(path.read_text())


def read_values(out, profile, candidate):
    measurement = next(
        entry
        for entry in read_report(out, profile)["measurements"]
        if entry["candidate"] == candidate
    )
    assert not measurement["error"], measurement["error"]
    return {name: quantity["value"] for name, quantity in measurement["values"].items()}


def test_digits_int8_is_within_half_a_point_of_float(edge, digits, tmp_path):
    edge("build", digits, "-p", GATEWAY, *DIGITS, "--set", "budgets.accuracy_drop_points=0.5",
         "--out", tmp_path)  # fmt: skip
    report = read_report(tmp_path, GATEWAY)
    assert report["evaluation"].endswith("5000 samples")
    int8 = read_values(tmp_path, GATEWAY, "onnx-int8-static-u8s8")
    assert int8["metric_original"] == pytest.approx(99.70, abs=0.005)
    assert int8["accuracy_drop_points"] <= 0.5
    judgement = next(
        entry
        for entry in report["verdict"]["judgements"]
        if entry["candidate"] == "onnx-int8-static-u8s8"
    )
    gate = next(gates for gates in judgement["gates"] if gates["gate"] == "accuracy_drop_points")
    assert gate["outcome"] == "pass"


def test_keywords_int8_is_within_half_a_point_of_float(edge, keywords, tmp_path):
    """180 clips: one more or less is 0.56 points. The gate of 0.5 refuses what loses one.

    Static INT8 of ONNX loses two of 158 right ones (LeakyRelu nets quantise before the
    activation), so the INT8 that is packaged has float activations.
    """
    edge("build", keywords, "-p", GATEWAY, "--eval", "examples.data:keywords_eval",
         "--calibration", "examples.data:keywords_calibration", "--objective", "bytes",
         "--set", "budgets.accuracy_drop_points=0.5", "--out", tmp_path)  # fmt: skip
    report = read_report(tmp_path, GATEWAY)
    winner = report["verdict"]["winner"]
    assert "-int8" in winner
    won = read_values(tmp_path, GATEWAY, winner)
    assert won["metric_original"] == pytest.approx(87.8, abs=0.05)
    assert won["accuracy_drop_points"] <= 0.5
    for measurement, judgement in zip(
        report["measurements"], report["verdict"]["judgements"], strict=True
    ):
        lost = measurement["values"]["accuracy_drop_points"]["value"]
        assert lost <= 200 / 180 + 1e-9, measurement["candidate"]
        assert (lost > 0.5) == (judgement["outcome"] == "fail"), measurement["candidate"]


@pytest.mark.parametrize(
    "mistake", ["swapped-channels", "wrong-preprocessing", "per-tensor-weights"]
)
def test_a_broken_conversion_is_refused_by_the_accuracy_gate(edge, lite0, tmp_path, mistake):
    process = edge("build", lite0, "-p", GATEWAY, *PHOTOS, "--only", mistake, "--out", tmp_path,
                   ok=2, PYTHONPATH=PLUGINS)  # fmt: skip
    assert re.search(
        r"error: x86-gateway-n100: nothing fits\n  hint: budgets.agreement_min=", process.stderr
    )
    assert not list(tmp_path.glob("*.edgepkg"))
    judgement = read_report(tmp_path, GATEWAY)["verdict"]["judgements"][0]
    assert judgement["reason"].startswith("agreement_min:")


def test_refused_candidates_lose_by_their_measured_figures(edge, lite0, tmp_path):
    """What the plan refuses by experience loses when it is measured after all."""
    refused = ("onnx-int8-dynamic-conv", "onnx-int8-dynamic", "onnx-int4-conv")
    ask = [argument for name in refused for argument in ("--with", name)]
    edge("build", lite0, "-p", GATEWAY, *PHOTOS, "--only", "onnx-fp32", *ask, "--only",
         "onnx-int8-static-u8s8", "--out", tmp_path)  # fmt: skip
    of = {name: read_values(tmp_path, GATEWAY, name) for name in ("onnx-fp32", *refused)}
    assert of["onnx-int8-dynamic-conv"]["host_p50_ms"] > 1.5 * of["onnx-fp32"]["host_p50_ms"]
    assert of["onnx-int8-dynamic-conv"]["agreement"] < 0.9
    assert of["onnx-int8-dynamic"]["host_p50_ms"] > 0.8 * of["onnx-fp32"]["host_p50_ms"]
    assert of["onnx-int8-dynamic"]["package_mb"] > 0.7 * of["onnx-fp32"]["package_mb"]
    assert of["onnx-int4-conv"]["agreement"] < 0.9
    winner = read_report(tmp_path, GATEWAY)["verdict"]["winner"]
    assert winner == "onnx-int8-static-u8s8"


def test_a_text_encoder_gets_dynamic_int8_or_fits_15_mb_in_int4(edge, minilm, tmp_path):
    sentences = ("--eval", "examples.data:sentences_eval", "--metric", "cosine")
    edge("build", minilm, "-p", GATEWAY, *sentences, "--out", tmp_path / "fast")
    winner = read_report(tmp_path / "fast", GATEWAY)["verdict"]["winner"]
    assert winner in ("onnx-int8-dynamic", "tflite-int8-dynamic", "tflite-int8-int4-table")
    for target in ("onnx", "tflite"):
        dynamic = read_values(tmp_path / "fast", GATEWAY, f"{target}-int8-dynamic")
        float32 = read_values(tmp_path / "fast", GATEWAY, f"{target}-fp32")
        assert dynamic["host_p50_ms"] < float32["host_p50_ms"]
    edge("build", minilm, "-p", GATEWAY, *sentences, *ONNX_ONLY, "--set", "budgets.package_mb=15",
         "--set", "budgets.cosine_min=0.97", "--out", tmp_path / "small")  # fmt: skip
    assert read_report(tmp_path / "small", GATEWAY)["verdict"]["winner"] == "onnx-int4"
    int4 = read_values(tmp_path / "small", GATEWAY, "onnx-int4")
    assert int4["package_mb"] <= 15
    assert int4["cosine"] >= 0.97


@pytest.mark.parametrize(
    ("profile", "version"), [("jetson-xavier-nx", "1.19.2"), ("jetson-orin-nano", "1.23.2")]
)
def test_an_older_runtime_is_measured_on_that_very_version(
    edge, digits, tmp_path, profile, version
):
    edge("build", digits, "-p", profile, *DIGITS, "--out", tmp_path)
    report = read_report(tmp_path, profile)
    assert report["plan"]["runtime"].split(", ")[0] == f"onnxruntime {version}"
    onnx = [
        measurement
        for measurement in report["measurements"]
        if measurement["candidate"].startswith("onnx-")
    ]
    assert len(onnx) >= 3
    for measurement in onnx:
        assert f"onnxruntime {version} on this" in measurement["values"]["host_p50_ms"]["where"]
    written = [
        artifact["written_for"]
        for artifact in report["artifacts"]
        if artifact["candidate"].startswith("onnx-")
    ]
    assert all(int(versions["opset"]) <= 21 and int(versions["ir"]) <= 11 for versions in written)


def test_a_file_that_the_devices_runtime_cannot_load_is_never_packaged(edge, digits, tmp_path):
    process = edge("build", digits, "-p", "jetson-xavier-nx", *DIGITS, "--only", "too-new", "--out",
                   tmp_path, ok=2, PYTHONPATH=PLUGINS)  # fmt: skip
    assert "nothing fits" in process.stderr
    assert not list(tmp_path.glob("*.edgepkg"))
    reason = read_report(tmp_path, "jetson-xavier-nx")["verdict"]["judgements"][0]["reason"]
    assert "onnxruntime 1.19.2 cannot load" in reason


def test_a_crash_is_a_failed_candidate_and_not_a_failed_build(edge, digits, tmp_path):
    edge("build", digits, "-p", GATEWAY, *DIGITS, "--only", "onnx-fp32", "--only", "crashing",
         "--only", "crashing-file", "--out", tmp_path, PYTHONPATH=PLUGINS)  # fmt: skip
    verdict = read_report(tmp_path, GATEWAY)["verdict"]
    reasons = {judgement["candidate"]: judgement["reason"] for judgement in verdict["judgements"]}
    assert verdict["winner"] == "onnx-fp32"
    assert "crashed with SIGABRT" in reasons["crashing"]
    assert reasons["crashing-file"]


def test_a_converters_own_children_end_with_it(edge, digits, tmp_path):
    """Neither a silent exit nor a program that lives on stops the build."""
    mark = f"mark={tmp_path}"
    edge("build", digits, "-p", GATEWAY, *DIGITS, "--only", "onnx-fp32", "--only", "leaving",
         "--out", tmp_path, PYTHONPATH=PLUGINS, MARK=mark)  # fmt: skip
    verdict = read_report(tmp_path, GATEWAY)["verdict"]
    reasons = {judgement["candidate"]: judgement["reason"] for judgement in verdict["judgements"]}
    assert verdict["winner"] == "onnx-fp32"
    assert (
        reasons["leaving"] == "the converter ended with exit status 3 during 'convert': no answer"
    )
    assert not list_processes(mark)


def test_nothing_fits_names_the_smallest_relaxation_which_then_works(edge, digits, tmp_path):
    tight = ("--set", "budgets.package_mb=0.1")
    process = edge("build", digits, "-p", GATEWAY, *DIGITS, *tight, "--out", tmp_path, ok=2)
    name, value = re.search(r"hint: budgets\.(\w+)=([\d.]+) would let", process.stderr).groups()
    edge("build", digits, "-p", GATEWAY, *DIGITS, "--set", f"budgets.{name}={value}", "--out",
         tmp_path)  # fmt: skip


def test_a_device_that_no_candidate_suits_is_told_why(edge, digits, tmp_path):
    process = edge("build", digits, "-p", "x86-64", *DIGITS, "--set",
                   'runtimes=[{name="coreml",version="8"}]', "--out", tmp_path, ok=2)  # fmt: skip
    assert "hint: no candidate: the profile has no onnxruntime; it has coreml 8" in process.stderr
    assert not list(tmp_path.glob("*.edgepkg"))


def test_the_same_build_in_two_folders_gives_the_same_bytes(edge, digits, tmp_path):
    """Two caches, two output folders, two random hash seeds; nothing is shared but the inputs.

    Every candidate's file is the same. Which of them wins is decided by measured times, so the
    packages are compared where one candidate a device is in.
    """
    recipes, packages = ("onnx-int8-static-u8s8", "onnx-int8-static-s8s8"), []
    files: list[dict[str, str]] = []
    for i in (1, 2):
        cache = edge.fresh_cache(tmp_path / f"cache{i}")
        out = tmp_path / f"somewhere{i}" / "out"
        build = ("build", digits, "-p", GATEWAY, "-p", "raspberry-pi-4b", *DIGITS, "--preprocess",
                 "mnist", "--out", out)  # fmt: skip
        edge(*build, cache=cache, PYTHONHASHSEED=str(i))
        reports = [read_report(out, profile) for profile in (GATEWAY, "raspberry-pi-4b")]
        artifacts = [artifact for report in reports for artifact in report["artifacts"]]
        files.append({artifact["candidate"]: artifact["sha256"] for artifact in artifacts})
        only = [argument for recipe in recipes for argument in ("--only", recipe)]
        edge(*build, *only, cache=cache, PYTHONHASHSEED=str(i))
        packages.append({path.name: path.read_bytes() for path in sorted(out.glob("*.edgepkg"))})
    assert len(files[0]) > 10
    assert files[0] == files[1]
    assert len(packages[0]) == 2
    assert packages[0] == packages[1]


def test_a_second_build_takes_finished_candidates_from_the_cache(edge, digits, tmp_path):
    cache = edge.fresh_cache(tmp_path / "cache")
    arguments = ("build", digits, "-p", GATEWAY, *DIGITS, "--out", tmp_path / "out")
    edge(*arguments, cache=cache)
    entries = {
        path: path.stat().st_mtime_ns for path in cache.rglob("*") if "runtimes" not in path.parts
    }
    edge(*arguments, cache=cache)
    again = {
        path: path.stat().st_mtime_ns for path in cache.rglob("*") if "runtimes" not in path.parts
    }
    assert again == entries


def test_other_calibration_samples_give_another_file(edge, digits, tmp_path):
    """What is kept by content must be kept by all of it."""
    rng = np.random.default_rng(0)
    digests = set()
    for scale in (1, 30):
        np.save(tmp_path / "c.npy", scale * rng.normal(size=(8, 1, 28, 28)).astype(np.float32))
        edge("build", digits, "-p", GATEWAY, "--eval", tmp_path / "c.npy", "--calibration",
             tmp_path / "c.npy", "--only", "onnx-int8-static-u8s8", "--set",
             "budgets.agreement_min=0", "--out", tmp_path / "out")  # fmt: skip
        (artifact,) = read_report(tmp_path / "out", GATEWAY)["artifacts"]
        digests.add(artifact["sha256"])
    assert len(digests) == 2


def test_strict_turns_an_inconclusive_gate_into_exit_code_2(edge, digits, tmp_path):
    # x86-64 is predicted within a factor 3: a limit in that band is open.
    arguments = ("build", digits, "-p", "x86-64", *DIGITS, "--only", "onnx-fp32")
    edge(*arguments, "--out", tmp_path)
    (measurement,) = read_report(tmp_path, "x86-64")["measurements"]
    limit = f"budgets.latency_p99_ms={measurement['values']['latency_p99_ms']['value'] * 1.5}"
    edge(*arguments, "--set", limit, "--out", tmp_path)
    process = edge(*arguments, "--set", limit, "--strict", "--out", tmp_path, ok=2)
    assert "x86-64: onnx-fp32 is inconclusive: latency_p99_ms" in process.stderr
    assert list(tmp_path.glob("*.edgepkg"))  # made all the same; the exit code is for the CI


def test_ctrl_c_leaves_nothing_half_written_and_the_next_build_goes_on(edge, lite0, tmp_path):
    cache, out = edge.fresh_cache(tmp_path / "cache"), tmp_path / "out"
    arguments = ["build", str(lite0), "-p", GATEWAY, *PHOTOS, "--out", str(out)]
    started = subprocess.Popen(
        [sys.executable, "-m", "edge_sdk", *arguments],
        cwd=ROOT, env=edge.environment(cache), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, preexec_fn=heed_ctrl_c,
    )  # fmt: skip
    artifacts = cache / "artifacts"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list_finished(artifacts):
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=30)
    assert started.returncode == 130
    assert "error: interrupted; what was finished is kept" in err
    assert "Traceback" not in err
    assert not list(out.rglob("*"))
    assert not list(cache.rglob(".*")), "a temporary folder was left"
    assert not processes_with(f"EDGE_CACHE={cache}")
    kept = list_finished(artifacts)
    edge(*arguments, cache=cache)
    assert kept <= list_finished(artifacts)
    assert list(out.glob("*.edgepkg"))


def list_finished(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*") if not path.name.startswith(".")}


def heed_ctrl_c():
    """A shell that starts this suite in the background has told it to ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def processes_with(setting: str) -> list[str]:
    """Processes that were started with the environment variable."""
    commands = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if setting.encode() in (folder / "environ").read_bytes().split(b"\0"):
                commands.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return commands


def list_processes(mark: str) -> list[str]:
    """Processes with this word among their arguments."""
    process = subprocess.run(
        ["ps", "-eww", "-o", "args="], capture_output=True, text=True, check=True
    )
    return [line for line in process.stdout.splitlines() if mark in line]


def test_kill_9_takes_a_converter_and_its_children_along(edge, digits, tmp_path):
    mark = f"mark={tmp_path}"
    arguments = ["build", str(digits), "-p", GATEWAY, *DIGITS, "--only", "hanging", "--out",
                 str(tmp_path / "out")]  # fmt: skip
    started = subprocess.Popen(
        [sys.executable, "-m", "edge_sdk", *arguments], cwd=ROOT, stderr=subprocess.DEVNULL,
        env=edge.environment(None, PYTHONPATH=PLUGINS, MARK=mark),
    )  # fmt: skip
    assert within(60, lambda: list_processes(mark))
    started.kill()
    started.wait()
    assert within(20, lambda: not list_processes(mark))


def within(seconds: float, holds) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(holds())


def test_builds_that_share_a_cache_and_an_output_folder_agree(edge, digits, tmp_path):
    cache, out = edge.fresh_cache(tmp_path / "cache"), tmp_path / "out"
    arguments = ["build", str(digits), "-p", GATEWAY, *DIGITS, "--only", "onnx-fp32", "--out",
                 str(out)]  # fmt: skip
    builds = [
        subprocess.Popen(
            [sys.executable, "-m", "edge_sdk", *arguments], cwd=ROOT,
            env=edge.environment(cache), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    for build in builds:
        _, err = build.communicate(timeout=120)
        assert build.returncode == 0, err
    assert not list(cache.rglob(".*"))
    assert len(list(out.glob("*.edgepkg"))) == 1


def test_weights_in_another_file_are_part_of_what_is_built(edge, digits, tmp_path):
    """The .onnx stays the same, its external data changes: nothing may come from the cache."""
    import onnx

    model = onnx.load(digits)
    path = tmp_path / "split.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    arguments = ("build", path, "-p", GATEWAY, *DIGITS, "--only", "onnx-fp32", "--out")
    edge(*arguments, tmp_path / "first")
    same = path.read_bytes()
    weights = tmp_path / "weights.bin"
    weights.write_bytes(bytes(weights.stat().st_size))
    edge(*arguments, tmp_path / "second")
    assert path.read_bytes() == same
    assert read_values(tmp_path / "first", GATEWAY, "onnx-fp32")["metric"] > 99
    assert read_values(tmp_path / "second", GATEWAY, "onnx-fp32")["metric"] < 20


def test_a_changed_converter_is_not_answered_from_the_cache(edge, digits, tmp_path):
    plugins = tmp_path / "plugins"
    shutil.copytree(PLUGINS, plugins, ignore=shutil.ignore_patterns("__pycache__"))
    arguments = ("build", digits, "-p", GATEWAY, *DIGITS, "--only", "wrong-preprocessing", "--set",
                 "budgets.accuracy_drop_points=100", "--out")  # fmt: skip
    edge(*arguments, tmp_path / "first", PYTHONPATH=str(plugins))
    source = plugins / "edge_broken.py"
    source.write_text(source.read_text().replace("values * 128", "values * 1"))
    edge(*arguments, tmp_path / "second", PYTHONPATH=str(plugins))
    assert read_values(tmp_path / "first", GATEWAY, "wrong-preprocessing")["max_error"] > 1
    assert read_values(tmp_path / "second", GATEWAY, "wrong-preprocessing")["max_error"] < 1e-3


def test_candidates_that_are_compared_were_timed_together(edge, digits, tmp_path):
    cache = edge.fresh_cache(tmp_path / "cache")
    arguments = ("build", digits, "-p", GATEWAY, *DIGITS, "--only", "onnx-fp32", "--out",
                 tmp_path / "out")  # fmt: skip
    edge(*arguments, cache=cache)
    alone = list_finished(cache / "timings")
    edge(*arguments, "--only", "onnx-fp16", cache=cache)
    assert len(list_finished(cache / "timings") - alone) == 2


def test_one_output_number_has_no_highest_score(edge, tmp_path):
    import numpy as np
    from onnx import TensorProto, helper, save

    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x"], ["y"], keepdims=1)], "mean",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.ones((4, 1, 4), np.float32))
    process = edge("build", tmp_path / "m.onnx", "-p", GATEWAY, "--eval", tmp_path / "x.npy",
                   "--out", tmp_path / "out", ok=1)  # fmt: skip
    assert (
        "metric agreement looks for the highest of several scores, and 'y' is one" in process.stderr
    )


def test_kill_9_leaves_nothing_half_written(edge, lite0, tmp_path):
    cache, out = edge.fresh_cache(tmp_path / "cache"), tmp_path / "out"
    arguments = ["build", str(lite0), "-p", GATEWAY, *PHOTOS, "--only", "onnx-fp32", "--out",
                 str(out)]  # fmt: skip
    started = subprocess.Popen(
        [sys.executable, "-m", "edge_sdk", *arguments], cwd=ROOT, env=edge.environment(cache),
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    time.sleep(4)
    started.kill()
    started.wait()
    assert not list(out.rglob("*.edgepkg"))
    edge(*arguments, cache=cache)
    assert len(list(out.glob("*.edgepkg"))) == 1


def test_a_full_disk_for_packages_is_one_error_and_no_package(edge, digits, small_disk):
    (small_disk / "filler").write_bytes(bytes(2_800_000))
    process = edge("build", digits, "-p", GATEWAY, *DIGITS, "--only", "onnx-fp32", "--out",
                   small_disk / "out", ok=1)  # fmt: skip
    assert re.search(r"error: cannot write .*\.edgepkg: no space left", process.stderr)
    assert not list(small_disk.rglob("*.edgepkg*"))


def test_a_full_disk_for_the_cache_is_one_error(edge, lite0, small_disk, tmp_path):
    cache = small_disk / "cache"
    process = edge("build", lite0, "-p", GATEWAY, *PHOTOS, "--out", tmp_path / "out", ok=1,
                   cache=cache)  # fmt: skip
    assert re.search(r"error: cannot write .*: no space left", process.stderr)
    assert "Traceback" not in process.stderr
    assert not list((tmp_path / "out").glob("*"))


def test_an_exported_program_is_built_like_any_model(edge, tmp_path):
    code = (
        "import torch\n"
        "net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(),"
        " torch.nn.Linear(8 * 6 * 6, 5)).eval()\n"
        f"torch.export.save(torch.export.export(net, (torch.zeros(1, 3, 8, 8),)),"
        f" {str(tmp_path / 'net.pt2')!r})"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.normal(size=(40, 3, 8, 8)).astype(np.float32))
    samples = ("--eval", tmp_path / "x.npy", "--calibration", tmp_path / "x.npy")
    edge("build", tmp_path / "net.pt2", "-p", GATEWAY, *ONNX_ONLY, *samples, "--metric", "cosine",
         "--out", tmp_path / "out")  # fmt: skip
    (package,) = (tmp_path / "out").glob("*.edgepkg")
    edge("verify", package)
    np.save(tmp_path / "one.npy", np.ones((1, 3, 8, 8), np.float32))
    answer = json.loads(edge("run", package, tmp_path / "one.npy", "--json").stdout)
    assert answer["top"] == []  # judged by cosine: the output is no row of class scores


def test_a_runtime_of_another_python_in_the_cache_is_not_taken(tmp_path):
    ours = runtime_env._folder(tmp_path, "onnxruntime", "1.30.0")
    ours.mkdir(parents=True)
    (tmp_path / "runtimes" / "onnxruntime-1.19.2-cp38-linux-armv7l").mkdir()
    env = runtime_env.provide("onnxruntime", "1.19.2", tmp_path, offline=True)
    assert (env.version, env.site, env.exact) == ("1.30.0", ours, False)
    assert "the profile names 1.19.2, not at hand" in env.where


def test_a_runtime_that_is_not_the_one_named_is_not_measured(digits, tmp_path):
    """A label says which version was measured; a folder with another one would make it a lie."""
    env = runtime_env.RuntimeEnv("onnxruntime", "1.19.2", None, exact=True)
    subject = measure.Subject(digits, "", {}, env, (), ())
    with pytest.raises(MeasureError, match=r"onnxruntime is .* there, not 1\.19\.2"):
        measure.answers(Workspace(tmp_path), subject, tmp_path / "feeds", detect(runtimes={}))


def test_what_a_killed_build_left_is_swept_after_a_day(tmp_path):
    old, new = tmp_path / "artifacts" / ".a.x1", tmp_path / "artifacts" / ".b.x2"
    kept = tmp_path / "artifacts" / "c"
    for folder in (old, new, kept):
        folder.mkdir(parents=True)
    for folder in (old, kept):
        os.utime(folder, (0, 0))
    Workspace(tmp_path).sweep()
    assert sorted(tmp_path.rglob("*")) == sorted([tmp_path / "artifacts", new, kept])
