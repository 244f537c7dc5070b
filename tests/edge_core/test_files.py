"""Atomic writes: whole or not at all, whatever happens in between."""

import errno

import pytest

from edge_core import files
from edge_core.errors import InputError, StorageError


class Interrupted(Exception):
    pass


def write_half(path):
    with files.open_atomic(path) as file:
        file.write(b"half")
        raise Interrupted


def fill_half(path):
    with files.atomic_directory(path) as folder:
        (folder / "a").write_bytes(b"half")
        raise Interrupted


def test_a_file_appears_whole_with_its_mode(tmp_path):
    path = tmp_path / "sub" / "a.bin"
    files.write_atomic(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["a.bin"]


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(Interrupted):
        write_half(path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


def test_an_interrupted_folder_leaves_nothing(tmp_path):
    with pytest.raises(Interrupted):
        fill_half(tmp_path / "f")
    assert not list(tmp_path.iterdir())


def test_the_first_writer_of_a_folder_wins(tmp_path):
    for content in (b"first", b"second"):
        with files.atomic_directory(tmp_path / "f") as folder:
            (folder / "a").write_bytes(content)
    assert (tmp_path / "f" / "a").read_bytes() == b"first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(small_disk):
    path = small_disk / "a.bin"
    with pytest.raises(StorageError, match=r"cannot write .*a\.bin: no space left") as error:
        files.write_atomic(path, bytes(8 * 2**20))
    assert "free some space" in error.value.hint
    assert error.value.retry
    assert not list(small_disk.iterdir())


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EROFS, "x"), "the file system is read-only"),
        (OSError(errno.EACCES, "x"), "permission denied"),
        (OSError("8000 requested and 96 written"), "no space left"),  # as NumPy reports it
        (OSError(errno.ENAMETOOLONG, "File name too long"), "File name too long"),
    ],
)
def test_a_storage_error_says_why_in_words(tmp_path, error, reason):
    assert files.storage_error(error, tmp_path).what == f"cannot write {tmp_path}: {reason}"


def test_a_folder_is_removed_with_the_read_only_ones_inside(tmp_path):
    inner = tmp_path / "f" / "inner"
    inner.mkdir(parents=True)
    (inner / "a").write_bytes(b"")
    inner.chmod(0o500)
    files.remove_tree(tmp_path / "f")
    files.remove_tree(tmp_path / "none")
    assert not list(tmp_path.iterdir())


def test_a_file_is_read_up_to_its_limit(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"1234")
    assert files.read_limited(path, 4) == b"1234"
    with pytest.raises(InputError, match="has 4 bytes; at most 3 are read"):
        files.read_limited(path, 3)
    for missing in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="cannot read"):
            files.read_limited(missing, 10_000)


def test_the_digest_of_a_folder_covers_names_and_contents(tmp_path):
    def make_folder(name, files):
        for path, content in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(content)
        return tmp_path / name

    first = make_folder("first", {"a/b": b"1", "c": b"22"})
    same = make_folder("same", {"c": b"22", "a/b": b"1"})
    others = [
        make_folder("content", {"a/b": b"2", "c": b"22"}),
        make_folder("name", {"a/d": b"1", "c": b"22"}),
        make_folder("fewer", {"a/b": b"1"}),
    ]
    assert files.sha256_tree(first) == files.sha256_tree(same)
    assert files.sha256_tree(first) not in {files.sha256_tree(other) for other in others}
    assert files.sha256_tree(first / "c") == files.sha256_file(first / "c")
    assert (files.tree_bytes(first), files.tree_bytes(first / "c")) == (3, 2)
