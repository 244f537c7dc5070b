"""Recurrent layers and control flow as TFLite: unrolled, and equal to ONNX Runtime."""

from __future__ import annotations

import io
import warnings

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from converters.onnx.preparation import prepare_model
from converters.tflite import flatbuffer, lower, op_versions
from edge_core.errors import ConvertError
from edge_core.runtimes import onnxruntime as ort_adapter
from edge_core.runtimes.tflite import LITERT
from examples import data
from tests import graphs
from tests.graphs import FLOAT, INT64, constant, value, weight

BOOL, INT32 = TensorProto.BOOL, TensorProto.INT32
STEPS, BATCH, SIZE, HIDDEN = 5, 3, 4, 6
STATES = {"LSTM": ("Y", "Y_h", "Y_c"), "GRU": ("Y", "Y_h"), "RNN": ("Y", "Y_h")}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@pytest.fixture
def convert_and_open(tmp_path):
    """The session of a model's float TFLite file."""

    def convert(model, name="model"):
        source = graphs.save_model(model, tmp_path / f"{name}.onnx")
        lower.to_tflite(source, tmp_path / f"{name}.tflite")
        return LITERT.open(tmp_path / f"{name}.tflite", threads=1, options={})

    return convert


def check(session, model, feeds, atol=2e-5, reference=False):
    if reference:
        run = ReferenceEvaluator(model).run
    else:
        run = ort.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        ).run
    actual = session.run(feeds)
    names = [output.name for output in model.graph.output]
    for name, expected in zip(names, run(None, feeds), strict=True):
        np.testing.assert_allclose(actual[name], expected, atol=atol, rtol=1e-4, err_msg=name)


def recurrent(op, constants=(), fed_names=(), *, way="forward", **attributes):
    """A node with the optional inputs ``constants`` and the inputs ``fed_names``."""
    directions = 2 if way == "bidirectional" else 1
    shapes = {
        "X": (STEPS, BATCH, SIZE), "W": (directions, GATES[op] * HIDDEN, SIZE),
        "R": (directions, GATES[op] * HIDDEN, HIDDEN), "B": (directions, 2 * GATES[op] * HIDDEN),
        "lengths": (BATCH,), "h": (directions, BATCH, HIDDEN), "c": (directions, BATCH, HIDDEN),
        "P": (directions, 3 * HIDDEN),
    }  # fmt: skip
    present = {"X", "W", "R", *constants, *fed_names}
    names = [name if name in present else "" for name in shapes]
    while not names[-1]:
        names.pop()
    weights = [
        weight(name, *shapes[name], scale=0.6) for name in shapes if name in {"W", "R", *constants}
    ]
    if "lengths" in constants:
        weights = [array for array in weights if array.name != "lengths"]
        weights.append(constant("lengths", [2, STEPS, 1], np.int32))
    inputs = [
        value(name, shapes[name], INT32 if name == "lengths" else FLOAT)
        for name in ("X", *fed_names)
    ]
    rows = (directions, BATCH, HIDDEN)
    outputs = [value(name, (STEPS, *rows) if name == "Y" else rows) for name in STATES[op]]
    node = helper.make_node(
        op, names, STATES[op], hidden_size=HIDDEN, direction=way, **attributes
    )  # fmt: skip
    return graphs.make_model([node], inputs, outputs, weights)


def feeds_of(model):
    rng = np.random.default_rng(0)
    feeds = {}
    for entry in model.graph.input:
        shape = [dimension.dim_value for dimension in entry.type.tensor_type.shape.dim]
        feeds[entry.name] = rng.standard_normal(shape).astype(np.float32)
    if "lengths" in feeds:
        feeds["lengths"] = np.array([4, 1, STEPS], np.int32)
    return feeds


