"""Packages that take any number of rows: graphs made free, refused by op, proven on the runtime."""

import json

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

import edge_sdk
from converters import registry as converters
from converters.batch_tracker import (
    BatchAxis,
    find_free_dimension,
    locate_rows,
    split_rows,
    stack_rows,
)
from converters.onnx.batch import free_onnx_batch
from converters.onnx.format import ONNX
from converters.onnx.preparation import prepare_model
from converters.spec import Ceiling, Job
from converters.tflite import flatbuffer, lower
from converters.tflite.batch import free_tflite_batch
from edge_core.errors import ConvertError, InputError, MeasureError
from edge_core.facts import DeviceFacts
from edge_core.machine.detect import detect
from edge_core.package import format as package
from edge_core.package.bench import bench_package
from edge_core.runtimes import onnxruntime, sample_store
from edge_core.runtimes.tflite import LITERT
from edge_sdk.build import batching, convert, measure, reader, runtime_env
from edge_sdk.build.samples import Samples
from edge_sdk.build.workspace import Workspace
from tests import graphs
from tests.cases import DIGITS, ROOT

GATEWAY = "x86-gateway-n100"
PLUGINS = str(ROOT / "tests" / "plugins")
CEILING = Ceiling(opset=21, ir=10)
node = helper.make_node


# Graphs as exporters write them for a batch of 1


def windows():
    """Windows of one clip as a batch, then side by side as features: a keyword model."""
    return graphs.make_model(
        [
            node("Slice", ["x", "zero", "four", "one"], ["a"]),
            node("Slice", ["x", "two", "six", "one"], ["b"]),
            node("Concat", ["a", "b"], ["both"], axis=0),
            node("MatMul", ["both", "w"], ["scored"]),
            node("Reshape", ["scored", "line"], ["y"]),
        ],
        [graphs.value("x", [1, 6, 3])],
        [graphs.value("y", [1, 40])],
        [
            graphs.constant("zero", [0]), graphs.constant("one", [1]), graphs.constant("two", [2]),
            graphs.constant("four", [4]), graphs.constant("six", [6]),
            graphs.constant("line", [1, -1]), graphs.weight("w", 3, 5),
        ],
    )  # fmt: skip


def class_token():
    """A constant before the patches, the first line behind attention: a vision transformer."""
    return graphs.make_model(
        [
            node("Concat", ["token", "x"], ["tokens"], axis=1),
            node("Add", ["tokens", "places"], ["placed"]),
            node("Reshape", ["placed", "heads"], ["split"]),
            node("Transpose", ["split"], ["turned"], perm=[0, 2, 1, 3]),
            node("Transpose", ["split"], ["other"], perm=[0, 2, 3, 1]),
            node("MatMul", ["turned", "other"], ["score"]),
            node("Softmax", ["score"], ["share"], axis=-1),
            node("MatMul", ["share", "turned"], ["mixed"]),
            node("Transpose", ["mixed"], ["back"], perm=[0, 2, 1, 3]),
            node("Reshape", ["back", "flat"], ["lines"]),
            node("Gather", ["lines", "first"], ["y"], axis=1),
        ],
        [graphs.value("x", [1, 4, 6])],
        [graphs.value("y", [1, 6])],
        [
            graphs.weight("token", 1, 1, 6), graphs.weight("places", 1, 5, 6),
            graphs.constant("heads", [1, 5, 2, 3]), graphs.constant("flat", [1, 5, 6]),
            graphs.constant("first", 0),
        ],
    )  # fmt: skip


def mask_by_places():
    """A mask looked up by places counted over all rows of a batch, as transformers 5 exports it."""
    return graphs.make_model(
        [
            node("Flatten", ["x"], ["lines"], axis=2),
            node("Gather", ["lines", "places"], ["seen"], axis=0),
            node("Reshape", ["seen", "wide"], ["mask"]),
            node("Expand", ["mask", "table"], ["spread"]),
            node("ReduceSum", ["spread", "one"], ["y"], keepdims=0),
        ],
        [graphs.value("x", [1, 6])],
        [graphs.value("y", [1, 1, 6])],
        [
            graphs.constant("places", [[[range(6)]]]), graphs.constant("wide", [1, 1, 1, 6]),
            graphs.constant("table", [1, 1, 4, 6]), graphs.constant("one", [2]),
        ],
    )  # fmt: skip


