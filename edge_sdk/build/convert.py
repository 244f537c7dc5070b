"""Converting: candidates to files, each in a child process, each kept by content.

    prepare(workspace, model, shapes) -> Prepared       the static ONNX file all converters read
    convert(workspace, ...) -> Artifact                  one candidate

main() is the child's entry point (see edge_core.runtimes.command_loop), with the same two commands.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import NoReturn

import msgspec

from converters import registry as converters
from converters.batch_tracker import free_leading_dimension
from converters.onnx import (
    fixed_shapes,
    preparation,
    torch_export,
)
from converters.onnx.batch import free_onnx_batch
from converters.onnx.candidate_file import read_versions
from converters.onnx.model_file import iter_weights, load_model
from converters.onnx.preparation import prepare_model
from converters.spec import Batch, Job, Layout
from converters.tflite import flatbuffer
from converters.tflite.versions import find_min_runtime
from edge_core.errors import ConvertError, InputError
from edge_core.extras import need
from edge_core.files import sha256_file, whole_dir
from edge_core.runtimes import command_loop, sample_store
from edge_core.runtimes.command_loop import Reply
from edge_core.tensors import TensorSpec
from edge_sdk.build import reader
from edge_sdk.build.stages import Artifact, Candidate, Shapes, from_json, to_json
from edge_sdk.build.workspace import Workspace, code, versions

TIMEOUT_S = 3600.0
# Raised when what is kept beside a file changes, so that old entries are not used.
GENERATION = 1


class PrepareJob(msgspec.Struct, frozen=True):
    model: Path
    out: Path
    shapes: dict[str, int | tuple[int, ...]]
    batch: Batch


class Prepared(msgspec.Struct, frozen=True):
    """What every converter of a build starts from."""

    path: Path  # a static ONNX file, or the user's .tflite file
    sha256: str  # of that file
    original: Path  # the file as the user gave it, or as the .pt2 was exported
    original_sha256: str
    notes: tuple[str, ...]


class PreparedJson(msgspec.Struct, frozen=True):
    notes: tuple[str, ...]
    inputs_fixed: bool  # is an input of the original now a constant?


class ConvertJob(msgspec.Struct, frozen=True):
    candidate: Candidate
    model: Path
    out_dir: Path
    layout: Layout
    batch: Batch
    feeds: Path | None


def digest(model: Path) -> str:
    """The file's SHA-256; with external data, one over the file and all that it refers to."""
    if model.suffix != ".onnx":
        return sha256_file(model)
    proto = need("onnx", "onnx").load(model, load_external_data=False)
    outside = {
        entry.value
        for tensor in iter_weights(proto)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    files = [model, *(model.parent / name for name in sorted(outside))]
    sums = [sha256_file(f) for f in files]
    return hashlib.sha256("".join(sums).encode()).hexdigest() if outside else sums[0]


def prepare(
    workspace: Workspace,
    model: Path,
    model_sha256: str,
    shapes: Shapes,
    batch: Batch = "fixed",
) -> Prepared:
    """Make the static ONNX file; raises ConvertError naming the op or dimension in the way.

    With a dynamic batch the file is made for one row, and no file if its ops do not keep rows
    apart. A .tflite file is taken as it is.
    """
    if model.suffix == ".tflite":
        if shapes:
            raise InputError(f"{model.name}: --shape is for ONNX; a .tflite file has its shapes")
        return Prepared(model, model_sha256, model, model_sha256, notes=())
    tools = versions(("onnx", "onnxruntime", "onnxscript", "onnxslim", "torch"))
    asked = (shapes, batch)
    folder = workspace.entry("prepared", model_sha256, asked, tools, code(preparation), GENERATION)
    if not folder.is_dir():
        with whole_dir(folder) as d:
            job = PrepareJob(model.resolve(), d, dict(shapes), batch)
            _run_child(workspace, "prepare", job)
    told = from_json((folder / "prepared.json").read_bytes(), PreparedJson)
    exported = folder / "exported.onnx"
    original = exported if exported.is_file() else model
    if told.inputs_fixed:  # callers no longer feed them; prepare_model() compared the two
        original = folder / "model.onnx"
    prepared = folder / "model.onnx"
    return Prepared(
        path=prepared,
        sha256=sha256_file(prepared),
        original=original,
        original_sha256=model_sha256 if original == model else sha256_file(original),
        notes=told.notes,
    )


def convert(
    workspace: Workspace,
    prepared: Prepared,
    candidate: Candidate,
    *,
    layout: Layout,
    batch: Batch = "fixed",
    feeds: Path | None,
) -> Artifact:
    """One candidate's file; raises ConvertError. Finished ones come from the cache."""
    spec, runtime = candidate.spec, candidate.runtime
    tools = versions(spec.toolchain)
    feeds = feeds if spec.needs_samples or spec.takes_samples else None
    folder = workspace.entry(
        "artifacts", prepared.sha256, spec.name, candidate.ceiling, candidate.arch,
        (runtime.version, layout, batch, feeds.name if feeds else ""), tools,
        code(converters.get(spec.name)), GENERATION,
    )  # fmt: skip
    if not folder.is_dir():
        with whole_dir(folder) as d:
            job = ConvertJob(
                candidate=candidate, model=prepared.path, out_dir=d, layout=layout, batch=batch,
                feeds=feeds,
            )  # fmt: skip
            _run_child(workspace, "convert", job)
    artifact = from_json((folder / "artifact.json").read_bytes(), Artifact)
    fixed = folder / artifact.fixed if artifact.fixed else None
    return msgspec.structs.replace(
        artifact, path=folder / artifact.path, fixed=fixed, toolchain=tools
    )


def _run_child(workspace: Workspace, command: str, job: msgspec.Struct) -> None:
    with workspace.converting_child("edge_sdk.build.convert") as child:
        child.ask(command, job=to_json(job).decode(), timeout_s=TIMEOUT_S)


def _prepare(job: PrepareJob) -> None:
    source = job.model
    if source.suffix == ".pt2":
        source = job.out / "exported.onnx"
        torch_export.export_program(job.model, source)
    out = job.out / "model.onnx"
    shapes = dict(job.shapes)
    if job.batch == "dynamic":
        shapes = fixed_shapes.add_batch_of_one(load_model(source), shapes)
    notes = prepare_model(source, out, shapes)
    if job.batch == "dynamic":
        free_onnx_batch(load_model(out))  # raises for a model that no candidate can batch
    before, after = (len(load_model(p).graph.input) for p in (source, out))
    (job.out / "prepared.json").write_bytes(to_json(PreparedJson(notes, before != after)))


def _convert(job: ConvertJob) -> None:
    start = time.perf_counter()
    converter = converters.get(job.candidate.name)
    done = converter.convert(
        Job(
            model=job.model,
            out_dir=job.out_dir,
            ceiling=job.candidate.ceiling,
            arch=job.candidate.arch,
            runtime_version=job.candidate.runtime.version,
            layout=job.layout,
            batch=job.batch,
            samples=sample_store.read(job.feeds) if job.feeds else (),
        )
    )
    inputs, outputs = reader.border(job.model)
    inputs, outputs = done.inputs or inputs, done.outputs or outputs
    if job.batch == "dynamic":
        if done.fixed is None:
            raise ConvertError(f"{job.candidate.name} writes no file with a dynamic batch")
        inputs, outputs = _batched(inputs), _batched(outputs)
    artifact = Artifact(
        candidate=job.candidate.name,
        path=Path(done.path.name),
        fixed=Path(done.fixed.name) if done.fixed else None,
        sha256=sha256_file(done.path),
        bytes=done.path.stat().st_size,
        written_for=_written_for(done.path),
        options=done.options,
        inputs=inputs,
        outputs=outputs,
        toolchain={},
        notes=done.notes,
        times=done.times,
        precision=done.precision,
        quantised_share=done.quantised_share,
        seconds=time.perf_counter() - start,
    )
    (job.out_dir / "artifact.json").write_bytes(to_json(artifact))


def _batched(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    return tuple(msgspec.structs.replace(s, shape=free_leading_dimension(s.shape)) for s in specs)


def _written_for(path: Path) -> dict[str, str]:
    if path.suffix == ".tflite":
        return {"min_runtime": find_min_runtime(flatbuffer.read(path))}
    opset, ir = read_versions(path)
    return {"opset": str(opset), "ir": str(ir)}


def main() -> NoReturn:
    """The child: serve `prepare` and `convert` until the input ends."""
    command_loop.serve({"prepare": _answer_prepare, "convert": _answer_convert})


def _answer_prepare(job: str) -> Reply:
    _prepare(from_json(job.encode(), PrepareJob))
    return {}


def _answer_convert(job: str) -> Reply:
    _convert(from_json(job.encode(), ConvertJob))
    return {}
