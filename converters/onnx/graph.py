"""The ONNX graph before and while it is converted.

prepare(path, out, shapes) -> notes     static shapes, constants folded, constant Ifs inlined
clamp(model, ceiling, min_opset)        an opset and IR version that the device's runtime loads
quantised_share(model)                  how much of the weights is stored in 8 bits or fewer
write(model, job) -> Converted          a candidate's file; write_quantised refuses a no-op
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters import reduction
from converters.foreign_errors import foreign, reason
from converters.onnx import batch as onnx_batch
from converters.onnx import fixed_shapes, ort_file
from converters.onnx import verify as onnx_verify
from converters.onnx.file import load, nodes, opset, save, tensor_bytes, weights
from converters.spec import Ceiling, Converted, Job
from edge_core.errors import ConvertError
from edge_core.extras import need

if TYPE_CHECKING:
    from onnx import ModelProto

# More than this is no shape data: it is an expanded constant, or weights copied into branches.
GROWTH = 1.02
GROWTH_FLOOR = 65536  # bytes
# MatMul + Add as Gemm wraps every transformer layer in Reshapes and hides it from the quantisers.
KEEP_PATTERNS = ("FusionGemm",)
STAYING = ("If", "Loop", "Scan")
_NO_ADAPTER = re.compile(r"No Adapter \w+ Version \$?(\d+) for (\w+)")


def prepare(path: Path, out: Path, shapes: Mapping[str, int | tuple[int, ...]]) -> tuple[str, ...]:
    """Write the model that converters read to ``out``; return what a reader of the report should
    know. The file at ``path`` is not touched; names of inputs and outputs stay.

    ``shapes`` fixes a dimension by its name (batch=1), an input by its name (input=1x3x224x224),
    or the value of a scalar input (rate=16000), which then is no input any more.

    Raises InputError for an unreadable file or a dimension that is still free, ConvertError for an
    op that cannot run.
    """
    fixed, given = fixed_shapes.fix(load(path), shapes, path)
    if fixed.functions:
        with foreign(f"{path.name}: its functions cannot be inlined"):
            fixed = need("onnx.inliner", "onnx").inline_local_functions(fixed)
    notes = []
    try:
        model = _simplify(fixed)
        unknown = onnx_verify.compare(path, given, model)
    except ConvertError as e:
        model = _infer(fixed)
        unknown = onnx_verify.compare(path, given, model)  # raises what was wrong before
        notes.append(f"the graph was not simplified: {e.what}")
    if unknown:
        notes.append(f"the prepared model was not compared with the original: {unknown}")
    kept = Counter(n.op_type for n in nodes(model) if n.op_type in STAYING)
    if kept:
        told = ", ".join(f"{count} {op}" for op, count in sorted(kept.items()))
        notes.append(f"control flow that depends on data stays: {told}")
    save(model, out)
    return tuple(notes)


def _simplify(model: ModelProto) -> ModelProto:
    """Fold constants, inline constant Ifs, drop dead nodes. Raises ConvertError if that fails."""
    onnxslim = need("onnxslim", "onnx")
    slim = need("onnx", "onnx").ModelProto()
    slim.CopyFrom(model)
    with foreign("onnxslim"):
        slim = onnxslim.slim(slim, skip_fusion_patterns=KEEP_PATTERNS)
    names = [v.name for v in model.graph.output]
    if [v.name for v in slim.graph.output] != names:
        raise ConvertError("onnxslim changed the outputs")
    del slim.graph.input[:]  # it drops inputs that nothing uses; callers still feed them
    slim.graph.input.extend(model.graph.input)
    slim = _infer(slim)
    before, after = (sum(map(tensor_bytes, weights(m))) for m in (model, slim))
    if after > before * GROWTH + GROWTH_FLOOR:
        raise ConvertError(f"onnxslim made its constants larger ({before} to {after} bytes)")
    return slim


def _infer(model: ModelProto) -> ModelProto:
    with foreign("shape inference"):
        inferred: ModelProto = need("onnx", "onnx").shape_inference.infer_shapes(
            model, data_prop=True
        )
    return inferred


def clamp(model: ModelProto, ceiling: Ceiling, min_opset: int = 0) -> ModelProto:
    """A copy of ``model`` with an opset and an IR version that the device's runtime loads.

    The opset is changed only where it must be: every conversion is a risk. Raises ConvertError
    naming the op that stands in the way.
    """
    onnx = need("onnx", "onnx")
    have, want = opset(model), max(opset(model), min_opset)
    if min_opset > ceiling.opset:
        raise ConvertError(
            f"this recipe needs opset {min_opset}; the device's runtime loads up to {ceiling.opset}"
        )
    want = min(want, ceiling.opset)
    clamped: ModelProto = onnx.ModelProto()
    clamped.CopyFrom(model)
    if want != have:
        try:
            clamped = onnx.version_converter.convert_version(clamped, want)
            onnx.checker.check_model(clamped)
        except (RuntimeError, onnx.checker.ValidationError) as e:
            op = found[2] if (found := _NO_ADAPTER.search(str(e))) else ""
            raise ConvertError(
                f"the model has opset {have} and cannot be converted to {want}: "
                + (f"op {op} has no form there" if op else reason(e)),
                hint=f"export it with opset {want}",
            ) from e
    least = onnx.helper.find_min_ir_version_for(list(clamped.opset_import), ignore_unknown=True)
    # 8 is what every runtime since ONNX Runtime 1.10 loads; older ones bring nothing.
    clamped.ir_version = max(least, 8)
    if clamped.ir_version > ceiling.ir:
        raise ConvertError(
            f"opset {want} needs IR version {least}; the device's runtime loads up to {ceiling.ir}"
        )
    return clamped


def quantised_share(model: ModelProto) -> float:
    """Share of the weight bytes that is stored in integers of 8 bits or fewer, 0 to 1.

    Weights are floats, integers of at most 8 bits and int32 biases; int64 is shapes and indices.
    """
    small, large = _weight_bytes(model)
    return small / (small + large) if small else 0.0


def write(model: ModelProto, job: Job, **fields: Any) -> Converted:
    """Write a candidate's file into the job's folder; raises ConvertError if it cannot batch."""
    path, fixed = job.out_dir / "model.onnx", None
    if job.batch == "dynamic":
        fixed = job.out_dir / "fixed.onnx"
        save(model, fixed)
        model, notes = onnx_batch.free(model)
        fields["notes"] = (*fields.get("notes", ()), *notes)
    save(model, path)
    return Converted(path=path, fixed=fixed, **fields)


def write_smaller(model: ModelProto, job: Job, original: ModelProto, **fields: Any) -> Converted:
    """Write what a recipe made of ``original`` by storing weights in fewer bits.

    Raises ConvertError if it took hardly any of them.
    """
    reduction.refuse(_weight_bytes(original), _weight_bytes(model), job.model.name)
    return write(model, job, **fields)


def write_quantised(model: ModelProto, job: Job, original: ModelProto, **fields: Any) -> Converted:
    """write_smaller() for a recipe that stores integers; tells their share."""
    return write_smaller(model, job, original, quantised_share=quantised_share(model), **fields)


def _weight_bytes(model: ModelProto) -> tuple[int, int]:
    """Bytes of weights in integers of at most 8 bits, and in other types."""
    kinds = need("onnx", "onnx").TensorProto
    small = (kinds.INT8, kinds.UINT8, kinds.INT4, kinds.UINT4)
    large = (kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16, kinds.DOUBLE, kinds.INT32)
    tensors = list(weights(model))
    return (
        sum(tensor_bytes(t) for t in tensors if t.data_type in small),
        sum(tensor_bytes(t) for t in tensors if t.data_type in large),
    )


def written_for(path: Path) -> tuple[int, int]:
    """Opset and IR version of a file that a converter wrote, .onnx or .ort."""
    if path.suffix == ".ort":
        return ort_file.versions(path)
    model = load(path)
    return opset(model), model.ir_version