def channel_shuffle():
    """Channel shuffle, which knows that there is one image: ShuffleNet."""
    return graphs.make_model(
        [
            node("Reshape", ["x", "groups"], ["grouped"]),
            node("Transpose", ["grouped"], ["turned"], perm=[1, 0, 2]),
            node("Reshape", ["turned", "halves"], ["both"]),
            node("Gather", ["both", "second"], ["half"], axis=0),
            node("Conv", ["half", "w"], ["y"]),
        ],
        [graphs.value("x", [1, 6, 4, 4])],
        [graphs.value("y", [1, 5, 4, 4])],
        [
            graphs.constant("groups", [3, 2, 16]), graphs.constant("halves", [2, -1, 3, 4, 4]),
            graphs.constant("second", 1), graphs.weight("w", 5, 3, 1, 1),
        ],
    )  # fmt: skip


def without_its_batch():
    """The batch is dropped, and comes back."""
    return graphs.make_model(
        [
            node("Squeeze", ["x", "zero"], ["line"]),
            node("Tanh", ["line"], ["bent"]),
            node("Unsqueeze", ["bent", "zero"], ["whole"]),
            node("MatMul", ["whole", "w"], ["y"]),
        ],
        [graphs.value("x", [1, 8])],
        [graphs.value("y", [1, 3])],
        [graphs.constant("zero", [0]), graphs.weight("w", 8, 3)],
    )


def upsampling():
    return graphs.make_model(
        [
            node("Resize", ["x", "", "", "sizes"], ["wide"], mode="nearest"),
            node("Slice", ["wide", "from", "to"], ["y"]),
        ],
        [graphs.value("x", [1, 2, 3, 3])],
        [graphs.value("y", [1, 2, 4, 6])],
        [
            graphs.constant("sizes", [1, 2, 6, 6]), graphs.constant("from", [0, 0, 1]),
            graphs.constant("to", [1, 2, 5]),
        ],
    )  # fmt: skip


def recurrent():
    """Rows first outside, steps first inside, from states of zeros."""
    return graphs.make_model(
        [
            node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
            node("LSTM", ["steps", "wx", "wh", "", "", "h", "c"], ["states"], hidden_size=4),
            node("Squeeze", ["states", "one"], ["flat"]),
            node("Reshape", ["flat", "shape"], ["same"]),
            node("Transpose", ["same"], ["y"], perm=[1, 0, 2]),
        ],
        [graphs.value("x", [1, 5, 3])],
        [graphs.value("y", [1, 5, 4])],
        [
            graphs.weight("wx", 1, 16, 3), graphs.weight("wh", 1, 16, 4),
            graphs.constant("h", np.zeros((1, 1, 4)), np.float32),
            graphs.constant("c", np.zeros((1, 1, 4)), np.float32),
            graphs.constant("one", [1]), graphs.constant("shape", [5, 1, 4]),
        ],
    )  # fmt: skip


FREE = {
    build_graph.__name__: build_graph()
    for build_graph in (
        windows, class_token, mask_by_places, channel_shuffle, without_its_batch, upsampling,
        recurrent, graphs.perceptron, graphs.convolution,
    )
}  # fmt: skip


def make_one_op(kind, shape=(1, 8), out=(1, 8), constants=(), more=(), **how):
    return graphs.make_model(
        [
            node(kind, ["x", *(constant.name for constant in constants)], ["r"], **how),
            node("Add", ["r", "x"], ["y"]),
        ],
        [graphs.value("x", shape)],
        [graphs.value("y", out)],
        constants,
    )


