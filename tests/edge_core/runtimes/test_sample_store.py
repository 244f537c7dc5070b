"""Samples on disk: what was written is read, and equal samples have equal digests."""

import numpy as np
import pytest

from edge_core.errors import InputError
from edge_core.runtimes import sample_store


def test_feeds_on_disk_are_what_was_written(tmp_path):
    feeds = [{"a": np.full((1, 2), i, np.float32), "b": np.array([i])} for i in range(3)]
    sample_store.write(tmp_path / "f", feeds)
    back = sample_store.read(tmp_path / "f")
    assert len(back) == 3
    assert sample_store.digest(list(back)) == sample_store.digest(feeds)


def test_the_digest_tells_values_shapes_and_dtypes_apart():
    one = [{"a": np.zeros((2, 2), np.float32)}]
    others = [
        [{"a": np.zeros((4,), np.float32)}],
        [{"a": np.zeros((2, 2), np.int32)}],
        [{"b": np.zeros((2, 2), np.float32)}],
        [{"a": np.ones((2, 2), np.float32)}],
    ]
    assert len({sample_store.digest(feeds) for feeds in [one, *others]}) == 5


def test_outputs_that_differ_in_shape_are_refused_by_name(tmp_path):
    samples = [{"boxes": np.zeros((boxes, 4), np.float32)} for boxes in (1, 2)]
    with pytest.raises(InputError, match="'boxes' cannot be kept"):
        sample_store.write(tmp_path / "out", samples)


def test_text_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="'label' cannot be kept: it holds text"):
        sample_store.write(tmp_path / "out", [{"label": np.array(["a"], object)}])
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_missing_or_damaged_is_an_input_error(tmp_path):
    sample_store.write(tmp_path / "f", [{"a": np.zeros(2)}])
    (tmp_path / "f" / "0.npy").write_bytes(b"no array")
    for folder in ("f", "none"):
        with pytest.raises(InputError, match=f"no samples in .*{folder}"):
            sample_store.read(tmp_path / folder)


def test_a_numpy_file_is_read_by_name_and_pickles_are_refused(tmp_path):
    np.save(tmp_path / "one.npy", np.arange(3))
    np.savez(tmp_path / "two.npz", a=np.arange(2), b=np.zeros(1))
    assert list(sample_store.read_numpy(tmp_path / "one.npy")) == ["one"]
    assert list(sample_store.read_numpy(tmp_path / "two.npz")) == ["a", "b"]
    np.save(tmp_path / "pickle.npy", np.array([{}], object))
    (tmp_path / "text.npy").write_text("no array")
    for name in ("pickle.npy", "text.npy", "none.npy"):
        with pytest.raises(InputError, match=f"{name} is not a readable NumPy file"):
            sample_store.read_numpy(tmp_path / name)
