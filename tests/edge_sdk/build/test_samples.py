"""Samples: every form that is read, and every way it can be wrong."""

import json

import numpy as np
import pytest
from PIL import Image

from edge_core.errors import InputError
from edge_core.package.preprocess import BUILT_IN
from edge_core.tensors import TensorSpec
from edge_sdk.build import samples

IMAGE = (TensorSpec("input", "float32", (1, 3, 224, 224)),)
ROW = (TensorSpec("x", "float32", (1, 4)),)
TWO = (TensorSpec("ids", "int64", (1, 3)), TensorSpec("mask", "int64", (1, 3)))
RECIPE = BUILT_IN["efficientnet-lite0"]


def save_photo(path, color=(200, 30, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (300, 260), color).save(path)


def test_a_folder_of_images_goes_through_the_recipe(tmp_path):
    save_photo(tmp_path / "a.png")
    loaded = samples.load(str(tmp_path), IMAGE, recipe=RECIPE)
    assert loaded.labels is None
    assert loaded.feeds[0]["input"].shape == (1, 3, 224, 224)
    assert loaded.feeds[0]["input"][0, 0, 0, 0] == pytest.approx((200 - 127) / 128)


def test_sub_folders_are_classes(tmp_path):
    save_photo(tmp_path / "cat" / "1.png")
    save_photo(tmp_path / "dog" / "1.png")
    loaded = samples.load(str(tmp_path), IMAGE, recipe=RECIPE)
    assert loaded.labels == (0, 1)
    assert loaded.class_names == ("cat", "dog")


def test_sub_folders_that_are_numbers_are_class_indices(tmp_path):
    save_photo(tmp_path / "285" / "1.png")
    save_photo(tmp_path / "7" / "1.png")
    assert samples.load(str(tmp_path), IMAGE, recipe=RECIPE).labels == (285, 7)


def test_labels_of_a_folder_come_from_a_table(tmp_path):
    save_photo(tmp_path / "in" / "a.png")
    table = tmp_path / "labels.json"
    table.write_text(json.dumps({"a.png": 3}))
    loaded = samples.load(str(tmp_path / "in"), IMAGE, recipe=RECIPE, labels=table)
    assert loaded.labels == (3,)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="no images in it"):
        samples.load(str(tmp_path), IMAGE, recipe=RECIPE)


def test_images_without_a_recipe_are_refused(tmp_path):
    save_photo(tmp_path / "a.png")
    with pytest.raises(InputError, match="no preprocessing recipe") as error:
        samples.load(str(tmp_path), IMAGE)
    assert "efficientnet-lite0" in error.value.hint


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"a\.jpg is not a readable image"):
        samples.load(str(tmp_path), IMAGE, recipe=RECIPE)


@pytest.mark.parametrize("shape", [(5, 4), (5, 1, 4)])
def test_a_stack_with_or_without_the_batch_of_one(tmp_path, shape):
    np.save(tmp_path / "x.npy", np.ones(shape, np.float32))
    loaded = samples.load(str(tmp_path / "x.npy"), ROW)
    assert len(loaded) == 5
    assert loaded.feeds[0]["x"].shape == (1, 4)


