"""Attention: the body that the ONNX standard gives for it, in float32."""

from __future__ import annotations

from converters.tflite.node import Node
from edge_core.extras import need


def lower_attention(node: Node) -> None:
    """The function body of the standard; its softmax is computed in float32."""
    onnx = need("onnx", "onnx")
    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    for attribute in proto.attribute:
        if attribute.name == "softmax_precision":
            attribute.i = onnx.TensorProto.FLOAT  # TFLite's SOFTMAX has no other
    node.scope.inline(Node(node.scope, proto, node.shapes, node.dtypes))
