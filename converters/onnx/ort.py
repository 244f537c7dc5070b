"""ONNX -> ORT format: a candidate's graph, optimised for the device's CPU before it is shipped.

Loading is faster and takes less memory, because nothing is left to optimise. How int8 layers are
joined depends on the architecture: made for ARM, EfficientNet-Lite0 in S8S8 took 38 instead of 7
ms on x86-64.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec

from converters.onnx import fp32, int8_dynamic, int8_static
from converters.onnx.ort_file import write_ort
from converters.spec import Conversion, Converter, Job

ARM = ("aarch64", "armv7l")


class OrtConverter:
    """Another converter's result in ORT format."""

    def __init__(self, inner: Converter) -> None:
        self._inner = inner
        spec = inner.SPEC
        self.SPEC = msgspec.structs.replace(
            spec,
            name=f"{spec.name}-ort",
            title=f"{spec.title}, in ORT format",
            suffix=".ort",
            arch_bound=True,
            is_optimised=True,
            is_reference=False,
        )

    def convert(self, job: Job) -> Conversion:
        """Write the .ort file; raises what the other converter raises."""
        out = job.out_dir / "model.ort"
        with tempfile.TemporaryDirectory() as folder:
            inner = self._inner.convert(msgspec.structs.replace(job, out_dir=Path(folder)))
            write_ort(inner.path, out, arm=job.arch in ARM)
            fixed = job.out_dir / "fixed.ort" if inner.fixed else None
            if inner.fixed and fixed:
                write_ort(inner.fixed, fixed, arm=job.arch in ARM)
        return msgspec.structs.replace(inner, path=out, fixed=fixed)


FP32 = OrtConverter(fp32)
U8S8 = OrtConverter(int8_static.U8S8)
S8S8 = OrtConverter(int8_static.S8S8)
DYNAMIC = OrtConverter(int8_dynamic)
