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
    theirs = {s.name: s for s in model}
    return {s.name: quantise(_change_layout(sample[s.name], theirs[s.name], s), s) for s in file}


def to_model(outputs: Mapping[str, Array], model: Specs, file: Specs) -> Feeds:
    """One answer of the file as the model would have given it, in reals."""
    mine = {s.name: s for s in file}
    return {
        s.name: _change_layout(dequantise(outputs[s.name], mine[s.name]), mine[s.name], s)
        for s in model
    }


def has_same_interface(model: Specs, file: Specs) -> bool:
    """Does the file take, or give, exactly what the model does, and is it not quantised?"""
    mine = {s.name: s for s in file}
    return all(not _find_transpose(s, mine[s.name]) and not mine[s.name].scale for s in model)


def _change_layout(array: Array, have: TensorSpec, want: TensorSpec) -> Array:
    order = _find_transpose(have, want)
    return np.ascontiguousarray(array.transpose(order)) if order else array


def _find_transpose(have: TensorSpec, want: TensorSpec) -> tuple[int, ...]:
    """The transpose from one layout to the other; empty when there is none. An image without a
    layout is NCHW, as in ONNX."""
    if have.layout == want.layout or "NHWC" not in (have.layout, want.layout):
        return ()
    return _TO_NHWC if want.layout == "NHWC" else _TO_NCHW
