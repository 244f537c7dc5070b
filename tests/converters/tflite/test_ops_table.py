"""The table of lowerings: complete, without a name twice, and light to import."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys

import onnx
import pytest

from converters.tflite.ops import table

HEAVY = ("onnx", "onnxruntime", "ai_edge_litert", "ai_edge_quantizer", "tensorflow", "torch")
STANDARD = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if not schema.domain}


def test_every_name_is_an_op_of_the_onnx_standard():
    assert sorted(set(table.LOWERINGS) - STANDARD) == []


def test_no_op_stands_in_the_table_twice():
    (literal,) = (
        statement.value
        for statement in ast.parse(inspect.getsource(table)).body
        if isinstance(statement, ast.AnnAssign)
    )
    names = [key.value for key in literal.keys]
    assert len(names) == len(set(names)) == len(table.LOWERINGS)


@pytest.mark.parametrize("op", table.LOWERINGS)
def test_a_lowering_is_a_public_function_named_by_what_it_does(op):
    function = table.LOWERINGS[op]
    assert function.__name__.startswith(("lower_", "refuse_"))
    assert list(inspect.signature(function).parameters) == ["node"]


def test_every_lowering_of_a_family_is_in_the_table():
    families = {inspect.getmodule(function) for function in table.LOWERINGS.values()}
    public = {
        function
        for family in families
        for name, function in inspect.getmembers(family, inspect.isfunction)
        if name.startswith(("lower_", "refuse_"))
        and list(inspect.signature(function).parameters) == ["node"]
    }
    assert public == set(table.LOWERINGS.values())


def test_importing_the_table_needs_no_converter_package():
    code = "import sys, converters.tflite.ops.table; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert set(HEAVY).isdisjoint(listed.stdout.split())
