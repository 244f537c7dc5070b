"""ORT-format files: written so that equal models are equal bytes, and read for their versions.

ONNX Runtime writes the file's table of kernel types in the order of a hash table, which changes
from process to process; here the table is rewritten, sorted. The format is a FlatBuffer, and
onnxruntime/core/flatbuffers/schema/ort.fbs its schema.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from converters.foreign_errors import translate_foreign_errors
from converters.onnx.model_file import STANDARD_DOMAINS
from edge_core.extras import need
from edge_core.files import write_atomic

IDENTIFIER = b"ORTM"
ALIGNMENT = 64  # bytes; at least what ONNX Runtime aligns weights to
VERSION, MODEL, RESOLVER = 0, 1, 3  # fields of the root
IR, IMPORTS = 0, 1  # of a model


def write_ort(source: Path, out: Path, *, arm: bool) -> None:
    """Write the ONNX file ``source`` as ``out``, optimised for ARM or for x86-64.

    Raises ConvertError if ONNX Runtime cannot.
    """
    ort = need("onnxruntime", "onnx")
    with tempfile.TemporaryDirectory() as folder:
        unsorted = Path(folder) / "model.ort"
        so = ort.SessionOptions()
        so.log_severity_level = 4
        so.optimized_model_filepath = str(unsorted)
        so.add_session_config_entry("session.save_model_format", "ORT")
        # As onnxruntime.tools.convert_onnx_models_to_ort does for its target platforms.
        so.add_session_config_entry("session.qdqisint8allowed", "1" if arm else "0")
        with translate_foreign_errors(
            "onnxruntime could not write ORT format", hint="take the .onnx candidate"
        ):
            # NCHWc blocks are as wide as the vectors of the machine that writes the file (16
            # floats with AVX-512, 8 with AVX2), so a file that holds them may be wrong elsewhere.
            ort.InferenceSession(
                str(source), so, providers=["CPUExecutionProvider"],
                disabled_optimizers=["NchwcTransformer"],
            )  # fmt: skip
        write_atomic(out, _sort_types(unsorted.read_bytes()))


def read_ort_versions(path: Path) -> tuple[int, int]:
    """Opset and IR version of an ORT-format file."""
    model = _read_child(_read_root(path.read_bytes()), MODEL)
    imports = {
        _read_text(table, 0): _read_number(table, 1, "Int64Flags")
        for table in _read_children(model, IMPORTS)
    }
    opset = next(version for domain, version in imports.items() if domain in STANDARD_DOMAINS)
    return opset, _read_number(model, IR, "Int64Flags")


def _sort_types(raw: bytes) -> bytes:
    """The same file with its table of kernel types rewritten, in order.

    FlatBuffers are written from the end: the model comes last in the file, and all before it is
    the table of types and the root.
    """
    flatbuffers = need("flatbuffers", "onnx")
    root = _read_root(raw)
    model = _read_child(root, MODEL)
    vtable = model.Pos - model.Get(flatbuffers.number_types.SOffsetTFlags, model.Pos)
    kept = raw[min(model.Pos, vtable) :]
    builder = flatbuffers.Builder(len(raw))
    builder.Bytes[len(builder.Bytes) - len(kept) :] = kept
    builder.head = len(builder.Bytes) - len(kept)
    builder.minalign = ALIGNMENT
    resolver = _write_resolver(builder, _read_child(root, RESOLVER))
    version = builder.CreateString(_read_text(root, VERSION))
    builder.StartObject(4)
    builder.PrependUOffsetTRelativeSlot(VERSION, version, 0)
    builder.PrependUOffsetTRelativeSlot(MODEL, len(raw) - model.Pos, 0)
    builder.PrependUOffsetTRelativeSlot(RESOLVER, resolver, 0)
    builder.Finish(builder.EndObject(), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _write_resolver(builder: Any, resolver: Any) -> int:
    """Op -> names of its types -> which arguments have them; readers search both by name."""
    ops = []
    for op in sorted(_read_children(resolver, 0), key=_read_name):
        types = []
        for kind in sorted(_read_children(op, 1), key=_read_name):
            arguments = [_write_argument(builder, argument) for argument in _read_children(kind, 1)]
            types.append(_write_named(builder, _read_name(kind), arguments))
        ops.append(_write_named(builder, _read_name(op), types))
    vector = _write_vector(builder, ops)
    builder.StartObject(1)
    builder.PrependUOffsetTRelativeSlot(0, vector, 0)
    return int(builder.EndObject())


def _write_named(builder: Any, name: str, children: list[int]) -> int:
    text, vector = builder.CreateString(name), _write_vector(builder, children)
    builder.StartObject(2)
    builder.PrependUOffsetTRelativeSlot(0, text, 0)
    builder.PrependUOffsetTRelativeSlot(1, vector, 0)
    return int(builder.EndObject())


def _write_argument(builder: Any, table: Any) -> int:
    builder.StartObject(2)
    builder.PrependInt8Slot(0, _read_number(table, 0, "Int8Flags"), 0)
    builder.PrependUint32Slot(1, _read_number(table, 1, "Uint32Flags"), 0)
    return int(builder.EndObject())


def _write_vector(builder: Any, children: list[int]) -> int:
    builder.StartVector(4, len(children), 4)
    for child in reversed(children):
        builder.PrependUOffsetTRelative(child)
    return int(builder.EndVector())


def _read_root(raw: bytes) -> Any:
    flatbuffers = need("flatbuffers", "onnx")
    return flatbuffers.table.Table(raw, int.from_bytes(raw[:4], "little"))


def _find_field(table: Any, slot: int) -> int:
    """Where a field's value is; 0 when the file leaves it out."""
    offset = table.Offset(4 + 2 * slot)
    return int(table.Pos + offset) if offset else 0


def _read_child(table: Any, slot: int) -> Any:
    return type(table)(table.Bytes, table.Indirect(_find_field(table, slot)))


def _read_children(table: Any, slot: int) -> list[Any]:
    if not _find_field(table, slot):
        return []
    offset = table.Offset(4 + 2 * slot)
    first = table.Vector(offset)
    return [
        type(table)(table.Bytes, table.Indirect(first + 4 * i))
        for i in range(table.VectorLen(offset))
    ]


def _read_text(table: Any, slot: int) -> str:
    at = _find_field(table, slot)
    return table.String(at).decode() if at else ""


def _read_name(table: Any) -> str:
    return _read_text(table, 0)


def _read_number(table: Any, slot: int, kind: str) -> int:
    types = need("flatbuffers.number_types", "onnx")
    at = _find_field(table, slot)
    return int(table.Get(getattr(types, kind), at)) if at else 0
