"""What a device does with a package: verify it, run it, time it, with no framework but its runtime.

The package is written here by edge_core alone, from a model that is a plain file.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PHOTO = ROOT / "examples" / "data" / "photos" / "bird.jpg"


def run_agent(*arguments: object, ok: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "agent", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == ok, done.stderr
    return done


def test_the_agent_verifies_runs_and_times_a_package(detector: Path):
    assert "1 of 1 golden samples reproduced" in run_agent("verify", detector).stdout
    answer = json.loads(run_agent("infer", detector, PHOTO, "--json").stdout)
    (outputs,) = answer["outputs"].values()
    assert len(outputs[0]) == 85
    (timed,) = json.loads(run_agent("bench", detector, "--runs", "5", "--json").stdout)
    assert 0 < timed["p50_ms"] <= timed["p99_ms"]


def test_a_damaged_package_is_refused_before_it_is_run(detector: Path, tmp_path: Path):
    raw = bytearray(detector.read_bytes())
    raw[-100_000] ^= 1
    (tmp_path / "bad.edgepkg").write_bytes(raw)
    for command in (("verify",), ("infer", PHOTO), ("bench",)):
        name, *rest = command
        done = run_agent(name, tmp_path / "bad.edgepkg", *rest, ok=1)
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr


def test_the_agent_describes_the_machine_it_is_on():
    assert json.loads(run_agent("detect").stdout)["platform"]["os"] in ("linux", "macos")
