"""Facts about ONNX Runtime: the stored table says what the installed version does."""

import contextlib
import importlib.util
from pathlib import Path

import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from converters.onnx import ort_facts
from edge_core.errors import InputError
from tests.cases import ROOT

HERE = onnxruntime.__version__
LINES = ("1.10", "1.14", "1.15.1", "1.16.3", "1.19.2", "1.23.2", "1.24.4", "1.31.1")


@pytest.fixture(scope="module")
def script():
    """benchmarks/ort_facts.py, which writes the table."""
    spec = importlib.util.spec_from_file_location("bench", ROOT / "benchmarks" / "ort_facts.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def loads(model, path: Path) -> bool:
    path.write_bytes(model.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception:
        return False
    return True


def test_the_installed_version_loads_its_ceiling_and_nothing_above(tmp_path):
    top = ort_facts.find_ceiling(HERE)
    first, second = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "g", [first], [second])

    def probe(opset, ir):
        opsets = [helper.make_opsetid("", opset)]
        return loads(helper.make_model(graph, opset_imports=opsets, ir_version=ir), tmp_path / "m")

    assert probe(top.opset, top.ir)
    assert not probe(top.opset + 1, top.ir)
    assert not probe(top.opset, top.ir + 1)


def test_the_installed_versions_kernels_are_the_stored_ones(script):
    """Every operator version with a kernel in the live registry is stored as running."""
    state = onnxruntime.capi.onnxruntime_pybind11_state
    kernels = {}
    for kernel in state.get_all_opkernel_def():
        kernels.setdefault((kernel.domain, kernel.op_name), set()).add(tuple(kernel.version_range))
    compared = 0
    for schema in state.get_all_operator_schema():
        if schema.domain in script.PRIVATE:
            continue
        has = any(
            script.matches(schema.since_version, *span)
            for span in kernels.get((schema.domain, schema.name), ())
        )
        if schema.domain == "" and has:
            assert ort_facts.find_missing_ops(HERE, [schema.name], schema.since_version) == ()
            compared += 1
        elif (
            schema.domain
            and not has
            and len(ort_facts._load_facts().cpu[schema.domain][schema.name]) == 1
        ):
            name = f"{schema.domain}:{schema.name}"
            assert ort_facts.find_missing_ops(HERE, [name], 21) == (name,)
            compared += 1
    assert compared > 500


def test_what_is_called_missing_does_not_load_and_what_is_not_does(script, tmp_path):
    """Against ONNX's own node tests, at the opset that each of them is written for."""
    top = ort_facts.find_ceiling(HERE)
    versions = {}
    for schema in onnxruntime.capi.onnxruntime_pybind11_state.get_all_operator_schema():
        versions.setdefault(schema.name, set()).add(schema.since_version)
    ran = {}
    for op, _, model in script.node_tests():
        opset = next(entry.version for entry in model.opset_import if entry.domain == "")
        # An attribute that onnx added to a version later (Attention-25) is beyond the table.
        later = op in versions and opset not in versions[op]
        if opset <= top.opset and not later and not ran.get((op, opset)):
            model.ir_version = min(model.ir_version, top.ir)
            ran[op, opset] = loads(model, tmp_path / "m.onnx")
    said = {(op, opset): not ort_facts.find_missing_ops(HERE, [op], opset) for op, opset in ran}
    assert said == ran
    assert len(ran) > 150
    assert list(ran.values()).count(False) >= 3


def test_ceilings_rise_with_the_version():
    tops = [ort_facts.find_ceiling(since) for since in LINES]
    assert tops == sorted(tops, key=lambda ceiling: (ceiling.opset, ceiling.ir))
    assert ort_facts.find_ceiling("1.19.2") == ort_facts.Ceiling(opset=21, ir=10)
    assert ort_facts.find_ceiling("1.23.2") == ort_facts.Ceiling(opset=23, ir=11)
    assert ort_facts.find_ceiling("1.10.0") == ort_facts.Ceiling(opset=15, ir=8)


def test_a_version_between_two_known_ones_is_held_to_its_own_line():
    assert ort_facts.find_ceiling("1.19.0") == ort_facts.find_ceiling("1.19.2")
    assert ort_facts.find_ceiling("1.22.0+cu126") == ort_facts.find_ceiling("1.22.1")
    assert ort_facts.find_ceiling("1.999.0") == ort_facts.find_ceiling("1.31.1")


@pytest.mark.parametrize("version", ["", "new", "1", "1.x", "-1.2", "1.9.0", "0.5"])
def test_what_is_no_known_version_is_refused(version):
    with pytest.raises(InputError):
        ort_facts.find_ceiling(version)


@given(st.text(max_size=20))
def test_any_text_is_a_version_or_an_input_error(text):
    with contextlib.suppress(InputError):
        assert ort_facts.find_ceiling(text).opset >= 15


def test_kernels_that_came_later_are_missing_before():
    new = ["com.microsoft:GatherBlockQuantized", "DeformConv"]
    assert ort_facts.find_missing_ops("1.16.3", new, 19) == tuple(sorted(new))
    assert ort_facts.find_missing_ops("1.23.2", new, 19) == ("DeformConv",)
    assert ort_facts.find_missing_ops("1.31.1", new, 19) == ()
    assert ort_facts.find_missing_ops("1.10.0", new, 15) == tuple(
        sorted(new)
    )  # held to 1.16's list


def test_an_operator_counts_in_the_version_that_the_opset_means():
    # 1.31.1 registers RoiAlign for opset 16 only up to 21; version 22 has no CPU kernel.
    assert ort_facts.find_missing_ops("1.31.1", ["RoiAlign"], 21) == ()
    assert ort_facts.find_missing_ops("1.31.1", ["RoiAlign"], 22) == ("RoiAlign",)
    assert ort_facts.find_missing_ops("1.31.1", ["Gelu"], 19) == ("Gelu",)  # it came with opset 20


def test_functions_run_without_a_kernel():
    assert ort_facts.find_missing_ops("1.23.2", ["HardSwish", "Mish", "CenterCropPad"], 21) == ()


def test_foreign_operators_and_layouts_of_one_processor_are_missing():
    names = ["my.domain:Thing", "Nonsense", "com.microsoft.nchwc:Conv"]
    assert ort_facts.find_missing_ops("1.31.1", names, 21) == tuple(sorted(names))


def test_provenance_says_measured_or_published():
    assert "measured on onnxruntime 1.23.2" in ort_facts.describe_provenance("1.23.1")
    assert "compatibility table for 1.14" in ort_facts.describe_provenance("1.14.1")


def test_the_table_is_small_and_every_entry_is_used():
    file = ROOT / "converters" / "onnx" / "ort_facts.json"
    assert file.stat().st_size < 150_000
    assert ort_facts._load_facts().measured[HERE] == ort_facts.find_ceiling(HERE)
    standard = ort_facts._load_facts().cpu[""]
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert len(known & set(standard)) > 180
