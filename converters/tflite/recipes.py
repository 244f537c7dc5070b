"""The TFLite candidates: ONNX -> float TFLite (checked) -> one of the recipes of quantise.py.

A .tflite file of the user's is the float file itself, and also a candidate as it is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from converters.layouts import Specs, to_artifact
from converters.spec import Conversion, Job, Spec
from converters.tflite import batch, flatbuffer, fp16, quantise, sensitivity, verify, versions
from converters.tflite.io_specs import read_io_specs
from converters.tflite.result import Result
from edge_core.tensors import Feeds, TensorSpec

Write = Callable[[Path, Path, Sequence[Feeds]], Result]
HALF = 0.5  # of the weight bytes in integers: a given file is an integer one
SEARCH_S = 90.0  # of a search for the layers that stay float
TOOLS = ("ai-edge-litert", "ai-edge-quantizer", "onnx", "onnxruntime", "numpy")


class TfliteConverter(msgspec.Struct, frozen=True):
    """One recipe. ``write`` takes the float file, the file to make and samples that fit it."""

    SPEC: Spec
    write: Write

    def convert(self, job: Job) -> Conversion:
        """Write the file; raises ConvertError for an op that TFLite has not, or a no-op."""
        out = job.out_dir / "model.tflite"
        with tempfile.TemporaryDirectory() as folder:
            source, inputs, outputs = _make_float_file(job, Path(folder))
            names = _map_tensor_names(source, inputs)
            samples = [
                {
                    names[name]: array
                    for name, array in to_artifact(sample, _drop_layouts(inputs), inputs).items()
                }
                for sample in job.samples
            ]
            done = self.write(source, out, samples)
        own_in, own_out = read_io_specs(flatbuffer.read(out))
        return Conversion(
            path=out,
            fixed=_free_file(out) if job.batch == "dynamic" else None,
            inputs=_set_layouts(own_in, inputs),
            outputs=_set_layouts(own_out, outputs),
            notes=done.notes,
            times=done.times,
            precision="int8" if self.SPEC.scheme == "float" and done.share > HALF else "",
            quantised_share=done.share or None,
        )


def _make_float_file(job: Job, folder: Path) -> tuple[Path, Specs, Specs]:
    if job.model.suffix == ".tflite":
        return job.model, *read_io_specs(flatbuffer.read(job.model))
    path = folder / "float.tflite"
    lowered = verify.convert_verified(job.model, path, layout=job.layout, samples=job.samples)
    return path, lowered.inputs, lowered.outputs


def _free_file(path: Path) -> Path:
    """Make the batch of a file dynamic; returns where the file is kept as it was."""
    model = flatbuffer.read(path)
    fixed = path.rename(path.with_name(f"fixed{path.suffix}"))
    batch.free_tflite_batch(model)
    versions.stamp(model)
    flatbuffer.write(model, path)
    return fixed


def _map_tensor_names(source: Path, inputs: Specs) -> dict[str, str]:
    """By the names of the signature, which samples have: those that the graph itself uses."""
    graph = flatbuffer.read(source).subgraphs[0]
    own = [flatbuffer.tensor_name(graph.tensors[index]) for index in graph.inputs]
    return dict(zip((spec.name for spec in inputs), own, strict=True))


def _drop_layouts(inputs: Specs) -> Specs:
    """The same inputs as samples have them: as the user's model."""
    return [msgspec.structs.replace(spec, layout="") for spec in inputs]


def _set_layouts(specs: Specs, known: Specs) -> tuple[TensorSpec, ...]:
    layouts = {spec.name: spec.layout for spec in known}
    return tuple(msgspec.structs.replace(spec, layout=layouts[spec.name]) for spec in specs)


def _write_unchanged(source: Path, out: Path, samples: Sequence[Feeds]) -> Result:
    """Only the operator versions are set, so that runtimes which are too old refuse the file."""
    model = flatbuffer.read(source)
    versions.stamp(model)
    flatbuffer.write(model, out)
    return Result(share=flatbuffer.compute_quantised_share(model))


def _write_by(recipe: quantise.QuantRecipe) -> Write:
    return lambda source, out, samples: quantise.write_quantised(source, out, recipe, samples)


