"""From a float .tflite to every precision: what is stored, how close it stays, what is refused."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from ai_edge_quantizer import algorithm_manager, calibrator, qtyping, quantizer, recipe
from ai_edge_quantizer.utils import qsv_utils
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.gptq import round_by_moments
from converters.onnx.preparation import prepare_model
from converters.tflite import (
    bias_correction,
    flatbuffer,
    fp16,
    integer_ops,
    lookup,
    mixed_precision,
    quantise,
    ranges,
    scales,
    sensitivity,
)
from converters.tflite.graph import Graph
from converters.tflite.lower import to_tflite
from edge_core.errors import ConvertError, InputError
from examples import data

SMALL = st.integers(-8, 7)


@pytest.fixture(scope="module")
def floats(example_model, tmp_path_factory):
    """A function from a name of examples.models to its float .tflite file."""
    folder = tmp_path_factory.mktemp("float")

    def build(name):
        path = folder / f"{name}.tflite"
        if not path.exists():
            prepare_model(example_model(name), folder / "prepared.onnx", {})
            to_tflite(folder / "prepared.onnx", path)
        return path

    return build


def nhwc(images):
    return [{"input": np.ascontiguousarray(image.transpose(0, 2, 3, 1))} for image in images]


@pytest.fixture(scope="module")
def samples():
    """Calibration and held-out samples of a model."""
    return {
        "digits": (
            nhwc(list(data.digits_calibration())),
            nhwc([image for image, _ in list(data.digits_eval())[::100]]),
        ),
        "keywords": (
            [{"mel": image} for image in list(data.keywords_calibration())[::3]],
            [{"mel": image} for image, _ in list(data.keywords_eval())[::6]],
        ),
    }


def answers(file, feeds):
    runner = ranges.ModelRunner(file)
    return np.concatenate([next(iter(runner.run(f).values())).reshape(1, -1) for f in feeds])


def decibels(wanted, found):
    return 10 * np.log10(np.square(wanted).sum() / np.square(wanted - found).sum())


def small(*, rows=40, width=32, ids=(2, 3), dtype=np.int32):
    """Rows of a table, looked up by GATHER, then a fully connected layer."""
    rng = np.random.default_rng(0)
    graph = Graph()
    taken = graph.input("ids", ids, dtype)
    table = graph.constant(rng.normal(size=(rows, width)).astype(np.float32), "table")
    found = graph.emit("GATHER", [table, taken], (*ids, width), np.float32, axis=0, batchDims=0)
    weights = graph.constant(rng.normal(size=(16, width)).astype(np.float32), "weights")
    bias = graph.constant(rng.normal(size=16).astype(np.float32), "bias")
    graph.outputs.append(
        graph.emit("FULLY_CONNECTED", [found, weights, bias], (*ids, 16), keepNumDims=True)
    )
    graph.outputs[0].name = "y"
    return graph.to_model()


# The file


def test_a_file_is_written_with_its_buffers_aligned_and_reads_back_the_same(floats):
    model = flatbuffer.read(floats("keywords"))
    written = flatbuffer.to_bytes(model)
    again = flatbuffer.from_bytes(written)
    assert flatbuffer.to_bytes(again) == written
    for first, second in zip(
        flatbuffer.iter_weights(model), flatbuffer.iter_weights(again), strict=True
    ):
        assert np.array_equal(flatbuffer.constant(model, first), flatbuffer.constant(again, second))
    packed = flatbuffer.schema().Model.GetRootAs(written, 0)
    start = np.frombuffer(written, np.uint8).ctypes.data
    found = [packed.Buffers(i).DataAsNumpy() for i in range(packed.BuffersLength())]
    assert {
        (buffer.ctypes.data - start) % flatbuffer.ALIGN
        for buffer in found
        if not isinstance(buffer, int)
    } == {0}


@pytest.mark.parametrize("content", [b"", b"a text that is no model", bytes(64)])
def test_what_is_no_tflite_file_is_refused(tmp_path, content):
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.tflite is not a TFLite file"):
        flatbuffer.read(path)


def test_data_that_nothing_uses_is_not_written(floats):
    model = flatbuffer.read(floats("digits"))
    before = len(flatbuffer.to_bytes(model))
    extra = flatbuffer.schema().BufferT()
    extra.data = np.zeros(100_000, np.uint8)
    model.buffers.append(extra)
    assert len(flatbuffer.to_bytes(model)) < before + 100


@given(st.lists(SMALL, min_size=1, max_size=33))
def test_four_bit_integers_read_back_as_they_were_stored(values):
    model = small()
    tensor = model.subgraphs[0].tensors[0]
    tensor.type, tensor.shape = flatbuffer.schema().TensorType.INT4, [len(values)]
    flatbuffer.set_constant(model, tensor, np.array(values, np.int8))
    assert flatbuffer.constant(model, tensor).tolist() == values
    assert len(model.buffers[tensor.buffer].data) == (len(values) + 1) // 2


# float16


def test_float16_halves_the_file_and_keeps_the_answers(floats, samples, tmp_path):
    source, out = floats("keywords"), tmp_path / "half.tflite"
    result = fp16.write(source, out)
    assert result.share == 0.0
    assert out.stat().st_size < 0.53 * source.stat().st_size
    _, held_out = samples["keywords"]
    wanted, found = (answers(path.read_bytes(), held_out) for path in (source, out))
    assert decibels(wanted, found) > 55


def test_float16_refuses_what_it_cannot_hold(floats, tmp_path):
    model = flatbuffer.read(floats("digits"))
    largest = max(
        flatbuffer.iter_weights(model), key=lambda tensor: len(model.buffers[tensor.buffer].data)
    )
    values = flatbuffer.constant(model, largest).copy()
    values.flat[7] = -70_000
    flatbuffer.set_constant(model, largest, values)
    flatbuffer.write(model, tmp_path / "large.tflite")
    with pytest.raises(ConvertError, match=f"'{flatbuffer.tensor_name(largest)}' holds 70000"):
        fp16.write(tmp_path / "large.tflite", tmp_path / "half.tflite")


def test_tensors_that_share_a_buffer_share_its_float16_form(floats, samples, tmp_path):
    source, out = tmp_path / "float.tflite", tmp_path / "half.tflite"

    def halves(model):
        flatbuffer.write(model, source)
        fp16.write(source, out)
        return sum(
            flatbuffer.type_name(tensor) == "FLOAT16"
            for tensor in flatbuffer.iter_weights(flatbuffer.read(out))
        )

    model = flatbuffer.read(floats("keywords"))
    alone = halves(model)
    by_shape = {}
    for tensor in flatbuffer.iter_weights(model):
        if np.prod(tensor.shape) >= fp16.MIN_ELEMENTS:
            by_shape.setdefault(tuple(tensor.shape), []).append(tensor)
    one, other = next(group for group in by_shape.values() if len(group) > 1)[:2]
    other.buffer = one.buffer
    assert halves(model) == alone - 1
    _, held_out = samples["keywords"]
    wanted, found = (answers(path.read_bytes(), held_out[:8]) for path in (source, out))
    assert decibels(wanted, found) > 50


# Recipes


@pytest.mark.parametrize(
    ("name", "recipe_", "least_db", "least_share"),
    [
        ("digits", quantise.DYNAMIC, 40, 0.98),
        ("digits", quantise.DYNAMIC_PER_TENSOR, 40, 0.98),
        ("digits", quantise.WEIGHT_ONLY, 40, 0.98),
        ("digits", quantise.STATIC, 40, 0.98),
        ("digits", quantise.STATIC_PLAIN, 33, 0.98),
        ("digits", quantise.STATIC_INTEGER_IO, 33, 0.98),
        ("digits", quantise.INT16X8, 38, 0.98),
        ("digits", quantise.INT4, 20, 0.25),
        ("digits", quantise.INT4_BLOCKS, 20, 0.25),
        ("keywords", quantise.DYNAMIC, 28, 0.97),
        ("keywords", quantise.WEIGHT_ONLY, 32, 0.97),
        ("keywords", quantise.STATIC, 23, 0.97),
        ("keywords", quantise.INT16X8, 32, 0.96),
    ],
)
def test_each_recipe_stays_close_to_the_float_model(
    floats, samples, tmp_path, name, recipe_, least_db, least_share
):
    source, out = floats(name), tmp_path / "made.tflite"
    calibration, held_out = samples[name]
    result = quantise.write_quantised(source, out, recipe_, calibration)
    assert result.share == flatbuffer.compute_quantised_share(flatbuffer.read(out)) > least_share
    wanted, found = (answers(path.read_bytes(), held_out) for path in (source, out))
    assert decibels(wanted, found) > least_db


def test_the_same_inputs_give_the_same_bytes(floats, samples, tmp_path):
    calibration, _ = samples["digits"]
    files = [tmp_path / "one.tflite", tmp_path / "other.tflite"]
    for file in files:
        quantise.write_quantised(floats("digits"), file, quantise.STATIC, calibration)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_int8_inputs_and_outputs_keep_their_names_and_have_a_scale(floats, samples, tmp_path):
    out = tmp_path / "made.tflite"
    quantise.write_quantised(
        floats("digits"), out, quantise.STATIC_INTEGER_IO, samples["digits"][0]
    )
    graph = flatbuffer.read(out).subgraphs[0]
    ends = [graph.tensors[index] for index in (*graph.inputs, *graph.outputs)]
    assert [flatbuffer.tensor_name(tensor) for tensor in ends] == ["input", "logits"]
    assert all(
        flatbuffer.type_name(tensor) == "INT8" and flatbuffer.has_scale(tensor) for tensor in ends
    )


@pytest.mark.parametrize(
    "recipe_", [quantise.DYNAMIC, quantise.STATIC, quantise.STATIC_PLAIN, quantise.INT16X8]
)
def test_float_inputs_and_outputs_stay_as_they_are(floats, samples, tmp_path, recipe_):
    out = tmp_path / "made.tflite"
    quantise.write_quantised(floats("digits"), out, recipe_, samples["digits"][0])
    graph = flatbuffer.read(out).subgraphs[0]
    ends = [graph.tensors[index] for index in (*graph.inputs, *graph.outputs)]
    assert [(flatbuffer.tensor_name(tensor), flatbuffer.type_name(tensor)) for tensor in ends] == [
        ("input", "FLOAT32"),
        ("logits", "FLOAT32"),
    ]


def test_the_slowness_of_16_bits_is_told(floats, samples, tmp_path):
    result = quantise.write_quantised(
        floats("digits"), tmp_path / "o.tflite", quantise.INT16X8, samples["digits"][0]
    )
    assert "34 times as long" in result.notes[1]


def test_four_bit_blocks_need_rows_that_divide_into_them(tmp_path):
    source, out = tmp_path / "float.tflite", tmp_path / "made.tflite"
    for width, kind in ((64, "INT4"), (48, "INT8")):
        flatbuffer.write(small(width=width), source)
        quantise.write_quantised(source, out, quantise.INT4_BLOCKS)
        assert kind in {
            flatbuffer.type_name(tensor) for tensor in flatbuffer.iter_weights(flatbuffer.read(out))
        }


def test_a_recipe_that_takes_hardly_any_weights_is_refused(floats, tmp_path):
    with pytest.raises(ConvertError, match=r"no-op: the recipe takes 0\.\d% of the weight bytes"):
        quantise.write_quantised(floats("keywords"), tmp_path / "made.tflite", quantise.INT4)
    assert not (tmp_path / "made.tflite").exists()


def test_a_quantised_file_is_not_quantised_again(floats, tmp_path):
    once = tmp_path / "once.tflite"
    quantise.write_quantised(floats("digits"), once, quantise.DYNAMIC)
    with pytest.raises(ConvertError, match=r"once\.tflite is quantised already"):
        quantise.write_quantised(once, tmp_path / "twice.tflite", quantise.DYNAMIC)


def test_static_recipes_need_samples(floats, tmp_path):
    with pytest.raises(ConvertError, match="needs calibration samples"):
        quantise.write_quantised(floats("digits"), tmp_path / "made.tflite", quantise.STATIC)


def test_int8_inputs_stand_for_floats_only(tmp_path):
    flatbuffer.write(small(), tmp_path / "float.tflite")
    feeds = [{"ids": np.zeros((2, 3), np.int32)}]
    with pytest.raises(ConvertError, match="'ids' is INT32"):
        quantise.write_quantised(
            tmp_path / "float.tflite", tmp_path / "o.tflite", quantise.STATIC_INTEGER_IO, feeds
        )


def test_layers_named_to_stay_float_do(floats, samples, tmp_path):
    model = flatbuffer.read(floats("digits"))
    first = next(
        op
        for _, op in flatbuffer.iter_operators(model)
        if flatbuffer.op_name(model, op) == "CONV_2D"
    )
    name = flatbuffer.tensor_name(model.subgraphs[0].tensors[first.outputs[0]])
    kept = msgspec.structs.replace(quantise.STATIC, keep_float=(name,))
    quantise.write_quantised(floats("digits"), tmp_path / "made.tflite", kept, samples["digits"][0])
    made = flatbuffer.read(tmp_path / "made.tflite")
    convs = [
        op for _, op in flatbuffer.iter_operators(made) if flatbuffer.op_name(made, op) == "CONV_2D"
    ]
    kinds = [flatbuffer.type_name(made.subgraphs[0].tensors[op.inputs[1]]) for op in convs]
    assert kinds == ["FLOAT32", *["INT8"] * (len(kinds) - 1)]


# Tables


def test_rows_are_looked_up_by_an_op_whose_table_can_be_small(tmp_path):
    model = small()
    ids = [{"ids": np.array([[0, 39, 7], [7, 1, 2]], np.int32)}]
    wanted = answers(flatbuffer.to_bytes(model), ids)
    assert lookup.use_lookups(model) == 1
    assert "GATHER" not in [
        flatbuffer.op_name(model, op) for _, op in flatbuffer.iter_operators(model)
    ]
    assert np.array_equal(answers(flatbuffer.to_bytes(model), ids), wanted)


def test_ids_of_64_bits_are_left_to_gather():
    assert lookup.use_lookups(small(dtype=np.int64)) == 0


def test_a_table_of_four_bits_is_stored_in_half_bytes(tmp_path):
    flatbuffer.write(small(rows=400), tmp_path / "float.tflite")
    quantise.write_quantised(tmp_path / "float.tflite", tmp_path / "made.tflite", quantise.INT4)
    made = flatbuffer.read(tmp_path / "made.tflite")
    sizes = [len(made.buffers[tensor.buffer].data) for tensor in flatbuffer.iter_weights(made)]
    assert 400 * 32 // 2 in sizes


# Quality


def by_the_quantiser_alone(source, calibration):
    """ai-edge-quantizer's own recipe, with its own calibration by smallest and largest value."""
    tool = quantizer.Quantizer(str(source))
    tool.load_quantization_recipe(recipe.static_wi8_ai8())
    for op in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        tool.update_quantization_recipe(
            ".*", op, algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE
        )
    seen = calibrator.Calibrator(
        source.read_bytes(), num_threads=1, qsv_update_func=qsv_utils.min_max_update
    )
    seen.calibrate({"serving_default": calibration}, tool._recipe_manager)
    made = tool.quantize(seen.get_model_qsvs(), enable_progress_report=False)
    return bytes(made.quantized_model)


