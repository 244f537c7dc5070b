"""The ONNX file of a candidate: versions that the device's runtime loads, and the check of a no-op.

clamp_versions(model, ceiling, min_opset)   an opset and IR version that the device's runtime loads
compute_quantised_share(model)              how much of the weights is stored in 8 bits or fewer
write_candidate(model, job) -> Conversion    the file; write_quantised() refuses a no-op
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters import reduction
from converters.foreign_errors import describe_error
from converters.onnx import ort_file
from converters.onnx.batch import free_onnx_batch
from converters.onnx.model_file import (
    count_tensor_bytes,
    iter_weights,
    load_model,
    read_opset,
    save_model,
)
from converters.spec import Ceiling, Conversion, Job
from edge_core.errors import ConvertError
from edge_core.extras import need

if TYPE_CHECKING:
    from onnx import ModelProto

_NO_ADAPTER = re.compile(r"No Adapter \w+ Version \$?(\d+) for (\w+)")


def clamp_versions(model: ModelProto, ceiling: Ceiling, min_opset: int = 0) -> ModelProto:
    """A copy of ``model`` with an opset and an IR version that the device's runtime loads.

    The opset is changed only where it must be: every conversion is a risk. Raises ConvertError
    naming the op that stands in the way.
    """
    onnx = need("onnx", "onnx")
    current, target = read_opset(model), max(read_opset(model), min_opset)
    if min_opset > ceiling.opset:
        raise ConvertError(
            f"this recipe needs opset {min_opset}; the device's runtime loads up to {ceiling.opset}"
        )
    target = min(target, ceiling.opset)
    clamped: ModelProto = onnx.ModelProto()
    clamped.CopyFrom(model)
    if target != current:
        try:
            clamped = onnx.version_converter.convert_version(clamped, target)
            onnx.checker.check_model(clamped)
        except (RuntimeError, onnx.checker.ValidationError) as error:
            op = match[2] if (match := _NO_ADAPTER.search(str(error))) else ""
            raise ConvertError(
                f"the model has opset {current} and cannot be converted to {target}: "
                + (f"op {op} has no form there" if op else describe_error(error)),
                hint=f"export it with opset {target}",
            ) from error
    least = onnx.helper.find_min_ir_version_for(list(clamped.opset_import), ignore_unknown=True)
    # 8 is what every runtime since ONNX Runtime 1.10 loads; older ones bring nothing.
    clamped.ir_version = max(least, 8)
    if clamped.ir_version > ceiling.ir:
        raise ConvertError(
            f"opset {target} needs IR version {least}; "
            f"the device's runtime loads up to {ceiling.ir}"
        )
    return clamped


def compute_quantised_share(model: ModelProto) -> float:
    """Share of the weight bytes that is stored in integers of 8 bits or fewer, 0 to 1.

    Weights are floats, integers of at most 8 bits and int32 biases; int64 is shapes and indices.
    """
    small, large = _count_weight_bytes(model)
    return small / (small + large) if small else 0.0


def write_candidate(model: ModelProto, job: Job, **fields: Any) -> Conversion:
    """Write a candidate's file into the job's folder; raises ConvertError if it cannot batch."""
    path, fixed = job.out_dir / "model.onnx", None
    if job.batch == "dynamic":
        fixed = job.out_dir / "fixed.onnx"
        save_model(model, fixed)
        model, notes = free_onnx_batch(model)
        fields["notes"] = (*fields.get("notes", ()), *notes)
    save_model(model, path)
    return Conversion(path=path, fixed=fixed, **fields)


def write_smaller(model: ModelProto, job: Job, original: ModelProto, **fields: Any) -> Conversion:
    """Write what a recipe made of ``original`` by storing weights in fewer bits.

    Raises ConvertError if it took hardly any of them.
    """
    reduction.require_reduction(
        _count_weight_bytes(original), _count_weight_bytes(model), job.model.name
    )
    return write_candidate(model, job, **fields)


def write_quantised(model: ModelProto, job: Job, original: ModelProto, **fields: Any) -> Conversion:
    """write_smaller() for a recipe that stores integers; tells their share."""
    return write_smaller(
        model, job, original, quantised_share=compute_quantised_share(model), **fields
    )


def _count_weight_bytes(model: ModelProto) -> tuple[int, int]:
    """Bytes of weights in integers of at most 8 bits, and in other types."""
    kinds = need("onnx", "onnx").TensorProto
    small = (kinds.INT8, kinds.UINT8, kinds.INT4, kinds.UINT4)
    large = (kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16, kinds.DOUBLE, kinds.INT32)
    tensors = list(iter_weights(model))
    return (
        sum(count_tensor_bytes(tensor) for tensor in tensors if tensor.data_type in small),
        sum(count_tensor_bytes(tensor) for tensor in tensors if tensor.data_type in large),
    )


def read_versions(path: Path) -> tuple[int, int]:
    """Opset and IR version of a file that a converter wrote, .onnx or .ort."""
    if path.suffix == ".ort":
        return ort_file.read_ort_versions(path)
    model = load_model(path)
    return read_opset(model), model.ir_version
