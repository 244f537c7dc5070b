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
        t = schema.TensorT()
        t.name, t.shape, t.shapeSignature = name, list(shape), signature
        t.type, t.buffer = getattr(schema.TensorType, TYPES[dtype]), 0
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = list(np.ascontiguousarray(data, dtype).tobytes())
            self.model.buffers.append(buffer)
            t.buffer = len(self.model.buffers) - 1
        if scale is not None:
            t.quantization = schema.QuantizationParametersT()
            t.quantization.scale, t.quantization.zeroPoint = [scale[0]], [scale[1]]
        self.graph.tensors.append(t)
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

    def saved(self, path, inputs, outputs, **keys):
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


def dense(path: Path, version=1, rows=1, signature=None, **keys) -> Path:
    """y = x W', for ``rows`` rows."""
    b = Builder()
    x = b.tensor("x_tensor", [rows, 4], signature=signature)
    w = b.tensor("w", WEIGHTS.shape, data=WEIGHTS)
    y = b.tensor("y_tensor", [rows, 3], signature=signature and [*signature[:-1], 3])
    b.op("FULLY_CONNECTED", [x, w, -1], [y], version)
    return b.saved(path, [x], [y], **keys)


def opened(path, threads=1, **options):
    return tflite.LITERT.open(path, threads=threads, options=options)


X = np.array([[1, -2, 3, 0.5]], np.float32)


def test_names_come_from_the_signature(tmp_path):
    session = opened(dense(tmp_path / "m.tflite", x=0, y=2))
    assert [s.name for s in session.inputs] == ["x"]
    assert (session.inputs[0].dtype, session.inputs[0].shape) == ("float32", (1, 4))
    answer = session.run({"x": X})
    assert list(answer) == ["y"]
    np.testing.assert_allclose(answer["y"], X @ WEIGHTS.T)


def test_without_a_signature_they_are_those_of_the_tensors(tmp_path):
    session = opened(dense(tmp_path / "m.tflite"))
    assert [s.name for s in session.inputs] == ["x_tensor"]
    np.testing.assert_allclose(session.run({"x_tensor": X})["y_tensor"], X @ WEIGHTS.T)


def test_a_signature_that_leaves_an_input_out_is_refused(tmp_path):
    b = Builder()
    a, c, y = (b.tensor(n, [1, 4]) for n in "acy")
    b.op("MAXIMUM", [a, c], [y])
    path = b.saved(tmp_path / "m.tflite", [a, c], [y], first=a, result=y)
    with pytest.raises(MeasureError, match="does not name every input"):
        opened(path)


def test_integers_that_stand_for_reals_have_their_scale(tmp_path):
    b = Builder()
    x = b.tensor("x", [1, 4], np.int8, scale=(0.5, 3))
    y = b.tensor("y", [1, 4])
    b.op("DEQUANTIZE", [x], [y], version=2)
    session = opened(b.saved(tmp_path / "m.tflite", [x], [y]))
    (spec,) = session.inputs
    assert (spec.dtype, spec.scale, spec.zero_point) == ("int8", 0.5, 3)
    assert session.outputs[0].scale == 0
    given = np.array([[3, 5, -1, 4]], np.int8)
    assert session.run({"x": given})["y"].tolist() == [[0, 1, -2, 0.5]]


def test_an_answer_is_not_changed_by_the_next_run(tmp_path):
    session = opened(dense(tmp_path / "m.tflite", x=0, y=2))
    first = session.run({"x": X})["y"]
    kept = first.copy()
    session.run({"x": X + 1})
    np.testing.assert_array_equal(first, kept)


def test_the_state_of_one_run_does_not_reach_the_next(tmp_path):
    b = Builder()
    x = b.tensor("x", [1, 2])
    weights = [b.tensor(n, [2, 2], data=np.eye(2)) for n in ("kernel", "recurrent")]
    bias, state, y = (
        b.tensor("b", [2], data=[0, 0]),
        b.tensor("state", [1, 2]),
        b.tensor("y", [1, 2]),
    )
    b.graph.tensors[state].isVariable = True
    b.op("RNN", [x, *weights, bias, state], [y])
    session = opened(b.saved(tmp_path / "m.tflite", [x], [y]))
    given = np.array([[1, 2]], np.float32)
    assert [session.run({"x": given})["y"].tolist() for _ in range(3)] == [[[1, 2]]] * 3


