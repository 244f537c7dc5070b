"""A static ONNX graph as a float TFLite file, operator by operator.

    to_tflite(model, out, layout="NHWC") -> Lowered

Every node is, in this order: folded when all it takes is constant; lowered by the function that is
registered for its op (converters.tflite.ops); replaced by the body that the ONNX standard gives
for it; refused by name. Shapes and axes are plain integers at every point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from converters import onnx_file
from converters.foreign import reason
from converters.tflite import flat, versions
from converters.tflite.graph import Graph, Shape, Tensor
from converters.tflite.values import Axes, Value, Values, channels_last, identity, reshape
from edge_core.errors import ConvertError
from edge_core.extras import need
from edge_core.tensors import Array, TensorSpec

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

Lowering = Callable[["Node"], None]
REGISTRY: dict[str, Lowering] = {}
NHWC = (0, 2, 3, 1)
# An input that such an op reads first is an image; these ops themselves prefer channels last.
IMAGE_OPS = (
    "Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool",
    "BatchNormalization", "InstanceNormalization", "Resize", "DepthToSpace", "SpaceToDepth",
)  # fmt: skip
PASSING = ("Add", "Sub", "Mul", "Div", "Cast", "Clip", "Pad", "Relu", "Identity", "Concat")
MAX_FOLDED = 64 * 1024 * 1024  # bytes of a constant that folding may make


def op(*names: str) -> Callable[[Lowering], Lowering]:
    """Register the function that lowers the ONNX ops of these names."""

    def register(function: Lowering) -> Lowering:
        for name in names:
            if REGISTRY.setdefault(name, function) is not function:
                raise TypeError(f"{name} is lowered twice")
        return function

    return register


class Lowered(msgspec.Struct, frozen=True):
    """What the file takes and gives; layout is "NHWC" where it is not that of ONNX."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Node:
    """One ONNX node, as the functions of converters.tflite.ops see it."""

    def __init__(self, scope: Scope, proto: NodeProto, shapes: Sequence[Shape], dtypes: Any):
        self.scope, self.proto, self.op = scope, proto, proto.op_type
        self.graph, self._values = scope.graph, scope.lowering.values
        self.shapes, self.dtypes = shapes, dtypes  # of the outputs
        helper = need("onnx.helper", "onnx")
        self.attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}

    @property
    def shape(self) -> Shape:
        """Of the first output."""
        return self.shapes[0]

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute; bytes come as str."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def has(self, index: int) -> bool:
        """Is there an input at that place?"""
        return index < len(self.proto.input) and bool(self.proto.input[index])

    def wants(self, index: int) -> bool:
        """Does anybody read that output?"""
        return index < len(self.proto.output) and bool(self.proto.output[index])

    def value(self, index: int) -> Value:
        """An input."""
        return self.scope.values[self.proto.input[index]]

    def array(self, index: int) -> Array | None:
        """An input that is constant; None if it is not, or not there."""
        return self.value(index).array if self.has(index) else None

    def constant(self, index: int, what: str) -> Array:
        """An input that must be constant, or ConvertError."""
        array = self.array(index)
        if array is None:
            raise self.refusal(f"{what} is computed at run time")
        return array

    def listed(self, index: int, name: str, default: Sequence[int] | None) -> list[int] | None:
        """A list that newer opsets give as a constant input and older ones as an attribute."""
        if self.has(index):
            return [int(v) for v in self.constant(index, name).reshape(-1)]
        found = self.attr(name, default)
        return None if found is None else [int(v) for v in found]

    def ints(self, values: Iterable[int]) -> Tensor:
        """A constant list of int32."""
        return self.graph.ints(values)

    def stored(self, index: int, axes: Axes | None = None) -> Tensor:
        """An input in the order ``axes``, or in that of ONNX."""
        return self._values.stored(self.value(index), axes)

    def place(self, value: Value, axes: Axes | None = None) -> Tensor:
        """Any value in the order ``axes``, or in that of ONNX."""
        return self._values.stored(value, axes)

    def emit(
        self,
        code: str,
        inputs: Sequence[Tensor | None],
        shape: Sequence[int],
        dtype: Any = None,
        **options: Any,
    ) -> Tensor:  # noqa: E501
        """Graph.emit()."""
        return self.graph.emit(code, inputs, shape, dtype, **options)

    def const(self, value: Any, dtype: Any = np.float32) -> Tensor:
        """A constant tensor."""
        return self.graph.constant(np.asarray(value, dtype))

    def reshaped(self, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        """The same bytes in another shape."""
        return reshape(self.graph, tensor, shape)

    def give(self, tensor: Tensor, axes: Axes | None = None, index: int = 0) -> None:
        """Set an output: stored as ``tensor`` in the order ``axes``, or in that of ONNX."""
        name = self.proto.output[index]
        if not tensor.name and tensor.data is None:
            tensor.name = name
        axes = identity(len(tensor.shape)) if axes is None else axes
        shape = tuple(tensor.shape[axes.index(i)] for i in range(len(axes)))
        if tensor.data is not None:
            array = np.transpose(tensor.data, [axes.index(i) for i in range(len(axes))])
            self.scope.values[name] = Value(shape, array.dtype, array=array)
        else:
            self.scope.values[name] = Value(shape, tensor.dtype, tensor, axes)

    def give_value(self, value: Value, index: int = 0) -> None:
        """Set an output to a value that exists already."""
        self.scope.values[self.proto.output[index]] = value

    def refusal(self, why: str, hint: str = "") -> ConvertError:
        """The error that names this node."""
        name = f" ('{self.proto.name}')" if self.proto.name else ""
        return ConvertError(f"op {self.op}{name}: {why}", hint=hint or WAY_OUT)


WAY_OUT = "an ONNX package (onnx-*) runs it; or replace the op before exporting"


class Scope:
    """Names of one graph or function body, and what they stand for."""

    def __init__(self, lowering: Lowerer, values: dict[str, Value], opsets: Mapping[str, int]):
        self.lowering, self.values, self.opsets = lowering, values, opsets
        self.graph = lowering.graph

    def run(self, nodes: Sequence[NodeProto]) -> None:
        """Lower the nodes in order."""
        for proto in nodes:
            self._one(proto)

    def inner(self, values: dict[str, Value]) -> Scope:
        """A scope for a subgraph, which also sees the names of this one."""
        return Scope(self.lowering, {**self.values, **values}, self.opsets)

    def _one(self, proto: NodeProto) -> None:
        inputs = [self.values[i] for i in proto.input if i]
        plain = not any(a.HasField("g") or a.graphs for a in proto.attribute)
        if plain and all(v.array is not None for v in inputs) and self._fold(proto):
            return
        if proto.op_type in ("Shape", "Size") and not proto.domain:
            self._fold(proto, {i: np.empty(self.values[i].shape, np.int8) for i in proto.input})
            return
        shapes, dtypes = self._inferred(proto)
        node = Node(self, proto, shapes, dtypes)
        function = REGISTRY.get(proto.op_type) if proto.domain in ("", "ai.onnx") else None
        if function is None:
            self.inline(node)
            return
        function(node)
        self._check(node)

    def _check(self, node: Node) -> None:
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
        feeds = given or {i: self.values[i].array for i in proto.input if i}
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

    def _inferred(self, proto: NodeProto) -> tuple[list[Shape], list[Any]]:
        onnx = need("onnx", "onnx")
        schema = self._schema(proto)
        types, data = {}, {}
        for name in proto.input:
            if name:
                v = self.values[name]
                kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(v.dtype))
                types[name] = onnx.helper.make_tensor_type_proto(kind, v.shape)
                if v.array is not None and v.array.nbytes < 65536:
                    data[name] = onnx.numpy_helper.from_array(v.array, name)
        if any(a.HasField("g") for a in proto.attribute):
            return [], []
        imports = [onnx.helper.make_opsetid(d, v) for d, v in self.opsets.items()]
        try:
            found = onnx.shape_inference.infer_node_outputs(
                schema, proto, types, data, opset_imports=imports
            )  # noqa: E501
        except Exception as e:  # noqa: BLE001  (the binding raises errors of its own)
            raise ConvertError(f"op {proto.op_type}: no shapes: {reason(e)}") from e
        shapes, dtypes = [], []
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
            ) from e  # noqa: E501

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
            )  # noqa: E501
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
        values: dict[str, Value] = {}
        for formal, actual in zip(body.input, node.proto.input, strict=False):
            if actual:
                values[formal] = self.values[actual]
        opsets = {i.domain: i.version for i in body.opset_import} or {"": opset}
        scope = Scope(self.lowering, values, opsets)
        scope.run([_bound(n, given, set(body.input) - set(values)) for n in body.node])
        for formal, actual in zip(body.output, node.proto.output, strict=False):
            if actual:
                self.values[actual] = scope.values[formal]


