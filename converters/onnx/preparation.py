"""A user's ONNX graph made ready for conversion: static shapes, constants folded and constant Ifs
inlined, and the result verified against the original.

    prepare_model(path, out, shapes) -> notes
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from converters.foreign_errors import translate_foreign_errors
from converters.onnx import fixed_shapes
from converters.onnx.model_file import (
    count_tensor_bytes,
    iter_nodes,
    iter_weights,
    load_model,
    save_model,
)
from converters.onnx.verify import verify_rewrite
from edge_core.errors import ConvertError
from edge_core.extras import need

if TYPE_CHECKING:
    from onnx import ModelProto

# More than this is no shape data: it is an expanded constant, or weights copied into branches.
GROWTH = 1.02
GROWTH_FLOOR = 65536  # bytes
# MatMul + Add as Gemm wraps every transformer layer in Reshapes and hides it from the quantisers.
KEPT_PATTERNS = ("FusionGemm",)
CONTROL_FLOW = ("If", "Loop", "Scan")


def prepare_model(
    path: Path, out: Path, shapes: Mapping[str, int | tuple[int, ...]]
) -> tuple[str, ...]:
    """Write the model that converters read to ``out``; return what a reader of the report should
    know. The file at ``path`` is not touched; names of inputs and outputs stay.

    ``shapes`` fixes a dimension by its name (batch=1), an input by its name (input=1x3x224x224),
    or the value of a scalar input (rate=16000), which then is no input any more.

    Raises InputError for an unreadable file or a dimension that is still free, ConvertError for an
    op that cannot run.
    """
    fixed, constants = fixed_shapes.fix_shapes(load_model(path), shapes, path)
    if fixed.functions:
        with translate_foreign_errors(f"{path.name}: its functions cannot be inlined"):
            fixed = need("onnx.inliner", "onnx").inline_local_functions(fixed)
    notes = []
    try:
        model = _simplify(fixed)
        unknown = verify_rewrite(path, constants, model)
    except ConvertError as error:
        model = _infer_shapes(fixed)
        unknown = verify_rewrite(path, constants, model)  # raises what was wrong before
        notes.append(f"the graph was not simplified: {error.what}")
    if unknown:
        notes.append(f"the prepared model was not compared with the original: {unknown}")
    kept = Counter(node.op_type for node in iter_nodes(model) if node.op_type in CONTROL_FLOW)
    if kept:
        ops = ", ".join(f"{count} {op}" for op, count in sorted(kept.items()))
        notes.append(f"control flow that depends on data stays: {ops}")
    save_model(model, out)
    return tuple(notes)


def _simplify(model: ModelProto) -> ModelProto:
    """Fold constants, inline constant Ifs, drop dead nodes. Raises ConvertError if that fails."""
    onnxslim = need("onnxslim", "onnx")
    slim = need("onnx", "onnx").ModelProto()
    slim.CopyFrom(model)
    with translate_foreign_errors("onnxslim"):
        slim = onnxslim.slim(slim, skip_fusion_patterns=KEPT_PATTERNS)
    names = [value.name for value in model.graph.output]
    if [value.name for value in slim.graph.output] != names:
        raise ConvertError("onnxslim changed the outputs")
    del slim.graph.input[:]  # it drops inputs that nothing uses; callers still feed them
    slim.graph.input.extend(model.graph.input)
    slim = _infer_shapes(slim)
    before, after = (sum(map(count_tensor_bytes, iter_weights(each))) for each in (model, slim))
    if after > before * GROWTH + GROWTH_FLOOR:
        raise ConvertError(f"onnxslim made its constants larger ({before} to {after} bytes)")
    return slim


def _infer_shapes(model: ModelProto) -> ModelProto:
    with translate_foreign_errors("shape inference"):
        inferred: ModelProto = need("onnx", "onnx").shape_inference.infer_shapes(
            model, data_prop=True
        )
    return inferred
