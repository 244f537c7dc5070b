"""Damaged packages: they open, or PackageError says why; nothing else comes out.

Most damage is caught by a digest. So half of the cases are put right again: what is damaged is one
JSON document or the golden vectors, and every digest above it is that of the damaged bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from edge_core.errors import PackageError
from edge_core.package import format as package
from edge_core.package import golden
from tests.agent import http_server
from tests.agent.fuzz import SEED, Fuzzer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return http_server.picture(tmp_path_factory.mktemp("package"))


def blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / "sha256" / digest.removeprefix("sha256:")


def put(layout: Path, raw: bytes) -> dict[str, Any]:
    """Store bytes as a blob; the fields of a descriptor."""
    digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
    blob(layout, digest).write_bytes(raw)
    return {"digest": digest, "size": len(raw)}


def test_a_damaged_file_raises_package_error_or_nothing(whole, tmp_path):
    fuzz, raw, path = Fuzzer(SEED), whole.read_bytes(), tmp_path / "damaged.edgepkg"
    refused = 0
    for n in fuzz.cases():
        path.write_bytes(fuzz.damage(raw))
        try:
            package.open(path)
        except PackageError:
            refused += 1
        except Exception as error:
            pytest.fail(f"case {n}: {error!r}")
    assert refused


def test_damage_below_right_digests_raises_package_error_or_nothing(whole, tmp_path):
    fuzz, layout = Fuzzer(SEED), tmp_path / "layout"
    package.unpack(whole, layout)
    index = json.loads((layout / "index.json").read_bytes())
    manifest = json.loads(blob(layout, index["manifests"][0]["digest"]).read_bytes())
    layers = {
        layer["annotations"]["org.opencontainers.image.title"]: layer
        for layer in manifest["layers"]
    }
    vectors = blob(layout, layers["here/golden.npz"]["digest"]).read_bytes()
    about = json.loads(blob(layout, layers["manifest.json"]["digest"]).read_bytes())
    opened = 0
    for n in fuzz.cases():
        copy = tmp_path / "copy"
        shutil.copytree(layout, copy)
        upper, inner = json.loads(json.dumps(index)), json.loads(json.dumps(manifest))
        by_title = {
            layer["annotations"]["org.opencontainers.image.title"]: layer
            for layer in inner["layers"]
        }
        match n % 4:
            case 0:
                by_title["manifest.json"].update(put(copy, json_bytes(fuzz.change(about))))
            case 1:
                by_title["here/golden.npz"].update(put(copy, fuzz.damage(vectors)))
            case 2:
                inner = fuzz.change(inner)
        upper["manifests"][0].update(put(copy, json_bytes(inner)))
        changed = fuzz.change(upper) if n % 4 == 3 else upper
        (copy / "index.json").write_bytes(json_bytes(changed))
        try:
            damaged_package = package.open(copy)
            opened += 1
            with suppress(PackageError):
                golden.from_bytes(damaged_package.read("here/golden.npz"))
        except PackageError:
            pass
        except Exception as error:
            pytest.fail(f"case {n}: {error!r}")
        shutil.rmtree(copy)
    assert opened


def json_bytes(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")
