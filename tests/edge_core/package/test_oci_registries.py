"""Any OCI registry holds a package, and gives the same file back: skopeo and docker-registry."""

import json
import re
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from edge_core.package import format as package
from edge_core.package.manifest import Selector
from tests import packages


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return packages.make_contents(tmp_path_factory.mktemp("contents"))


@pytest.fixture
def ref(made, tmp_path):
    return package.write(tmp_path / "dense.edgepkg", *made)


class Registry(NamedTuple):
    address: str  # 127.0.0.1:PORT
    log: Path


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """A registry on a free loopback port that lives for this module."""
    folder = tmp_path_factory.mktemp("registry")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    config = {
        "version": "0.1",
        "http": {"addr": address},
        "storage": {"filesystem": {"rootdirectory": str(folder / "blobs")}},
    }
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            ["docker-registry", "serve", folder / "config.yml"], stdout=log, stderr=log
        )
        try:
            wait_for(address, server)
            yield Registry(address, folder / "log")
        finally:
            server.terminate()
            server.wait(10)


def wait_for(address, server):
    for _ in range(200):
        assert server.poll() is None, "docker-registry ended"
        try:
            with urllib.request.urlopen(f"http://{address}/v2/") as answer:
                assert answer.status == 200
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("docker-registry does not answer")


def uploads(registry):
    """How many blobs the registry was sent so far."""
    log = registry.log.read_text()
    return len(re.findall(r'"PUT /v2/\S+/blobs/uploads/\S+ HTTP/1.1" 201', log))


def skopeo(*arguments):
    done = subprocess.run(["skopeo", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_skopeo_shows_what_a_package_is(ref, tmp_path):
    package.unpack(ref.path, tmp_path / "layout")
    for source in (f"oci:{tmp_path / 'layout'}", f"oci-archive:{ref.path}"):
        shown = json.loads(skopeo("inspect", source))
        assert shown["Digest"] == ref.digest
        assert (shown["Architecture"], shown["Os"]) == ("arm64", "linux")
        assert shown["Labels"]["org.opencontainers.image.title"] == "dense"
        assert shown["Labels"]["edge-deploy.profiles"] == "raspberry-pi-4b"
        assert len(shown["Layers"]) == 6


def test_a_registry_gives_the_same_file_back(ref, registry, tmp_path):
    there = f"docker://{registry.address}/models/dense:1.0.0"
    package.unpack(ref.path, tmp_path / "layout")
    skopeo("copy", "--dest-tls-verify=false", f"oci:{tmp_path / 'layout'}", there)
    assert json.loads(skopeo("inspect", "--tls-verify=false", there))["Digest"] == ref.digest
    skopeo("copy", "--src-tls-verify=false", there, f"oci:{tmp_path / 'back'}:1.0.0")
    back = package.pack(tmp_path / "back", tmp_path / "back.edgepkg")
    assert back.digest == ref.digest
    assert back.path.read_bytes() == ref.path.read_bytes()


def test_the_file_itself_can_be_pushed_and_only_what_changed_is_sent_again(
    made, ref, registry, tmp_path
):
    manifest, files = made
    there = f"docker://{registry.address}/models/update"
    skopeo("copy", "--dest-tls-verify=false", f"oci-archive:{ref.path}", f"{there}:1")
    newer = package.write(
        tmp_path / "newer.edgepkg", msgspec.structs.replace(manifest, version="1.0.1"), files
    )
    sent = uploads(registry)
    skopeo("copy", "--dest-tls-verify=false", f"oci-archive:{newer.path}", f"{there}:2")
    assert uploads(registry) == sent + 2  # the package manifest and the config
    assert (
        json.loads(skopeo("inspect", "--tls-verify=false", f"{there}:2"))["Digest"] == newer.digest
    )


@pytest.mark.parametrize(
    ("arch", "os", "shown"),
    [
        ("x86_64", "linux", ("amd64", "linux")),
        ("armv7l", "linux", ("arm", "linux")),
        ("aarch64", "macos", ("arm64", "darwin")),
    ],
)
def test_architectures_have_the_names_that_registries_use(made, tmp_path, arch, os, shown):
    manifest, files = made
    other = packages.with_variant(manifest, selector=Selector(arch=arch, os=os))
    ref = package.write(tmp_path / "a.edgepkg", other, files)
    told = json.loads(skopeo("inspect", f"oci-archive:{ref.path}"))
    assert (told["Architecture"], told["Os"]) == shown


def test_a_package_of_two_variants_that_share_blobs_comes_back_whole(made, registry, tmp_path):
    manifest, files = made
    (first,) = manifest.variants
    second = msgspec.structs.replace(first, name="other", profiles=("other",))
    both = msgspec.structs.replace(manifest, variants=(first, second))
    files = {**files, **{second.title(p): files[first.title(p)] for p in second.files}}
    two = package.write(tmp_path / "two.edgepkg", both, files)
    there = f"docker://{registry.address}/models/two:1"
    skopeo("copy", "--dest-tls-verify=false", f"oci-archive:{two.path}", there)
    skopeo("copy", "--src-tls-verify=false", there, f"oci:{tmp_path / 'back'}:1")
    back = package.pack(tmp_path / "back", tmp_path / "back.edgepkg")
    assert back.path.read_bytes() == two.path.read_bytes()