def _bound(proto: NodeProto, given: Mapping[str, Any], missing: set[str]) -> NodeProto:
    """A node of a function body with the caller's attributes in place."""
    made = need("onnx", "onnx").NodeProto()
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


def constant(array: Array) -> Value:
    """A value known at conversion."""
    return Value(array.shape, array.dtype, array=array)


class Lowerer:
    """One conversion."""

    def __init__(self, model: ModelProto, layout: str) -> None:
        self.graph = Graph()
        self.values = Values(self.graph)
        self._model, self._layout = model, layout

    def lower(self) -> Lowered:
        """Fill the graph; raises ConvertError naming the op that stands in the way."""
        onnx = need("onnx", "onnx")
        graph = self._model.graph
        known = {t.name: constant(onnx.numpy_helper.to_array(t)) for t in graph.initializer}
        inputs = [self._input(v, known) for v in graph.input if v.name not in known]
        opsets = {i.domain: i.version for i in self._model.opset_import}
        opsets.setdefault("", opsets.pop("ai.onnx", 1))
        scope = Scope(self, known, opsets)
        scope.run(graph.node)
        outputs = [self._output(v.name, scope.values[v.name]) for v in graph.output]
        self.graph.finish()
        return Lowered(tuple(inputs), tuple(outputs))

    def _input(self, proto: Any, known: dict[str, Value]) -> TensorSpec:
        onnx = need("onnx", "onnx")
        kind = proto.type.tensor_type
        dims = kind.shape.dim
        shape = tuple(d.dim_value for d in dims)
        if any(not d.HasField("dim_value") or d.dim_value < 0 for d in dims):
            raise ConvertError(f"the shape of input '{proto.name}' is not fixed", hint="--shape")
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        last = (
            self._layout == "NHWC" and len(shape) == 4 and _is_image(self._model.graph, proto.name)
        )  # noqa: E501
        axes = NHWC if last else identity(len(shape))
        tensor = self.graph.input(proto.name, tuple(shape[a] for a in axes), dtype)
        known[proto.name] = Value(shape, dtype, tensor, axes)
        return TensorSpec(proto.name, str(dtype), tensor.shape, "NHWC" if last else "")

    def _output(self, name: str, value: Value) -> TensorSpec:
        if value.array is not None:
            raise ConvertError(f"output '{name}' does not depend on any input")
        image = self._layout == "NHWC" and value.axes == channels_last(4)
        tensor = self.values.stored(value, NHWC if image else None)
        if tensor in self.graph.inputs or tensor in self.graph.outputs:
            shape = np.array(tensor.shape, np.int32)
            tensor = self.graph.emit(
                "RESHAPE", [tensor, self.graph.ints(tensor.shape)], tensor.shape, new_shape=shape
            )  # noqa: E501
        tensor.name = name
        self.graph.outputs.append(tensor)
        return TensorSpec(name, str(tensor.dtype), tensor.shape, "NHWC" if image else "")


def _is_image(graph: GraphProto, name: str) -> bool:
    """Is the first op behind an input, past what passes images on, one of images?"""
    seen, wave = {name}, [name]
    while wave:
        now = wave.pop()
        for node in graph.node:
            if now not in node.input:
                continue
            if node.op_type in IMAGE_OPS and node.input[0] == now:
                return True
            if node.op_type in PASSING and node.output[0] not in seen:
                seen.add(node.output[0])
                wave.append(node.output[0])
    return False


def to_tflite(model: Path, out: Path, *, layout: str = "NHWC") -> Lowered:
    """Write the float TFLite file of a static ONNX model; raises ConvertError."""
    need("converters.tflite.ops", "tflite")
    lowerer = Lowerer(onnx_file.load(model), layout)
    lowered = lowerer.lower()
    model = lowerer.graph.to_model()
    versions.stamp(model)
    flat.write(model, out)
    return lowered