FIXED = {
    "ReduceMean at 'r' mixes the rows": make_one_op("ReduceMean", axes=[0], keepdims=1),
    "Softmax at 'r' mixes the rows": make_one_op("Softmax", axis=0),
    "CumSum at 'r' mixes the rows": make_one_op("CumSum", constants=[graphs.constant("axis", 0)]),
    "Add at 'y' fixes the batch": make_one_op(
        "Tile", out=(3, 8), constants=[graphs.constant("repeats", [3, 1])]
    ),
    "output 'y' is 4x2: its first dimension is not the batch": graphs.make_model(
        [node("Reshape", ["x", "s"], ["y"])], [graphs.value("x", [1, 8])],
        [graphs.value("y", [4, 2])], [graphs.constant("s", [4, 2])],
    ),
    "output 'y' does not depend on the rows": graphs.make_model(
        [node("Add", ["c", "c"], ["y"]), node("Relu", ["x"], ["z"])], [graphs.value("x", [1, 8])],
        [graphs.value("z", [1, 8]), graphs.value("y", [1, 8])], [graphs.weight("c", 1, 8)],
    ),
    "input 'x' is 5x1x16: its first dimension is not a batch of 1": graphs.recurrent("LSTM"),
    "ReduceSum at 'total' mixes the rows": graphs.branches(fixed=False),
}  # fmt: skip


def make_rows(specs, count):
    rng = np.random.default_rng(3)

    def values(spec):
        shape = [1, *spec.shape[1:]]
        ints = rng.integers(0, 40, shape) if spec.name == "ids" else None
        return (rng.standard_normal(shape) if ints is None else ints).astype(spec.dtype)

    return [{spec.name: values(spec) for spec in specs} for _ in range(count)]


def concatenate_rows(rows):
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def is_close(expected, actual):
    return np.abs(expected - actual).max() <= 1e-5 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("name", FREE)
def test_each_row_gets_from_a_free_onnx_graph_what_it_gets_alone(name, tmp_path):
    graphs.save_model(FREE[name], tmp_path / "user.onnx")
    prepare_model(tmp_path / "user.onnx", tmp_path / "fixed.onnx", {})
    free, notes = free_onnx_batch(onnx.load(tmp_path / "fixed.onnx"))
    onnx.checker.check_model(free)
    graphs.save_model(free, tmp_path / "free.onnx")
    before, after = (
        onnxruntime.open(tmp_path / file, threads=1, options={})
        for file in ("fixed.onnx", "free.onnx")
    )
    assert not notes
    assert all(
        spec.shape[0] == "batch" and not spec.dynamic[1:]
        for spec in (*after.inputs, *after.outputs)
    )
    rows = make_rows(before.inputs, 5)
    batch_of_5 = after.run(concatenate_rows(rows))["y"]
    for i, row in enumerate(rows):
        assert np.array_equal(after.run(row)["y"], before.run(row)["y"])
        assert is_close(batch_of_5[i : i + 1], before.run(row)["y"])


@pytest.mark.parametrize("name", sorted(FREE.keys() - {"class_token"}))
def test_each_row_gets_from_a_free_tflite_file_what_it_gets_alone(name, tmp_path):
    graphs.save_model(FREE[name], tmp_path / "user.onnx")
    prepare_model(tmp_path / "user.onnx", tmp_path / "fixed.onnx", {})
    lower.to_tflite(tmp_path / "fixed.onnx", tmp_path / "fixed.tflite")
    model = flatbuffer.read(tmp_path / "fixed.tflite")
    free_tflite_batch(model)
    flatbuffer.write(model, tmp_path / "free.tflite")
    before, after = (
        LITERT.open(tmp_path / file, threads=1, options={})
        for file in ("fixed.tflite", "free.tflite")
    )
    pieces = [
        LITERT.delegation(tmp_path / file, 1).partitions for file in ("fixed.tflite", "free.tflite")
    ]
    assert pieces[1] <= pieces[0]
    rows = make_rows(before.inputs, 5)
    batch_of_5 = after.run(concatenate_rows(rows))["y"]
    for i, row in enumerate(rows):
        assert np.array_equal(after.run(row)["y"], before.run(row)["y"])  # again a batch of 1
        assert is_close(batch_of_5[i : i + 1], before.run(row)["y"])


@pytest.mark.parametrize("why", FIXED)
def test_a_graph_that_cannot_is_refused_and_the_op_named(why):
    with pytest.raises(ConvertError, match=why) as error:
        free_onnx_batch(FIXED[why])
    assert error.value.hint == "build it without --batch dynamic"


