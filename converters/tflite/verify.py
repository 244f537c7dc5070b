"""Does a converted file compute what the ONNX model computes? No file is a success before.

The runtime may crash on a file, so it runs in a child process of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.comparison import make_random_feeds, require_same_outputs
from converters.layouts import to_artifact, to_model
from converters.onnx.model_file import load_model, save_model
from converters.tflite import flatbuffer
from converters.tflite.lower import Lowered, to_tflite, write
from converters.tflite.node import Lowering
from converters.tflite.ops.table import LOWERINGS
from edge_core.errors import ConvertError, MeasureError
from edge_core.extras import need
from edge_core.runtimes import onnxruntime, sample_store
from edge_core.runtimes.child import Child
from edge_core.tensors import Feeds

if TYPE_CHECKING:
    from onnx import ModelProto

RUNTIME = "litert"
MAX_SAMPLES = 4
ONNX_HINT = "an ONNX package (onnx-*) computes it; please report the op"


def convert_verified(
    model: Path,
    out: Path,
    *,
    layout: str,
    samples: Sequence[Feeds],
    lowerings: Mapping[str, Lowering] = LOWERINGS,
) -> Lowered:
    """Convert, then run both on random input and on a few samples.

    Raises ConvertError for an op that is not lowered, a file that does not run, or outputs that
    differ by more than converters.comparison allows; it names the first op that differs.
    """
    lowered = to_tflite(model, out, layout=layout, lowerings=lowerings)
    session = onnxruntime.open(model, threads=1, options={"graph_optimization": "off"})
    some = [samples[i] for i in range(min(len(samples), MAX_SAMPLES))]
    feeds = [make_random_feeds(session.inputs), *some]
    try:
        expected_runs = [session.run(each) for each in feeds]
    except MeasureError:  # some models refuse what no user would feed them
        feeds = feeds[1:]
        expected_runs = [session.run(each) for each in feeds]
    actual_runs = _run_converted(out, lowered, feeds, session.inputs, session.outputs)
    for expected, actual in zip(expected_runs, actual_runs, strict=True):
        try:
            require_same_outputs(expected, actual)
        except ConvertError as error:
            raise _name_first_difference(load_model(model), feeds[0], error, lowerings) from error
    return lowered


def _run_converted(
    file: Path, lowered: Lowered, feeds: Sequence[Feeds], inputs: Any, outputs: Any
) -> list[Feeds]:
    with tempfile.TemporaryDirectory() as folder, Child() as child:
        samples_path, answers = Path(folder) / "in", Path(folder) / "out"
        sample_store.write(
            samples_path, [to_artifact(each, inputs, lowered.inputs) for each in feeds]
        )
        try:
            child.ask("open", path=str(file), runtime=RUNTIME, threads=1, options={})
            child.ask("run", feeds=str(samples_path), out=str(answers))
        except MeasureError as error:
            kinds = sorted(
                {
                    flatbuffer.op_name(each, op)
                    for each in [flatbuffer.read(file)]
                    for _, op in flatbuffer.iter_operators(each)
                }
            )
            raise ConvertError(
                f"the converted file does not run: {error.what}",
                hint=f"its ops: {', '.join(kinds)}",
            ) from error
        outputs_read = sample_store.read(answers)
        return [
            to_model(outputs_read[i], outputs, lowered.outputs) for i in range(len(outputs_read))
        ]


def _name_first_difference(
    model: ModelProto, feeds: Feeds, error: ConvertError, lowerings: Mapping[str, Lowering]
) -> ConvertError:
    """The same error, naming the first op whose result differs, if it can be found."""
    helper = need("onnx.helper", "onnx")
    watched = need("onnx", "onnx").ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    for node in watched.graph.node:
        for name in filter(None, node.output):
            watched.graph.output.append(helper.make_empty_tensor_value_info(name))
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "watched.onnx", Path(folder) / "watched.tflite"
        save_model(watched, source)
        session = onnxruntime.open(source, threads=1, options={"graph_optimization": "off"})
        expected = session.run(feeds)
        try:
            lowered = write(watched, out, layout="NCHW", lowerings=lowerings)
            actual = _run_converted(out, lowered, [feeds], session.inputs, session.outputs)[0]
        except ConvertError:  # a constant as an output, for one
            return error
    for node in watched.graph.node:
        for name in filter(None, node.output):
            try:
                require_same_outputs({name: expected[name]}, actual)
            except ConvertError as e:
                what = f"op {node.op_type} ('{node.name or name}'): {e.what}"
                return ConvertError(f"{what} once converted to TFLite", hint=ONNX_HINT)
    return error
