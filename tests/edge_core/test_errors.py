"""The tree that is drawn in the docstring is the tree of the classes."""

import re

from edge_core import errors


def test_the_drawing_shows_every_error_below_its_parent():
    parents, branch = {}, [errors.EdgeError]
    for line in errors.__doc__.splitlines():
        if drawn := re.match(r"([│ ]*)[├└]── (\w+)", line):
            depth = len(drawn[1]) // 4 + 1
            error = getattr(errors, drawn[2])
            parents[error] = branch[depth - 1]
            branch[depth:] = [error]
    classes = {value for value in vars(errors).values() if isinstance(value, type)}
    assert parents == {error: error.__base__ for error in classes - {errors.EdgeError}}


def test_an_error_is_one_line_and_a_hint():
    assert str(errors.InputError("no model 'a'")) == "no model 'a'"
    error = errors.MissingExtra("onnx", "onnx")
    assert error.what == "'onnx' is not installed"
    assert str(error) == "'onnx' is not installed\n  hint: pip install 'edge-deploy[onnx]'"