def test_a_constant_beside_the_rows_has_no_free_form_in_tflite(tmp_path):
    graphs.save_model(FREE["class_token"], tmp_path / "model.onnx")
    lower.to_tflite(tmp_path / "model.onnx", tmp_path / "model.tflite")
    with pytest.raises(ConvertError, match=r"^CONCATENATION at 'tokens' fixes the batch: LiteRT"):
        free_tflite_batch(flatbuffer.read(tmp_path / "model.tflite"))


def test_an_lstm_of_tflite_is_refused_because_its_states_have_one_row():
    model = flatbuffer.read(ROOT / "examples/data/lstm/trained_lstm.tflite")
    with pytest.raises(
        ConvertError, match=r"^UNIDIRECTIONAL_SEQUENCE_LSTM at '.*' fixes the batch"
    ):
        free_tflite_batch(model)


# Where rows lie


@given(st.data())
def test_rows_that_are_stacked_come_apart_and_are_found_again(data):
    shape = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    axis = data.draw(st.integers(0, len(shape) - 1))
    outer = data.draw(st.sampled_from([size for size in range(1, 7) if shape[axis] % size == 0]))
    rows = [np.random.default_rng(i).standard_normal(shape) for i in range(3)]
    where = BatchAxis(axis, outer)
    together = stack_rows(rows, where)
    for row, again in zip(rows, split_rows(together, where, 3), strict=True):
        assert np.array_equal(row, again)
    assert locate_rows(rows, together) == where
    together.flat[0] += 1
    assert locate_rows(rows, together) is None


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.data())
def test_a_reshape_is_freed_where_the_rows_are(want, data):
    have = data.draw(st.permutations(want))
    axis = data.draw(st.integers(0, len(have) - 1))
    place = find_free_dimension(BatchAxis(axis), tuple(have), tuple(want))
    if place is None:
        return
    rows = [np.random.default_rng(i).standard_normal(have) for i in range(3)]
    shape = [*want[:place], -1, *want[place + 1 :]]
    together = stack_rows(rows, BatchAxis(axis)).reshape(shape)
    for row, again in zip(rows, split_rows(together, BatchAxis(place), 3), strict=True):
        assert np.array_equal(row.reshape(want), again)


# Proof on the device's runtime


def subject(fixed, path):
    env = runtime_env.find_installed("onnxruntime")
    model = onnxruntime.open(fixed, threads=1, options={})
    return measure.Subject(
        path, path.name, {}, env, model.inputs, model.inputs, model.outputs, fixed,
        path.suffix == ".ort",
    )  # fmt: skip


def write_dense(path, *, rows, extra=()):
    """x @ w, and what ``extra`` nodes make "y" of "h"."""
    nodes = [node("MatMul", ["x", "w"], ["h"]), *(extra or [node("Identity", ["h"], ["y"])])]
    model = graphs.make_model(
        nodes, [graphs.value("x", [rows, 4])], [graphs.value("y", [rows, 3])],
        [graphs.weight("w", 4, 3), graphs.constant("small", 1e-2, np.float32)],
    )  # fmt: skip
    return graphs.save_model(model, path)


def prove(tmp_path, path):
    fixed = write_dense(tmp_path / "fixed.onnx", rows=1)
    candidate = subject(fixed, path)
    workspace, host, samples = (
        Workspace(tmp_path, jobs=1),
        detect(runtimes={}),
        tmp_path / "samples",
    )
    sample_store.write(samples, make_rows(candidate.model, 6))
    prepared = convert.Prepared(ONNX, fixed, fixed.name, fixed, fixed.name, ())
    original = measure.original(prepared, reader.read(fixed))
    answers = measure.answers(workspace, original, samples, host)
    batching.prove(workspace, candidate, samples, answers, candidate.outputs, tuple(range(6)), host)


def test_a_file_whose_rows_are_what_they_are_alone_is_proven(tmp_path):
    prove(tmp_path, write_dense(tmp_path / "free.onnx", rows="batch"))


