"""The SBOM names the model, its files, its runtime and the tools that made it."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import ComponentScope, ComponentType

from edge_core import __version__
from edge_core.package import format as package
from edge_sdk.build import sbom
from tests import packages
from tests.cases import ROOT


@pytest.fixture(scope="module")
def package_parts(tmp_path_factory):
    manifest, files = packages.make_contents(tmp_path_factory.mktemp("contents"))
    del files["sbom.cdx.json"]
    return manifest, files


@pytest.fixture(scope="module")
def raw(package_parts):
    return sbom.make_sbom(*package_parts)


@pytest.fixture(scope="module")
def read(raw):
    return Bom.from_json(json.loads(raw))


def test_the_model_is_a_component_made_of_the_packages_files(package_parts, read):
    manifest, files = package_parts
    model = read.metadata.component
    assert model.type is ComponentType.MACHINE_LEARNING_MODEL
    assert (model.name, model.version) == ("dense", "1.0.0")
    digests = {content.name: next(iter(content.hashes)).content for content in model.components}
    contents = {"manifest.json": manifest.to_bytes(), **files}
    raws = {
        title: content if isinstance(content, bytes) else content.read_bytes()
        for title, content in contents.items()
    }
    assert digests == {
        title: hashlib.sha256(content).hexdigest() for title, content in raws.items()
    }
    assert digests.keys() == package.layer_kinds(manifest).keys() - {"sbom.cdx.json"}


def test_the_users_model_is_its_ancestor(package_parts, read):
    (ancestor,) = read.metadata.component.pedigree.ancestors
    assert next(iter(ancestor.hashes)).content == package_parts[0].model_sha256


def test_it_depends_on_its_runtime_and_not_on_the_tools(read):
    scopes = {str(component.purl): component.scope for component in read.components}
    runtime = "pkg:pypi/onnxruntime@1.23.2"
    assert scopes == {
        runtime: ComponentScope.REQUIRED,
        "pkg:pypi/onnxruntime@1.31.1": ComponentScope.EXCLUDED,
        "pkg:pypi/onnx@1.23.2": ComponentScope.EXCLUDED,
        f"pkg:pypi/edge-deploy@{__version__}": ComponentScope.EXCLUDED,
    }
    (needs,) = (dependency for dependency in read.dependencies if dependency.ref.value == "model")
    assert [dependency.ref.value for dependency in needs.dependencies] == [runtime]


def test_a_runtime_that_is_also_a_tool_is_listed_once(package_parts):
    manifest, files = package_parts
    tools = {"onnxruntime": "1.23.2"}
    both = sbom.make_sbom(packages.with_variant(manifest, toolchain=tools), files)
    purls = [component["purl"] for component in json.loads(both)["components"]]
    assert purls == [f"pkg:pypi/edge-deploy@{__version__}", "pkg:pypi/onnxruntime@1.23.2"]


def test_equal_packages_have_equal_sboms_in_any_process(package_parts, raw, tmp_path):
    manifest, files = package_parts
    (tmp_path / "manifest.json").write_bytes(manifest.to_bytes())
    for title, content in files.items():
        known = content if isinstance(content, bytes) else content.read_bytes()
        (tmp_path / title).parent.mkdir(exist_ok=True)
        (tmp_path / title).write_bytes(known)
    code = (
        "import sys; from pathlib import Path; from edge_core.package.manifest import Manifest\n"
        "from edge_sdk.build import sbom\n"
        "root = Path(sys.argv[1])\n"
        "paths = sorted((p for p in root.rglob('*') if p.is_file()), reverse=True)\n"
        "files = {str(p.relative_to(root)): p for p in paths}\n"
        "manifest = Manifest.from_bytes(files.pop('manifest.json').read_bytes())\n"
        "sys.stdout.buffer.write(sbom.make_sbom(manifest, files))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        check=True, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "99"}, capture_output=True,
    )  # fmt: skip
    assert process.stdout == raw


def test_its_number_is_its_content_and_it_has_no_time(package_parts, raw):
    manifest, files = package_parts
    document = json.loads(raw)
    assert "timestamp" not in document["metadata"]
    assert (document["specVersion"], document["version"]) == ("1.6", 1)
    other = json.loads(sbom.make_sbom(manifest, {**files, f"{packages.NAME}/recipe.json": b"{ }"}))
    assert other["serialNumber"] != document["serialNumber"]
