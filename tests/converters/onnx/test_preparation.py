"""Reading and preparing ONNX models: what is refused, how it is told, and what stays the same."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from converters.onnx.candidate_file import clamp_versions, compute_quantised_share, read_versions
from converters.onnx.model_file import iter_nodes, load_model, save_model
from converters.onnx.preparation import prepare_model
from converters.onnx.verify import verify_rewrite
from converters.spec import Ceiling
from edge_core.errors import ConvertError, InputError
from edge_core.runtimes import onnxruntime
from tests import graphs

ROOT = Path(__file__).resolve().parents[3]
TINY = graphs.perceptron().SerializeToString()


def ops(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in iter_nodes(model))


def shapes(model: onnx.ModelProto) -> dict[str, list[int | str]]:
    return {
        value.name: [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }


def prepare_graph(source: Path, tmp_path: Path, **fixed: int | tuple[int, ...]) -> onnx.ModelProto:
    out = tmp_path / "prepared.onnx"
    prepare_model(source, out, fixed)
    return load_model(out)


# Reading


@pytest.mark.parametrize(
    ("content", "told", "hint"),
    [
        (b"", "is empty", "did not finish"),
        (b"a text that is no model\n" * 9, "is not a readable ONNX model", "size"),
        (TINY[:-1], "damaged or cut off", "size"),
        (TINY[: len(TINY) // 2], "damaged or cut off", "size"),
        (bytes(64), "damaged or cut off", "size"),
        (b"PK\x03\x04" + bytes(64), "it is a zip archive, as PyTorch writes them", "export"),
        (b"\x89HDF\r\n\x1a\n", "it is an HDF5 file", "export"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(64), "it is a TFLite model", "made from"),
        (b"\x1c\x00\x00\x00ORTM" + bytes(64), "it is an ORT-format model", "made from"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer", "git lfs"),
        (b"<!DOCTYPE html><html>", "it is a web page", "download"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "it holds no graph", "size"),
    ],
)
def test_what_is_no_model_is_refused_by_what_it_is(tmp_path, content, told, hint):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=told) as raised:
        load_model(path)
    assert str(path) in raised.value.what
    assert hint in raised.value.hint


def test_a_path_without_a_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        load_model(tmp_path / "absent.onnx")
    with pytest.raises(InputError, match="Is a directory"):
        load_model(tmp_path)


@settings(deadline=None, max_examples=60)
@given(at=st.integers(0, 600), byte=st.integers(0, 255))
def test_a_damaged_model_is_read_or_refused_but_never_breaks(tmp_path_factory, at, byte):
    raw = bytearray(TINY)
    raw[at % len(raw)] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(raw)
    with contextlib.suppress(InputError, ConvertError):  # the only errors allowed out
        load_model(path)


def test_an_op_that_nothing_runs_is_named_with_its_node(tmp_path):
    def with_op(op: str, domain: str) -> Path:
        node = helper.make_node(op, ["x"], ["y"], name="the_node", domain=domain)
        imports = [helper.make_opsetid(domain, 1)] if domain else []
        value = graphs.value("x", [1]), graphs.value("y", [1])
        made = graphs.make_model([node], value[:1], value[1:], imports=imports)
        return graphs.save_model(made, tmp_path / "model.onnx")

    with pytest.raises(ConvertError, match=r"op Frobnicate \(node 'the_node'\)"):
        prepare_graph(with_op("Frobnicate", ""), tmp_path)
    with pytest.raises(ConvertError, match=r"op my\.ops:Frobnicate"):
        prepare_graph(with_op("Frobnicate", "my.ops"), tmp_path)
    with pytest.raises(ConvertError, match=r"op com\.microsoft:Frobnicate"):
        prepare_graph(with_op("Frobnicate", "com.microsoft"), tmp_path)


def test_external_data_is_read_and_its_absence_told(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(
        graphs.perceptron(), path, save_as_external_data=True, location="weights.bin",
        size_threshold=0,
    )  # fmt: skip
    prepare_graph(path, tmp_path)
    alone = load_model(tmp_path / "prepared.onnx")
    assert len(alone.graph.initializer) == 4
    assert not any(tensor.external_data for tensor in alone.graph.initializer)

    data = tmp_path / "weights.bin"
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"weights\.bin"):
        load_model(path)
    data.unlink()
    with pytest.raises(InputError, match=r"'weights\.bin' of tensor '\w+' cannot be read"):
        load_model(path)


def test_external_data_outside_the_folder_is_not_read(tmp_path):
    inside = tmp_path / "models"
    inside.mkdir()
    (tmp_path / "secret").write_bytes(bytes(1 << 16))
    made = graphs.perceptron()
    onnx.external_data_helper.set_external_data(made.graph.initializer[0], "../secret")
    made.graph.initializer[0].ClearField("raw_data")
    with pytest.raises(InputError, match=r"'\.\./secret'"):
        load_model(graphs.save_model(made, inside / "model.onnx"))


def test_a_model_above_2_gb_is_refused_before_it_is_read(tmp_path):
    made = graphs.perceptron()
    huge = made.graph.initializer[0]
    onnx.external_data_helper.set_external_data(huge, "weights.bin")
    huge.ClearField("raw_data")
    huge.dims[:] = [30_000, 30_000]
    with pytest.raises(ConvertError, match=r"3\.6 GB .* at most 2 GB"):
        load_model(graphs.save_model(made, tmp_path / "model.onnx"))


# Shapes


def two_free_inputs(tmp_path: Path) -> Path:
    made = graphs.make_model(
        [helper.make_node("Add", ["a", "b"], ["y"])],
        [graphs.value("a", ["batch", 3]), graphs.value("b", ["batch", None])],
        [graphs.value("y", ["batch", None])],
    )
    return graphs.save_model(made, tmp_path / "free.onnx")


def test_free_dimensions_are_listed_with_the_options_that_fix_them(tmp_path):
    with pytest.raises(InputError, match=r"'a' \(batchx3\), 'b' \(batchx\?\)") as raised:
        prepare_graph(two_free_inputs(tmp_path), tmp_path)
    assert "--shape batch=..." in raised.value.hint
    assert "--shape b=batchx?" in raised.value.hint


def test_a_dimension_is_fixed_by_its_name_or_through_its_input(tmp_path):
    source = two_free_inputs(tmp_path)
    by_name = shapes(prepare_graph(source, tmp_path, batch=2, b=(2, 3)))
    assert by_name == {"a": [2, 3], "b": [2, 3], "y": [2, 3]}
    assert shapes(prepare_graph(source, tmp_path, b=(2, 3))) == by_name


@pytest.mark.parametrize(
    ("fixed", "told"),
    [
        ({"batsh": 1}, "no dimension or input 'batsh'"),
        ({"batch": 0}, "batch=0 is no size"),
        ({"a": (1, 4)}, "input 'a' is batchx3; it cannot be 1x4"),
        ({"a": (1, 3, 1)}, "it cannot be 1x3x1"),
        ({"batch": 2, "b": (1, 3)}, "input 'b' is 2x\\?; it cannot be 1x3"),
        ({"a": 5}, "it cannot be 5"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(tmp_path, fixed, told):
    with pytest.raises(InputError, match=told):
        prepare_graph(two_free_inputs(tmp_path), tmp_path, **fixed)


def test_the_size_of_the_shape_is_what_the_model_gets(tmp_path, magika):
    assert shapes(prepare_graph(magika, tmp_path, unk__214=1)) == {
        "bytes": [1, 2048],
        "target_label": [1, 214],
    }


# Preparing


def test_preparing_leaves_the_file_and_the_names_alone(tmp_path, digits):
    before = hashlib.sha256(digits.read_bytes()).hexdigest()
    made = prepare_graph(digits, tmp_path)
    assert hashlib.sha256(digits.read_bytes()).hexdigest() == before
    assert shapes(made) == {"input": [1, 1, 28, 28], "logits": [1, 10]}
    assert [path.name for path in tmp_path.iterdir()] == ["prepared.onnx"]


def test_preparing_gives_the_same_bytes_in_any_process(tmp_path, lite0, fastestdet):
    code = """