def test_a_file_that_mixes_rows_a_little_is_not_proven(tmp_path):
    """A hundredth of the distance to the mean of the rows: nothing where there is one row."""
    mixing = [
        node("ReduceMean", ["h"], ["mean"], axes=[0], keepdims=1),
        node("Sub", ["h", "mean"], ["apart"]),
        node("Mul", ["apart", "small"], ["part"]),
        node("Add", ["h", "part"], ["y"]),
    ]
    path = write_dense(tmp_path / "free.onnx", rows="batch", extra=mixing)
    with pytest.raises(
        MeasureError, match="in a batch of 3, rows are not what they are alone: 'y'"
    ):
        prove(tmp_path, path)


def test_a_file_that_answers_one_row_in_another_way_is_not_proven(tmp_path):
    other = [node("Add", ["h", "small"], ["y"])]
    path = write_dense(tmp_path / "free.onnx", rows="batch", extra=other)
    with pytest.raises(MeasureError, match="one row alone is not bit by bit what it was"):
        prove(tmp_path, path)


def test_a_file_that_takes_one_row_only_is_not_proven(tmp_path):
    with pytest.raises(MeasureError, match="3 rows at once do not run: onnxruntime could not run"):
        prove(tmp_path, write_dense(tmp_path / "free.onnx", rows=1))


