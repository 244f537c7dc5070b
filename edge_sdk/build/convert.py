"""Converting: candidates to files, each in a child process, each kept by content.

    prepare(workspace, model, shapes) -> Prepared       the static ONNX file all converters read
    convert(workspace, ...) -> Artifact                  one candidate

main() is the child's entry point (see edge_core.runtimes.command_loop), with the same two commands.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NoReturn

import msgspec

from converters import registry as converters
from converters.batch_tracker import free_leading_dimension
from converters.spec import Batch, Format, Job, Layout, Preparation, Shapes
from edge_core.errors import ConvertError, InputError
from edge_core.files import atomic_directory, sha256_tree, tree_bytes
from edge_core.runtimes import command_loop, sample_store
from edge_core.runtimes.command_loop import Reply
from edge_core.tensors import TensorSpec
from edge_sdk.build.stages import Artifact, Candidate, from_json, to_json
from edge_sdk.build.workspace import Workspace, code, versions

TIMEOUT_S = 3600.0
# Raised when what is kept beside a file changes, so that old entries are not used.
GENERATION = 1


class PrepareJob(msgspec.Struct, frozen=True):
    source: str  # the format of ``model``: a link's target may have another suffix
    model: Path
    out: Path
    shapes: dict[str, int | tuple[int, ...]]
    batch: Batch


class Prepared(msgspec.Struct, frozen=True):
    """What every converter of a build starts from."""

    format: Format  # of that file and of the original
    path: Path  # with fixed shapes: a static ONNX file, or the user's .tflite file
    sha256: str  # of that file
    original: Path  # the file as the user gave it, or as the .pt2 was exported
    original_sha256: str
    notes: tuple[str, ...]


class ConvertJob(msgspec.Struct, frozen=True):
    candidate: Candidate
    model: Path
    out_dir: Path
    layout: Layout
    batch: Batch
    feeds: Path | None


def prepare(
    workspace: Workspace,
    model: Path,
    source: Format,
    model_sha256: str,
    shapes: Shapes,
    batch: Batch = "fixed",
) -> Prepared:
    """The file that converters read; raises ConvertError naming the op or dimension in the way.

    ``source`` is the format of ``model``. With a dynamic batch the file is made for one row, and
    no file if its ops do not keep rows apart. A format that is not prepared is taken as it is.
    """
    target = converters.prepared_format(source)
    check_shapes(model, target, shapes)
    if not (source.export or target.prepare):
        return Prepared(target, model, model_sha256, model, model_sha256, notes=())
    tools, about = versions((*target.toolchain, *source.toolchain)), (source.name, shapes, batch)
    sources = code(target.describe), code(source.describe)
    folder = workspace.entry("prepared", model_sha256, about, tools, sources, GENERATION)
    if not folder.is_dir():
        with atomic_directory(folder) as out:
            job = PrepareJob(source.name, model.resolve(), out, dict(shapes), batch)
            _run_child(workspace, "prepare", job)
    done = from_json((folder / "prepared.json").read_bytes(), Preparation)
    original = folder / f"exported{target.suffixes[0]}" if source.export else model
    prepared = folder / f"model{target.suffixes[0]}" if target.prepare else original
    if done.inputs_fixed:  # callers no longer feed them; prepare() compared the two
        original = prepared
    return Prepared(
        format=target,
        path=prepared,
        sha256=sha256_tree(prepared),
        original=original,
        original_sha256=model_sha256 if original == model else sha256_tree(original),
        notes=done.notes,
    )


def check_shapes(model: Path, target: Format, shapes: Shapes) -> None:
    """Raise InputError for shapes that a format cannot fix."""
    if shapes and not target.prepare:
        raise InputError(
            f"{model.name}: the shapes of a {target.suffixes[0]} file are fixed",
            hint="leave --shape out",
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
        with atomic_directory(folder) as out:
            job = ConvertJob(
                candidate=candidate, model=prepared.path, out_dir=out, layout=layout, batch=batch,
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
    source = converters.get_format(job.source)
    target = converters.prepared_format(source)
    suffix, model = target.suffixes[0], job.model
    if source.export:
        model = job.out / f"exported{suffix}"
        source.export(job.model, model)
    done = Preparation((), inputs_fixed=False)
    if target.prepare:
        done = target.prepare(model, job.out / f"model{suffix}", job.shapes, job.batch)
    (job.out / "prepared.json").write_bytes(to_json(done))


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
    inputs, outputs = converters.find_format(job.model).read_io_specs(job.model)
    inputs, outputs = done.inputs or inputs, done.outputs or outputs
    if job.batch == "dynamic":
        if done.fixed is None:
            raise ConvertError(f"{job.candidate.name} writes no file with a dynamic batch")
        inputs, outputs = _free_batch(inputs), _free_batch(outputs)
    artifact = Artifact(
        candidate=job.candidate.name,
        path=Path(done.path.name),
        fixed=Path(done.fixed.name) if done.fixed else None,
        sha256=sha256_tree(done.path),
        bytes=tree_bytes(done.path),
        written_for=converters.get_format(converter.SPEC.target).read_versions(done.path),
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


def _free_batch(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    return tuple(
        msgspec.structs.replace(spec, shape=free_leading_dimension(spec.shape)) for spec in specs
    )


def main() -> NoReturn:
    """The child: serve `prepare` and `convert` until the input ends."""
    command_loop.serve({"prepare": _answer_prepare, "convert": _answer_convert})


def _answer_prepare(job: str) -> Reply:
    _prepare(from_json(job.encode(), PrepareJob))
    return {}


def _answer_convert(job: str) -> Reply:
    _convert(from_json(job.encode(), ConvertJob))
    return {}
