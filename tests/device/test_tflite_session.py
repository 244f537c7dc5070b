"""The TFLite adapter on small files that are built here, tensor by tensor."""

from __future__ import annotations

import threading
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from edge_core.errors import InputError, MeasureError, MissingExtra
from edge_core.runtimes import onnxruntime, tflite, xnnpack
from edge_core.runtimes.child import Child

TYPES = {np.float32: "FLOAT32", np.int8: "INT8", np.int32: "INT32", np.int64: "INT64"}
OPTIONS = {"FULLY_CONNECTED": "FullyConnectedOptions", "RNN": "RNNOptions"}
WEIGHTS = np.arange(12, dtype=np.float32).reshape(3, 4)


class Builder:
    """A .tflite file with one subgraph."""

    def __init__(self) -> None:
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.model = schema.ModelT()
        self.model.version, self.model.subgraphs = 3, [self.graph]
        self.model.operatorCodes, self.model.buffers = [], [schema.BufferT()]

    def tensor(self, name, shape, dtype=np.float32, *, data=None, scale=None, signature=None):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.shapeSignature = name, list(shape), signature
        tensor.type, tensor.buffer = getattr(schema.TensorType, TYPES[dtype]), 0
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = list(np.ascontiguousarray(data, dtype).tobytes())
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        if scale is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [scale[0]], [scale[1]]
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def op(self, name, inputs, outputs, version=1):
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), version
        self.model.operatorCodes.append(code)
        op = schema.OperatorT()
        op.opcodeIndex, op.inputs, op.outputs = len(self.model.operatorCodes) - 1, inputs, outputs
        options = OPTIONS.get(name)
        if options:
            op.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            op.builtinOptions = getattr(schema, f"{options}T")()
        self.graph.operators.append(op)

    def save(self, path, inputs, outputs, **keys):
        """Write it; ``keys`` name tensors in the signature: key -> index."""
        self.graph.inputs, self.graph.outputs = inputs, outputs
        if keys:
            self.model.signatureDefs = [self._signature(inputs, outputs, keys)]
        packer = flatbuffers.Builder(1024)
        packer.Finish(self.model.Pack(packer), file_identifier=b"TFL3")
        path.write_bytes(bytes(packer.Output()))
        return path

    def _signature(self, inputs, outputs, keys):
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "serving_default", 0
        signature.inputs, signature.outputs = [], []
        for key, index in keys.items():
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = key, index
            (signature.inputs if index in inputs else signature.outputs).append(entry)
        return signature


def write_dense(path: Path, version=1, rows=1, signature=None, **keys) -> Path:
    """y = x W', for ``rows`` rows."""
    builder = Builder()
    inputs = builder.tensor("x_tensor", [rows, 4], signature=signature)
    weights = builder.tensor("w", WEIGHTS.shape, data=WEIGHTS)
    outputs = builder.tensor("y_tensor", [rows, 3], signature=signature and [*signature[:-1], 3])
    builder.op("FULLY_CONNECTED", [inputs, weights, -1], [outputs], version)
    return builder.save(path, [inputs], [outputs], **keys)


def open_model(path, threads=1, **options):
    return tflite.LITERT.open(path, threads=threads, options=options)


ROW = np.array([[1, -2, 3, 0.5]], np.float32)


def test_names_come_from_the_signature(tmp_path):
    session = open_model(write_dense(tmp_path / "m.tflite", x=0, y=2))
    assert [spec.name for spec in session.inputs] == ["x"]
    assert (session.inputs[0].dtype, session.inputs[0].shape) == ("float32", (1, 4))
    answer = session.run({"x": ROW})
    assert list(answer) == ["y"]
    np.testing.assert_allclose(answer["y"], ROW @ WEIGHTS.T)


def test_without_a_signature_they_are_those_of_the_tensors(tmp_path):
    session = open_model(write_dense(tmp_path / "m.tflite"))
    assert [spec.name for spec in session.inputs] == ["x_tensor"]
    np.testing.assert_allclose(session.run({"x_tensor": ROW})["y_tensor"], ROW @ WEIGHTS.T)


def test_a_signature_that_leaves_an_input_out_is_refused(tmp_path):
    builder = Builder()
    left, right, maximum = (builder.tensor(name, [1, 4]) for name in "acy")
    builder.op("MAXIMUM", [left, right], [maximum])
    path = builder.save(tmp_path / "m.tflite", [left, right], [maximum], first=left, result=maximum)
    with pytest.raises(MeasureError, match="does not name every input"):
        open_model(path)


