"""Samples on disk: what was written is read, and equal samples have equal digests."""

import numpy as np

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
