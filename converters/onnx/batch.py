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
    tracker.constants |= {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer
    }
    ends = [value for value in graph.input if value.name not in tracker.constants]
    for value in ends:
        kind = value.type.tensor_type
        shape = tuple(dim.dim_value for dim in kind.shape.dim)
        tracker.input(value.name, shape, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    draft, read = Draft(freed, tracker), _collect_reads(graph)
    nodes = [new for node in graph.node for new in _try_node(draft, tracker, node, read)]
    shared = any(node.op_type == SHARED and node.input[0] in tracker.rows for node in nodes)
    del graph.node[:], graph.value_info[:]  # shapes were inferred for one row
    graph.node.extend(nodes)
    _drop_unread(graph)
    for value in graph.output:
        tracker.output(value.name)
        dims = value.type.tensor_type.shape.dim
        del dims[:]  # some files leave them open
        for size in tracker.rows[value.name].shape:
            dims.add().dim_value = size
    for value in (*ends, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = BATCH_NAME  # clears dim_value
    return freed, (SHARED_NOTE,) if shared else ()


def _try_node(
    draft: Draft, tracker: BatchTracker, node: NodeProto, read: set[str]
) -> list[NodeProto]:
    """A node, or what takes its place."""
    label = f"{node.op_type} at '{node.output[0]}'"
    rows = [name for name in node.input if name in tracker.rows]
    source = tracker.rows[rows[0]] if rows else None
    unit = [node]
    if source is not None and node.domain in STANDARD_DOMAINS and node.op_type in REWRITES:
        unit = REWRITES[node.op_type](draft, node, source)
    if source is not None and node.op_type == SHARED:
        results_alone = draft.load(unit, {node.input[0]: source}, {})(
            {node.input[0]: tracker.sample(source)}
        )
        tracker.rows[node.output[0]] = BatchedTensor(
            source.shape, results_alone[node.output[0]].dtype, source.where
        )
        tracker.constants |= {name: results_alone[name] for name in node.output[1:]}
        return unit
    if any(attribute.g.node or attribute.graphs for attribute in node.attribute):
        raise make_batch_error(f"{label} is control flow: it takes one way for all rows of a batch")
    made_here = {name for member in unit for name in member.output}
    inputs = [name for member in unit for name in member.input if name and name not in made_here]
    results = [name for name in node.output if name in read]
    tracker.step(label, inputs, results, lambda rows, known: draft.load(unit, rows, known))
    return unit


def _collect_reads(graph: GraphProto) -> set[str]:
    """Every name that a node or an output of the graph takes."""
    inputs = {name for node in graph.node for name in node.input if name}
    return inputs | {value.name for value in graph.output}


def _drop_unread(graph: GraphProto) -> None:
    read = _collect_reads(graph)
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
