"""The options of `edge build` are the fields of BuildOptions, with the same types and defaults."""

import inspect
from pathlib import Path

import msgspec
import pytest

from edge_core.errors import InputError
from edge_sdk.build.request import BuildOptions
from edge_sdk.commands.build_options import expand_options, parse_options, parse_shapes


def test_every_field_is_an_option_with_its_help(edge):
    words = " ".join(edge("build", "--help").stdout.split())
    for field in msgspec.structs.fields(BuildOptions):
        flag = {"evaluation": "eval", "shapes": "shape", "also": "with"}.get(
            field.name, field.name.replace("_", "-")
        )
        assert f" --{flag} " in words
        assert field.type.__metadata__[0].description.rstrip(".") in words, field.name


def test_nothing_on_the_command_line_gives_the_defaults_of_the_struct():
    @expand_options()
    def command(options: BuildOptions) -> None:
        assert options == BuildOptions()

    command(**{one.name: one.default for one in inspect.signature(command).parameters.values()})


def test_a_command_may_take_only_some_options_among_its_own():
    @expand_options("shapes")
    def command(model: str, options: BuildOptions, as_json: bool = False) -> None:
        assert (model, options.shapes, as_json) == ("m.onnx", {"batch": 1}, True)

    assert list(inspect.signature(command).parameters) == ["model", "shapes", "as_json"]
    command(model="m.onnx", shapes=["batch=1"], as_json=True)


def test_text_becomes_the_values_of_the_fields():
    texts = {"only": ["a", "b"], "shapes": ["x=1x3", "rate=16000"], "class_names": Path("c.txt")}
    assert parse_options({**texts, "labels": None}) == BuildOptions(
        only=("a", "b"), shapes={"x": (1, 3), "rate": 16000}, class_names=Path("c.txt")
    )


@pytest.mark.parametrize("text", ["batch", "batch=0", "=1", "input=1x", "input=²", "batch=-1"])
def test_a_shape_that_is_none_is_refused(text):
    with pytest.raises(InputError, match="write batch=1"):
        parse_shapes([text])


def test_a_layout_is_taken_in_either_case_and_a_wrong_one_names_the_choices(edge):
    done = edge("build", "none.onnx", "-p", "x86-64", "--layout", "nchw", ok=1)
    assert "no model at none.onnx" in done.stderr
    done = edge("build", "none.onnx", "-p", "x86-64", "--layout", "nhcw", ok=1)
    assert "'nhwc', 'nchw'" in done.stderr