import sys
from pathlib import Path
from converters.onnx.preparation import prepare_model
for number, source in enumerate(sys.argv[2:]):
    prepare_model(Path(source), Path(sys.argv[1]) / f"{number}.onnx", {})
"""
    found = []
    for seed in ("1", "2"):
        folder = tmp_path / f"folder {seed}"
        folder.mkdir()
        subprocess.run(
            [sys.executable, "-c", code, folder, lite0, fastestdet],
            cwd=ROOT, env={"PYTHONHASHSEED": seed, "PATH": ""}, check=True,
        )  # fmt: skip
        found.append([path.read_bytes() for path in sorted(folder.iterdir())])
    assert found[0] == found[1]
    assert len(found[0]) == 2


def test_preparing_folds_what_shapes_decide(tmp_path, lite0):
    assert ops(prepare_graph(lite0, tmp_path)) == {
        "Conv": 49, "Clip": 33, "Add": 9, "GlobalAveragePool": 1, "Reshape": 1, "Gemm": 1,
    }  # fmt: skip


def test_a_prepared_model_says_nothing_of_where_it_was_made(tmp_path, digits):
    made = onnx.load(digits)
    made.doc_string, made.producer_version = "from /home/somebody", "1.2.3"
    made.graph.node[0].doc_string = "line 12"
    helper.set_model_props(made, {"author": "somebody"})
    source = graphs.save_model(made, tmp_path / "told.onnx")
    assert prepare_graph(source, tmp_path) == prepare_graph(digits, tmp_path)


def test_branches_that_shapes_decide_are_inlined(tmp_path):
    source = graphs.save_model(graphs.branches(fixed=True), tmp_path / "model.onnx")
    assert ops(prepare_graph(source, tmp_path)) == {"Add": 1}


def test_branches_that_values_decide_stay_and_are_told(tmp_path):
    source = graphs.save_model(graphs.branches(fixed=False), tmp_path / "model.onnx")
    notes = prepare_model(source, tmp_path / "out.onnx", {})
    assert any("control flow that depends on data stays" in note for note in notes)
    session = onnxruntime.open(tmp_path / "out.onnx", threads=1, options={})
    original = onnxruntime.open(source, threads=1, options={})
    for array in (np.ones((1, 4), np.float32), -np.ones((1, 4), np.float32)):
        np.testing.assert_array_equal(
            session.run({"x": array})["y"], original.run({"x": array})["y"]
        )


def test_a_scalar_input_that_chooses_a_branch_can_become_a_constant(tmp_path, silero):
    made = prepare_graph(silero, tmp_path, input=(1, 576), state=(2, 1, 128), sr=16000)
    assert ops(made)["If"] == 0
    assert [value.name for value in made.graph.input] == ["input", "state"]
    session = onnxruntime.open(tmp_path / "prepared.onnx", threads=1, options={})
    original = onnxruntime.open(silero, threads=1, options={"graph_optimization": "off"})
    rng = np.random.default_rng(0)
    feeds = {"state": np.zeros((2, 1, 128), np.float32)}
    for _ in range(5):  # five windows of one recording, the state handed on
        feeds["input"] = rng.standard_normal((1, 576)).astype(np.float32) / 10
        got = session.run(feeds)
        want = original.run({**feeds, "sr": np.array(16000, np.int64)})
        np.testing.assert_allclose(got["output"], want["output"], atol=1e-5)
        np.testing.assert_allclose(got["stateN"], want["stateN"], atol=1e-4)
        feeds["state"] = got["stateN"]


def test_shapes_that_a_branch_cannot_take_are_refused_with_a_way_out(tmp_path, silero):
    with pytest.raises(ConvertError, match="does not load with these shapes") as raised:
        prepare_graph(silero, tmp_path, input=(1, 576), state=(2, 1, 128))
    assert "--shape NAME=VALUE" in raised.value.hint


def test_an_input_that_nothing_uses_is_still_one(tmp_path):
    made = graphs.relu()
    made.graph.input.append(graphs.value("spare", [1], TensorProto.INT64))
    source = graphs.save_model(made, tmp_path / "model.onnx")
    assert list(shapes(prepare_graph(source, tmp_path))) == ["x", "spare", "y"]


def test_constants_that_are_listed_as_inputs_are_not_fed(tmp_path):
    made = graphs.perceptron()
    made.graph.input.append(graphs.value("w", ["rows", "columns"]))
    source = graphs.save_model(made, tmp_path / "model.onnx")
    assert list(shapes(prepare_graph(source, tmp_path))) == ["ids", "y"]


def test_a_quantised_model_stays_quantised(tmp_path):
    scale = graphs.constant("scale", np.full(8, 0.01, np.float32))
    made = graphs.make_model(
        [
            helper.make_node("DequantizeLinear", ["w", "scale"], ["floats"], axis=0),
            helper.make_node("Gemm", ["x", "floats"], ["y"], transB=1),
        ],
        [graphs.value("x", [1, 64])],
        [graphs.value("y", [1, 8])],
        [graphs.constant("w", np.arange(512).reshape(8, 64) % 255 - 127, np.int8), scale],
    )
    before = compute_quantised_share(made)
    assert before == pytest.approx(512 / (512 + 8 * 4))
    after = prepare_graph(graphs.save_model(made, tmp_path / "model.onnx"), tmp_path)
    assert compute_quantised_share(after) == before


def test_a_rewriting_that_changes_results_is_found(tmp_path):
    source = graphs.save_model(graphs.convolution(), tmp_path / "model.onnx")
    right = load_model(source)
    assert verify_rewrite(source, {}, right) == ""
    wrong = load_model(source)
    wrong.graph.initializer[0].CopyFrom(graphs.weight("w", 32, 16, 3, 3, scale=0.31))
    with pytest.raises(ConvertError, match="output 'y' changed by"):
        verify_rewrite(source, {}, wrong)


# Opset and IR version


@pytest.mark.parametrize(
    ("ceiling", "minimum", "written"),
    [
        (Ceiling(26, 13), 0, (17, 8)),  # nothing has to change, so nothing does
        (Ceiling(26, 13), 21, (21, 10)),
        (Ceiling(15, 8), 0, (15, 8)),
        (Ceiling(15, 8), 13, (15, 8)),
        (Ceiling(19, 9), 19, (19, 9)),
    ],
)
def test_a_model_is_written_for_the_devices_runtime(tmp_path, digits, ceiling, minimum, written):
    model = prepare_graph(digits, tmp_path)
    clamped = clamp_versions(model, ceiling, minimum)
    save_model(clamped, tmp_path / "clamped.onnx")
    assert read_versions(tmp_path / "clamped.onnx") == written
    assert verify_rewrite(digits, {}, clamped) == ""


def test_an_op_that_an_older_opset_lacks_is_named(tmp_path):
    made = graphs.make_model(
        [helper.make_node("LayerNormalization", ["x", "s"], ["y"])],
        [graphs.value("x", [1, 8])],
        [graphs.value("y", [1, 8])],
        [graphs.weight("s", 8)],
    )
    with pytest.raises(ConvertError, match=r"converted to 15: .*LayerNormalization") as raised:
        clamp_versions(made, Ceiling(15, 8))
    assert "opset 15" in raised.value.hint


def test_a_recipe_above_the_ceiling_is_refused(tmp_path):
    with pytest.raises(ConvertError, match="needs opset 21; the device's runtime loads up to 19"):
        clamp_versions(graphs.relu(), Ceiling(19, 9), 21)
    with pytest.raises(ConvertError, match=r"opset 21 needs IR version 10; .* up to 9"):
        clamp_versions(graphs.relu(), Ceiling(21, 9), 21)


def test_the_share_of_weights_in_few_bits_is_by_bytes():
    def share(*tensors: onnx.TensorProto) -> float:
        made = graphs.relu()
        made.graph.initializer.extend(tensors)
        return compute_quantised_share(made)

    floats = graphs.weight("floats", 100)  # 400 bytes
    bytes_ = graphs.constant("bytes", np.zeros(100, np.int8))
    nibbles = helper.make_tensor("nibbles", TensorProto.INT4, [100], bytes(50), raw=True)
    indices = graphs.constant("indices", np.zeros(1000, np.int64))
    assert share() == 0
    assert share(floats) == 0
    assert share(floats, bytes_, indices) == pytest.approx(100 / 500)
    assert share(floats, nibbles) == pytest.approx(50 / 450)
