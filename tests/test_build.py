"""`edge build` on real models: gates, versions, determinism, resumption."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cases import DIGITS, PHOTOS, ROOT

GATEWAY = "x86-gateway-n100"
PLUGINS = str(ROOT / "tests" / "plugins")


def report(out, profile):
    (path,) = out.glob(f"*-{profile}.report.json")
    return json.loads(path.read_text())


def values(out, profile, candidate):
    found = next(m for m in report(out, profile)["measurements"] if m["candidate"] == candidate)
    assert not found["error"], found["error"]
    return {name: v["value"] for name, v in found["values"].items()}


def test_digits_int8_is_within_half_a_point_of_float(edge, digits, tmp_path):
    edge("build", digits, "-p", GATEWAY, *DIGITS, "--set", "budgets.accuracy_drop_points=0.5",
         "--out", tmp_path)  # fmt: skip
    told = report(tmp_path, GATEWAY)
    assert told["evaluation"].endswith("5000 samples")
    int8 = values(tmp_path, GATEWAY, "onnx-int8-static-u8s8")
    assert int8["metric_original"] == pytest.approx(99.70, abs=0.005)
    assert int8["accuracy_drop_points"] <= 0.5
    judged = next(j for j in told["verdict"]["judged"] if j["candidate"] == "onnx-int8-static-u8s8")
    gate = next(g for g in judged["gates"] if g["gate"] == "accuracy_drop_points")
    assert gate["outcome"] == "pass"


def test_keywords_int8_is_within_half_a_point_of_float(edge, keywords, tmp_path):
    """180 clips: one more or less is 0.56 points. The gate of 0.5 refuses what loses one."""
    edge("build", keywords, "-p", GATEWAY, "--eval", "examples.data:keywords_eval",
         "--calibration", "examples.data:keywords_calibration", "--objective", "bytes",
         "--set", "budgets.accuracy_drop_points=0.5", "--out", tmp_path)  # fmt: skip
    told = report(tmp_path, GATEWAY)
    winner = told["verdict"]["winner"]
    assert winner.startswith("onnx-int8")
    won = values(tmp_path, GATEWAY, winner)
    assert won["metric_original"] == pytest.approx(87.8, abs=0.05)
    assert won["accuracy_drop_points"] <= 0.5
    for m, judged in zip(told["measurements"], told["verdict"]["judged"], strict=True):
        lost = m["values"]["accuracy_drop_points"]["value"]
        assert lost <= 100 / 180 + 1e-9, m["candidate"]
        assert (lost > 0.5) == (judged["outcome"] == "fail"), m["candidate"]


@pytest.mark.parametrize("mistake", ["swapped-channels", "wrong-preprocessing"])
def test_a_broken_conversion_is_refused_by_the_accuracy_gate(edge, lite0, tmp_path, mistake):
    done = edge("build", lite0, "-p", GATEWAY, *PHOTOS, "--only", mistake, "--out", tmp_path,
                ok=2, PYTHONPATH=PLUGINS)  # fmt: skip
    assert re.search(
        r"error: x86-gateway-n100: nothing fits\n  hint: budgets.agreement_min=", done.stderr
    )
    assert not list(tmp_path.glob("*.edgepkg"))
    judged = report(tmp_path, GATEWAY)["verdict"]["judged"][0]
    assert judged["lost"].startswith("agreement_min:")


def test_per_tensor_weights_are_refused_by_the_accuracy_gate(edge, lite0, tmp_path):
    name = "onnx-int8-static-per-tensor"
    edge("build", lite0, "-p", GATEWAY, *PHOTOS, "--only", name, "--with", name, "--out",
         tmp_path, ok=2)  # fmt: skip
    judged = report(tmp_path, GATEWAY)["verdict"]["judged"][0]
    assert judged["lost"].startswith("agreement_min:")
    assert values(tmp_path, GATEWAY, name)["agreement"] < 0.90


def test_refused_candidates_lose_by_their_measured_figures(edge, lite0, tmp_path):
    """What the plan refuses by experience loses when it is measured after all."""
    refused = ("onnx-int8-dynamic-conv", "onnx-int8-dynamic", "onnx-int4-conv")
    ask = [x for name in refused for x in ("--with", name)]
    edge("build", lite0, "-p", GATEWAY, *PHOTOS, "--only", "onnx-fp32", *ask, "--only",
         "onnx-int8-static-u8s8", "--out", tmp_path)  # fmt: skip
    of = {name: values(tmp_path, GATEWAY, name) for name in ("onnx-fp32", *refused)}
    assert of["onnx-int8-dynamic-conv"]["host_p50_ms"] > 3 * of["onnx-fp32"]["host_p50_ms"]
    assert of["onnx-int8-dynamic-conv"]["agreement"] < 0.9
    assert of["onnx-int8-dynamic"]["host_p50_ms"] > 0.8 * of["onnx-fp32"]["host_p50_ms"]
    assert of["onnx-int8-dynamic"]["package_mb"] > 0.7 * of["onnx-fp32"]["package_mb"]
    assert of["onnx-int4-conv"]["agreement"] < 0.9
    winner = report(tmp_path, GATEWAY)["verdict"]["winner"]
    assert winner == "onnx-int8-static-u8s8"


def test_a_text_encoder_gets_dynamic_int8_or_fits_15_mb_in_int4(edge, minilm, tmp_path):
    sentences = ("--eval", "examples.data:sentences_eval", "--metric", "cosine")
    edge("build", minilm, "-p", GATEWAY, *sentences, "--out", tmp_path / "fast")
    assert report(tmp_path / "fast", GATEWAY)["verdict"]["winner"] == "onnx-int8-dynamic"
    dynamic = values(tmp_path / "fast", GATEWAY, "onnx-int8-dynamic")
    float32 = values(tmp_path / "fast", GATEWAY, "onnx-fp32")
    assert dynamic["host_p50_ms"] < float32["host_p50_ms"]
    edge("build", minilm, "-p", GATEWAY, *sentences, "--set", "budgets.package_mb=15",
         "--set", "budgets.cosine_min=0.97", "--out", tmp_path / "small")  # fmt: skip
    assert report(tmp_path / "small", GATEWAY)["verdict"]["winner"] == "onnx-int4"
    int4 = values(tmp_path / "small", GATEWAY, "onnx-int4")
    assert int4["package_mb"] <= 15
    assert int4["cosine"] >= 0.97


@pytest.mark.parametrize(
    ("profile", "version"), [("jetson-xavier-nx", "1.19.2"), ("jetson-orin-nano", "1.23.2")]
)
def test_an_older_runtime_is_measured_on_that_very_version(
    edge, digits, tmp_path, profile, version
):
    edge("build", digits, "-p", profile, *DIGITS, "--out", tmp_path)
    told = report(tmp_path, profile)
    assert told["plan"]["runtime"] == f"onnxruntime {version}"
    for m in told["measurements"]:
        assert f"onnxruntime {version} on this" in m["values"]["host_p50_ms"]["where"]
    assert all(a["opset"] <= 21 and a["ir"] <= 11 for a in told["artifacts"])


def test_a_file_that_the_devices_runtime_cannot_load_is_never_packaged(edge, digits, tmp_path):
    done = edge("build", digits, "-p", "jetson-xavier-nx", *DIGITS, "--only", "too-new", "--out",
                tmp_path, ok=2, PYTHONPATH=PLUGINS)  # fmt: skip
    assert "nothing fits" in done.stderr
    assert not list(tmp_path.glob("*.edgepkg"))
    lost = report(tmp_path, "jetson-xavier-nx")["verdict"]["judged"][0]["lost"]
    assert "onnxruntime 1.19.2 cannot load" in lost


def test_a_crash_is_a_failed_candidate_and_not_a_failed_build(edge, digits, tmp_path):
    edge("build", digits, "-p", GATEWAY, *DIGITS, "--only", "onnx-fp32", "--only", "crashing",
         "--only", "crashing-file", "--out", tmp_path, PYTHONPATH=PLUGINS)  # fmt: skip
    verdict = report(tmp_path, GATEWAY)["verdict"]
    lost = {j["candidate"]: j["lost"] for j in verdict["judged"]}
    assert verdict["winner"] == "onnx-fp32"
    assert "crashed with SIGABRT" in lost["crashing"]
    assert lost["crashing-file"]


def test_nothing_fits_names_the_smallest_relaxation_which_then_works(edge, digits, tmp_path):
    tight = ("--set", "budgets.package_mb=0.1")
    done = edge("build", digits, "-p", GATEWAY, *DIGITS, *tight, "--out", tmp_path, ok=2)
    name, value = re.search(r"hint: budgets\.(\w+)=([\d.]+) would let", done.stderr).groups()
    edge("build", digits, "-p", GATEWAY, *DIGITS, "--set", f"budgets.{name}={value}", "--out",
         tmp_path)  # fmt: skip


def test_the_same_build_in_two_folders_gives_the_same_bytes(edge, digits, tmp_path):
    """Two caches, two output folders, two random hash seeds; nothing is shared but the inputs."""
    packages = []
    for i in (1, 2):
        cache = edge.fresh_cache(tmp_path / f"cache{i}")
        out = tmp_path / f"somewhere{i}" / "out"
        edge("build", digits, "-p", GATEWAY, "-p", "raspberry-pi-4b", *DIGITS, "--preprocess",
             "mnist", "--out", out, cache=cache, PYTHONHASHSEED=str(i))  # fmt: skip
        packages.append({p.name: p.read_bytes() for p in sorted(out.glob("*.edgepkg"))})
    assert len(packages[0]) == 2
    assert packages[0] == packages[1]


def test_a_second_build_takes_finished_candidates_from_the_cache(edge, digits, tmp_path):
    cache = edge.fresh_cache(tmp_path / "cache")
    arguments = ("build", digits, "-p", GATEWAY, *DIGITS, "--out", tmp_path / "out")
    edge(*arguments, cache=cache)
    entries = {p: p.stat().st_mtime_ns for p in cache.rglob("*") if "runtimes" not in p.parts}
    edge(*arguments, cache=cache)
    again = {p: p.stat().st_mtime_ns for p in cache.rglob("*") if "runtimes" not in p.parts}
    assert again == entries


def test_ctrl_c_leaves_nothing_half_written_and_the_next_build_goes_on(edge, lite0, tmp_path):
    cache, out = edge.fresh_cache(tmp_path / "cache"), tmp_path / "out"
    arguments = ["build", str(lite0), "-p", GATEWAY, *PHOTOS, "--out", str(out)]
    started = subprocess.Popen(
        [sys.executable, "-m", "edge_sdk", *arguments],
        cwd=ROOT, env=edge.environment(cache), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    artifacts = cache / "artifacts"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not finished(artifacts):
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=30)
    assert started.returncode == 130
    assert "error: interrupted; what was finished is kept" in err
    assert "Traceback" not in err
    assert not list(out.rglob("*"))
    assert not list(cache.rglob(".*")), "a temporary folder was left"
    assert not children_of(started.pid)
    kept = finished(artifacts)
    edge(*arguments, cache=cache)
    assert kept <= finished(artifacts)
    assert list(out.glob("*.edgepkg"))


def finished(folder: Path) -> set[str]:
    return {p.name for p in folder.glob("*") if not p.name.startswith(".")}


def children_of(pid: int) -> list[str]:
    """Processes that still carry the id as their parent or group."""
    done = subprocess.run(
        ["ps", "-o", "args=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return done.stdout.split("\n")[:-1]


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


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_for_packages_is_one_error_and_no_package(edge, digits, small_disk):
    (small_disk / "filler").write_bytes(bytes(2_800_000))
    done = edge("build", digits, "-p", GATEWAY, *DIGITS, "--only", "onnx-fp32", "--out",
                small_disk / "out", ok=1)  # fmt: skip
    assert re.search(r"error: cannot write .*\.edgepkg: no space left", done.stderr)
    assert not list(small_disk.rglob("*.edgepkg*"))


def test_a_full_disk_for_the_cache_is_one_error(edge, lite0, small_disk, tmp_path):
    cache = small_disk / "cache"
    done = edge("build", lite0, "-p", GATEWAY, *PHOTOS, "--out", tmp_path / "out", ok=1,
                cache=cache)  # fmt: skip
    assert re.search(r"error: cannot write .*: no space left", done.stderr)
    assert "Traceback" not in done.stderr
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
    import numpy as np

    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.normal(size=(40, 3, 8, 8)).astype(np.float32))
    samples = ("--eval", tmp_path / "x.npy", "--calibration", tmp_path / "x.npy")
    edge("build", tmp_path / "net.pt2", "-p", GATEWAY, *samples, "--metric", "cosine", "--out",
         tmp_path / "out")  # fmt: skip
    (package,) = (tmp_path / "out").glob("*.edgepkg")
    edge("verify", package)


def test_the_python_interface_does_the_same_in_five_lines(digits, edge, tmp_path):
    code = f"""
import edge_sdk
built = edge_sdk.build({str(digits)!r}, [GATEWAY], evaluation="examples.data:digits_eval",
                       only=["onnx-fp32"], preprocess="mnist", out={str(tmp_path)!r})
print(edge_sdk.verify(built[0].package).golden.ok, built[0].verdict.winner)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=edge.environment(), capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["True", "onnx-fp32"]