def test_too_few_different_samples_are_refused():
    def samples(count):
        feeds = [{"x": np.array([[i // 2]])} for i in range(count)]  # each twice
        return Samples(source="some.npz", feeds=tuple(feeds), labels=None, digest="")

    assert batching.pick(samples(6)) == (0, 2, 4)
    assert len(batching.pick(samples(100))) == 12
    with pytest.raises(InputError, match=r"some.npz: 2 different samples; .* is tried on 3"):
        batching.pick(samples(4))


# Builds


def build(edge, model, out, *arguments, ok=0, **environment):
    process = edge(
        "build", model, "--batch", "dynamic", "--out", out, *arguments, ok=ok, **environment
    )
    return process, {path.name.split("-")[0]: path for path in out.glob("*.edgepkg")}


def read_outcomes(out):
    (path,) = out.glob("*.report.json")
    report = json.loads(path.read_text())
    return {
        measurement["candidate"]: measurement["error"] for measurement in report["measurements"]
    }, report["verdict"]["winner"]


def test_packages_of_every_kind_take_any_number_of_rows(edge, digits, tmp_path):
    kinds = ("onnx-int8-static-u8s8", "onnx-int8-static-u8s8-ort", "tflite-int8-static")
    for kind in kinds:
        out = tmp_path / kind
        build(edge, digits, out, "-p", GATEWAY, *DIGITS, "--preprocess", "mnist", "--only", kind)
        (path,) = out.glob("*.edgepkg")
        manifest = package.open(path).manifest.variants[0]
        shape = (28, 28, 1) if kind.startswith("tflite") else (1, 28, 28)
        assert manifest.inputs[0].shape == ("batch", *shape)
        assert manifest.outputs[0].shape == ("batch", 10)
        rng = np.random.default_rng(1)
        rows = [rng.random((1, *shape), np.float32) for _ in range(5)]
        answers = []
        for i, inputs in enumerate([*rows, np.concatenate(rows)]):
            np.save(tmp_path / f"{i}.npy", inputs)
            answers.append(np.array(edge_sdk.run(path, tmp_path / f"{i}.npy").outputs["logits"]))
        assert np.allclose(np.concatenate(answers[:5]), answers[5], atol=1e-4)
        assert edge_sdk.run(path, tmp_path / "0.npy").top
        assert edge_sdk.verify(path).golden.ok
        facts = DeviceFacts.from_profile(detect(runtimes={}))
        assert bench_package(path, facts, threads=(1,), runs=5)[0].p50_ms > 0


def test_the_batch_is_fixed_unless_it_is_asked_for(edge, digits, tmp_path):
    edge("build", digits, "-p", GATEWAY, *DIGITS, "--only", "onnx-fp32", "--out", tmp_path)
    (path,) = tmp_path.glob("*.edgepkg")
    manifest = package.open(path).manifest.variants[0]
    assert manifest.inputs[0].shape == (1, 1, 28, 28)
    assert b'"batch": "fixed"' in package.open(path).read(manifest.title("recipe.json"))


def test_lite0_takes_batches_in_xnnpack_as_a_whole(lite0, tmp_path):
    prepare_model(lite0, tmp_path / "model.onnx", {})
    job = Job(
        model=tmp_path / "model.onnx", out_dir=tmp_path, ceiling=CEILING, arch="x86_64",
        runtime_version="2.3.0", batch="dynamic",
    )  # fmt: skip
    converted = converters.get("tflite-int8-dynamic").convert(job)
    pieces = [LITERT.delegation(file, 1).partitions for file in (converted.path, converted.fixed)]
    assert pieces == [1, 1]
    assert converted.path.stat().st_size <= converted.fixed.stat().st_size + 512
    free, fixed = (
        LITERT.open(file, threads=1, options={}) for file in (converted.path, converted.fixed)
    )
    rows = make_rows(fixed.inputs, 2)
    both = free.run(concatenate_rows(rows))["logits"]
    for i, row in enumerate(rows):
        assert np.array_equal(both[i : i + 1], fixed.run(row)["logits"])
        assert np.array_equal(free.run(row)["logits"], fixed.run(row)["logits"])


def test_a_model_that_cannot_is_an_error_that_names_the_op(edge, tmp_path):
    graphs.save_model(FIXED["ReduceMean at 'r' mixes the rows"], tmp_path / "mean.onnx")
    rows = np.random.default_rng(0).standard_normal((4, 1, 8)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    process, _ = build(edge, tmp_path / "mean.onnx", tmp_path / "out", "-p", GATEWAY, "--eval",
                    tmp_path / "rows.npy", "--metric", "cosine", ok=1)  # fmt: skip
    assert "error: ReduceMean at 'r' mixes the rows of a batch" in process.stderr
    assert "hint: build it without --batch dynamic" in process.stderr


def test_a_runtime_that_crashes_on_batches_loses_the_candidate_and_not_the_build(
    edge, digits, tmp_path
):
    """LiteRT 1.2.0 dies in XNNPACK's dynamic INT8 convolutions on more than one row."""
    old = ("--set", 'runtimes=[{name="litert",version="1.2.0"}]')
    build(edge, digits, tmp_path, "-p", GATEWAY, *DIGITS, *old, "--only", "tflite-int8-dynamic",
          "--only", "tflite-fp32")  # fmt: skip
    errors, winner = read_outcomes(tmp_path)
    assert errors["tflite-int8-dynamic"].startswith("3 rows at once do not run: ")
    assert (errors["tflite-fp32"], winner) == ("", "tflite-fp32")


def test_a_converter_that_knows_nothing_of_batches_loses_its_candidate(edge, digits, tmp_path):
    build(edge, digits, tmp_path, "-p", GATEWAY, *DIGITS, "--only", "onnx-fp32", "--only",
          "swapped-channels", PYTHONPATH=PLUGINS)  # fmt: skip
    errors, winner = read_outcomes(tmp_path)
    assert errors["swapped-channels"] == "swapped-channels writes no file with a dynamic batch"
    assert winner == "onnx-fp32"


def test_a_free_batch_needs_no_shape_where_it_stays_free(edge, tmp_path):
    made = graphs.make_model(
        [node("MatMul", ["x", "w"], ["y"])], [graphs.value("x", ["n", 4])],
        [graphs.value("y", ["n", 3])], [graphs.weight("w", 4, 3)],
    )  # fmt: skip
    graphs.save_model(made, tmp_path / "free.onnx")
    rows = np.random.default_rng(0).standard_normal((6, 1, 4)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    arguments = ("-p", GATEWAY, "--eval", tmp_path / "rows.npy", "--only", "onnx-fp32")
    _, made = build(edge, tmp_path / "free.onnx", tmp_path / "out", *arguments)
    manifest = package.open(made["free"]).manifest.variants[0]
    assert [spec.shape for spec in (*manifest.inputs, *manifest.outputs)] == [
        ("batch", 4),
        ("batch", 3),
    ]
