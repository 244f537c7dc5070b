"""Attention: the body that the ONNX standard gives for it, in float32."""

from __future__ import annotations

from converters.tflite.node import Node, op
from edge_core.extras import need


@op("Attention")
def _attention(n: Node) -> None:
    onnx = need("onnx", "onnx")
    proto = onnx.NodeProto()
    proto.CopyFrom(n.proto)
    for a in proto.attribute:
        if a.name == "softmax_precision":
            a.i = onnx.TensorProto.FLOAT  # TFLite's SOFTMAX has no other
    n.scope.inline(Node(n.scope, proto, n.shapes, n.dtypes))
