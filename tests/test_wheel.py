"""The wheel holds the packages with their data files and nothing else."""

from __future__ import annotations

import email
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.wheel_source import copy_source

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("agent", "converters", "device_profiles", "edge_core", "edge_sdk")
SHIPPED = {".py", ".toml", ".json", ".html", ".typed", ".service", ".conf", ".sh"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"
    copy_source(source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    process = subprocess.run(
        [*pip, "--wheel-dir", str(work), str(source)], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    (built,) = work.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        yield archive


def test_the_wheel_has_every_file_of_the_packages_and_no_other(wheel):
    inside = {name for name in wheel.namelist() if not name.split("/")[0].endswith(".dist-info")}
    on_disk = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in SHIPPED
    }
    assert inside == on_disk


def test_the_wheel_carries_the_licence_and_the_commands(wheel):
    info = {name.split("/", 1)[1] for name in wheel.namelist() if ".dist-info/" in name}
    assert {"licenses/LICENSE", "entry_points.txt", "METADATA"} <= info


def test_the_base_needs_no_framework(wheel):
    (name,) = [entry for entry in wheel.namelist() if entry.endswith(".dist-info/METADATA")]
    metadata = email.message_from_bytes(wheel.read(name))
    base = [
        requirement
        for requirement in metadata.get_all("Requires-Dist")
        if "extra ==" not in requirement
    ]
    assert base
    heavy = ("onnx", "torch", "tensorflow", "tflite", "litert", "pillow", "coreml")
    assert [requirement for requirement in base if requirement.lower().startswith(heavy)] == []
