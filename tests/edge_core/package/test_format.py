"""Packages: the same bytes for the same inputs, and nothing but those bytes is accepted."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_core.errors import InputError, PackageError, StorageError
from edge_core.package import archive, oci
from edge_core.package import format as package
from edge_core.package.manifest import Manifest
from tests import packages
from tests.cases import ROOT


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(manifest, files) of a small package."""
    return packages.make_contents(tmp_path_factory.mktemp("contents"))


@pytest.fixture(scope="module")
def small(made, tmp_path_factory):
    return package.write(tmp_path_factory.mktemp("small") / "dense.edgepkg", *made)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# --- writing and reading ---------------------------------------------------------------------


def test_a_package_gives_back_what_was_put_in(made, small):
    manifest, files = made
    opened = package.open(small.path)
    assert opened.manifest == manifest
    assert opened.digest == small.digest
    assert opened.titles == tuple(package.layer_kinds(manifest))
    assert set(opened.titles) == {"manifest.json", *files}
    assert small.bytes == small.path.stat().st_size
    for title, content in files.items():
        want = content if isinstance(content, bytes) else content.read_bytes()
        assert opened.read(title) == want
    with pytest.raises(InputError, match="has no 'weights'"):
        opened.read("weights")


def test_the_digest_is_that_of_the_oci_manifest_and_covers_every_file(small):
    opened = package.open(small.path)
    assert small.digest == f"sha256:{hashlib.sha256(opened.image.raw).hexdigest()}"
    named = {d["digest"] for d in json.loads(opened.image.raw)["layers"]}
    have = {f"sha256:{hashlib.sha256(opened.read(t)).hexdigest()}" for t in opened.titles}
    assert named == have


