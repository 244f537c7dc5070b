"""A TFLite graph under construction: tensors, operators, and the flatbuffer made of them.

g = Graph()
x = g.input("x", (1, 4), np.float32)
y = g.emit("LOGISTIC", [x], (1, 4))
g.outputs.append(y)
model = g.to_model()
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from edge_core.errors import ConvertError
from edge_core.extras import need
from edge_core.tensors import Array

Shape = tuple[int, ...]
# The options table of each operator that has one; the others have none.
OPTIONS = {
    "ADD": "Add", "SUB": "Sub", "MUL": "Mul", "DIV": "Div", "ARG_MAX": "ArgMax",
    "ARG_MIN": "ArgMin", "AVERAGE_POOL_2D": "Pool2D", "MAX_POOL_2D": "Pool2D",
    "BATCH_MATMUL": "BatchMatMul", "CAST": "Cast", "CONCATENATION": "Concatenation",
    "CONV_2D": "Conv2D", "CONV_3D": "Conv3D", "CUMSUM": "Cumsum",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2D", "DEPTH_TO_SPACE": "DepthToSpace",
    "FULLY_CONNECTED": "FullyConnected", "GATHER": "Gather", "GELU": "Gelu",
    "LEAKY_RELU": "LeakyRelu", "MEAN": "Reducer", "MIRROR_PAD": "MirrorPad", "ONE_HOT": "OneHot",
    "PACK": "Pack", "REDUCE_ALL": "Reducer", "REDUCE_ANY": "Reducer", "REDUCE_MAX": "Reducer",
    "REDUCE_MIN": "Reducer", "REDUCE_PROD": "Reducer", "RESHAPE": "Reshape",
    "RESIZE_BILINEAR": "ResizeBilinear", "RESIZE_NEAREST_NEIGHBOR": "ResizeNearestNeighbor",
    "REVERSE_SEQUENCE": "ReverseSequence", "SOFTMAX": "Softmax", "SPACE_TO_DEPTH": "SpaceToDepth",
    "SPLIT": "Split", "SPLIT_V": "SplitV", "SQUEEZE": "Squeeze", "STRIDED_SLICE": "StridedSlice",
    "SUM": "Reducer", "TRANSPOSE_CONV": "TransposeConv", "UNPACK": "Unpack",
}  # fmt: skip
FUSABLE = (
    "ADD", "SUB", "MUL", "DIV", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED",
    "AVERAGE_POOL_2D", "MAX_POOL_2D",
)  # fmt: skip
ACTIVATIONS = {"RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}
SIGNATURE = "serving_default"


@dataclasses.dataclass(eq=False)
class Tensor:
    """One tensor; ``data`` makes it a constant."""

    name: str
    shape: Shape
    dtype: np.dtype[Any]
    data: Array | None = None


@dataclasses.dataclass(eq=False)
class Op:
    """One operator, by the name of its builtin code."""

    code: str
    inputs: list[Tensor | None]
    outputs: list[Tensor]
    options: dict[str, Any]


class Graph:
    """Grows by emit(); finish() drops what no output needs."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.keys: dict[Tensor, str] = {}  # of outputs whose tensor cannot have the name
        self.ops: list[Op] = []
        self._constants: dict[str, Tensor] = {}

    def input(self, name: str, shape: Shape, dtype: Any) -> Tensor:
        """An input of the model, in the shape it has in memory."""
        tensor = Tensor(name, shape, np.dtype(dtype))
        self.inputs.append(tensor)
        return tensor

    def constant(self, array: Array, name: str = "") -> Tensor:
        """A constant tensor; equal arrays share one."""
        array = np.asarray(array, order="C")  # ascontiguousarray() would add an axis to a scalar
        digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        constant = self._constants.get(digest.hexdigest())
        if constant is None:
            constant = Tensor(name or "constant", array.shape, array.dtype, array)
            self._constants[digest.hexdigest()] = constant
        return constant

    def ints(self, values: Iterable[int]) -> Tensor:
        """A constant list of int32: shapes, axes, indices."""
        return self.constant(np.array(list(values), np.int32).reshape(-1))

    def emit(
        self,
        code: str,
        inputs: Sequence[Tensor | None],
        shape: Sequence[int],
        dtype: Any = None,
        **options: Any,
    ) -> Tensor:
        """Add an operator with one output of ``shape``, of ``dtype`` or that of the first input.

        ``options`` are the fields of its options table.
        """
        return self.emit_many(code, inputs, [shape], dtype, **options)[0]

    def emit_many(
        self,
        code: str,
        inputs: Sequence[Tensor | None],
        shapes: Sequence[Sequence[int]],
        dtype: Any = None,
        dtypes: Sequence[Any] = (),
        **options: Any,
    ) -> list[Tensor]:
        """Add an operator with an output for each shape."""
        first = inputs[0]
        kinds = [*dtypes] or [dtype if dtype is not None or first is None else first.dtype]
        kinds *= len(shapes) // len(kinds)
        out = [
            Tensor("", tuple(int(size) for size in shape), np.dtype(kind))
            for shape, kind in zip(shapes, kinds, strict=True)
        ]
        self.ops.append(Op(code, [*inputs], out, options))
        return out

    def finish(self) -> None:
        """Drop dead operators, fuse activations into what precedes them, name all tensors."""
        self.sweep()
        self._fuse()
        self.sweep()
        self._name()

    def sweep(self) -> None:
        """Drop the operators that no output needs."""
        wanted, live = set(map(id, self.outputs)), []
        for op in reversed(self.ops):
            if any(id(tensor) in wanted for tensor in op.outputs):
                wanted.update(id(tensor) for tensor in op.inputs if tensor is not None)
                live.append(op)
        self.ops = live[::-1]

    def _fuse(self) -> None:
        uses = Counter(id(tensor) for op in self.ops for tensor in op.inputs if tensor is not None)
        uses.update(map(id, self.outputs))
        makers = {id(tensor): op for op in self.ops for tensor in op.outputs}
        for op in self.ops:
            if op.code not in ACTIVATIONS:
                continue
            before = makers.get(id(op.inputs[0]))
            if (
                before is None
                or before.code not in FUSABLE
                or before.options.get("fused_activation_function")
                or uses[id(before.outputs[0])] != 1
                or before.outputs[0].dtype != np.float32
            ):
                continue
            before.options["fused_activation_function"] = ACTIVATIONS[op.code]
            before.outputs = op.outputs
            op.outputs = []
            makers[id(before.outputs[0])] = before

    def _name(self) -> None:
        names: set[str] = set()
        for tensor in self.inputs:
            names.add(tensor.name)
        for tensor in dict.fromkeys(
            [*self.outputs, *(output for op in self.ops for output in op.outputs)]
        ):
            name = _unique(tensor.name or "t", names)
            if tensor in self.outputs and tensor.name not in ("", name):
                self.keys[tensor] = tensor.name  # ONNX lets an output have an input's name
            tensor.name = name
        for op in self.ops:
            for i, tensor_in in enumerate(op.inputs):
                if (
                    tensor_in is not None
                    and tensor_in.data is not None
                    and tensor_in.name in ("", "constant")
                ):
                    tensor_in.name = f"{op.outputs[0].name}/{op.code.lower()}/{i}"

    def to_model(self, description: str = "edge-deploy") -> Any:
        """The flatbuffer's object tree (schema_py_generated.ModelT)."""
        return _Writer(self).model(description)


