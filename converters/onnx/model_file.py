"""ONNX files in and out: every error names the file, equal models are equal bytes.

load(path) -> ModelProto        whole, with its external data, checked
save(model, path)               no doc strings, no metadata, nothing unused
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from converters.foreign_errors import describe_error
from edge_core.errors import ConvertError, EdgeError, InputError
from edge_core.extras import need
from edge_core.files import write_atomic

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

MAX_BYTES = 2**31 - 1  # a protobuf message cannot be larger
STANDARD_DOMAINS = ("", "ai.onnx")
_SMALL_TYPES = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}  # bits
_OTHER_FORMATS = (  # offset, bytes, what it is, what to do
    (0, b"PK\x03\x04", "a zip archive, as PyTorch writes them", "export the model to ONNX first"),
    (0, b"\x89HDF", "an HDF5 file, as Keras writes them", "export the model to ONNX first"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run: git lfs pull"),
    (0, b"<", "a web page or XML", "download the file itself"),
    (4, b"TFL3", "a TFLite model", "give the ONNX model that it was made from"),
    (4, b"ORTM", "an ORT-format model", "give the ONNX model that it was made from"),
)


def load_model(path: Path) -> ModelProto:
    """Read a model with its external data.

    Raises InputError for a file that is no valid ONNX model, ConvertError above 2 GB or for an op
    that the standard does not have.
    """
    onnx = need("onnx", "onnx")
    head, size = _head(path)
    if size > MAX_BYTES:
        raise _too_large(path, size)
    try:
        model: ModelProto = onnx.load(path, load_external_data=False)
        if not model.graph.output or not model.opset_import:
            raise _unreadable(path, head, "it holds no graph")
        _load_external(model, path)
        _refuse_unknown_ops(model, path)
        onnx.checker.check_model(_with_shapes(model))
    except EdgeError:
        raise
    except onnx.checker.ValidationError as error:
        raise InputError(f"{path} is not valid ONNX: {describe_error(error)}") from error
    except (
        Exception
    ) as error:  # protobuf's errors, and those of text and numbers where it is damaged
        raise _unreadable(
            path, head, f"it is damaged or cut off ({describe_error(error)})"
        ) from error
    return model


def load_checked(path: Path) -> ModelProto:
    """A model that another package wrote; raises what onnx raises if it is not valid."""
    onnx = need("onnx", "onnx")
    model: ModelProto = onnx.load(path)
    onnx.checker.check_model(model)
    return model


def save_model(model: ModelProto, path: Path) -> None:
    """Write ``model`` as ``path``, whole, without doc strings, metadata and unused imports."""
    _strip(model)
    size = model.ByteSize()
    if size > MAX_BYTES:
        raise _too_large(path, size)
    write_atomic(path, model.SerializeToString(deterministic=True))


def iter_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph itself, then those inside its If, Loop and Scan nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.output:
                    yield from iter_graphs(inner)


def iter_nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Every node, those of subgraphs and functions included."""
    for graph in iter_graphs(model.graph):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def iter_weights(model: ModelProto) -> Iterator[TensorProto]:
    """Every constant tensor: initializers and the values of Constant nodes."""
    for graph in iter_graphs(model.graph):
        yield from graph.initializer
        for node in graph.node:
            if node.op_type == "Constant":
                yield from (
                    attribute.t for attribute in node.attribute if attribute.name == "value"
                )


