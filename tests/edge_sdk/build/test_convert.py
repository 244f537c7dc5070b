"""Preparing and converting, beside what whole builds show."""

from converters import registry as converters
from edge_sdk.build import convert
from edge_sdk.build.workspace import Workspace


def test_a_link_to_a_file_of_another_name_is_prepared(digits, tmp_path):
    """As download caches keep models: a link with a suffix to a blob without one."""
    (tmp_path / "blob").write_bytes(digits.read_bytes())
    link = tmp_path / "model.onnx"
    link.symlink_to("blob")
    source = converters.find_format(link)
    workspace = Workspace(tmp_path / "cache")
    prepared = convert.prepare(workspace, link, source, source.digest(link), {})
    assert prepared.path.is_file()