def test_two_threads_share_a_session(tmp_path):
    session = opened(dense(tmp_path / "m.tflite", x=0, y=2))
    wrong = []

    def work(factor):
        for _ in range(300):
            answer = session.run({"x": factor * X})["y"]
            if not np.allclose(answer, factor * X @ WEIGHTS.T):
                wrong.append(factor)

    threads = [threading.Thread(target=work, args=(f,)) for f in (1, 2, 3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_a_dimension_that_is_not_fixed_has_a_name_and_any_size(tmp_path):
    session = opened(dense(tmp_path / "m.tflite", signature=[-1, 4], x=0, y=2))
    assert session.inputs[0].shape == ("x_0", 4)
    for rows in (5, 1, 2):
        x = np.repeat(X, rows, axis=0)
        np.testing.assert_allclose(session.run({"x": x})["y"], x @ WEIGHTS.T)


def test_what_an_input_must_not_be(tmp_path):
    session = opened(dense(tmp_path / "m.tflite", x=0, y=2))
    with pytest.raises(MeasureError, match="was fed y\n  hint: inputs: x"):
        session.run({"y": X})
    with pytest.raises(MeasureError, match=r"could not run the model: Cannot set tensor: Got"):
        session.run({"x": X.astype(np.float64)})
    with pytest.raises(MeasureError, match="Dimension mismatch"):
        session.run({"x": X[:, :3]})
    np.testing.assert_allclose(session.run({"x": X})["y"], X @ WEIGHTS.T)  # and it lives on


def test_a_newer_operator_is_refused_by_name(tmp_path):
    with pytest.raises(MeasureError) as e:
        opened(dense(tmp_path / "m.tflite", version=99))
    here = tflite.LITERT.version()
    assert e.value.what == (
        f"litert {here} cannot load m.tflite: "
        "Didn't find op for builtin opcode 'FULLY_CONNECTED' version '99'."
    )


def test_shapes_that_an_operator_cannot_take_are_refused_by_its_name(tmp_path):
    b = Builder()
    x, y, z = b.tensor("x", [1, 5]), b.tensor("y", [1, 3]), b.tensor("z", [1, 5])
    b.op("MAXIMUM", [x, y], [z])
    path = b.saved(tmp_path / "m.tflite", [x, y], [z])
    with pytest.raises(MeasureError, match=r"\. Node number 0 \(MAXIMUM\) failed to prepare\.$"):
        opened(path, xnnpack="0")


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "m.tflite").write_bytes(b"no model at all")
    with pytest.raises(MeasureError, match=r"cannot load m\.tflite"):
        opened(tmp_path / "m.tflite")


def test_options_are_checked_and_reach_the_runtime(tmp_path):
    path = dense(tmp_path / "m.tflite")

    def nodes(**options):
        return [n["op_name"] for n in opened(path, **options)._interpreter._get_ops_details()]

    assert nodes() == nodes(xnnpack="1") == ["FULLY_CONNECTED", "DELEGATE"]
    assert nodes(xnnpack="0") == ["FULLY_CONNECTED"]
    with pytest.raises(InputError, match="xnnpack is '2'"):
        opened(path, xnnpack="2")
    with pytest.raises(InputError, match="litert has no option 'gpu'"):
        opened(path, gpu="1")


def test_the_runtime_that_is_not_installed_is_explained():
    with pytest.raises(MissingExtra, match="'tflite-runtime' is not installed"):
        tflite.TFLITE_RUNTIME.version()


def mixed(path: Path) -> Path:
    """A layer that XNNPACK takes, one that it does not, and one that it takes."""
    b = Builder()
    square = b.tensor("w", [64, 64], data=np.eye(64))
    x, h, c, y = (b.tensor(n, [8, 64]) for n in "xhcy")
    b.op("FULLY_CONNECTED", [x, square, -1], [h])
    b.op("CUMSUM", [h, b.tensor("axis", [1], np.int32, data=[1])], [c])
    b.op("FULLY_CONNECTED", [c, square, -1], [y])
    return b.saved(path, [x], [y])


def test_operators_outside_xnnpack_are_counted(tmp_path):
    found = tflite.LITERT.delegation(mixed(tmp_path / "m.tflite"), threads=1)
    assert (found.ops, found.partitions, found.outside) == (3, 2, {"CUMSUM": 1})
    assert found.slowdown is None or found.slowdown >= 1
    whole = tflite.LITERT.delegation(dense(tmp_path / "d.tflite"), threads=1)
    assert whole == xnnpack.Delegation(ops=1, partitions=1, outside={}, slowdown=1.0)


def test_a_child_tells_it_of_a_runtime_that_delegates(tmp_path):
    path = str(mixed(tmp_path / "m.tflite"))
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
    found = xnnpack.predict_slowdown(now, own, share)
    assert found == (slowdown if slowdown is None else pytest.approx(slowdown))


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_are_as_many_as_asked_for(tmp_path, threads):
    before = len(list(Path("/proc/self/task").iterdir()))
    session = opened(dense(tmp_path / "m.tflite"), threads=threads)
    session.run({"x_tensor": X})
    assert len(list(Path("/proc/self/task").iterdir())) - before == threads - 1