def count_tensor_bytes(tensor: TensorProto) -> int:
    """Bytes of the values; types of less than 8 bits share bytes."""
    onnx = need("onnx", "onnx")
    count: int = math.prod(tensor.dims)
    kind = onnx.TensorProto.DataType.Name(tensor.data_type)
    if kind == "STRING":
        return sum(map(len, tensor.string_data))
    bits = (
        _SMALL_TYPES.get(kind)
        or 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    )
    return int(-(-count * bits // 8))


def read_opset(model: ModelProto) -> int:
    """The version of the standard operators."""
    return next(
        (entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS), 0
    )


def _head(path: Path) -> tuple[bytes, int]:
    try:
        with path.open("rb") as file:
            return file.read(32), path.stat().st_size
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _unreadable(path: Path, head: bytes, why: str) -> InputError:
    if not head:
        return InputError(f"{path} is empty", hint="the export or the download did not finish")
    for offset, magic, what, todo in _OTHER_FORMATS:
        if head[offset:].startswith(magic):
            return InputError(f"{path} is not ONNX: it is {what}", hint=todo)
    return InputError(
        f"{path} is not a readable ONNX model: {why}", hint="compare its size with the original"
    )


def _too_large(path: Path, size: int) -> ConvertError:
    return ConvertError(
        f"{path.name} has {size / 1e9:.1f} GB with its weights; converters take at most 2 GB",
        hint="quantise or split the model before it comes here",
    )


def _load_external(model: ModelProto, path: Path) -> None:
    onnx = need("onnx", "onnx")
    outside = [
        tensor
        for tensor in iter_weights(model)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    ]
    total = model.ByteSize() + sum(map(count_tensor_bytes, outside))
    if total > MAX_BYTES:
        raise _too_large(path, total)
    for tensor in outside:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        where = entries.get("location", "")
        try:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
        except (
            Exception
        ) as error:  # OSError, ValueError and onnx's own for a path outside the folder
            raise InputError(
                f"{path}: external data '{where}' of tensor '{tensor.name}' cannot be read",
                hint="keep the data file next to the model, under the name it was exported with",
            ) from error
        if len(tensor.raw_data) != count_tensor_bytes(tensor):
            raise InputError(
                f"{path}: external data '{where}' is cut off: tensor '{tensor.name}' has "
                f"{len(tensor.raw_data)} of {count_tensor_bytes(tensor)} bytes"
            )
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _with_shapes(model: ModelProto) -> ModelProto:
    """For the checker, which wants a shape at every input and output; runtimes do without."""
    if all(
        value.type.tensor_type.HasField("shape")
        for value in (*model.graph.input, *model.graph.output)
    ):
        return model
    shaped: ModelProto = need("onnx", "onnx").ModelProto()
    shaped.CopyFrom(model)
    for value in (*shaped.graph.input, *shaped.graph.output):
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    return shaped


def _refuse_unknown_ops(model: ModelProto, path: Path) -> None:
    onnx = need("onnx", "onnx")
    own = {(function.domain, function.name) for function in model.functions}
    version = read_opset(model)
    for node in iter_nodes(model):
        if node.domain in STANDARD_DOMAINS and (node.domain, node.op_type) not in own:
            try:
                onnx.defs.get_schema(node.op_type, version, "")
            except onnx.defs.SchemaError as error:
                raise make_unknown_op_error(path, node.op_type, node.name) from error


def make_unknown_op_error(path: Path, op: str, node: str) -> ConvertError:
    """The error for an op that nothing here can run."""
    return ConvertError(
        f"{path.name}: no kernel or schema for op {op} (node '{node}')",
        hint="export the model without it, or replace it by standard ONNX ops",
    )


def _strip(model: ModelProto) -> None:
    used = {
        "" if node.domain in STANDARD_DOMAINS else node.domain for node in iter_nodes(model)
    } | {""}
    used |= {function.domain for function in model.functions}
    imports = {
        "" if entry.domain in STANDARD_DOMAINS else entry.domain: entry.version
        for entry in model.opset_import
    }
    del model.opset_import[:]
    for domain in sorted(used & imports.keys()):
        model.opset_import.add(domain=domain, version=imports[domain])
    for field in (
        "doc_string", "metadata_props", "producer_version", "domain", "model_version",
        "training_info",
    ):  # fmt: skip
        model.ClearField(field)
    model.producer_name = "edge-deploy"
    for graph in iter_graphs(model.graph):
        for part in (graph, *graph.node, *graph.initializer, *graph.value_info):
            part.ClearField("doc_string")
            part.ClearField("metadata_props")
        for value in (*graph.input, *graph.output):
            value.ClearField("doc_string")
            value.ClearField("metadata_props")
