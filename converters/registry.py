"""Converters by name: ours are listed here, others come by the entry-point group.

Importing one is cheap: heavy packages are imported inside convert(), so listing and planning need
none of them.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from converters.onnx import fp16 as onnx_fp16
from converters.onnx import fp32 as onnx_fp32
from converters.onnx import int4 as onnx_int4
from converters.onnx import int4_conv as onnx_int4_conv
from converters.onnx import int8_dynamic as onnx_int8_dynamic
from converters.onnx import int8_dynamic_conv as onnx_int8_dynamic_conv
from converters.onnx import int8_static as onnx_int8_static
from converters.onnx import int8_weights as onnx_int8_weights
from converters.onnx import ort as onnx_ort
from converters.spec import Converter
from converters.tflite import recipes as tflite
from edge_core.errors import InputError

OURS: tuple[Converter, ...] = (  # the type checker verifies each
    onnx_fp32,
    onnx_fp16,
    onnx_int8_static.U8S8,
    onnx_int8_static.S8S8,
    onnx_int8_static.PER_TENSOR,
    onnx_int8_dynamic,
    onnx_int8_dynamic_conv,
    onnx_int8_weights,
    onnx_int4,
    onnx_int4_conv,
    onnx_ort.FP32,
    onnx_ort.U8S8,
    onnx_ort.S8S8,
    onnx_ort.DYNAMIC,
    *tflite.OURS,
)
GROUP = "edge_deploy.converters"


@cache
def by_name() -> dict[str, Converter]:
    """Every converter that is installed, by the name of its recipe."""
    table: dict[str, Converter] = {}
    for c in (*OURS, *(e.load() for e in entry_points(group=GROUP))):
        if table.setdefault(c.SPEC.name, c) is not c:
            raise InputError(f"two converters are named '{c.SPEC.name}'")
    return table


def get(name: str) -> Converter:
    """The converter of that name; raises InputError with the known names."""
    try:
        return by_name()[name]
    except KeyError:
        known = ", ".join(sorted(by_name()))
        raise InputError(f"no converter '{name}'", hint=f"one of: {known}") from None
