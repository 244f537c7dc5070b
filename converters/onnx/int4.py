"""ONNX -> ONNX with 4-bit weights in MatMul, Gemm and lookup tables: the smallest file that keeps
a text model. Weights only; products are computed in int8 or float, as the CPU likes.

MatMulNBits and GatherBlockQuantized are ONNX Runtime's own. Where the device's runtime is too old
for the second, tables take 8 bits. Conv has no 4-bit kernel: see onnx_int4_conv.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from converters import int4
from converters.onnx.candidate_file import clamp_versions, write_quantised
from converters.onnx.lookup import store_tables_int4, store_tables_int8
from converters.onnx.model_file import load_model
from converters.onnx.weights import Weight, find_weights, read_attribute, replace_node
from converters.spec import Ceiling, Conversion, Job, Spec
from edge_core.errors import ConvertError
from edge_core.extras import need

if TYPE_CHECKING:
    from onnx import ModelProto

SPEC = Spec(
    name="onnx-int4",
    title="4-bit weights in MatMul and lookup tables",
    target="onnx",
    sources=("onnx",),
    runtimes=("onnxruntime",),
    precision="int4",
    scheme="weight-only",
    suffix=".onnx",
    extra="onnx",
)
DOMAIN = "com.microsoft"
MATMUL_SINCE = (1, 17)  # ONNX Runtime whose MatMulNBits has an accuracy_level
TABLE_SINCE, TABLE_OPSET = (1, 20), 21  # with GatherBlockQuantized, and the type it takes
INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy_level; cosine differs by 0.0002, ARM gains most


def convert(job: Job) -> Conversion:
    """Write the model with 4-bit weights; raises ConvertError if it has hardly any to convert, or
    if the device's runtime is older than the kernel."""
    version = tuple(int(part) for part in job.runtime_version.split(".")[:2])
    if version < MATMUL_SINCE:
        raise ConvertError(
            f"op MatMulNBits needs onnxruntime 1.17; the device has {job.runtime_version}",
            hint="try onnx-int8-dynamic",
        )
    original = load_model(job.model)
    model, notes = _store_tables(original, job.ceiling, version)
    for weight in list(find_weights(model, ("MatMul", "Gemm"))):
        _store_int4(model, weight)
    if all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.add(domain=DOMAIN, version=1)
    return write_quantised(model, job, original, notes=notes)


def _store_tables(
    model: ModelProto, ceiling: Ceiling, version: tuple[int, ...]
) -> tuple[ModelProto, tuple[str, ...]]:
    """The model in an opset that the device loads, its lookup tables in as few bits as it reads."""
    if not any(find_weights(model, ("Gather",))):
        return clamp_versions(model, ceiling), ()
    why = "the device's runtime has no GatherBlockQuantized"
    if version >= TABLE_SINCE:
        try:
            clamped = clamp_versions(model, ceiling, TABLE_OPSET)
            store_tables_int4(clamped)
            return clamped, ()
        except ConvertError as error:
            why = error.what
    clamped = clamp_versions(model, ceiling)
    store_tables_int8(clamped)
    return clamped, (f"lookup tables take 8 bits, not 4: {why}",)


def _store_int4(model: ModelProto, weight: Weight) -> None:
    onnx = need("onnx", "onnx")
    name, node = weight.tensor.name, weight.node
    usual = (("transA", 0), ("alpha", 1.0), ("beta", 1.0))
    if weight.values.ndim != 2 or any(
        read_attribute(node, name, value) != value for name, value in usual
    ):
        return
    rows = weight.values if weight.axis == 0 else weight.values.T  # outputs x inputs
    blocks = int4.quantise_blocks(rows)
    bias = node.input[2] if len(node.input) > 2 else ""
    product = f"{node.output[0]}_product" if bias else node.output[0]
    new = [
        onnx.helper.make_node(
            "MatMulNBits",
            [node.input[0], f"{name}_quantised", f"{name}_scale", f"{name}_zero"],
            [product],
            node.name,
            domain=DOMAIN,
            N=rows.shape[0],
            K=rows.shape[1],
            bits=4,
            block_size=int4.BLOCK,
            accuracy_level=INT8_ACTIVATIONS,
        )
    ]
    if bias:
        new.append(
            onnx.helper.make_node("Add", [product, bias], [node.output[0]], f"{product}_bias")
        )
    array = onnx.numpy_helper.from_array
    weight.tensor.CopyFrom(array(int4.pack_nibbles(blocks.codes), f"{name}_quantised"))
    zero = int4.pack_nibbles(blocks.zero).ravel()
    model.graph.initializer.append(array(blocks.scale.ravel(), f"{name}_scale"))
    model.graph.initializer.append(array(zero, f"{name}_zero"))
    replace_node(model, node, new)
