"""Build options: values that are not allowed cannot be built, and files they name are read."""

from pathlib import Path

import pytest

import device_profiles
from edge_core.errors import InputError
from edge_core.package import preprocess
from edge_sdk.build.request import BuildOptions, make_request

PI = device_profiles.load("raspberry-pi-4b")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("objective", "speed", "objective 'speed' does not exist"),
        ("layout", "nhcw", "layout 'nhcw' does not exist"),
        ("batch", 8, "batch '8' does not exist"),
        ("name", "../up", "name '../up' cannot be part of a file name"),
        ("version", "1/2", "version '1/2' cannot be part of a file name"),
        ("jobs", -1, "jobs is -1"),
    ],
)
def test_values_that_are_not_allowed(field, value, message):
    with pytest.raises(InputError) as error:
        BuildOptions(**{field: value})
    assert message in error.value.what


def test_paths_names_and_files_become_values(tmp_path):
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    options = BuildOptions(
        out=str(tmp_path), preprocess="mnist", class_names=str(tmp_path / "classes.txt")
    )
    request = make_request("m.onnx", [PI], options)
    assert request.model == Path("m.onnx")
    assert request.out == tmp_path
    assert request.preprocess == preprocess.BUILT_IN["mnist"]
    assert request.class_names == ("cat", "dog")


def test_a_recipe_and_class_names_may_be_given_as_values():
    recipe = preprocess.BUILT_IN["imagenet"]
    request = make_request("m", [PI], BuildOptions(preprocess=recipe, class_names=["a", "b"]))
    assert (request.preprocess, request.class_names) == (recipe, ("a", "b"))


def test_two_profiles_of_one_name_would_write_one_file():
    with pytest.raises(InputError, match="two profiles are named 'raspberry-pi-4b'"):
        make_request("m.onnx", [PI, PI], BuildOptions())
