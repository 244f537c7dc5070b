"""An ONNX graph made for one row, made to take any number of rows in its first dimension.

    free(model) -> (model, notes)

Node by node: what holds the 1 of the batch is rewritten (batch_rewrites.py), and the outcome is
tried on the real runtime (converters.batch_tracker), as is every node that is left as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from converters.batch_tracker import BATCH_NAME, BatchedTensor, BatchTracker, make_batch_error
from converters.onnx.batch_rewrites import REWRITES, Draft
from converters.onnx.model_file import STANDARD_DOMAINS
from edge_core.extras import need

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

# One scale for all that comes in: right, and not what each row would get alone.
SHARED = "DynamicQuantizeLinear"
SHARED_NOTE = (
    "the rows of a batch share the scales of their activations, which are found while the model "
    "runs: an answer depends a little on the others"
)


def free_onnx_batch(model: ModelProto) -> tuple[ModelProto, tuple[str, ...]]:
    """A copy whose inputs and outputs begin with a dimension named "batch", and notes.

    Raises ConvertError naming an op that mixes the rows or fixes their number.
    """
    onnx = need("onnx", "onnx")
    freed = onnx.ModelProto()
    freed.CopyFrom(model)
    graph, tracker = freed.graph, BatchTracker()
    tracker.constants |= {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    ends = [v for v in graph.input if v.name not in tracker.constants]
    for v in ends:
        kind = v.type.tensor_type
        shape = tuple(d.dim_value for d in kind.shape.dim)
        tracker.input(v.name, shape, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    draft, read = Draft(freed, tracker), _collect_reads(graph)
    nodes = [new for node in graph.node for new in _try_node(draft, tracker, node, read)]
    shared = any(n.op_type == SHARED and n.input[0] in tracker.rows for n in nodes)
    del graph.node[:], graph.value_info[:]  # shapes were told for one row
    graph.node.extend(nodes)
    _drop_unread(graph)
    for v in graph.output:
        tracker.output(v.name)
        dims = v.type.tensor_type.shape.dim
        del dims[:]  # some files leave them open
        for size in tracker.rows[v.name].shape:
            dims.add().dim_value = size
    for v in (*ends, *graph.output):
        v.type.tensor_type.shape.dim[0].dim_param = BATCH_NAME  # clears dim_value
    return freed, (SHARED_NOTE,) if shared else ()


def _try_node(
    draft: Draft, tracker: BatchTracker, node: NodeProto, read: set[str]
) -> list[NodeProto]:
    """A node, or what takes its place."""
    label = f"{node.op_type} at '{node.output[0]}'"
    rows = [n for n in node.input if n in tracker.rows]
    x = tracker.rows[rows[0]] if rows else None
    unit = [node]
    if x is not None and node.domain in STANDARD_DOMAINS and node.op_type in REWRITES:
        unit = REWRITES[node.op_type](draft, node, x)
    if x is not None and node.op_type == SHARED:
        made = draft.load(unit, {node.input[0]: x}, {})({node.input[0]: tracker.sample(x)})
        tracker.rows[node.output[0]] = BatchedTensor(x.shape, made[node.output[0]].dtype, x.where)
        tracker.constants |= {n: made[n] for n in node.output[1:]}
        return unit
    if any(a.g.node or a.graphs for a in node.attribute):
        raise make_batch_error(f"{label} is control flow: it takes one way for all rows of a batch")
    made_here = {n for u in unit for n in u.output}
    inputs = [n for u in unit for n in u.input if n and n not in made_here]
    results = [n for n in node.output if n in read]
    tracker.step(label, inputs, results, lambda rows, known: draft.load(unit, rows, known))
    return unit


def _collect_reads(graph: GraphProto) -> set[str]:
    """Every name that a node or an output of the graph takes."""
    inputs = {n for node in graph.node for n in node.input if n}
    return inputs | {v.name for v in graph.output}


def _drop_unread(graph: GraphProto) -> None:
    read = _collect_reads(graph)
    kept = [t for t in graph.initializer if t.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
