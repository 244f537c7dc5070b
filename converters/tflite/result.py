"""What a recipe wrote, and the check that it did anything."""

from __future__ import annotations

from pathlib import Path

import msgspec

from converters import reduction
from converters.tflite import flatbuffer, versions


class Result(msgspec.Struct, frozen=True):
    """A written file: its share of weight bytes in 8 bits or fewer, and notes for the report."""

    share: float  # 0 to 1, of the bytes as stored
    notes: tuple[str, ...] = ()
    times: tuple[str, ...] = ()  # notes that vary from run to run


def write_smaller(
    model: flatbuffer.Model,
    original: flatbuffer.Model,
    source: Path,
    out: Path,
    notes: tuple[str, ...] = (),
) -> Result:
    """Write what a recipe made of ``original`` by storing weights in fewer bits.

    Raises ConvertError if it took hardly any of them.
    """
    reduction.require_reduction(
        flatbuffer.count_weight_bytes(original), flatbuffer.count_weight_bytes(model), source.name
    )
    versions.stamp(model)
    flatbuffer.write(model, out)
    return Result(share=flatbuffer.compute_quantised_share(model), notes=notes)