def test_the_config_tells_other_tools_what_it_is(small):
    opened = package.open(small.path)
    config = json.loads(opened.image.blobs[opened.image.manifest.config.digest].read(10_000))
    assert (config["architecture"], config["os"]) == ("arm64", "linux")
    assert config["rootfs"]["diff_ids"] == [d.digest for d in opened.image.manifest.layers]
    labels = config["config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == "1.0.0"
    assert labels["edge-deploy.runtime"] == "onnxruntime 1.23.2"


def test_other_tar_programs_list_it(small):
    listed = subprocess.run(["tar", "tf", small.path], capture_output=True, text=True, check=True)
    names = listed.stdout.split()
    assert names[:3] == ["oci-layout", "index.json", oci.blob_name(small.digest)]
    assert not listed.stderr
    with tarfile.open(small.path) as tar:
        assert tar.getnames() == names
        assert all(m.isreg() and m.mtime == 0 and m.uid == m.gid == 0 for m in tar)


def test_equal_inputs_make_equal_bytes_in_any_folder_process_and_order(made, small, tmp_path):
    manifest, files = made
    turned = dict(reversed(files.items()))
    again = package.write(tmp_path / "again" / "other-name.edgepkg", manifest, turned)
    assert again.path.read_bytes() == small.path.read_bytes()
    code = (
        "import sys; from pathlib import Path; from edge_core.package import format as package\n"
        "opened = package.open(Path(sys.argv[1]))\n"
        "files = {t: opened.read(t) for t in opened.titles if t != 'manifest.json'}\n"
        "package.write(Path(sys.argv[2]), opened.manifest, files)"
    )
    third = tmp_path / "third.edgepkg"
    subprocess.run([sys.executable, "-c", code, small.path, third], check=True, cwd=ROOT,
                   env={**os.environ, "PYTHONHASHSEED": "4711"}, umask=0o077)  # fmt: skip
    assert third.read_bytes() == small.path.read_bytes()
    assert third.stat().st_mode == small.path.stat().st_mode


def test_equal_files_are_stored_once(made, tmp_path):
    manifest, files = made
    recipe = f"{packages.NAME}/recipe.json"
    same = {**files, recipe: b"{}", "sbom.cdx.json": b"{}"}
    opened = package.open(package.write(tmp_path / "a.edgepkg", manifest, same).path)
    assert len(opened.image.blobs) == 6  # config, and five different files
    assert opened.read(recipe) == opened.read("sbom.cdx.json") == b"{}"


def test_a_directory_and_back_is_the_same_file(small, tmp_path):
    package.unpack(small.path, tmp_path / "layout")
    assert package.open(tmp_path / "layout").digest == small.digest
    back = package.pack(tmp_path / "layout", tmp_path / "back.edgepkg")
    assert back.digest == small.digest
    assert back.path.read_bytes() == small.path.read_bytes()
    with pytest.raises(InputError, match="exists"):
        package.unpack(small.path, tmp_path / "layout")


def test_an_index_in_another_form_packs_to_the_same_file(small, tmp_path):
    package.unpack(small.path, tmp_path / "layout")
    index = tmp_path / "layout" / "index.json"
    found = json.loads(index.read_bytes())
    found["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": "v1"}
    index.write_text(json.dumps(found, indent=4))
    back = package.pack(tmp_path / "layout", tmp_path / "back.edgepkg")
    assert back.path.read_bytes() == small.path.read_bytes()


def test_extracting_gives_the_model_file_and_may_run_twice(made, small, tmp_path):
    manifest, files = made
    opened = package.open(small.path)
    for _ in range(2):
        variant = manifest.variants[0]
        model = opened.extract(variant, tmp_path / "slot")
        assert model == tmp_path / "slot" / variant.entry
        assert model.read_bytes() == files[variant.title(variant.entry)].read_bytes()
        assert tree(tmp_path / "slot").keys() == {*package.KINDS, *variant.files}
    model.write_bytes(b"something else")
    with pytest.raises(InputError, match="is not the file of this package"):
        opened.extract(variant, tmp_path / "slot")


@pytest.mark.parametrize("how", ["missing", "unknown", "own", "too-long"])
def test_unfit_contents_are_refused_and_nothing_is_written(made, tmp_path, how):
    manifest, files = made
    changed = dict(files)
    if how == "missing":
        del changed[f"{packages.NAME}/golden.npz"]
    elif how == "unknown":
        changed["notes.txt"] = b""
    elif how == "own":
        changed["manifest.json"] = b"{}"
    else:
        changed["model-card.md"] = b" " * (1024 * 1024 + 1)
    with pytest.raises(InputError):
        package.write(tmp_path / "a.edgepkg", manifest, changed)
    assert not list(tmp_path.iterdir())


def test_a_source_that_changes_while_it_is_written_leaves_no_package(made, tmp_path):
    blob = oci.Blob.of(made[1][f"{packages.NAME}/model.onnx"])
    copy = tmp_path / "model.onnx"
    copy.write_bytes(b"x" * blob.size)
    late = msgspec.structs.replace(blob, source=copy)
    with pytest.raises(PackageError, match="do not have that digest"):
        late.save(tmp_path / "out")
    with pytest.raises(PackageError, match="do not have that digest"):
        late.read(blob.size)


# --- damage ----------------------------------------------------------------------------------


def flip(path: Path, at: int, bits: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ bits]))


def test_every_changed_byte_is_noticed(small, tmp_path):
    copy = tmp_path / "copy.edgepkg"
    copy.write_bytes(small.path.read_bytes())
    for at in range(small.bytes):
        flip(copy, at, 1 << at % 8)
        with pytest.raises(PackageError):
            package.open(copy)
        flip(copy, at, 1 << at % 8)
    assert package.open(copy).digest == small.digest


@pytest.fixture(scope="module")
def large(made, digits, tmp_path_factory):
    """A package with the digit recogniser in it; a copy that tests may damage and must mend."""
    manifest, files = made
    out = tmp_path_factory.mktemp("large") / "digits.edgepkg"
    package.write(out, manifest, {**files, f"{packages.NAME}/model.onnx": digits})
    return out


@settings(max_examples=150)
@given(data=st.data(), bits=st.integers(1, 255))
def test_any_changed_byte_of_a_larger_package_is_noticed(large, data, bits):
    at = data.draw(st.integers(0, large.stat().st_size - 1))
    flip(large, at, bits)
    try:
        with pytest.raises(PackageError):
            package.open(large)
    finally:
        flip(large, at, bits)
    assert package.open(large).manifest.name == "dense"


@given(data=st.data())
def test_a_truncated_or_longer_file_is_noticed(small, tmp_path_factory, data):
    raw = small.path.read_bytes()
    cut = data.draw(st.integers(0, len(raw) - 1))
    more = data.draw(st.binary(min_size=1, max_size=1100))
    path = tmp_path_factory.getbasetemp() / "cut.edgepkg"
    for bad in (raw[:cut], raw + more, raw + bytes(512), raw[:cut] + more + raw[cut:]):
        path.write_bytes(bad)
        with pytest.raises(PackageError):
            package.open(path)