def test_integers_that_stand_for_reals_have_their_scale(tmp_path):
    builder = Builder()
    quantised = builder.tensor("x", [1, 4], np.int8, scale=(0.5, 3))
    reals = builder.tensor("y", [1, 4])
    builder.op("DEQUANTIZE", [quantised], [reals], version=2)
    session = open_model(builder.save(tmp_path / "m.tflite", [quantised], [reals]))
    (spec,) = session.inputs
    assert (spec.dtype, spec.scale, spec.zero_point) == ("int8", 0.5, 3)
    assert session.outputs[0].scale == 0
    integers = np.array([[3, 5, -1, 4]], np.int8)
    assert session.run({"x": integers})["y"].tolist() == [[0, 1, -2, 0.5]]


def test_an_answer_is_not_changed_by_the_next_run(tmp_path):
    session = open_model(write_dense(tmp_path / "m.tflite", x=0, y=2))
    first = session.run({"x": ROW})["y"]
    kept = first.copy()
    session.run({"x": ROW + 1})
    np.testing.assert_array_equal(first, kept)


def test_the_state_of_one_run_does_not_reach_the_next(tmp_path):
    builder = Builder()
    inputs = builder.tensor("x", [1, 2])
    weights = [builder.tensor(name, [2, 2], data=np.eye(2)) for name in ("kernel", "recurrent")]
    bias, state, outputs = (
        builder.tensor("b", [2], data=[0, 0]),
        builder.tensor("state", [1, 2]),
        builder.tensor("y", [1, 2]),
    )
    builder.graph.tensors[state].isVariable = True
    builder.op("RNN", [inputs, *weights, bias, state], [outputs])
    session = open_model(builder.save(tmp_path / "m.tflite", [inputs], [outputs]))
    feed = np.array([[1, 2]], np.float32)
    assert [session.run({"x": feed})["y"].tolist() for _ in range(3)] == [[[1, 2]]] * 3


def test_two_threads_share_a_session(tmp_path):
    session = open_model(write_dense(tmp_path / "m.tflite", x=0, y=2))
    wrong = []

    def work(factor):
        for _ in range(300):
            answer = session.run({"x": factor * ROW})["y"]
            if not np.allclose(answer, factor * ROW @ WEIGHTS.T):
                wrong.append(factor)

    threads = [threading.Thread(target=work, args=(factor,)) for factor in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_dimension_that_is_not_fixed_has_a_name_and_any_size(tmp_path):
    session = open_model(write_dense(tmp_path / "m.tflite", signature=[-1, 4], x=0, y=2))
    assert session.inputs[0].shape == ("x_0", 4)
    for rows in (5, 1, 2):
        batch = np.repeat(ROW, rows, axis=0)
        np.testing.assert_allclose(session.run({"x": batch})["y"], batch @ WEIGHTS.T)


def test_what_an_input_must_not_be(tmp_path):
    session = open_model(write_dense(tmp_path / "m.tflite", x=0, y=2))
    with pytest.raises(MeasureError, match="was fed y\n  hint: inputs: x"):
        session.run({"y": ROW})
    with pytest.raises(MeasureError, match=r"could not run the model: Cannot set tensor: Got"):
        session.run({"x": ROW.astype(np.float64)})
    with pytest.raises(MeasureError, match="Dimension mismatch"):
        session.run({"x": ROW[:, :3]})
    np.testing.assert_allclose(session.run({"x": ROW})["y"], ROW @ WEIGHTS.T)  # and it lives on


def test_a_newer_operator_is_refused_by_name(tmp_path):
    with pytest.raises(MeasureError) as e:
        open_model(write_dense(tmp_path / "m.tflite", version=99))
    here = tflite.LITERT.version()
    assert e.value.what == (
        f"litert {here} cannot load m.tflite: "
        "Didn't find op for builtin opcode 'FULLY_CONNECTED' version '99'."
    )


def test_shapes_that_an_operator_cannot_take_are_refused_by_its_name(tmp_path):
    builder = Builder()
    wide, narrow, maximum = (
        builder.tensor("x", [1, 5]),
        builder.tensor("y", [1, 3]),
        builder.tensor("z", [1, 5]),
    )
    builder.op("MAXIMUM", [wide, narrow], [maximum])
    path = builder.save(tmp_path / "m.tflite", [wide, narrow], [maximum])
    with pytest.raises(MeasureError, match=r"\. Node number 0 \(MAXIMUM\) failed to prepare\.$"):
        open_model(path, xnnpack="0")


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "m.tflite").write_bytes(b"no model at all")
    with pytest.raises(MeasureError, match=r"cannot load m\.tflite"):
        open_model(tmp_path / "m.tflite")


