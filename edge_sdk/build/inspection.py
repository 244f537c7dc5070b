"""Inspecting: a model's facts, and what a profile's runtime lacks for it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from converters.onnx import ort_facts, torch_export
from converters.onnx.preparation import prepare_model
from edge_core.errors import EdgeError, InputError
from edge_core.files import sha256_file
from edge_core.profile import Profile
from edge_sdk.build import reader
from edge_sdk.build.stages import Model, Shapes


class Support(msgspec.Struct, frozen=True, kw_only=True):
    """What one profile's runtime makes of the model."""

    profile: str
    runtime: str
    missing: tuple[str, ...]  # ops without a CPU kernel
    opset: str  # "17 of at most 21"


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    model: Model
    support: tuple[Support, ...] = ()
    notes: tuple[str, ...] = ()


def inspect(path: Path, shapes: Shapes, profiles: Sequence[Profile]) -> Inspection:
    """Describe a model; its MACs and facets come from a static copy in a temporary folder."""
    if not path.is_file():
        raise InputError(f"no model at {path}")
    reader.check_suffix(path)
    if path.suffix == ".tflite":
        if shapes:
            raise InputError(f"{path.name}: --shape is for ONNX; a .tflite file has its shapes")
        found = reader.read(path)
        return Inspection(model=found, support=tuple(_support(found, p) for p in profiles))
    with tempfile.TemporaryDirectory(prefix="edge-inspect-") as folder:
        source = path
        if path.suffix == ".pt2":
            source = Path(folder) / "exported.onnx"
            torch_export.export_program(path, source)
        raw = reader.read(source, shapes)
        model = msgspec.structs.replace(
            raw, path=path, sha256=sha256_file(path), bytes=path.stat().st_size,
            format=reader.SUFFIXES[path.suffix],
        )  # fmt: skip
        try:
            notes = prepare_model(source, Path(folder) / "static.onnx", shapes)
            static = reader.read(Path(folder) / "static.onnx")
            model = msgspec.structs.replace(
                model, macs=static.macs, facets=static.facets, parameters=static.parameters,
                weight_bytes=static.weight_bytes, outputs=static.outputs,
            )  # fmt: skip
        except EdgeError as e:  # still worth showing: the user may be looking for the reason
            notes = (f"cannot be converted yet: {e.what}", *([e.hint] if e.hint else []))
    return Inspection(model=model, notes=notes, support=tuple(_support(model, p) for p in profiles))


def _support(model: Model, profile: Profile) -> Support:
    if model.format == "tflite":
        found = profile.runtime("litert") or profile.runtime("tflite-runtime")
        name = f"{found.name} {found.version}" if found else "none for TFLite"
        return Support(profile=profile.name, runtime=name, missing=(), opset="")
    runtime = profile.runtime("onnxruntime")
    if runtime is None:
        listed = ", ".join(f"{r.name} {r.version}" for r in profile.runtimes)
        return Support(profile=profile.name, runtime=listed or "none", missing=(), opset="")
    top = ort_facts.find_ceiling(runtime.version)
    return Support(
        profile=profile.name,
        runtime=f"{runtime.name} {runtime.version}",
        missing=ort_facts.find_missing_ops(runtime.version, model.ops, min(model.opset, top.opset)),
        opset=f"{model.opset} of at most {top.opset}",
    )