def _write_searched(source: Path, out: Path, samples: Sequence[Feeds]) -> Result:
    return sensitivity.search_float_layers(
        source, out, quantise.STATIC_PLAIN, samples, budget_s=SEARCH_S
    ).result


def _make_spec(
    name: str,
    title: str,
    precision: Literal["fp32", "fp16", "int8", "int4"],
    scheme: Literal["float", "storage", "static", "dynamic", "weight-only"],
    *,
    needs_samples: bool = False,
    takes_samples: bool = False,
    is_reference: bool = False,
    sources: tuple[str, ...] = ("onnx", "tflite"),
    fallback_for: tuple[str, ...] = (),
) -> Spec:
    return Spec(
        name=f"tflite-{name}", title=title, target="tflite", precision=precision, scheme=scheme,
        runtimes=("litert", "tflite-runtime"), suffix=".tflite", extra="tflite",
        needs_samples=needs_samples, takes_samples=takes_samples, is_reference=is_reference,
        sources=sources, fallback_for=fallback_for, toolchain=TOOLS,
    )  # fmt: skip


def _make_static(name: str, title: str, recipe: quantise.QuantRecipe) -> TfliteConverter:
    return TfliteConverter(
        _make_spec(name, title, "int8", "static", needs_samples=True), _write_by(recipe)
    )


def _make_weights(
    name: str,
    title: str,
    precision: Literal["int8", "int4"],
    scheme: Literal["dynamic", "weight-only"],
    recipe: quantise.QuantRecipe,
) -> TfliteConverter:
    return TfliteConverter(
        _make_spec(name, title, precision, scheme, takes_samples=True), _write_by(recipe)
    )


GIVEN = TfliteConverter(
    _make_spec(
        "given",
        "the .tflite file as it is",
        "fp32",
        "float",
        is_reference=True,
        sources=("tflite",),
    ),
    _write_unchanged,
)
FP32 = TfliteConverter(
    _make_spec("fp32", "float", "fp32", "float", is_reference=True, sources=("onnx",)),
    _write_unchanged,
)
FP16 = TfliteConverter(
    _make_spec("fp16", "float, weights stored in fp16", "fp16", "storage"),
    lambda source, out, samples: fp16.write(source, out),
)
TFLITE_CONVERTERS: tuple[TfliteConverter, ...] = (
    GIVEN,
    FP32,
    FP16,
    _make_static("int8-static", "full-integer INT8, calibrated, float in and out", quantise.STATIC),
    _make_static(
        "int8-static-plain", "the same for runtimes without hybrid scales per channel",
        quantise.STATIC_PLAIN,
    ),
    TfliteConverter(
        _make_spec(
            "int8-static-mixed", "full-integer INT8 with the few worst layers left float", "int8",
            "static", needs_samples=True,
            fallback_for=("tflite-int8-static", "tflite-int8-static-plain"),
        ),
        _write_searched,
    ),
    _make_static(
        "int8-static-io", "full-integer INT8, int8 in and out", quantise.STATIC_INTEGER_IO
    ),
    _make_static("int16x8", "INT16 activations, INT8 weights", quantise.INT16X8),
    _make_weights(
        "int8-dynamic", "dynamic INT8, depthwise stays float", "int8", "dynamic", quantise.DYNAMIC
    ),
    _make_weights(
        "int8-dynamic-per-tensor", "dynamic INT8 for old runtimes: one scale a layer", "int8",
        "dynamic", quantise.DYNAMIC_PER_TENSOR,
    ),
    _make_weights(
        "int8-weights", "INT8 weights, computed in float", "int8", "weight-only",
        quantise.WEIGHT_ONLY,
    ),
    _make_weights(
        "int4", "INT4 layers and tables, a scale a row", "int4", "dynamic", quantise.INT4
    ),
    _make_weights(
        "int4-block32", "INT4 layers and tables, a scale for 32 weights", "int4", "dynamic",
        quantise.INT4_BLOCKS,
    ),
    _make_weights(
        "int8-int4-table", "INT8 layers, INT4 tables", "int4", "dynamic",
        quantise.INT8_INT4_EMBEDDING,
    ),
)  # fmt: skip
