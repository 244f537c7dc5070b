"""ONNX files and exported PyTorch programs: read, prepared and described. No conversion.

MACs count multiply-accumulates of Conv, ConvTranspose, Gemm, MatMul and the recurrent ops; other
ops are not counted. They need static shapes: give the dynamic dimensions with ``shapes``.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from converters.onnx import fixed_shapes, ort_facts
from converters.onnx.batch import free_onnx_batch
from converters.onnx.candidate_file import read_versions
from converters.onnx.model_file import (
    count_tensor_bytes,
    iter_graphs,
    iter_nodes,
    iter_weights,
    load_model,
    read_opset,
)
from converters.onnx.preparation import prepare_model
from converters.onnx.torch_export import export_program
from converters.spec import Batch, Ceiling, Description, Format, Preparation, Shapes, Specs, Support
from edge_core.errors import InputError
from edge_core.extras import need
from edge_core.files import sha256_file
from edge_core.profile import Runtime
from edge_core.tensors import TensorSpec

RECURRENT = ("LSTM", "GRU", "RNN")
QUANTISED = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger", "MatMulNBits")
Shape = tuple[int, ...]


def describe(path: Path, shapes: Shapes) -> Description:
    """Describe an .onnx file; ``shapes`` fixes dynamic dimensions by name.

    Raises InputError for a file that is no model.
    """
    onnx = need("onnx", "onnx")
    model = load_model(path)
    graph = model.graph
    _fix_dimensions(graph, shapes)
    known = _infer_shapes(onnx, model)
    weights = constants(model)
    nodes = list(iter_nodes(model))
    costs = Costs()
    for node in nodes:
        costs.add(node, known, weights)
    inputs = tuple(_spec(onnx, v) for v in graph.input if v.name not in weights)
    outputs = tuple(_spec(onnx, v) for v in graph.output)
    return Description(
        opset=read_opset(model),
        ir=model.ir_version,
        inputs=inputs,
        outputs=outputs,
        ops=dict(sorted(Counter(map(op_name, nodes)).items())),
        parameters=sum(math.prod(t.dims) for t in weights.values() if _learnt(onnx, t)),
        weight_bytes=sum(map(count_tensor_bytes, weights.values())),
        macs=costs.total,
        dynamic=tuple(dict.fromkeys(d for i in inputs for d in i.dynamic)),
        facets=costs.facets(nodes, weights),
    )


def read_io_specs(path: Path) -> tuple[Specs, Specs]:
    """Inputs and outputs of an .onnx file."""
    onnx, model = need("onnx", "onnx"), load_model(path)
    weights = constants(model)
    inputs = tuple(_spec(onnx, v) for v in model.graph.input if v.name not in weights)
    return inputs, tuple(_spec(onnx, v) for v in model.graph.output)


def digest(path: Path) -> str:
    """The file's SHA-256; with external data, one over the file and all that it refers to.

    Raises InputError for a file that is no valid model.
    """
    load_model(path)
    model = need("onnx", "onnx").load(path, load_external_data=False)
    outside = {
        entry.value
        for tensor in iter_weights(model)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    files = [path, *(path.parent / name for name in sorted(outside))]
    sums = [sha256_file(f) for f in files]
    return hashlib.sha256("".join(sums).encode()).hexdigest() if outside else sums[0]


def prepare(path: Path, out: Path, shapes: Shapes, batch: Batch) -> Preparation:
    """Write the static form of an .onnx file that all converters read.

    With a dynamic batch it is made for one row. Raises ConvertError for ops that do not keep
    rows apart, or naming the op or dimension in the way.
    """
    fixed = dict(shapes)
    if batch == "dynamic":
        fixed = fixed_shapes.add_batch_of_one(load_model(path), fixed)
    notes = prepare_model(path, out, fixed)
    if batch == "dynamic":
        free_onnx_batch(load_model(out))  # raises for a model that no candidate can batch
    before, after = (len(load_model(p).graph.input) for p in (path, out))
    return Preparation(notes, inputs_fixed=before != after)


def read_needed_versions(path: Path) -> dict[str, str]:
    """Opset and IR version of an .onnx or .ort file."""
    opset, ir = read_versions(path)
    return {"opset": str(opset), "ir": str(ir)}


def find_ceiling(runtime: Runtime) -> Ceiling:
    """The newest opset and IR version that a version of ONNX Runtime loads."""
    return ort_facts.find_ceiling(runtime.version)


def find_support(model: Description, runtime: Runtime) -> Support:
    """The ops that a version of ONNX Runtime has no CPU kernel for."""
    top = find_ceiling(runtime)
    return Support(
        missing=ort_facts.find_missing_ops(runtime.version, model.ops, min(model.opset, top.opset)),
        opset=f"{model.opset} of at most {top.opset}",
    )


def constants(model: Any) -> dict[str, Any]:
    """Every weight by name: initializers and Constant nodes, those of subgraphs included."""
    by_name = {}
    for graph in iter_graphs(model.graph):
        by_name.update({t.name: t for t in graph.initializer})
        for node in graph.node:
            if node.op_type == "Constant":
                by_name |= {
                    name: a.t for a in node.attribute if a.name == "value" for name in node.output
                }
    return by_name


def _learnt(onnx: Any, t: Any) -> bool:
    """Is it a parameter? int64, bool and string constants are shapes, indices and tables."""
    kinds = onnx.TensorProto
    return t.data_type not in (kinds.INT64, kinds.BOOL, kinds.STRING)


def op_name(node: Any) -> str:
    """'Conv', or 'domain:op' outside the standard domain."""
    return f"{node.domain}:{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


class Costs:
    """Adds up MACs by kind; the total is None as soon as one shape is not known."""

    def __init__(self) -> None:
        self.total: int | None = 0
        self.by_kind: Counter[str] = Counter()
        self.recurrent = 0

    def add(self, node: Any, shapes: Mapping[str, Shape], weights: Mapping[str, Any]) -> None:
        """Count one node."""
        self.recurrent += node.op_type in RECURRENT
        kind, macs = _macs(node, shapes, weights)
        if not kind:
            return
        if macs is None:
            self.total = None
            macs = 0
        elif self.total is not None:
            self.total += macs
        # Unknown MACs still leave a trace, so that the shares below tell a conv net from a
        # transformer when the batch is dynamic.
        self.by_kind[kind] += max(macs, 1)

    def facets(self, nodes: Sequence[Any], weights: Mapping[str, Any]) -> dict[str, float]:
        """Shares (0..1) and counts that policy rules look at."""
        total = sum(self.by_kind.values()) or 1
        sizes = {n: count_tensor_bytes(t) for n, t in weights.items()}
        all_bytes = sum(sizes.values()) or 1
        tables = {i for n in nodes if n.op_type == "Gather" for i in n.input[:1] if i in sizes}
        return {
            "conv_share": (self.by_kind["conv"] + self.by_kind["depthwise"]) / total,
            "depthwise_convs": float(_depthwise(nodes, weights)),
            "matmul_share": self.by_kind["matmul"] / total,
            "recurrent_ops": float(self.recurrent),
            "embedding_share": sum(sizes[t] for t in tables) / all_bytes,
            "quantised_ops": float(sum(n.op_type in QUANTISED for n in nodes)),
            "weight_mb": all_bytes / 1e6,
        }


def _macs(
    node: Any, shapes: Mapping[str, Shape], weights: Mapping[str, Any]
) -> tuple[str, int | None]:
    op = node.op_type
    out = shapes.get(node.output[0]) if node.output else None
    second = node.input[1] if len(node.input) > 1 else ""
    w = tuple(weights[second].dims) if second in weights else shapes.get(second)
    first = shapes.get(node.input[0]) if node.input else None
    if op == "Conv":
        kind = "depthwise" if w and w[1] == 1 and w[0] > 1 else "conv"
        return kind, math.prod(out) * math.prod(w[1:]) if out and w else None
    if op == "ConvTranspose":
        return "conv", math.prod(first) * math.prod(w[1:]) if first and w else None
    if op in ("Gemm", "MatMul"):
        depth = first[-1 - _int_attribute(node, "transA")] if first and len(first) > 1 else None
        return "matmul", math.prod(out) * depth if out and depth else None
    if op in RECURRENT:
        steps = math.prod(first[:2]) if first else None  # sequence and batch
        third = node.input[2] if len(node.input) > 2 else ""
        r = tuple(weights[third].dims) if third in weights else None
        return "recurrent", steps * (math.prod(w) + math.prod(r)) if steps and w and r else None
    return "", 0


def _int_attribute(node: Any, name: str) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), 0)


def _depthwise(nodes: Sequence[Any], weights: Mapping[str, Any]) -> int:
    return sum(
        n.op_type == "Conv"
        and n.input[1] in weights
        and weights[n.input[1]].dims[1] == 1
        and weights[n.input[1]].dims[0] > 1
        for n in nodes
    )


def _fix_dimensions(graph: Any, shapes: Shapes) -> None:
    for v in graph.input:
        for d in v.type.tensor_type.shape.dim:
            if isinstance(fixed := shapes.get(d.dim_param), int):
                d.dim_value = fixed


def _infer_shapes(onnx: Any, model: Any) -> dict[str, Shape]:
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # noqa: BLE001  (an op without a schema; MACs stay unknown then)
        inferred = model
    shapes: dict[str, Shape] = {t.name: tuple(t.dims) for t in model.graph.initializer}
    g = inferred.graph
    for v in (*g.value_info, *g.input, *g.output):
        dims = v.type.tensor_type.shape.dim
        if v.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            shapes[v.name] = tuple(d.dim_value for d in dims)
    return shapes


def _spec(onnx: Any, v: Any) -> TensorSpec:
    t = v.type.tensor_type
    if not v.type.HasField("tensor_type") or not t.elem_type:
        raise InputError(f"'{v.name}' is a {v.type.WhichOneof('value')}; only tensors are read")
    name = onnx.TensorProto.DataType.Name(t.elem_type)
    dtype = "string" if name == "STRING" else str(onnx.helper.tensor_dtype_to_np_dtype(t.elem_type))
    shape = tuple(
        d.dim_value if d.HasField("dim_value") else (d.dim_param or f"{v.name}.{i}")
        for i, d in enumerate(t.shape.dim)
    )
    return TensorSpec(name=v.name, dtype=dtype, shape=shape)


ONNX = Format(
    name="onnx",
    suffixes=(".onnx",),
    runtimes=("onnxruntime",),
    describe=describe,
    read_io_specs=read_io_specs,
    digest=digest,
    prepare=prepare,
    toolchain=("onnx", "onnxruntime", "onnxscript", "onnxslim", "torch"),
    read_versions=read_needed_versions,
    find_ceiling=find_ceiling,
    find_support=find_support,
)
TORCH_PROGRAM = Format(
    name="pt2",
    suffixes=(".pt2",),
    runtimes=ONNX.runtimes,
    describe=describe,
    read_io_specs=read_io_specs,
    export=export_program,
    exports_to=ONNX.name,
)
