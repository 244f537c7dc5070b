"""The nodes of one graph or function body, lowered in order.

Every node is, in this order: folded when all it takes is constant; lowered by the function that
the table of lowerings has for its op; replaced by the body that the ONNX standard gives for it;
refused by name. Shapes and axes are plain integers at every point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from converters.foreign_errors import describe_error
from converters.tflite.graph import Graph, Shape
from converters.tflite.node import WAY_OUT, Lowering, Node
from converters.tflite.patterns import OWN
from converters.tflite.values import PlacedValue, Placer, constant
from edge_core.errors import ConvertError
from edge_core.extras import need
from edge_core.tensors import Array

if TYPE_CHECKING:
    from onnx import NodeProto

MAX_FOLDED = 64 * 1024 * 1024  # bytes of a constant that folding may make
MAX_HINT = 65536  # bytes of a constant that shape inference looks into


class Scope:
    """Names of one graph or function body, and what they stand for.

    ``lowerings`` says which function lowers which op; ``opsets`` the version of each domain.
    """

    def __init__(
        self,
        graph: Graph,
        placer: Placer,
        lowerings: Mapping[str, Lowering],
        values: dict[str, PlacedValue],
        opsets: Mapping[str, int],
    ):
        self.graph, self.placer, self._lowerings = graph, placer, lowerings
        self.values, self.opsets = values, opsets

    def lower_nodes(self, nodes: Sequence[NodeProto]) -> None:
        """Lower the nodes in order."""
        for proto in nodes:
            self._lower_node(proto)

    def make_inner(self, values: dict[str, PlacedValue]) -> Scope:
        """A scope for a subgraph, which also sees the names of this one."""
        known = {**self.values, **values}
        return Scope(self.graph, self.placer, self._lowerings, known, self.opsets)

    def _lower_node(self, proto: NodeProto) -> None:
        inputs = [self.values[i] for i in proto.input if i]
        plain = not any(a.HasField("g") or a.graphs for a in proto.attribute)
        if plain and all(v.array is not None for v in inputs) and self._fold(proto):
            return
        if proto.op_type in ("Shape", "Size") and not proto.domain:
            self._fold(proto, {i: np.empty(self.values[i].shape, np.int8) for i in proto.input})
            return
        if proto.domain == OWN:  # each element alone
            shapes, dtypes = [inputs[0].shape], [inputs[0].dtype]
        else:
            shapes, dtypes = self._infer_outputs(proto)
        node = Node(self, proto, shapes, dtypes)
        known = proto.domain in ("", "ai.onnx", OWN)
        lower = self._lowerings.get(proto.op_type) if known else None
        if lower is None:
            self.inline(node)
            return
        lower(node)
        self._check_outputs(node)

    def _check_outputs(self, node: Node) -> None:
        for i, name in enumerate(node.proto.output):
            if not name:
                continue
            made = self.values.get(name)
            if made is None:
                raise node.refusal(f"its output {i} is not supported")
            if i < len(node.shapes) and made.shape != node.shapes[i]:
                raise node.refusal(f"lowered to shape {made.shape}, not {node.shapes[i]}")
            if i < len(node.dtypes) and made.dtype != node.dtypes[i]:
                raise node.refusal(f"lowered to {made.dtype}, not {node.dtypes[i]}")

    def _fold(self, proto: NodeProto, given: Mapping[str, Array] | None = None) -> bool:
        """Compute a node whose inputs are constants; False if the reference has no answer."""
        onnx = need("onnx", "onnx")
        evaluator = need("onnx.reference", "onnx").ReferenceEvaluator
        known = ((i, self.values[i].array) for i in proto.input if i)
        feeds = given or {i: a for i, a in known if a is not None}
        empty = onnx.TensorProto.UNDEFINED
        value = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            [proto], "folded",
            [value(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()],  # noqa: E501
            [value(n, empty, None) for n in proto.output if n],
        )  # fmt: skip
        imports = [onnx.helper.make_opsetid(d, v) for d, v in self.opsets.items()]
        try:
            model = onnx.helper.make_model(graph, opset_imports=imports)
            with np.errstate(all="ignore"):
                results = evaluator(model).run(None, feeds)
        except Exception:  # noqa: BLE001  (whatever the reference lacks is lowered instead)
            return False
        names = [n for n in proto.output if n]
        if any(not isinstance(r, np.ndarray | np.generic) for r in results):
            return False
        if any(np.asarray(r).nbytes > MAX_FOLDED for r in results):
            return False
        for name, result in zip(names, results, strict=True):
            self.values[name] = constant(np.asarray(result))
        return True

    def _infer_outputs(self, proto: NodeProto) -> tuple[list[Shape], list[Any]]:
        onnx = need("onnx", "onnx")
        schema = self._schema(proto)
        types, data = {}, {}
        for name in proto.input:
            if name:
                v = self.values[name]
                kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(v.dtype))
                types[name] = onnx.helper.make_tensor_type_proto(kind, v.shape)
                if v.array is not None and v.array.nbytes < MAX_HINT:
                    data[name] = onnx.numpy_helper.from_array(v.array, name)
        if any(a.HasField("g") for a in proto.attribute):
            return [], []
        imports = [onnx.helper.make_opsetid(d, v) for d, v in self.opsets.items()]
        try:
            found = onnx.shape_inference.infer_node_outputs(
                schema, proto, types, data, opset_imports=imports
            )
        except Exception as e:
            raise ConvertError(f"op {proto.op_type}: no shapes: {describe_error(e)}") from e
        shapes: list[Shape] = []
        dtypes: list[Any] = []
        for name in proto.output:
            tensor = found[name].tensor_type if name in found else None
            if tensor is None or not tensor.HasField("shape"):
                return shapes, dtypes
            if any(not d.HasField("dim_value") for d in tensor.shape.dim):
                return shapes, dtypes
            shapes.append(tuple(d.dim_value for d in tensor.shape.dim))
            dtypes.append(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        return shapes, dtypes

    def _schema(self, proto: NodeProto) -> Any:
        onnx = need("onnx", "onnx")
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        try:
            return onnx.defs.get_schema(proto.op_type, self.opsets.get(domain, 1), domain)
        except onnx.defs.SchemaError as e:
            raise ConvertError(
                f"op {proto.domain}:{proto.op_type} is not lowered", hint=WAY_OUT
            ) from e

    def inline(self, node: Node) -> None:
        """Lower the body that the standard gives for a node."""
        onnx = need("onnx", "onnx")
        proto, schema = node.proto, self._schema(node.proto)
        body = onnx.FunctionProto()
        opset = self.opsets.get("", 1)
        if schema.has_context_dependent_function:
            types = []
            for name in proto.input:
                t = onnx.TypeProto()
                if name:
                    v = self.values[name]
                    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(v.dtype))
                    t = onnx.helper.make_tensor_type_proto(kind, v.shape)
                types.append(t.SerializeToString())
            version = max(v for v in schema.context_dependent_function_opset_versions)
            body.ParseFromString(
                schema.get_context_dependent_function_with_opset_version(
                    version, proto.SerializeToString(), types
                )
            )
        elif schema.has_function:
            body.CopyFrom(schema.function_body)
        else:
            raise node.refusal("it is not lowered to TFLite")
        if not body.node:
            raise node.refusal("it is not lowered to TFLite")
        self._run_body(node, body, opset)

    def _run_body(self, node: Node, body: Any, opset: int) -> None:
        given = {a.name: a for a in node.proto.attribute}
        defaults = {a.name: a for a in body.attribute_proto}
        schema_defaults = {
            n: a.default_value for n, a in self._schema(node.proto).attributes.items()
            if a.default_value.type
        }  # fmt: skip
        given = {**schema_defaults, **defaults, **given}
        values: dict[str, PlacedValue] = {}
        for formal, actual in zip(body.input, node.proto.input, strict=False):
            if actual:
                values[formal] = self.values[actual]
        opsets = {i.domain: i.version for i in body.opset_import} or {"": opset}
        scope = Scope(self.graph, self.placer, self._lowerings, values, opsets)
        scope.lower_nodes(
            [_bind_attributes(n, given, set(body.input) - set(values)) for n in body.node]
        )
        for formal, actual in zip(body.output, node.proto.output, strict=False):
            if actual:
                self.values[actual] = scope.values[formal]


def _bind_attributes(proto: NodeProto, given: Mapping[str, Any], missing: set[str]) -> NodeProto:
    """A node of a function body with the caller's attributes in place."""
    made: NodeProto = need("onnx", "onnx").NodeProto()
    made.CopyFrom(proto)
    for i, name in enumerate(made.input):
        if name in missing:
            made.input[i] = ""
    for a in list(made.attribute):
        if a.ref_attr_name:
            name = a.name
            made.attribute.remove(a)
            if a.ref_attr_name in given:
                kept = made.attribute.add()
                kept.CopyFrom(given[a.ref_attr_name])
                kept.name = name
    return made
