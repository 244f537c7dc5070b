"""The manifest: what cannot be unpacked or chosen from cannot be built, and damage is one error."""

import contextlib
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_core.errors import PackageError
from edge_core.package import format as package
from edge_core.package import golden, oci
from edge_core.package.manifest import (
    MAX_DEPTH,
    MAX_FILES,
    MAX_NEEDS,
    MAX_PATH,
    MAX_VARIANTS,
    Manifest,
    check_paths,
)
from tests import packages

PAGE = Path(__file__).parents[3] / "docs" / "package.md"
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return packages.make_contents(tmp_path_factory.mktemp("contents"))[0]


@pytest.fixture(scope="module")
def document(manifest):
    return json.loads(manifest.to_bytes())


@pytest.mark.parametrize(
    "path",
    [
        "", "/etc/passwd", "../x", "a/../b", "a//b", "a/", "./a", "a\\b", ".hidden", "a/.hidden",
        "x\n", "x\0", "é", "x" * 101, "/".join("a" * 9), "/".join(["a" * 50] * 5),
    ],
)  # fmt: skip
def test_an_unsafe_path_is_refused(path):
    with pytest.raises(PackageError):
        check_paths([path], "here")


@pytest.mark.parametrize(
    "paths",
    [
        ("a", "a"), ("a", "A"), ("a", "a/b"), ("a/b", "a"), ("a/b", "A"), ("a/b", "A/c"),
        ("A/b/c", "a/b/d"), ("a/b", "a/b/c"),
    ],
)  # fmt: skip
def test_paths_that_collide_on_some_system_are_refused(paths):
    with pytest.raises(PackageError, match="collides"):
        check_paths(paths, "here")


def test_a_folder_of_files_is_an_entry(manifest):
    """As Core ML has them: the runtime opens the folder."""
    inside = "model.mlpackage/Data/com.apple.CoreML"
    files = (
        "golden.npz",
        "recipe.json",
        "model.mlpackage/Manifest.json",
        f"{inside}/model.mlmodel",
        f"{inside}/weights/weight.bin",
    )
    folder = packages.with_variant(manifest, files=files, entry="model.mlpackage")
    assert Manifest.from_bytes(folder.to_bytes()) == folder
    assert folder.variants[0].model_files == files[2:]


@pytest.mark.parametrize(
    "changes",
    [
        {"entry": "other.onnx"},
        {"entry": "golden.npz"},
        {"golden": "other.npz"},
        {"recipe": "other.json"},
        {"name": "../x"},
        {"name": "manifest.json"},
        {"files": ("manifest.json", *packages.FILES)},
    ],
)
def test_a_variant_that_does_not_hang_together_is_refused(manifest, changes):
    with pytest.raises(PackageError):
        packages.with_variant(manifest, **changes)


def test_limits_and_unknown_requirements_are_refused(document):
    variant = document["variants"][0]
    many = [{**variant, "name": f"v{i}"} for i in range(MAX_VARIANTS + 1)]
    long = {**variant, "files": [*packages.FILES, *(f"f{i}" for i in range(MAX_FILES))]}
    odd = {**variant, "selector": {**variant["selector"], "phase_of_moon": "full"}}
    for variants in (many, [long], [odd], [], [variant, variant]):
        with pytest.raises(PackageError):
            Manifest.from_bytes(json.dumps({**document, "variants": variants}).encode())


def test_an_optional_field_of_a_newer_host_is_ignored(manifest, document):
    newer = {**document, "homepage": "https://example.org"}
    assert Manifest.from_bytes(json.dumps(newer).encode()) == manifest


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def places(value, path=()):
    """Every place of a JSON document."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


@given(data=st.data())
def test_a_damaged_manifest_raises_package_error_or_nothing(document, data):
    damaged = json.loads(json.dumps(document))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([p for p in places(damaged) if p]))
        parent = damaged
        for key in path[:-1]:
            parent = parent[key]
        if data.draw(st.booleans()):
            parent[path[-1]] = data.draw(JSON)
        else:
            del parent[path[-1]]
        if not damaged:
            break
    with contextlib.suppress(PackageError):  # the only error allowed out
        Manifest.from_bytes(json.dumps(damaged).encode())


@given(data=st.data())
def test_damaged_bytes_raise_package_error_or_nothing(manifest, data):
    raw = bytearray(manifest.to_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(PackageError):
        Manifest.from_bytes(bytes(raw))


def test_the_same_fields_give_the_same_bytes(manifest):
    assert Manifest.from_bytes(manifest.to_bytes()).to_bytes() == manifest.to_bytes()
    assert msgspec.structs.replace(manifest).to_bytes() == manifest.to_bytes()


def test_the_page_states_every_limit():
    page = " ".join(PAGE.read_text().split())
    for limit in (
        f"{MAX_VARIANTS} variants, {MAX_FILES} files per variant, {oci.MAX_LAYERS} layers in total",
        f"{MAX_NEEDS} groups of CPU features per selector; {golden.MAX_SAMPLES} golden samples",
        f"{oci.MAX_INDEX // 1024} KiB for the OCI index",
        f"{oci.MAX_MANIFEST // 1024} KiB each for the OCI manifest and config",
        f"at most {MAX_DEPTH} names and {MAX_PATH} characters",
    ):
        assert limit in page
    assert oci.MAX_CONFIG == oci.MAX_MANIFEST
    assert oci.MAX_BLOB == 8 * 1024 * MIB - 1
    assert f"| `VARIANT/PATH` | `{package.MODEL.media_type}` | 8 GiB - 1 |" in page
    titles = {"VARIANT/golden.npz": package.GOLDEN, "VARIANT/recipe.json": package.RECIPE}
    for title, kind in (*package.KINDS.items(), *titles.items()):
        assert f"| `{title}` | `{kind.media_type}` | {kind.limit // MIB} MiB |" in page