@pytest.mark.parametrize("way", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(
    ("op", "constants", "fed_names", "attributes"),
    [
        ("LSTM", (), (), {}),
        ("LSTM", ("B", "P"), ("lengths", "h", "c"), {"clip": 0.5}),
        ("LSTM", ("B", "lengths", "h", "c"), (), {"input_forget": 1}),
        ("GRU", (), (), {}),
        ("GRU", ("B",), ("lengths", "h"), {"linear_before_reset": 1}),
        ("GRU", ("B", "lengths"), ("h",), {"clip": 0.3}),
        ("RNN", (), (), {}),
        ("RNN", ("B", "h"), ("lengths",), {"clip": 0.4}),
    ],
)
def test_every_form_of_a_recurrent_layer_equals_onnx_runtime(
    convert_and_open, op, constants, fed_names, attributes, way
):
    model = recurrent(op, constants, fed_names, way=way, **attributes)
    check(convert_and_open(model), model, feeds_of(model))


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_a_sequence_of_no_steps_ends_in_zeros_as_in_onnx_runtime(convert_and_open, op):
    model = recurrent(op, ("B",), ("lengths", "h"), way="bidirectional")
    feeds = feeds_of(model) | {"lengths": np.array([4, 0, STEPS], np.int32)}
    check(convert_and_open(model), model, feeds)


@pytest.mark.parametrize(
    ("names", "alpha", "beta"),
    [
        (["HardSigmoid", "Elu", "Softsign"], [], []),
        (["LeakyRelu", "ScaledTanh", "Affine"], [0.2, 0.7, 0.9], [1.1, -0.1]),
        (["Softplus", "ThresholdedRelu", "HardSigmoid"], [0.4, 0.3], [0.6]),
        (["Sigmoid", "Relu", "Tanh"], [], []),
    ],
)
def test_activations_take_their_alpha_and_beta_in_turn(convert_and_open, names, alpha, beta):
    lists = {"activation_alpha": alpha, "activation_beta": beta}
    lists = {name: values for name, values in lists.items() if values}
    model = recurrent("LSTM", activations=names, **lists)
    check(convert_and_open(model), model, feeds_of(model))


def test_an_activation_without_the_alpha_it_needs_is_refused(convert_and_open):
    # ONNX Runtime takes 0 for it, the standard 1.
    with pytest.raises(ConvertError, match="'ThresholdedRelu' comes without its alpha"):
        convert_and_open(recurrent("RNN", activations=["ThresholdedRelu"]))


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_the_batch_can_come_first(convert_and_open, op):
    gate_shape = (1, GATES[op] * HIDDEN)
    node = helper.make_node(op, ["X", "W", "R"], STATES[op][:2], hidden_size=HIDDEN, layout=1)
    model = graphs.make_model(
        [node], [value("X", (BATCH, STEPS, SIZE))],
        [value("Y", (BATCH, STEPS, 1, HIDDEN)), value("Y_h", (BATCH, 1, HIDDEN))],
        [weight("W", *gate_shape, SIZE, scale=0.6), weight("R", *gate_shape, HIDDEN, scale=0.6)],
    )  # fmt: skip
    # ONNX Runtime refuses this layout; the reference evaluator takes it.
    check(convert_and_open(model), model, feeds_of(model), reference=True)


def test_all_steps_share_one_constant_of_weights(convert_and_open, tmp_path):
    convert_and_open(recurrent("LSTM", ("B",)))
    [graph] = flatbuffer.read(tmp_path / "model.tflite").subgraphs
    shapes = [tuple(tensor.shape) for tensor in graph.tensors if tensor.buffer]
    assert shapes.count((4 * HIDDEN, HIDDEN)) == 1


def test_a_sequence_too_long_to_unroll_is_refused_with_the_number(convert_and_open):
    model = recurrent("RNN")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2000
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 2000
    with pytest.raises(ConvertError, match="2000 steps are more than the 1024"):
        convert_and_open(model)


def test_silero_hands_its_state_on(tmp_path, silero):
    source, out = tmp_path / "silero.onnx", tmp_path / "silero.tflite"
    prepare_model(silero, source, {"input": (1, 576), "state": (2, 1, 128), "sr": 16000})
    lower.to_tflite(source, out)
    session = LITERT.open(out, threads=1, options={})
    original = ort_adapter.open(source, threads=1, options={})
    mine = theirs = np.zeros((2, 1, 128), np.float32)
    loud = []
    for feeds in data.speech_eval():
        actual = session.run({"input": feeds["input"], "state": mine})
        expected = original.run({"input": feeds["input"], "state": theirs})
        np.testing.assert_allclose(actual["output"], expected["output"], atol=1e-5)
        mine, theirs = actual["stateN"], expected["stateN"]
        loud.append(float(expected["output"].max()))
    assert max(loud) > 0.5 > min(loud)  # speech and silence


def test_an_lstm_reads_digits_row_by_row(tmp_path):
    examples = list(data.digits_eval())
    images = np.concatenate([array for array, _ in examples]).reshape(-1, 14, 2, 14, 2).mean((2, 4))
    classes = np.array([digit for _, digit in examples])
    net = _train(images[::2], classes[::2])
    source = tmp_path / "rows.onnx"
    source.write_bytes(_export(net))
    lower.to_tflite(source, tmp_path / "rows.tflite")
    session = LITERT.open(tmp_path / "rows.tflite", threads=1, options={})
    original = ort_adapter.open(source, threads=1, options={})
    right = 0
    for image, digit in zip(images[1::20], classes[1::20], strict=True):
        actual, expected = (
            opened.run({"rows": image[None]})["logits"] for opened in (session, original)
        )
        np.testing.assert_allclose(actual, expected, atol=1e-4)
        right += int(actual.argmax() == digit)
    assert right >= 0.85 * len(images[1::20])
    names = {
        op.name for op in op_versions.iter_operators(flatbuffer.read(tmp_path / "rows.tflite"))
    }
    assert "CONCATENATION" not in names  # the dense layer reads the last step alone


class Rows(torch.nn.Module):
    """The 14 rows of a digit at half its size, one after the other, then a dense layer."""

    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(14, 48, batch_first=True)
        self.dense = torch.nn.Linear(48, 10)

    def forward(self, rows):
        return self.dense(self.lstm(rows)[0][:, -1])


def _train(images, classes):
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # layers so small are slower in several
    net, images, classes = Rows(), torch.tensor(images), torch.tensor(classes)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(6):
        for batch in torch.randperm(len(images)).split(125):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(net(images[batch]), classes[batch]).backward()
            optimiser.step()
    torch.set_num_threads(threads)
    return net.eval()


def _export(net):
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as examples.models does
        torch.onnx.export(
            net, (torch.zeros(1, 14, 14),), buffer, input_names=["rows"],
            output_names=["logits"], opset_version=17, dynamo=False,
        )  # fmt: skip
    return buffer.getvalue()


def choice(then, otherwise, shape=(2, 3), condition="condition"):
    """An If over "x" whose condition is fed."""
    branches = [
        helper.make_graph(nodes, name, [], [value(out, shape)])
        for name, out, nodes in (("then", "a", then), ("else", "b", otherwise))
    ]
    node = helper.make_node(
        "If", [condition], ["y"], then_branch=branches[0], else_branch=branches[1]
    )
    return [node], [value("x", (2, 3)), value("condition", (), BOOL)], [value("y", shape)]


def test_both_branches_of_an_if_are_computed_and_one_is_chosen(convert_and_open):
    model = graphs.make_model(
        *choice([helper.make_node("Exp", ["x"], ["a"])], [helper.make_node("Neg", ["x"], ["b"])])
    )
    session = convert_and_open(model)
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for chosen in (True, False):
        check(session, model, {"x": array, "condition": np.array(chosen)})


def test_branches_of_different_shape_are_refused(convert_and_open):
    model = graphs.make_model(
        *choice(
            [helper.make_node("Identity", ["x"], ["a"])],
            [helper.make_node("Transpose", ["x"], ["b"])],
            shape=None,
        )
    )
    with pytest.raises(ConvertError, match=r"branches give float32 \(2, 3\) and float32 \(3, 2\)"):
        convert_and_open(model)


def test_a_branch_that_may_fail_where_it_is_not_taken_is_refused(convert_and_open):
    nodes, inputs, outputs = choice(
        [helper.make_node("Gather", ["x", "rows"], ["a"])],
        [helper.make_node("Neg", ["x"], ["b"])],
    )
    model = graphs.make_model(nodes, [*inputs, value("rows", (2,), INT64)], outputs)
    with pytest.raises(ConvertError, match="GATHER may fail in the branch that is not taken"):
        convert_and_open(model)


def loop(trips, condition="Identity"):
    """Add the trip's number to "x" and keep the sums."""
    again = {
        "Identity": [helper.make_node("Identity", ["going"], ["again"])],
        "Less": [
            helper.make_node("ReduceSum", ["sum"], ["total"], keepdims=0),
            helper.make_node("Less", ["total", "limit"], ["again"]),
        ],
    }[condition]
    nodes = [
        helper.make_node("Cast", ["trip"], ["number"], to=FLOAT),
        helper.make_node("Add", ["before", "number"], ["sum"]),
        *again,
        helper.make_node("Mul", ["sum", "w"], ["row"]),
    ]
    body = helper.make_graph(
        nodes, "body",
        [value("trip", (), INT64), value("going", (), BOOL), value("before", (4,))],
        [value("again", (), BOOL), value("sum", (4,)), value("row", (4,))],
    )  # fmt: skip
    return graphs.make_model(
        [helper.make_node("Loop", ["trips", "", "x"], ["last", "rows"], body=body)],
        [value("x", (4,))], [value("last", (4,)), value("rows", (trips, 4))],
        [constant("trips", trips), weight("w", 4), constant("limit", 9.0, np.float32)],
    )  # fmt: skip


def test_a_loop_is_unrolled(convert_and_open):
    model = loop(5)
    check(convert_and_open(model), model, {"x": np.ones(4, np.float32)})


def test_a_loop_that_the_data_ends_is_refused(convert_and_open):
    with pytest.raises(ConvertError, match="its loop condition is computed at run time"):
        convert_and_open(loop(5, "Less"))


def test_a_loop_of_too_many_trips_is_refused_with_the_number(convert_and_open):
    with pytest.raises(ConvertError, match="5000 trips of 4 nodes are more than the 8192"):
        convert_and_open(loop(5000))


def test_a_scan_reads_and_writes_backwards_along_any_axis(convert_and_open):
    body = helper.make_graph(
        [
            helper.make_node("Add", ["before", "part"], ["sum"]),
            helper.make_node("Tanh", ["sum"], ["out"]),
        ],
        "body",
        [value("before", (3,)), value("part", (3,))],
        [value("sum", (3,)), value("out", (3,))],
    )
    node = helper.make_node(
        "Scan", ["start", "x"], ["last", "rows"], body=body, num_scan_inputs=1,
        scan_input_axes=[1], scan_input_directions=[1], scan_output_axes=[-1],
        scan_output_directions=[1],
    )  # fmt: skip
    model = graphs.make_model(
        [node], [value("start", (3,)), value("x", (3, 6))],
        [value("last", (3,)), value("rows", (3, 6))],
    )  # fmt: skip
    array = np.arange(18, dtype=np.float32).reshape(3, 6) / 20
    check(convert_and_open(model), model, {"start": np.ones(3, np.float32), "x": array})


def test_the_weights_of_a_recurrent_layer_must_be_constants(convert_and_open):
    model = recurrent("GRU")
    [weights] = [tensor for tensor in model.graph.initializer if tensor.name == "R"]
    model.graph.initializer.remove(weights)
    model.graph.input.append(value("R", list(weights.dims)))
    with pytest.raises(ConvertError, match="its weight R is computed at run time"):
        convert_and_open(model)