@pytest.mark.filterwarnings("ignore:Warning. Enabling `experimental_preserve_all_tensors`")
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # its biases wrap
def test_photos_are_told_apart_better_than_by_the_quantiser_alone(floats, tmp_path):
    source, out = floats("lite0"), tmp_path / "made.tflite"
    calibration = nhwc(list(data.photo_crops_calibration())[::8])
    held_out = nhwc(list(data.photo_crops_eval())[::5])
    wanted = answers(source.read_bytes(), held_out)
    theirs = answers(by_the_quantiser_alone(source, calibration), held_out)
    quantise.write_quantised(source, out, quantise.STATIC, calibration)
    ours = answers(out.read_bytes(), held_out)
    assert out.stat().st_size < 0.30 * source.stat().st_size
    assert decibels(wanted, ours) > decibels(wanted, theirs) + 3  # 200 crops: 24.6 and 19.4

    def agreement(found):
        return np.mean(found.argmax(1) == wanted.argmax(1))

    assert agreement(ours) > 0.92  # 200 crops: 0.970 and 0.890
    assert agreement(ours) >= agreement(theirs)


def test_kernels_keep_their_sums(floats, tmp_path):
    source, out = floats("digits"), tmp_path / "made.tflite"
    quantise.write_quantised(source, out, quantise.WEIGHT_ONLY)
    model, made = flatbuffer.read(source), flatbuffer.read(out)
    weights = {flatbuffer.tensor_name(tensor): tensor for tensor in flatbuffer.iter_weights(made)}
    checked = 0
    for tensor in flatbuffer.iter_weights(model):
        stored = weights[flatbuffer.tensor_name(tensor)]
        if flatbuffer.type_name(stored) == "INT8" and len(tensor.shape) == 4:
            scale = np.asarray(stored.quantization.scale)
            axes = tuple(range(1, 4))
            lost = flatbuffer.constant(model, tensor).sum(axes) - scale * flatbuffer.constant(
                made, stored
            ).sum(axes, dtype=np.int64)
            assert np.all(np.abs(lost) <= scale)
            checked += 1
    assert checked == 3


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 150), st.integers(0, 2**32 - 1))
def test_rounding_by_moments_loses_no_more_on_the_rows_it_saw_than_the_nearest(width, seed):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(4, width))
    rows = rng.normal(size=(400, width)) @ rng.normal(size=(width, width)) / width + 0.3
    scale = np.full(weights.shape, 0.4)
    found = round_by_moments(weights, scale, rows.T @ rows, 7)
    nearest = np.clip(np.round(weights / scale), -8, 7)

    def measure_loss(integers):
        return np.square(rows @ (weights - integers * scale).T).sum()

    assert np.array_equal(found, np.round(found))
    assert found.min() >= -8
    assert found.max() <= 7
    assert measure_loss(found) <= 1.3 * measure_loss(nearest) + 1e-9


