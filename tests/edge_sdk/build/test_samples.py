"""Samples: every form that is read, and every way it can be wrong."""

import json

import numpy as np
import pytest
from PIL import Image

from edge_core.errors import InputError
from edge_core.package.preprocess import BUILT_IN, ImageRecipe, to_tensor
from edge_core.runtimes import sample_store
from edge_core.tensors import TensorSpec
from edge_sdk.build import samples

IMAGE = (TensorSpec("input", "float32", (1, 3, 224, 224)),)
ROW = (TensorSpec("x", "float32", (1, 4)),)
TWO = (TensorSpec("ids", "int64", (1, 3)), TensorSpec("mask", "int64", (1, 3)))
RECIPE = BUILT_IN["efficientnet-lite0"]


def photo(path, color=(200, 30, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (300, 260), color).save(path)


def test_a_folder_of_images_goes_through_the_recipe(tmp_path):
    photo(tmp_path / "a.png")
    s = samples.load(str(tmp_path), IMAGE, recipe=RECIPE)
    assert s.labels is None
    assert s.feeds[0]["input"].shape == (1, 3, 224, 224)
    assert s.feeds[0]["input"][0, 0, 0, 0] == pytest.approx((200 - 127) / 128)


def test_sub_folders_are_classes(tmp_path):
    photo(tmp_path / "cat" / "1.png")
    photo(tmp_path / "dog" / "1.png")
    s = samples.load(str(tmp_path), IMAGE, recipe=RECIPE)
    assert s.labels == (0, 1)
    assert s.class_names == ("cat", "dog")


def test_sub_folders_that_are_numbers_are_class_indices(tmp_path):
    photo(tmp_path / "285" / "1.png")
    photo(tmp_path / "7" / "1.png")
    assert samples.load(str(tmp_path), IMAGE, recipe=RECIPE).labels == (285, 7)


def test_labels_of_a_folder_come_from_a_table(tmp_path):
    photo(tmp_path / "in" / "a.png")
    table = tmp_path / "labels.json"
    table.write_text(json.dumps({"a.png": 3}))
    s = samples.load(str(tmp_path / "in"), IMAGE, recipe=RECIPE, labels=table)
    assert s.labels == (3,)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="no images in it"):
        samples.load(str(tmp_path), IMAGE, recipe=RECIPE)


def test_images_without_a_recipe_are_refused(tmp_path):
    photo(tmp_path / "a.png")
    with pytest.raises(InputError, match="no preprocessing recipe") as e:
        samples.load(str(tmp_path), IMAGE)
    assert "efficientnet-lite0" in e.value.hint


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"a\.jpg is not a readable image"):
        samples.load(str(tmp_path), IMAGE, recipe=RECIPE)


@pytest.mark.parametrize("shape", [(5, 4), (5, 1, 4)])
def test_a_stack_with_or_without_the_batch_of_one(tmp_path, shape):
    np.save(tmp_path / "x.npy", np.ones(shape, np.float32))
    s = samples.load(str(tmp_path / "x.npy"), ROW)
    assert len(s) == 5
    assert s.feeds[0]["x"].shape == (1, 4)


def test_npz_with_labels_and_two_inputs(tmp_path):
    arrays = {"ids": np.ones((2, 3), int), "mask": np.ones((2, 3), int), "labels": [1, 0]}
    np.savez(tmp_path / "d.npz", **arrays)
    s = samples.load(str(tmp_path / "d.npz"), TWO)
    assert s.labels == (1, 0)
    assert s.feeds[1]["mask"].dtype == np.int64


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
    with pytest.raises(InputError, match="no samples at 'nowhere'") as e:
        samples.load("nowhere", ROW)
    assert "module:function" in e.value.hint


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
    with pytest.raises(InputError, match="colour") as e:
        samples.read_recipe(str(file))
    assert "color" in e.value.hint


def test_feeds_on_disk_are_what_was_written(tmp_path):
    given = [{"a": np.full((1, 2), i, np.float32), "b": np.array([i])} for i in range(3)]
    sample_store.write(tmp_path / "f", given)
    back = sample_store.read(tmp_path / "f")
    assert len(back) == 3
    assert sample_store.digest(list(back)) == sample_store.digest(given)


def test_the_digest_tells_values_shapes_and_dtypes_apart():
    one = [{"a": np.zeros((2, 2), np.float32)}]
    others = [
        [{"a": np.zeros((4,), np.float32)}],
        [{"a": np.zeros((2, 2), np.int32)}],
        [{"b": np.zeros((2, 2), np.float32)}],
        [{"a": np.ones((2, 2), np.float32)}],
    ]
    assert len({sample_store.digest(x) for x in [one, *others]}) == 5


def test_a_label_table_without_an_image_names_it(tmp_path):
    photo(tmp_path / "in" / "a.png")
    photo(tmp_path / "in" / "b.png")
    table = tmp_path / "labels.json"
    table.write_text(json.dumps({"a.png": 3}))
    with pytest.raises(InputError, match=r"no label for 'b\.png'"):
        samples.load(str(tmp_path / "in"), IMAGE, recipe=RECIPE, labels=table)


def test_a_module_that_does_not_import_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mydata_bad.py").write_text("def f(:\n")
    with pytest.raises(InputError, match="cannot import 'mydata_bad:f': SyntaxError"):
        samples.load("mydata_bad:f", ROW)


def test_a_file_without_class_names_is_refused(tmp_path):
    (tmp_path / "names.txt").write_text("")
    with pytest.raises(InputError, match="no class names in it"):
        samples.read_class_names(tmp_path / "names.txt")


STRETCH = ImageRecipe(height=8, width=8, fit="stretch", interpolation="nearest")


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    gray = np.arange(64, dtype=np.uint16).reshape(8, 8) * 4 * 257
    Image.fromarray(gray).save(tmp_path / "deep.png")
    Image.fromarray((gray // 257).astype(np.uint8)).save(tmp_path / "flat.png")
    deep, flat = (to_tensor(tmp_path / f, STRETCH) for f in ("deep.png", "flat.png"))
    np.testing.assert_array_equal(deep, flat)


def test_a_turned_photo_is_read_as_it_is_shown(tmp_path):
    upright = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    upright.save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.png", exif=exif)
    a, b = (to_tensor(tmp_path / f, STRETCH) for f in ("a.png", "b.png"))
    np.testing.assert_array_equal(a, b)


def test_one_pixel_keeps_its_colour(tmp_path):
    Image.new("RGB", (1, 1), (200, 30, 30)).save(tmp_path / "one.png")
    x = to_tensor(tmp_path / "one.png", BUILT_IN["efficientnet-lite0"])
    assert x[0, 0, 0, 0] == pytest.approx((200 - 127) / 128)
