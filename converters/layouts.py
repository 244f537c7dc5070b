"""Between a model's own tensors and those of a file made of it: layouts, and integers for reals.

Samples and outputs are compared as the user's model has them; a file may take NHWC images instead
of NCHW ones, or integers that stand for reals. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edge_core.tensors import Array, Feeds, TensorSpec, dequantise, quantise

Specs = Sequence[TensorSpec]
_TO_NHWC, _TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


def to_artifact(sample: Feeds, model: Specs, file: Specs) -> Feeds:
    """A sample of the model as the file takes it."""
    theirs = {spec.name: spec for spec in model}
    return {
        spec.name: quantise(_change_layout(sample[spec.name], theirs[spec.name], spec), spec)
        for spec in file
    }


def to_model(outputs: Mapping[str, Array], model: Specs, file: Specs) -> Feeds:
    """One answer of the file as the model would have given it, in reals."""
    mine = {spec.name: spec for spec in file}
    return {
        spec.name: _change_layout(
            dequantise(outputs[spec.name], mine[spec.name]), mine[spec.name], spec
        )
        for spec in model
    }


def has_same_interface(model: Specs, file: Specs) -> bool:
    """Does the file take, or give, exactly what the model does, and is it not quantised?"""
    mine = {spec.name: spec for spec in file}
    return all(
        not _find_transpose(spec, mine[spec.name]) and not mine[spec.name].scale for spec in model
    )


def _change_layout(array: Array, source: TensorSpec, target: TensorSpec) -> Array:
    order = _find_transpose(source, target)
    return np.ascontiguousarray(array.transpose(order)) if order else array


def _find_transpose(source: TensorSpec, target: TensorSpec) -> tuple[int, ...]:
    """The transpose from one layout to the other; empty when there is none. An image without a
    layout is NCHW, as in ONNX."""
    if source.layout == target.layout or "NHWC" not in (source.layout, target.layout):
        return ()
    return _TO_NHWC if target.layout == "NHWC" else _TO_NCHW