def test_inputs_without_anything_in_common_are_rounded_to_the_nearest():
    weights = np.random.default_rng(1).normal(size=(5, 20))
    scale = np.full(weights.shape, 0.1)
    found = round_by_moments(weights, scale, np.eye(20), 127)
    assert np.array_equal(found, np.round(weights / scale))


@given(st.integers(0, 2**32 - 1), st.sampled_from([4, 8, 16]))
def test_a_chosen_range_loses_no_more_than_the_whole_one(seed, size):
    weights = np.random.default_rng(seed).standard_t(2, size=(3, 16)).astype(np.float32)
    bound = scales.find_bounds(weights, size)
    grouped = weights.reshape(3, -1, size)
    largest = np.abs(grouped).max(axis=2, keepdims=True)
    assert bound.shape == (3, 16 // size, 1)
    assert np.all(bound <= largest)

    def measure_loss(limits):
        scale = limits / 7
        return np.square(np.clip(np.round(grouped / scale), -8, 7) * scale - grouped).sum(axis=2)

    assert np.all(measure_loss(bound) <= measure_loss(largest) * 1.001)


def test_the_bias_of_a_dead_channel_is_kept():
    graph = Graph()
    x = graph.input("x", (1, 4), np.float32)
    weights = np.array([[0.5, -0.2, 0.1, 0.9], [1e-12, 0, 0, 1e-13]], np.float32)
    biases = np.array([0.1, 0.7], np.float32)
    inputs = [x, graph.constant(weights), graph.constant(biases)]
    graph.outputs.append(graph.emit("FULLY_CONNECTED", inputs, (1, 2)))
    feeds = [{"x": np.array([row], np.float32)} for row in ([0, 1, 2, 3], [3, 2, 1, 0])]
    source = quantise.FloatModel(graph.to_model(), "dead", feeds)
    made, _ = source.quantise(quantise.STATIC_PLAIN)
    found = answers(flatbuffer.to_bytes(made), feeds)
    assert np.allclose(found[:, 1], 0.7, atol=0.02)


# Islands


def test_a_softmax_and_what_only_it_takes_stay_float():
    graph = Graph()
    source = graph.input("x", (1, 8, 8, 4), np.float32)
    rng = np.random.default_rng(0)
    weights = graph.constant(rng.normal(size=(4, 3, 3, 4)).astype(np.float32))
    bias = graph.constant(np.zeros(4, np.float32))
    options = {"padding": 0, "strideW": 1, "strideH": 1}
    options |= {"dilationWFactor": 1, "dilationHFactor": 1}
    made = graph.emit("CONV_2D", [source, weights, bias], (1, 8, 8, 4), **options)
    added = graph.emit("ADD", [made, made], made.shape)
    last = graph.emit("CONV_2D", [added, weights, bias], (1, 8, 8, 4), **options)
    doubled = graph.emit("ADD", [last, last], last.shape)
    graph.outputs.append(graph.emit("SOFTMAX", [doubled], doubled.shape, beta=1.0))
    model = graph.to_model()
    names = [flatbuffer.op_name(model, op) for op in model.subgraphs[0].operators]
    assert names == ["CONV_2D", "ADD", "CONV_2D", "ADD", "SOFTMAX"]
    assert integer_ops.find_integer_ops(model, 8) == [0, 1, 2]


# Search


def noise(layers):
    """Decibels of independent noise: each layer adds its own until it is left float."""

    def measure(kept):
        left = sum(n for k, n in enumerate(layers) if k not in kept)
        return -10 * np.log10(left + 1e-12)

    return measure


def test_the_one_bad_layer_is_found_alone():
    layers = [0.001] * 40
    layers[17] = 1.0
    found = mixed_precision.choose_float_layers([0.01] * 40, 3.0, noise(layers))
    assert found.layers == (17,)
    assert found.after > found.before + 10


def test_the_cheaper_of_two_bad_layers_is_taken_when_one_is_enough():
    layers, costs = [0.001] * 16, [0.01] * 16
    layers[2] = layers[11] = 1.0
    costs[2] = 0.5
    assert mixed_precision.choose_float_layers(costs, 2.5, noise(layers)).layers == (11,)


@given(
    st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=60),
    st.lists(st.floats(1e-3, 1.0), min_size=60, max_size=60),
)
def test_what_is_left_float_is_never_more_than_allowed_and_never_worse(layers, costs):
    costs = costs[: len(layers)]
    found = mixed_precision.choose_float_layers(costs, 3.0, noise(layers))
    assert sum(costs[index] for index in found.layers) <= 1
    assert found.after >= found.before
    assert found.after == noise(layers)(frozenset(found.layers))