def _unique(name: str, names: set[str]) -> str:
    candidate, number = name, 1
    while candidate in names:
        candidate, number = f"{name}_{number}", number + 1
    names.add(candidate)
    return candidate


class _Writer:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._schema = need("ai_edge_litert.schema_py_generated", "tflite")
        self._index: dict[int, int] = {}
        self._codes: dict[str, int] = {}
        self._model = self._schema.ModelT()

    def model(self, description: str) -> Any:
        schema, graph, model = self._schema, self._graph, self._model
        model.version, model.description = 3, description.encode()
        model.buffers, model.operatorCodes, model.metadata = [schema.BufferT()], [], []
        sub = schema.SubGraphT()
        sub.tensors, sub.operators, sub.name = [], [], b"main"
        model.subgraphs = [sub]
        for tensor in graph.inputs:
            self._tensor(sub, tensor)
        for op in graph.ops:
            sub.operators.append(self._operator(sub, op))
        sub.inputs = self._indices(sub, graph.inputs)
        sub.outputs = self._indices(sub, graph.outputs)
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = SIGNATURE.encode(), 0
        signature.inputs = [self._map(sub, tensor) for tensor in graph.inputs]
        signature.outputs = [self._map(sub, tensor) for tensor in graph.outputs]
        model.signatureDefs = [signature]
        return model

    def _indices(self, sub: Any, tensors: Iterable[Tensor | None]) -> Array:
        indices = [-1 if tensor is None else self._tensor(sub, tensor) for tensor in tensors]
        return np.array(indices, np.int32)

    def _map(self, sub: Any, tensor: Tensor) -> Any:
        entry = self._schema.TensorMapT()
        key = self._graph.keys.get(tensor, tensor.name)
        entry.name, entry.tensorIndex = key.encode(), self._tensor(sub, tensor)
        return entry

    def _tensor(self, sub: Any, tensor: Tensor) -> int:
        if id(tensor) in self._index:
            return self._index[id(tensor)]
        entry = self._schema.TensorT()
        entry.name, entry.shape, entry.hasRank = (
            tensor.name.encode(),
            np.array(tensor.shape, np.int32),
            True,
        )
        entry.type, entry.buffer = self._type(tensor), 0
        if tensor.data is not None:
            buffer = self._schema.BufferT()
            buffer.data = np.frombuffer(tensor.data.tobytes(), np.uint8)
            self._model.buffers.append(buffer)
            entry.buffer = len(self._model.buffers) - 1
        sub.tensors.append(entry)
        self._index[id(tensor)] = len(sub.tensors) - 1
        return self._index[id(tensor)]

    def _type(self, tensor: Tensor) -> int:
        kind = getattr(self._schema.TensorType, tensor.dtype.name.upper(), None)
        if kind is None:
            raise ConvertError(
                f"tensor '{tensor.name}' is {tensor.dtype.name}, which TFLite does not have"
            )
        return int(kind)

    def _operator(self, sub: Any, op: Op) -> Any:
        entry = self._schema.OperatorT()
        entry.opcodeIndex = self._code(op.code)
        entry.inputs = self._indices(sub, op.inputs)
        entry.outputs = self._indices(sub, op.outputs)
        table = OPTIONS.get(op.code)
        if table:
            entry.builtinOptionsType = getattr(self._schema.BuiltinOptions, f"{table}Options")
            entry.builtinOptions = getattr(self._schema, f"{table}OptionsT")()
        for key, value in op.options.items():
            name = re.sub(r"_(\w)", lambda match: match[1].upper(), key)
            if not hasattr(entry.builtinOptions, name):
                raise TypeError(f"{op.code} has no option {name}")
            setattr(entry.builtinOptions, name, value)
        return entry

    def _code(self, name: str) -> int:
        if name not in self._codes:
            code = self._schema.OperatorCodeT()
            number = getattr(self._schema.BuiltinOperator, name)
            code.builtinCode, code.deprecatedBuiltinCode = number, min(number, 127)
            code.version = 1
            self._model.operatorCodes.append(code)
            self._codes[name] = len(self._model.operatorCodes) - 1
        return self._codes[name]
