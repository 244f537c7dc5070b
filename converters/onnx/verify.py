"""Does a rewritten graph still compute what the user's file computes? One run of both decides."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from converters.comparison import (
    TOLERANCE,
    TOLERANCE_FP16,
    make_random_feeds,
    require_same_outputs,
)
from converters.onnx.model_file import iter_weights, make_unknown_op_error, save_model
from edge_core.errors import ConvertError, MeasureError
from edge_core.extras import need
from edge_core.runtimes import onnxruntime
from edge_core.runtimes.adapter import Session
from edge_core.tensors import Feeds

if TYPE_CHECKING:
    from onnx import ModelProto

_NO_KERNEL = re.compile(r"implementation for (\S+)\(\d+\) node with name '([^']*)'")
_NO_SCHEMA = re.compile(r"(\S+:\w+)\(-?\d+\) is not a registered function/op")


def verify_rewrite(path: Path, constants: Feeds, rewritten: ModelProto) -> str:
    """Run the file at ``path`` and ``rewritten`` on the same random input. Returns "" when they
    agree, or why they could not be compared.

    ``constants`` are the inputs that became constants. Raises ConvertError when the outputs differ
    or a file does not load, naming the op that ONNX Runtime lacks.
    """
    # Without optimisation: the question is whether the graphs agree, not whether an optimiser errs.
    original = _open(path, path, "off")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "rewritten.onnx"
        save_model(rewritten, copy)
        session = _open(copy, path, "off")
        _open(copy, path, "all")  # as devices load it; some branches only fail there
    feeds = make_random_feeds(session.inputs)
    try:
        expected = original.run({**feeds, **constants})
    except MeasureError as error:  # some models refuse what no user would feed them
        return error.what
    try:
        actual = session.run(feeds)
    except MeasureError as error:
        raise ConvertError(f"{path.name} does not run once rewritten: {error.what}") from error
    kinds = need("onnx", "onnx").TensorProto
    half = any(
        tensor.data_type in (kinds.FLOAT16, kinds.BFLOAT16) for tensor in iter_weights(rewritten)
    )
    require_same_outputs(expected, actual, TOLERANCE_FP16 if half else TOLERANCE)
    return ""


def _open(file: Path, path: Path, level: str) -> Session:
    try:
        return onnxruntime.open(file, threads=1, options={"graph_optimization": level})
    except MeasureError as error:
        if match := _NO_KERNEL.search(error.what):
            raise make_unknown_op_error(path, match[1], match[2]) from error
        if match := _NO_SCHEMA.search(error.what):
            raise make_unknown_op_error(path, match[1], "") from error
        if file == path:
            raise ConvertError(error.what, hint="'edge inspect' lists the model's ops") from error
        raise ConvertError(
            f"{path.name} does not load with these shapes: {error.what}",
            hint="a scalar input that chooses a branch can be fixed, too: --shape NAME=VALUE",
        ) from error