@given(raw=st.binary(max_size=3000))
def test_any_bytes_raise_package_error_and_nothing_else(tmp_path_factory, raw):
    path = tmp_path_factory.getbasetemp() / "any.edgepkg"
    path.write_bytes(raw)
    with pytest.raises(PackageError):
        package.open(path)


def test_every_changed_file_of_a_directory_is_noticed(small, tmp_path):
    package.unpack(small.path, tmp_path / "layout")
    blobs = sorted((tmp_path / "layout" / "blobs" / "sha256").iterdir())
    assert len(blobs) == 8
    for blob in blobs:
        for at in (0, blob.stat().st_size - 1):
            flip(blob, at, 1)
            with pytest.raises(PackageError):
                package.open(tmp_path / "layout")
            flip(blob, at, 1)
    assert package.open(tmp_path / "layout").digest == small.digest


def test_what_changes_after_opening_is_not_given_out(small, tmp_path):
    copy = tmp_path / "copy.edgepkg"
    copy.write_bytes(small.path.read_bytes())
    opened = package.open(copy)
    layer = opened.image.blobs[opened.layers[f"{packages.NAME}/model.onnx"].digest]
    flip(copy, layer.offset + layer.size - 1, 1)
    with pytest.raises(PackageError):
        opened.read(f"{packages.NAME}/model.onnx")
    with pytest.raises(PackageError):
        opened.extract(opened.manifest.variants[0], tmp_path / "slot")
    assert [p.name for p in tmp_path.iterdir()] == ["copy.edgepkg"]


# --- hostile tars and directories ------------------------------------------------------------


def tar(path: Path, *members: tuple[str, bytes, dict[str, object]], form: int) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for name, data, fields in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            for field, value in fields.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(data))
    return path


