"""An ONNX graph made for one row, made to take any number of rows in its first dimension.

    free(model) -> (model, notes)

Shapes that exporters write down hold the 1 of the batch they saw. Where such a constant stands
between the rows and an op, it is rewritten: Reshape, Squeeze, Unsqueeze, Slice, Resize, Concat with
a constant (a class token), zero states of recurrent ops. converters.batch then tries every op on
the real runtime, so that nothing rewritten, and nothing left alone, is believed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from converters import batch
from converters.batch import Run, Shape, Tensor, Tracker, Values, refused
from converters.foreign import foreign
from converters.onnx_weights import attribute
from edge_core.extras import need
from edge_core.tensors import Array

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, ValueInfoProto

OPEN = np.iinfo(np.int64).max  # an end beyond every size
# One scale for all that comes in: correct, and not what each row alone would get.
SHARED = "DynamicQuantizeLinear"
SHARED_NOTE = (
    "rows of a batch share the scales of their activations, so an answer depends a little on the "
    "others: INT8 scales are found for whole tensors while the model runs"
)


def free(model: ModelProto) -> tuple[ModelProto, tuple[str, ...]]:
    """A copy whose inputs and outputs begin with a dimension named "batch", and notes.

    Raises ConvertError naming an op that mixes the rows or fixes their number.
    """
    freed = need("onnx", "onnx").ModelProto()
    freed.CopyFrom(model)
    return freed, _Freer(freed).free()


class _Freer:
    """One graph, changed in place."""

    def __init__(self, model: ModelProto) -> None:
        self._onnx = need("onnx", "onnx")
        self._model, self._graph = model, model.graph
        self._own = {t.name: t for t in self._graph.initializer}
        self._tracker = Tracker()
        self._new: list[NodeProto] = []
        self._read = {n for node in self._graph.node for n in node.input}
        self._read |= {v.name for v in self._graph.output}
        self._names = self._read | {n for node in self._graph.node for n in node.output}

    def free(self) -> tuple[str, ...]:
        kinds, array = self._onnx.helper.tensor_dtype_to_np_dtype, self._onnx.numpy_helper.to_array
        self._tracker.constants |= {t.name: array(t) for t in self._graph.initializer}
        ends = [v for v in self._graph.input if v.name not in self._tracker.constants]
        for v in ends:
            shape = tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
            self._tracker.input(v.name, shape, kinds(v.type.tensor_type.elem_type))
        shared = [self._node(node) for node in self._graph.node]
        for v in self._graph.output:
            self._tracker.output(v.name)
            _set_shape(v, self._tracker.rows[v.name].shape)
        del self._graph.node[:]
        self._graph.node.extend(self._new)
        del self._graph.value_info[:]  # told for one row
        self._drop_unused()
        for v in (*ends, *self._graph.output):
            v.type.tensor_type.shape.dim[0].dim_param = batch.NAME  # clears dim_value
        return (SHARED_NOTE,) if any(shared) else ()

    def _node(self, node: NodeProto) -> bool:
        """Take over one node, rewritten where it must be; did its rows share a scale?"""
        rows = self._tracker.rows
        unit, label = [node], f"{node.op_type} at '{node.output[0]}'"
        known = rows.get(node.input[0]) if node.input else None
        if known is not None and not node.domain and node.op_type in REWRITES:
            unit = REWRITES[node.op_type](self, node, known)
        elif node.op_type in RECURRENT and not node.domain:
            self._drop_zero_states(node)
        self._new += unit
        if node.op_type == SHARED and known is not None:
            sample = np.zeros(known.shape, known.dtype)
            made = self._load(unit, {node.input[0]: known}, {})({node.input[0]: sample})
            rows[node.output[0]] = Tensor(known.shape, made[node.output[0]].dtype, known.where)
            self._tracker.constants |= {n: made[n] for n in node.output[1:]}
            return True
        if any(a.g.node or a.graphs for a in node.attribute):
            raise refused(f"{label} is control flow, which takes one way for all rows of a batch")
        made_here = {n for u in unit for n in u.output}
        inputs = [n for u in unit for n in u.input if n and n not in made_here]
        results = [n for n in node.output if n in self._read]  # "" is in none
        self._tracker.step(label, inputs, results, lambda *given: self._load(unit, *given))
        return False

    def _load(
        self, unit: Sequence[NodeProto], rows: Mapping[str, Tensor], constants: Values
    ) -> Run:
        """The nodes alone, on the real runtime, without optimisation."""
        onnx, ort = self._onnx, need("onnxruntime", "onnx")
        made = sorted({n for node in unit for n in node.output if n})
        graph = onnx.helper.make_graph(
            unit,
            "unit",
            [self._input(n, t) for n, t in rows.items()],
            [onnx.ValueInfoProto(name=n) for n in made],
            [self._stored(n, a) for n, a in constants.items()],
        )
        alone = onnx.helper.make_model(
            graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version
        )
        so = ort.SessionOptions()
        so.log_severity_level = 4
        so.intra_op_num_threads = so.inter_op_num_threads = 1
        so.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        with foreign("onnxruntime"):
            session = ort.InferenceSession(
                alone.SerializeToString(), so, providers=["CPUExecutionProvider"]
            )

        def run(feeds: Values) -> Values:
            with foreign("onnxruntime"):
                return dict(zip(made, session.run(made, feeds), strict=True))

        return run

    def _input(self, name: str, t: Tensor) -> ValueInfoProto:
        """As in the graph: free where the rows lie, fixed elsewhere."""
        helper = self._onnx.helper
        shape: list[int | str] = list(t.shape)
        shape[t.where.axis] = batch.NAME
        made: ValueInfoProto = helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(t.dtype), shape
        )
        return made

    def _stored(self, name: str, array: Array) -> Any:
        """The graph's own tensor, if it is one: not every type has an array that tells it."""
        return self._own.get(name) or self._onnx.numpy_helper.from_array(array, name)

    # What exporters write down, rewritten. ``x`` is what the first input is for one row.

    def _reshape(self, node: NodeProto, x: Tensor) -> list[NodeProto]:
        want = self._shape_alone(node, x)
        if want is None:
            return [node]
        place = batch.reshape(x.where, x.shape, want)
        if place is not None:
            shape = self._free_at(want, place)
            return [self._make("Reshape", [node.input[0], shape], node.output[0])]
        before = int(np.prod(x.shape[: x.where.axis])) * x.where.outer
        split = [before, -1, int(np.prod(x.shape)) // before]
        parts, moved = self._name(node, "rows"), self._name(node, "moved")
        return [
            self._make("Reshape", [node.input[0], self._ints(split)], parts),
            self._make("Transpose", [parts], moved, perm=[1, 0, 2]),
            self._make("Reshape", [moved, self._free_at(want, 0)], node.output[0]),
        ]

    def _squeeze(self, node: NodeProto, x: Tensor) -> list[NodeProto]:
        """Another rank: a Reshape, if it concerns the dimension of the rows."""
        want = self._shape_alone(node, x)
        merged = x.shape[x.where.axis] != 1
        gone = want is not None and len(want) < len(x.shape)
        return self._reshape(node, x) if merged or (gone and self._loses(node, x)) else [node]

    def _loses(self, node: NodeProto, x: Tensor) -> bool:
        axes = self._constant(node, 1)
        found = attribute(node, "axes", None) if axes is None else axes.tolist()
        return found is None or x.where.axis in [a % len(x.shape) for a in found]

    def _slice(self, node: NodeProto, x: Tensor) -> list[NodeProto]:
        """All of the rows, where it is all of the one row."""
        starts, ends, axes, steps = (self._constant(node, i) for i in (1, 2, 3, 4))
        if starts is None or ends is None:
            return [node]
        along = range(len(starts)) if axes is None else [a % len(x.shape) for a in axes.tolist()]
        if x.where.axis not in along:
            return [node]
        at, size = list(along).index(x.where.axis), x.shape[x.where.axis]
        whole = starts[at] in (0, -size) and ends[at] >= size
        if not whole or (steps is not None and steps[at] != 1):
            return [node]
        opened = ends.astype(np.int64)
        opened[at] = OPEN
        return self._with_inputs(node, {2: self._ints(opened.tolist(), ends.dtype)})

    def _resize(self, node: NodeProto, x: Tensor) -> list[NodeProto]:
        """Sizes as they are, with as many rows as come in."""
        sizes = self._constant(node, 3)
        if sizes is None or len(sizes) != len(x.shape) or sizes[x.where.axis] != 1:
            return [node]
        shape, before = self._counted(node, x, sizes.tolist())
        return [*before, *self._with_inputs(node, {3: shape})]

    def _concat(self, node: NodeProto, x: Tensor) -> list[NodeProto]:
        """Constants beside the rows, once for each."""
        if all(n in self._tracker.rows for n in node.input) or x.shape[x.where.axis] != 1:
            return [node]
        new, inputs = [], {}
        for i, name in enumerate(node.input):
            if (value := self._tracker.constants.get(name)) is None:
                continue
            ones = [1] * value.ndim
            shape, before = self._counted(node, x, ones, part=str(i))
            wide = self._name(node, f"wide{i}")
            new += [*before, self._make("Expand", [name, shape], wide)]
            inputs[i] = wide
        return [*new, *self._with_inputs(node, inputs)]

    def _gather(self, node: NodeProto, x: Tensor) -> list[NodeProto]:
        """Constant places of each row, where all rows lie in the dimension that is looked up."""
        axis = attribute(node, "axis", 0) % len(x.shape)
        want = self._shape_alone(node, x) if axis == x.where.axis and x.where.outer == 1 else None
        if want is None:
            return [node]
        split = (*x.shape[:axis], 1, *x.shape[axis:])
        place = batch.reshape(x.where, (*split[: axis + 1], *want[axis:]), want)
        if place is None:
            return [node]
        parts, chosen = self._name(node, "rows"), self._name(node, "chosen")
        first = self._free_at(split, axis), self._free_at(want, place)
        return [
            self._make("Reshape", [node.input[0], first[0]], parts),
            self._make("Gather", [parts, node.input[1]], chosen, axis=axis + 1),
            self._make("Reshape", [chosen, first[1]], node.output[0]),
        ]

    def _free_at(self, shape: Shape, place: int) -> str:
        """A constant for Reshape: the shape, with as many rows as there are."""
        return self._ints([*shape[:place], -1, *shape[place + 1 :]])

    def _counted(
        self, node: NodeProto, x: Tensor, sizes: Sequence[int], part: str = ""
    ) -> tuple[str, list[NodeProto]]:
        """A shape: ``sizes``, with the number of rows in their dimension."""
        at = x.where.axis
        shape, rows, joined = (self._name(node, f"{n}{part}") for n in ("shape", "count", "sizes"))
        parts = [self._ints(sizes[:at]), rows, self._ints(sizes[at + 1 :])]
        ends = [self._ints([at]), self._ints([at + 1])]
        return joined, [
            self._make("Shape", [node.input[0]], shape),
            self._make("Slice", [shape, *ends], rows),
            self._make("Concat", parts, joined, axis=0),
        ]

    def _drop_zero_states(self, node: NodeProto) -> None:
        """Without first states a recurrent op starts from zeros, for every row."""
        for i in range(5, min(len(node.input), 7)):
            state = self._constant(node, i)
            if state is not None and not state.any():
                node.input[i] = ""

    def _shape_alone(self, node: NodeProto, x: Tensor) -> Shape | None:
        """The shape of the result for one row; None where it depends on the rows."""
        if any(n in self._tracker.rows for n in node.input[1:]):
            return None
        fixed = {n: self._tracker.constants[n] for n in node.input[1:] if n}
        alone = {node.input[0]: np.zeros(x.shape, x.dtype)}
        made = self._load([node], {node.input[0]: x}, fixed)(alone)
        return tuple(made[node.output[0]].shape)

    def _constant(self, node: NodeProto, index: int) -> Array | None:
        if len(node.input) <= index:
            return None
        return self._tracker.constants.get(node.input[index])

    def _ints(self, values: Sequence[int], dtype: Any = np.int64) -> str:
        """A constant of the graph; equal ones are one."""
        array = np.array(list(values), dtype)
        text = "_".join(str(v).replace("-", "m") for v in values)
        name = f"{batch.NAME}_{array.dtype.name}_{text}"
        if name not in self._tracker.constants:
            self._tracker.constants[name] = array
            self._graph.initializer.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def _name(self, node: NodeProto, part: str) -> str:
        name = f"{node.output[0]}_{part}"
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name

    def _make(self, op: str, inputs: Sequence[str], output: str, **how: Any) -> NodeProto:
        made: NodeProto = self._onnx.helper.make_node(op, inputs, [output], output, **how)
        return made

    def _with_inputs(self, node: NodeProto, inputs: dict[int, str]) -> list[NodeProto]:
        made = self._onnx.NodeProto()
        made.CopyFrom(node)
        for i, name in inputs.items():
            made.input[i] = name
        return [made]

    def _drop_unused(self) -> None:
        used = {n for node in self._graph.node for n in node.input}
        used |= {v.name for v in self._graph.output}
        kept = [t for t in self._graph.initializer if t.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)


Rewrite = Callable[[_Freer, Any, Tensor], "list[NodeProto]"]
RECURRENT = ("LSTM", "GRU", "RNN")
REWRITES: dict[str, Rewrite] = {
    "Reshape": _Freer._reshape,
    "Squeeze": _Freer._squeeze,
    "Unsqueeze": _Freer._squeeze,
    "Slice": _Freer._slice,
    "Resize": _Freer._resize,
    "Concat": _Freer._concat,
    "Gather": _Freer._gather,
}


def _set_shape(value: ValueInfoProto, shape: Shape) -> None:
    """Some files leave the shapes of outputs open."""
    dims = value.type.tensor_type.shape.dim
    del dims[:]
    for size in shape:
        dims.add().dim_value = size
