"""The ONNX candidates, in the order of tables; the type checker verifies each."""

from __future__ import annotations

from converters.onnx import (
    fp16,
    fp32,
    int4,
    int4_conv,
    int8_dynamic,
    int8_dynamic_conv,
    int8_static,
    int8_weights,
    ort,
)
from converters.spec import Converter

ONNX_CONVERTERS: tuple[Converter, ...] = (
    fp32,
    fp16,
    int8_static.U8S8,
    int8_static.S8S8,
    int8_static.PER_TENSOR,
    int8_dynamic,
    int8_dynamic_conv,
    int8_weights,
    int4,
    int4_conv,
    ort.FP32,
    ort.U8S8,
    ort.S8S8,
    ort.DYNAMIC,
)