LAYOUT = ("oci-layout", oci.LAYOUT, {})
HOSTILE = {
    "symlink": [("oci-layout", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"})],
    "hardlink": [("oci-layout", b"", {"type": tarfile.LNKTYPE, "linkname": "index.json"})],
    "device": [("oci-layout", b"", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5})],
    "pipe": [("oci-layout", b"", {"type": tarfile.FIFOTYPE})],
    "directory": [("blobs", b"", {"type": tarfile.DIRTYPE}), LAYOUT],
    "absolute": [("/oci-layout", oci.LAYOUT, {})],
    "parent": [("../oci-layout", oci.LAYOUT, {})],
    "twice": [LAYOUT, LAYOUT],
    "pax": [("oci-layout", oci.LAYOUT, {"pax_headers": {"path": "x" * 200}})],
    "sparse": [("oci-layout", b"", {"type": tarfile.GNUTYPE_SPARSE})],
    "owner": [("oci-layout", oci.LAYOUT, {"uname": "root"})],
    "empty": [],
}


def expect_refusal_in_little_memory(path: Path) -> str:
    tracemalloc.start()
    with pytest.raises(PackageError) as caught:
        package.open(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6e6
    return caught.value.what


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tar_is_refused(tmp_path, name):
    form = tarfile.PAX_FORMAT if name == "pax" else tarfile.GNU_FORMAT
    expect_refusal_in_little_memory(tar(tmp_path / "a.edgepkg", *HOSTILE[name], form=form))


def test_the_same_content_in_another_tar_is_refused_with_a_hint(small, tmp_path):
    with tarfile.open(small.path) as t:
        members = [(m.name, t.extractfile(m).read(), {}) for m in t]
    other = tar(tmp_path / "a.edgepkg", *members, form=tarfile.GNU_FORMAT)
    with pytest.raises(PackageError) as e:
        package.open(other)
    assert "oci-layout (from byte 0)" in e.value.what
    assert "another tool" in e.value.hint


@pytest.mark.parametrize("size", [1, oci.MAX_MANIFEST + 1, oci.MAX_BLOB, 99_999_999_999])
def test_a_claimed_manifest_size_is_not_believed(tmp_path, size):
    index = oci.index("sha256:" + "0" * 64, size)
    path = tmp_path / "a.edgepkg"
    path.write_bytes(
        archive._member("oci-layout", oci.LAYOUT) + archive._member("index.json", index)
    )
    expect_refusal_in_little_memory(path)


class Layout:
    """A layout directory in which everything has the right digest, however odd its content."""

    def __init__(self, folder: Path, made: tuple[Manifest, packages.Files]) -> None:
        manifest, files = made
        self.folder, self.kinds = folder, package.layer_kinds(manifest)
        (folder / "blobs" / "sha256").mkdir(parents=True)
        self.layers = [self.layer("manifest.json", manifest.to_bytes())]
        for title, content in sorted(files.items()):
            raw = content if isinstance(content, bytes) else content.read_bytes()
            self.layers.append(self.layer(title, raw))
        self.config = {"mediaType": package.CONFIG_TYPE, **self.blob(b"{}")}
        self.changes: dict[str, object] = {}

    def blob(self, raw: bytes) -> dict[str, object]:
        digest = hashlib.sha256(raw).hexdigest()
        (self.folder / "blobs" / "sha256" / digest).write_bytes(raw)
        return {"digest": f"sha256:{digest}", "size": len(raw)}

    def layer(self, title: str, raw: bytes) -> dict[str, object]:
        kind = self.kinds.get(title, package.MODEL)
        return {"mediaType": kind.media_type, **self.blob(raw), "annotations": {oci.TITLE: title}}

    def done(self) -> Path:
        whole = {
            "schemaVersion": 2, "mediaType": oci.MANIFEST_TYPE, "config": self.config,
            "artifactType": package.ARTIFACT_TYPE, "layers": self.layers, **self.changes,
        }  # fmt: skip
        top = {"mediaType": oci.MANIFEST_TYPE, **self.blob(json.dumps(whole).encode())}
        (self.folder / "oci-layout").write_bytes(oci.LAYOUT)
        index = json.dumps({"schemaVersion": 2, "manifests": [top]})
        (self.folder / "index.json").write_text(index)
        return self.folder


@pytest.fixture
def layout(made, tmp_path):
    return Layout(tmp_path / "layout", made)


def test_a_layout_of_another_writer_is_read(layout, made):
    assert package.open(layout.done()).manifest == made[0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"schemaVersion": 1}, "schemaVersion"),
        ({"mediaType": "text/plain"}, "mediaType 'text/plain'"),
        ({"artifactType": "application/vnd.other"}, "artifactType is 'application/vnd.other'"),
        ({"layers": []}, "first layer"),
        ({"layers": [{}] * 3}, "not readable"),
        ({"layers": [{}] * (oci.MAX_LAYERS + 1)}, "not readable"),
        ({"config": {"mediaType": "x", "digest": "md5:0", "size": 1}}, "sha256:"),
        ({"config": {"mediaType": "x", "digest": f"sha256:{'0' * 64}", "size": -1}}, ">= 0"),
        ({"annotations": {"a": "x" * oci.MAX_MANIFEST}}, "at most"),
    ],
    ids=["version", "type", "artifact", "none", "empty", "many", "digest", "negative", "long"],
)  # fmt: skip
def test_an_odd_image_manifest_is_refused(layout, changes, says):
    layout.changes = changes
    assert says in expect_refusal_in_little_memory(layout.done())


@pytest.mark.parametrize(
    ("title", "says"),
    [
        ("", "has no title"),
        ("../x", "is unknown"),
        ("x\n", "is unknown"),
        ("other/model.onnx", "is unknown"),
        ("sbom.cdx.json", "two layers"),
    ],
)
def test_a_title_that_the_manifest_does_not_name_or_that_is_repeated_is_refused(
    layout, title, says
):
    layout.layers.append(layout.layer(title, b"more"))
    assert says in expect_refusal_in_little_memory(layout.done())