def test_a_search_that_runs_out_of_time_keeps_what_it_found():
    layers = [0.001] * 8
    layers[0] = layers[1] = 1.0
    measure = noise(layers)
    asked = []

    def until(kept):
        asked.append(kept)
        return measure(kept) if len(asked) <= 11 else None

    found = mixed_precision.choose_float_layers([0.1] * 8, 30.0, until)
    assert len(asked) == 12
    assert 0 < len(found.layers) < 8
    assert found.after == measure(frozenset(found.layers))


def test_layers_that_do_not_help_are_not_taken():
    found = mixed_precision.choose_float_layers([0.01] * 10, 3.0, lambda kept: 20.0 - len(kept))
    assert found.layers == ()
    assert (found.before, found.after) == (20.0, 20.0)


def test_a_search_writes_a_better_file_and_tells_its_cost(floats, samples, tmp_path):
    source, out, plain = floats("keywords"), tmp_path / "found.tflite", tmp_path / "plain.tflite"
    calibration, held_out = samples["keywords"]
    quantise.write_quantised(source, plain, quantise.STATIC, calibration)
    found = sensitivity.search_float_layers(source, out, quantise.STATIC, calibration, gain_db=1.0)
    wanted, before, after = (answers(path.read_bytes(), held_out) for path in (source, plain, out))
    assert decibels(wanted, after) > decibels(wanted, before)
    assert found.decibels[1] > found.decibels[0]
    assert abs(found.size[1] - out.stat().st_size) < 2000  # versions are stamped
    assert all(ms > 0 for ms in found.ms)
    model = flatbuffer.read(out)
    graph = model.subgraphs[0]
    stored = {
        flatbuffer.tensor_name(graph.tensors[op.outputs[0]]): flatbuffer.type_name(
            graph.tensors[op.inputs[1]]
        )
        for op in graph.operators
        if flatbuffer.op_name(model, op) in bias_correction.OPS
    }
    assert {stored[name] for name in found.kept} == {"FLOAT32"}
    assert "INT8" in stored.values()
    assert f"{len(found.kept)} layers left float" in found.result.notes[0]
    assert "bytes" in found.result.notes[1]


def test_a_search_without_time_or_samples_is_refused(floats, samples, tmp_path):
    out = tmp_path / "found.tflite"
    with pytest.raises(ConvertError, match="in 0 s"):
        sensitivity.search_float_layers(
            floats("digits"), out, quantise.STATIC, samples["digits"][0], budget_s=0
        )
    with pytest.raises(ConvertError, match="needs calibration samples"):
        sensitivity.search_float_layers(floats("digits"), out, quantise.STATIC, [])
    assert not out.exists()