def test_options_are_checked_and_reach_the_runtime(tmp_path):
    path = write_dense(tmp_path / "m.tflite")

    def nodes(**options):
        return [
            node["op_name"] for node in open_model(path, **options)._interpreter._get_ops_details()
        ]

    assert nodes() == nodes(xnnpack="1") == ["FULLY_CONNECTED", "DELEGATE"]
    assert nodes(xnnpack="0") == ["FULLY_CONNECTED"]
    with pytest.raises(InputError, match="xnnpack is '2'"):
        open_model(path, xnnpack="2")
    with pytest.raises(InputError, match="litert has no option 'gpu'"):
        open_model(path, gpu="1")


def test_the_runtime_that_is_not_installed_is_explained():
    with pytest.raises(MissingExtra, match="'tflite-runtime' is not installed"):
        tflite.TFLITE_RUNTIME.version()


def write_mixed(path: Path) -> Path:
    """A layer that XNNPACK takes, one that it does not, and one that it takes."""
    builder = Builder()
    square = builder.tensor("w", [64, 64], data=np.eye(64))
    inputs, hidden, summed, outputs = (builder.tensor(name, [8, 64]) for name in "xhcy")
    builder.op("FULLY_CONNECTED", [inputs, square, -1], [hidden])
    builder.op("CUMSUM", [hidden, builder.tensor("axis", [1], np.int32, data=[1])], [summed])
    builder.op("FULLY_CONNECTED", [summed, square, -1], [outputs])
    return builder.save(path, [inputs], [outputs])


def test_operators_outside_xnnpack_are_counted(tmp_path):
    split = tflite.LITERT.delegation(write_mixed(tmp_path / "m.tflite"), threads=1)
    assert (split.ops, split.partitions, split.outside) == (3, 2, {"CUMSUM": 1})
    assert split.slowdown is None or split.slowdown >= 1
    whole = tflite.LITERT.delegation(write_dense(tmp_path / "d.tflite"), threads=1)
    assert whole == xnnpack.Delegation(ops=1, partitions=1, outside={}, slowdown=1.0)


def test_a_child_tells_it_of_a_runtime_that_delegates(tmp_path):
    path = str(write_mixed(tmp_path / "m.tflite"))
    with Child() as child:
        reply = child.ask("delegation", path=path, runtime="litert", threads=1)
        assert reply["outside"] == {"CUMSUM": 1}
        with pytest.raises(MeasureError, match="onnxruntime delegates no operators"):
            child.ask("delegation", path=path, runtime=onnxruntime.SPEC.name, threads=1)


@pytest.mark.parametrize(
    ("now", "own", "share", "slowdown"),
    [
        (8.0, 10.0, 0.5, 8 / 6),  # 5 outside and 3 inside: all inside takes 6
        (3.0, 10.0, 0.0, 1.0),
        (10.0, 10.0, 0.9, 1.0),  # XNNPACK is no faster here
        (11.0, 10.0, 0.5, 1.0),  # or slower
        (4.0, 10.0, 0.5, None),  # what runs outside cannot take 5 of 4
        (4.0, 10.0, 1.0, None),
    ],
)
def test_the_slowdown_is_predicted_from_two_times_and_a_share(now, own, share, slowdown):
    predicted = xnnpack.predict_slowdown(now, own, share)
    assert predicted == (slowdown if slowdown is None else pytest.approx(slowdown))


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_are_as_many_as_asked_for(tmp_path, threads):
    before = len(list(Path("/proc/self/task").iterdir()))
    session = open_model(write_dense(tmp_path / "m.tflite"), threads=threads)
    session.run({"x_tensor": ROW})
    assert len(list(Path("/proc/self/task").iterdir())) - before == threads - 1
