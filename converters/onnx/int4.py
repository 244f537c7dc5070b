"""ONNX -> ONNX with 4-bit weights in MatMul, Gemm and lookup tables: the smallest file that keeps
a text model. Weights only; products are computed in int8 or float, as the CPU likes.

MatMulNBits and GatherBlockQuantized are ONNX Runtime's own. Where the device's runtime is too old
for the second, tables take 8 bits. Conv has no 4-bit kernel: see onnx_int4_conv.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from converters import int4
from converters.onnx import graph as onnx_graph
from converters.onnx import lookup as onnx_lookup
from converters.onnx import weights as onnx_weights
from converters.onnx.file import load
from converters.onnx.weights import Weight, attribute
from converters.spec import Ceiling, Converted, Job, Spec
from edge_core.errors import ConvertError
from edge_core.extras import need

if TYPE_CHECKING:
    from onnx import ModelProto

SPEC = Spec(
    name="onnx-int4",
    title="4-bit weights in MatMul and lookup tables",
    target="onnx",
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


def convert(job: Job) -> Converted:
    """Write the model with 4-bit weights; raises ConvertError if it has hardly any to convert, or
    if the device's runtime is older than the kernel."""
    version = tuple(int(part) for part in job.runtime_version.split(".")[:2])
    if version < MATMUL_SINCE:
        raise ConvertError(
            f"op MatMulNBits needs onnxruntime 1.17; the device has {job.runtime_version}",
            hint="try onnx-int8-dynamic",
        )
    original = load(job.model)
    model, notes = _tables_first(original, job.ceiling, version)
    for weight in list(onnx_weights.find(model, ("MatMul", "Gemm"))):
        _four_bits(model, weight)
    if all(o.domain != DOMAIN for o in model.opset_import):
        model.opset_import.add(domain=DOMAIN, version=1)
    return onnx_graph.write_quantised(model, job, original, notes=notes)


def _tables_first(
    model: ModelProto, ceiling: Ceiling, version: tuple[int, ...]
) -> tuple[ModelProto, tuple[str, ...]]:
    """The model in an opset that the device loads, its lookup tables in as few bits as it reads."""
    if not any(onnx_weights.find(model, ("Gather",))):
        return onnx_graph.clamp(model, ceiling), ()
    why = "the device's runtime has no GatherBlockQuantized"
    if version >= TABLE_SINCE:
        try:
            clamped = onnx_graph.clamp(model, ceiling, TABLE_OPSET)
            onnx_lookup.to_int4(clamped)
            return clamped, ()
        except ConvertError as e:
            why = e.what
    clamped = onnx_graph.clamp(model, ceiling)
    onnx_lookup.to_int8(clamped)
    return clamped, (f"lookup tables take 8 bits, not 4: {why}",)


def _four_bits(model: ModelProto, weight: Weight) -> None:
    onnx = need("onnx", "onnx")
    name, node = weight.tensor.name, weight.node
    usual = (("transA", 0), ("alpha", 1.0), ("beta", 1.0))
    if weight.values.ndim != 2 or any(attribute(node, k, v) != v for k, v in usual):
        return
    rows = weight.values if weight.axis == 0 else weight.values.T  # outputs x inputs
    made = int4.quantise(rows)
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
    weight.tensor.CopyFrom(array(int4.packed(made.codes), f"{name}_quantised"))
    zero = int4.packed(made.zero).ravel()
    model.graph.initializer.append(array(made.scale.ravel(), f"{name}_scale"))
    model.graph.initializer.append(array(zero, f"{name}_zero"))
    onnx_weights.replace_node(model, node, new)