def test_npz_with_labels_and_two_inputs(tmp_path):
    arrays = {"ids": np.ones((2, 3), int), "mask": np.ones((2, 3), int), "labels": [1, 0]}
    np.savez(tmp_path / "d.npz", **arrays)
    loaded = samples.load(str(tmp_path / "d.npz"), TWO)
    assert loaded.labels == (1, 0)
    assert loaded.feeds[1]["mask"].dtype == np.int64


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((2, 5), np.float32)}, "shape 1x5; the model takes 1x4"),
        ({"x": np.ones((2, 2, 2, 2), np.float32)}, "stack samples of 1x4"),
        ({"x": np.full((2, 4), np.nan, np.float32)}, "sample 0: input 'x' contains NaN"),
        ({"x": np.full((2, 4), np.inf, np.float32)}, "contains infinity"),
        ({"a": np.ones((2, 4)), "b": np.ones((2, 4))}, "input 'x' is missing"),
        ({"x": np.ones((2, 4)), "labels": [1, 2, 3]}, "3 labels for 2 samples"),
        ({"x": np.ones((0, 4))}, "no samples in it"),
        ({"x": np.ones((2, 4)), "labels": [0.5, 1]}, "labels: an array of float64"),
        ({"x": np.ones((2, 4)), "labels": ["cat", "dog"]}, "labels: an array of <U3"),
        ({"x": np.ones((2, 4)), "labels": [[1], [2]]}, "with 2 dimensions"),
        ({"x": np.ones((2, 4)), "labels": 1}, "with 0 dimensions"),
        ({"x": np.ones((2, 4)), "labels": [0, -1]}, "label -1 is negative"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, arrays, message):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(InputError, match=message):
        samples.load(str(tmp_path / "d.npz"), ROW)


def test_a_file_that_is_no_numpy_file_is_named(tmp_path):
    (tmp_path / "d.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(InputError, match="not a readable NumPy file"):
        samples.load(str(tmp_path / "d.npz"), ROW)


def test_pickles_are_not_loaded(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"evil": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="not a readable NumPy file"):
        samples.load(str(tmp_path / "x.npy"), ROW)


def test_a_callable_gives_arrays_dicts_or_labelled_samples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mydata_ok.py").write_text(
        "import numpy as np\n"
        "def plain():\n    yield np.ones((1, 4))\n"
        "def labelled():\n    yield {'x': np.ones((1, 4))}, 3\n"
        "def broken():\n    yield 1 / 0\n"
    )
    assert samples.load("mydata_ok:plain", ROW).labels is None
    assert samples.load("mydata_ok:labelled", ROW).labels == (3,)
    with pytest.raises(InputError, match="mydata_ok:broken failed: ZeroDivisionError"):
        samples.load("mydata_ok:broken", ROW)
    with pytest.raises(InputError, match="cannot import 'mydata_ok:absent'"):
        samples.load("mydata_ok:absent", ROW)


def test_a_source_that_is_nothing_lists_the_forms():
    with pytest.raises(InputError, match="no samples at 'nowhere'") as error:
        samples.load("nowhere", ROW)
    assert "module:function" in error.value.hint


def test_half_labelled_data_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mydata_half.py").write_text(
        "import numpy as np\ndef f():\n    yield np.ones((1, 4)), 1\n    yield np.ones((1, 4))\n"
    )
    with pytest.raises(InputError, match="only 1 of 2 samples have a label"):
        samples.load("mydata_half:f", ROW)


def test_a_recipe_file_with_a_wrong_field_is_named(tmp_path):
    file = tmp_path / "r.toml"
    file.write_text("height = 224\nwidth = 224\ncolour = 'RGB'\n")
    with pytest.raises(InputError, match="colour") as error:
        samples.read_recipe(str(file))
    assert "color" in error.value.hint


def test_a_label_table_without_an_image_names_it(tmp_path):
    save_photo(tmp_path / "in" / "a.png")
    save_photo(tmp_path / "in" / "b.png")
    table = tmp_path / "labels.json"
    table.write_text(json.dumps({"a.png": 3}))
    with pytest.raises(InputError, match=r"no label for 'b\.png'"):
        samples.load(str(tmp_path / "in"), IMAGE, recipe=RECIPE, labels=table)


def test_a_module_that_does_not_import_is_named_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mydata_bad.py").write_text("def f(:\n")
    with pytest.raises(InputError, match="cannot import 'mydata_bad:f': SyntaxError"):
        samples.load("mydata_bad:f", ROW)


def test_a_file_without_class_names_is_refused(tmp_path):
    (tmp_path / "names.txt").write_text("")
    with pytest.raises(InputError, match="no class names in it"):
        samples.read_class_names(tmp_path / "names.txt")
