"""The nodes of one graph or function body, lowered in order.

Each node takes the first of these that applies: it is folded if all of its inputs are constants;
lowered by the function that the table has for its op; replaced by the function body that the ONNX
standard gives for it; refused by name. All shapes and axes are plain integers.
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

MAX_FOLDED = 64 * 1024 * 1024  # bytes of a constant that folding may produce
MAX_HINT = 65536  # bytes of a constant that shape inference looks into


class Scope:
    """The names of one graph or function body, and the value of each.

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
        """A scope for a subgraph, which sees the names of this one too."""
        known = {**self.values, **values}
        return Scope(self.graph, self.placer, self._lowerings, known, self.opsets)

    def _lower_node(self, proto: NodeProto) -> None:
        inputs = [self.values[name] for name in proto.input if name]
        plain = not any(
            attribute.HasField("g") or attribute.graphs for attribute in proto.attribute
        )
        if plain and all(value.array is not None for value in inputs) and self._fold(proto):
            return
        if proto.op_type in ("Shape", "Size") and not proto.domain:
            self._fold(
                proto, {name: np.empty(self.values[name].shape, np.int8) for name in proto.input}
            )
            return
        if proto.domain == OWN:  # elementwise: the output is like the input
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
            value = self.values.get(name)
            if value is None:
                raise node.refusal(f"its output {i} is not supported")
            if i < len(node.shapes) and value.shape != node.shapes[i]:
                raise node.refusal(f"lowered to shape {value.shape}, not {node.shapes[i]}")
            if i < len(node.dtypes) and value.dtype != node.dtypes[i]:
                raise node.refusal(f"lowered to {value.dtype}, not {node.dtypes[i]}")

    def _fold(self, proto: NodeProto, stand_ins: Mapping[str, Array] | None = None) -> bool:
        """Compute a node whose inputs are constants; False if the reference has no answer."""
        onnx = need("onnx", "onnx")
        evaluator = need("onnx.reference", "onnx").ReferenceEvaluator
        known = ((name, self.values[name].array) for name in proto.input if name)
        feeds = stand_ins or {name: array for name, array in known if array is not None}
        empty = onnx.TensorProto.UNDEFINED
        value_info = onnx.helper.make_tensor_value_info
        to_kind = onnx.helper.np_dtype_to_tensor_dtype
        inputs = [
            value_info(name, to_kind(array.dtype), array.shape) for name, array in feeds.items()
        ]
        outputs = [value_info(name, empty, None) for name in proto.output if name]
        graph = onnx.helper.make_graph([proto], "folded", inputs, outputs)
        imports = [
            onnx.helper.make_opsetid(domain, version) for domain, version in self.opsets.items()
        ]
        try:
            model = onnx.helper.make_model(graph, opset_imports=imports)
            with np.errstate(all="ignore"):
                results = evaluator(model).run(None, feeds)
        except Exception:  # noqa: BLE001  (what the reference cannot evaluate is lowered instead)
            return False
        names = [name for name in proto.output if name]
        if any(not isinstance(result, np.ndarray | np.generic) for result in results):
            return False
        if any(np.asarray(result).nbytes > MAX_FOLDED for result in results):
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
                value = self.values[name]
                kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
                types[name] = onnx.helper.make_tensor_type_proto(kind, value.shape)
                if value.array is not None and value.array.nbytes < MAX_HINT:
                    data[name] = onnx.numpy_helper.from_array(value.array, name)
        if any(attribute.HasField("g") for attribute in proto.attribute):
            return [], []
        imports = [
            onnx.helper.make_opsetid(domain, version) for domain, version in self.opsets.items()
        ]
        try:
            inferred = onnx.shape_inference.infer_node_outputs(
                schema, proto, types, data, opset_imports=imports
            )
        except Exception as error:
            raise ConvertError(f"op {proto.op_type}: no shapes: {describe_error(error)}") from error
        shapes: list[Shape] = []
        dtypes: list[Any] = []
        for name in proto.output:
            tensor = inferred[name].tensor_type if name in inferred else None
            if tensor is None or not tensor.HasField("shape"):
                return shapes, dtypes
            if any(not dimension.HasField("dim_value") for dimension in tensor.shape.dim):
                return shapes, dtypes
            shapes.append(tuple(dimension.dim_value for dimension in tensor.shape.dim))
            dtypes.append(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        return shapes, dtypes

    def _schema(self, proto: NodeProto) -> Any:
        onnx = need("onnx", "onnx")
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        try:
            return onnx.defs.get_schema(proto.op_type, self.opsets.get(domain, 1), domain)
        except onnx.defs.SchemaError as error:
            raise ConvertError(
                f"op {proto.domain}:{proto.op_type} is not lowered", hint=WAY_OUT
            ) from error

    def inline(self, node: Node) -> None:
        """Lower the body that the standard gives for a node."""
        onnx = need("onnx", "onnx")
        proto, schema = node.proto, self._schema(node.proto)
        body = onnx.FunctionProto()
        opset = self.opsets.get("", 1)
        if schema.has_context_dependent_function:
            types = []
            for name in proto.input:
                type_proto = onnx.TypeProto()
                if name:
                    value = self.values[name]
                    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
                    type_proto = onnx.helper.make_tensor_type_proto(kind, value.shape)
                types.append(type_proto.SerializeToString())
            version = max(schema.context_dependent_function_opset_versions)
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
        attributes = {attribute.name: attribute for attribute in node.proto.attribute}
        defaults = {attribute.name: attribute for attribute in body.attribute_proto}
        schema_defaults = {
            name: attribute.default_value
            for name, attribute in self._schema(node.proto).attributes.items()
            if attribute.default_value.type
        }
        attributes = {**schema_defaults, **defaults, **attributes}
        values: dict[str, PlacedValue] = {}
        for formal, actual in zip(body.input, node.proto.input, strict=False):
            if actual:
                values[formal] = self.values[actual]
        opsets = {entry.domain: entry.version for entry in body.opset_import} or {"": opset}
        scope = Scope(self.graph, self.placer, self._lowerings, values, opsets)
        scope.lower_nodes(
            [
                _bind_attributes(name, attributes, set(body.input) - set(values))
                for name in body.node
            ]
        )
        for formal, actual in zip(body.output, node.proto.output, strict=False):
            if actual:
                self.values[actual] = scope.values[formal]


def _bind_attributes(
    proto: NodeProto, attributes: Mapping[str, Any], missing: set[str]
) -> NodeProto:
    """A node of a function body with the caller's attributes filled in."""
    bound: NodeProto = need("onnx", "onnx").NodeProto()
    bound.CopyFrom(proto)
    for i, name in enumerate(bound.input):
        if name in missing:
            bound.input[i] = ""
    for attribute in list(bound.attribute):
        if attribute.ref_attr_name:
            name = attribute.name
            bound.attribute.remove(attribute)
            if attribute.ref_attr_name in attributes:
                kept = bound.attribute.add()
                kept.CopyFrom(attributes[attribute.ref_attr_name])
                kept.name = name
    return bound
