"""Reading a model: its file and what its format says about it. No conversion.

read(path, shapes) -> Model
"""

from __future__ import annotations

from pathlib import Path

from converters import registry as converters
from converters.spec import Description, Format, Shapes
from edge_core.files import sha256_file
from edge_sdk.build.stages import Model


def read(path: Path, shapes: Shapes | None = None) -> Model:
    """Describe a file of a format that needs no export; raises InputError for no such model."""
    source = converters.find_format(path)
    return make_model(path, source, sha256_file(path), source.describe(path, shapes or {}))


def make_model(path: Path, source: Format, sha256: str, description: Description) -> Model:
    """The user's file with the description of the form that it was prepared into."""
    return Model(
        path=path,
        format=source.name,
        sha256=sha256,
        bytes=path.stat().st_size,
        **{field: getattr(description, field) for field in Description.__struct_fields__},
    )