@pytest.mark.parametrize("kind", ["missing", "unknown", "type", "order", "size", "huge", "config"])
def test_an_odd_layer_is_refused(layout, kind):
    says = {
        "missing": "'sbom.cdx.json' is missing", "unknown": "'extra.bin' is unknown",
        "type": "golden.npz' is 'text/plain'", "order": "first layer", "size": "has 1 bytes",
        "huge": "the manifest says 8589934591", "config": "the config is 'text/plain'",
    }  # fmt: skip
    if kind == "missing":
        del layout.layers[-1]
    elif kind == "unknown":
        layout.layers.append(layout.layer("extra.bin", b"more"))
    elif kind == "type":
        layout.layers[2]["mediaType"] = "text/plain"
    elif kind == "order":
        layout.layers.reverse()
    elif kind == "config":
        layout.config["mediaType"] = "text/plain"
    else:
        layout.layers[2] = layout.layer(f"{packages.NAME}/golden.npz", b"1")
        layout.layers[2]["size"] = 2 if kind == "size" else oci.MAX_BLOB
    assert says[kind] in expect_refusal_in_little_memory(layout.done())


@pytest.mark.parametrize(
    "raw",
    [b"[" * 100_000, b'{"a":' * 100_000, b"", b"null", b'{"format":2}', b"\xff" * 10],
    ids=["deep-list", "deep-object", "empty", "null", "short", "no-text"],
)
def test_an_odd_package_manifest_is_refused(layout, raw):
    layout.layers[0] = layout.layer("manifest.json", raw)
    assert "package manifest is not readable" in expect_refusal_in_little_memory(layout.done())


@pytest.mark.parametrize("number", [-1, 1, 3])
def test_a_format_that_is_not_read_is_refused_by_its_number(layout, made, number):
    other = json.loads(made[0].to_bytes()) | {"format": number, "variants": "changed"}
    layout.layers[0] = layout.layer("manifest.json", json.dumps(other).encode())
    assert f"package format {number}" in expect_refusal_in_little_memory(layout.done())


@pytest.mark.parametrize("name", ["oci-layout", "index.json"])
@pytest.mark.parametrize(
    "raw",
    [b"[" * 60_000, b" " * (oci.MAX_INDEX + 1), b"{}", b'{"manifests":[],"schemaVersion":2}',
     b'{"imageLayoutVersion":"2.0.0"}'],
    ids=["deep", "long", "empty", "none", "newer"],
)  # fmt: skip
def test_an_odd_index_or_layout_version_is_refused(layout, name, raw):
    (layout.done() / name).write_bytes(raw)
    expect_refusal_in_little_memory(layout.folder)


@pytest.mark.parametrize("name", ["oci-layout", "index.json", "blob"])
@pytest.mark.parametrize("what", ["missing", "pipe", "directory", "device"])
def test_what_is_no_regular_file_is_refused_without_waiting(layout, name, what):
    path = layout.done() / name
    if name == "blob":
        path = layout.folder / oci.blob_name(layout.layers[1]["digest"])
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "directory":
        path.mkdir()
    elif what == "device":
        path.symlink_to("/dev/zero")
    expect_refusal_in_little_memory(layout.folder)


def test_a_large_package_is_verified_in_little_memory(made, tmp_path):
    manifest, files = made
    sparse = tmp_path / "model.onnx"
    with sparse.open("wb") as f:
        f.truncate(200_000_000)
    tracemalloc.start()
    ref = package.write(
        tmp_path / "a.edgepkg", manifest, {**files, f"{packages.NAME}/model.onnx": sparse}
    )
    assert package.open(ref.path).digest == ref.digest
    assert tracemalloc.get_traced_memory()[1] < 6e6
    tracemalloc.stop()


# --- full disks ------------------------------------------------------------------------------


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 64 kB, which needs root as mounting does."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("act", ["write", "pack", "unpack", "extract"])
def test_a_full_disk_leaves_nothing_behind(made, large, tmp_path, tiny_disk, act):
    manifest, files = made
    before = package.write(tiny_disk / "a.edgepkg", manifest, files)
    opened, layout = package.open(large), tmp_path / "layout"
    content = {t: opened.read(t) for t in opened.titles if t != "manifest.json"}
    package.unpack(large, layout)
    acts = {
        "write": lambda: package.write(tiny_disk / "a.edgepkg", manifest, content),
        "pack": lambda: package.pack(layout, tiny_disk / "a.edgepkg"),
        "unpack": lambda: package.unpack(large, tiny_disk / "layout"),
        "extract": lambda: opened.extract(manifest.variants[0], tiny_disk / "slot"),
    }
    with pytest.raises(StorageError) as e:
        acts[act]()
    assert "no space left" in e.value.what
    assert tree(tiny_disk).keys() == {"a.edgepkg"}
    assert package.open(tiny_disk / "a.edgepkg").digest == before.digest
