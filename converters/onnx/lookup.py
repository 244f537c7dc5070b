"""Lookup tables (Gather of a weight) in 8 or 4 bits: the larger part of many text models.

MiniLM-L6 has 47 of its 90 MB in one table; quantising MatMul alone leaves it whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from converters import int4
from converters.onnx.weights import compute_channel_scales, find_weights, replace_node
from edge_core.extras import need
from edge_core.tensors import Array

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

LARGEST = 127


def store_tables_int8(model: ModelProto) -> None:
    """Store every table as int8, a scale per row; rows are made float when they are looked up."""
    onnx = need("onnx", "onnx")
    make, array = onnx.helper.make_node, onnx.numpy_helper.from_array
    for table in list(find_weights(model, ("Gather",))):
        name, node = table.tensor.name, table.node
        scale = compute_channel_scales(table.values, 0, LARGEST)[:, None]
        integers = np.round(table.values / scale).astype(np.int8)
        table.tensor.CopyFrom(array(integers, f"{name}_quantised"))
        model.graph.initializer.append(array(scale.astype(np.float32), f"{name}_scale"))
        rows, floats, scales = (f"{node.output[0]}_{part}" for part in ("rows", "floats", "scales"))
        new = [
            make("Gather", [f"{name}_quantised", node.input[1]], [rows], rows),
            make("Cast", [rows], [floats], floats, to=onnx.TensorProto.FLOAT),
            make("Gather", [f"{name}_scale", node.input[1]], [scales], scales),
            make("Mul", [floats, scales], [node.output[0]], node.name),
        ]
        replace_node(model, node, new)


def store_tables_int4(model: ModelProto) -> None:
    """Store every table in 4 bits for ONNX Runtime's GatherBlockQuantized, which has no standard
    form. The types need opset 21, the kernel ONNX Runtime 1.20."""
    onnx = need("onnx", "onnx")
    for table in list(find_weights(model, ("Gather",))):
        name, node = table.tensor.name, table.node
        blocks = int4.quantise_blocks(table.values)
        codes = blocks.codes.reshape(len(table.values), -1)[:, : table.values.shape[1]]
        table.tensor.CopyFrom(_make_uint4(f"{name}_quantised", codes))
        model.graph.initializer.append(onnx.numpy_helper.from_array(blocks.scale, f"{name}_scale"))
        model.graph.initializer.append(_make_uint4(f"{name}_zero", blocks.zero))
        new = onnx.helper.make_node(
            "GatherBlockQuantized",
            [f"{name}_quantised", node.input[1], f"{name}_scale", f"{name}_zero"],
            [node.output[0]],
            node.name,
            domain="com.microsoft",
            gather_axis=0,
            quantize_axis=1,
            block_size=int4.BLOCK,
        )
        replace_node(model, node, [new])


def _make_uint4(name: str, codes: Array) -> TensorProto:
    onnx = need("onnx", "onnx")
    raw = int4.pack_nibbles(codes.ravel()).tobytes()
    tensor: TensorProto = onnx.helper.make_tensor(
        name, onnx.TensorProto.UINT4, codes.shape, raw, raw=True
    )
    return tensor
