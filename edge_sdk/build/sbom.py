"""The package's bill of materials: CycloneDX 1.6, the same bytes for the same package.

The model is a machine-learning-model component made of the package's files, and descends from the
file that the user gave. It depends on its runtimes; the toolchain that made it is listed as
excluded, that is, not needed to run it. There is no timestamp, and the serial number is a UUID of
the content.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_core import __version__
from edge_core.extras import need
from edge_core.package.manifest import MANIFEST, Manifest
from edge_core.package.oci import Blob
from edge_core.runtimes import registry as runtimes

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_OID, "edge-deploy:sbom")


def make_sbom(manifest: Manifest, files: Mapping[str, Path | bytes]) -> bytes:
    """The SBOM of a package of ``files`` (all but the SBOM itself; the manifest is added).

    Raises MissingExtra without cyclonedx-python-lib, InputError for a file that cannot be read.
    """
    cdx = need("cyclonedx.model.component", "onnx")
    bom = need("cyclonedx.model.bom", "onnx").Bom(serial_number=uuid.UUID(int=0))
    model = _model(cdx, manifest, files)
    needed_runtimes = [variant.runtime for variant in manifest.variants]
    required = {
        (runtimes.get(runtime.name).SPEC.distribution, runtime.version)
        for runtime in needed_runtimes
    }
    tools = {tool for variant in manifest.variants for tool in variant.toolchain.items()}
    tools = {*tools, ("edge-deploy", __version__)} - required
    components = [
        _distribution(cdx, *runtime_version, cdx.ComponentScope.REQUIRED)
        for runtime_version in sorted(required)
    ]
    bom.metadata.component = model
    bom.components.update(components)
    bom.components.update(_distribution(cdx, *tool, cdx.ComponentScope.EXCLUDED) for tool in tools)
    bom.register_dependency(model, components)
    return _same_bytes(need("cyclonedx.output.json", "onnx").JsonV1Dot6(bom).output_as_string())


def _model(cdx: Any, manifest: Manifest, files: Mapping[str, Path | bytes]) -> Any:
    facts = {
        f"{variant.name}:{key}": value
        for variant in manifest.variants
        for key, value in (
            ("candidate", variant.candidate),
            ("precision", variant.precision),
            ("profiles", ",".join(variant.profiles)),
            ("entry", variant.entry),
        )
    }
    original = cdx.Component(
        name=manifest.name,
        type=cdx.ComponentType.MACHINE_LEARNING_MODEL,
        description="the model that the user gave",
        hashes=[_sha256(manifest.model_sha256)],
    )
    contents = {MANIFEST: manifest.to_bytes(), **files}
    return cdx.Component(
        name=manifest.name,
        version=manifest.version,
        type=cdx.ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="model",
        pedigree=cdx.Pedigree(ancestors=[original]),
        properties=[
            cdx.Property(name=f"edge-deploy:{key}", value=value) for key, value in facts.items()
        ],
        components=[
            cdx.Component(
                name=title,
                type=cdx.ComponentType.FILE,
                bom_ref=f"file:{title}",
                hashes=[_sha256(Blob.of(source).digest.removeprefix("sha256:"))],
            )
            for title, source in contents.items()
        ],
    )


def _distribution(cdx: Any, name: str, version: str, scope: Any) -> Any:
    purl = need("packageurl", "onnx").PackageURL("pypi", name=name, version=version)
    return cdx.Component(
        name=name,
        version=version,
        type=cdx.ComponentType.LIBRARY,
        bom_ref=purl.to_string(),
        purl=purl,
        scope=scope,
    )


def _sha256(digits: str) -> Any:
    model = need("cyclonedx.model", "onnx")
    return model.HashType(alg=model.HashAlgorithm.SHA_256, content=digits)


def _same_bytes(text: str) -> bytes:
    """The document without its time of day, numbered by its content."""
    document = json.loads(text)
    del document["metadata"]["timestamp"]
    del document["serialNumber"]
    document["serialNumber"] = uuid.uuid5(_NAMESPACE, json.dumps(document, sort_keys=True)).urn
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"
