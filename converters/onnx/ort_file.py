"""ORT-format files: written so that equal models are equal bytes, and read for their versions.

ONNX Runtime writes the file's table of kernel types in the order of a hash table, which changes
from process to process; here the table is written anew, sorted. The format is a FlatBuffer, and
onnxruntime/core/flatbuffers/schema/ort.fbs its schema.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from converters.foreign_errors import foreign
from converters.onnx.file import STANDARD
from edge_core.extras import need
from edge_core.files import write_whole

IDENTIFIER = b"ORTM"
ALIGNMENT = 64  # bytes; at least what ONNX Runtime aligns weights to
VERSION, MODEL, RESOLVER = 0, 1, 3  # fields of the root
IR, IMPORTS = 0, 1  # of a model


def write(source: Path, out: Path, *, arm: bool) -> None:
    """Write the ONNX file ``source`` as ``out``, optimised for ARM or for x86-64.

    Raises ConvertError if ONNX Runtime cannot.
    """
    ort = need("onnxruntime", "onnx")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "model.ort"
        so = ort.SessionOptions()
        so.log_severity_level = 4
        so.optimized_model_filepath = str(made)
        so.add_session_config_entry("session.save_model_format", "ORT")
        # As onnxruntime.tools.convert_onnx_models_to_ort does for its target platforms.
        so.add_session_config_entry("session.qdqisint8allowed", "1" if arm else "0")
        with foreign("onnxruntime could not write ORT format", hint="take the .onnx candidate"):
            # NCHWc blocks are as wide as the vectors of the machine that writes the file (16
            # floats with AVX-512, 8 with AVX2), so a file that holds them may be wrong elsewhere.
            ort.InferenceSession(
                str(source), so, providers=["CPUExecutionProvider"],
                disabled_optimizers=["NchwcTransformer"],
            )  # fmt: skip
        write_whole(out, _with_sorted_types(made.read_bytes()))


def versions(path: Path) -> tuple[int, int]:
    """Opset and IR version of an ORT-format file."""
    model = _child(_root(path.read_bytes()), MODEL)
    imports = {_text(t, 0): _number(t, 1, "Int64Flags") for t in _children(model, IMPORTS)}
    opset = next(version for domain, version in imports.items() if domain in STANDARD)
    return opset, _number(model, IR, "Int64Flags")


def _with_sorted_types(raw: bytes) -> bytes:
    """The same file with its table of kernel types written anew, in order.

    FlatBuffers are written from the end: the model comes last in the file, and all before it is
    the table of types and the root.
    """
    flatbuffers = need("flatbuffers", "onnx")
    root = _root(raw)
    model = _child(root, MODEL)
    vtable = model.Pos - model.Get(flatbuffers.number_types.SOffsetTFlags, model.Pos)
    kept = raw[min(model.Pos, vtable) :]
    builder = flatbuffers.Builder(len(raw))
    builder.Bytes[len(builder.Bytes) - len(kept) :] = kept
    builder.head = len(builder.Bytes) - len(kept)
    builder.minalign = ALIGNMENT
    resolver = _resolver(builder, _child(root, RESOLVER))
    version = builder.CreateString(_text(root, VERSION))
    builder.StartObject(4)
    builder.PrependUOffsetTRelativeSlot(VERSION, version, 0)
    builder.PrependUOffsetTRelativeSlot(MODEL, len(raw) - model.Pos, 0)
    builder.PrependUOffsetTRelativeSlot(RESOLVER, resolver, 0)
    builder.Finish(builder.EndObject(), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _resolver(builder: Any, resolver: Any) -> int:
    """Op -> names of its types -> which arguments have them; readers search both by name."""
    ops = []
    for op in sorted(_children(resolver, 0), key=_name):
        types = []
        for kind in sorted(_children(op, 1), key=_name):
            arguments = [_argument(builder, a) for a in _children(kind, 1)]
            types.append(_named(builder, _name(kind), arguments))
        ops.append(_named(builder, _name(op), types))
    vector = _vector(builder, ops)
    builder.StartObject(1)
    builder.PrependUOffsetTRelativeSlot(0, vector, 0)
    return int(builder.EndObject())


def _named(builder: Any, name: str, children: list[int]) -> int:
    text, vector = builder.CreateString(name), _vector(builder, children)
    builder.StartObject(2)
    builder.PrependUOffsetTRelativeSlot(0, text, 0)
    builder.PrependUOffsetTRelativeSlot(1, vector, 0)
    return int(builder.EndObject())


def _argument(builder: Any, table: Any) -> int:
    builder.StartObject(2)
    builder.PrependInt8Slot(0, _number(table, 0, "Int8Flags"), 0)
    builder.PrependUint32Slot(1, _number(table, 1, "Uint32Flags"), 0)
    return int(builder.EndObject())


def _vector(builder: Any, children: list[int]) -> int:
    builder.StartVector(4, len(children), 4)
    for child in reversed(children):
        builder.PrependUOffsetTRelative(child)
    return int(builder.EndVector())


def _root(raw: bytes) -> Any:
    flatbuffers = need("flatbuffers", "onnx")
    return flatbuffers.table.Table(raw, int.from_bytes(raw[:4], "little"))


def _field(table: Any, slot: int) -> int:
    """Where a field's value is; 0 when the file leaves it out."""
    offset = table.Offset(4 + 2 * slot)
    return int(table.Pos + offset) if offset else 0


def _child(table: Any, slot: int) -> Any:
    return type(table)(table.Bytes, table.Indirect(_field(table, slot)))


def _children(table: Any, slot: int) -> list[Any]:
    if not _field(table, slot):
        return []
    offset = table.Offset(4 + 2 * slot)
    first = table.Vector(offset)
    return [
        type(table)(table.Bytes, table.Indirect(first + 4 * i))
        for i in range(table.VectorLen(offset))
    ]


def _text(table: Any, slot: int) -> str:
    at = _field(table, slot)
    return table.String(at).decode() if at else ""


def _name(table: Any) -> str:
    return _text(table, 0)


def _number(table: Any, slot: int, kind: str) -> int:
    types = need("flatbuffers.number_types", "onnx")
    at = _field(table, slot)
    return int(table.Get(getattr(types, kind), at)) if at else 0
