"""A program that torch.export wrote (.pt2) -> ONNX, with torch's own exporter."""

from __future__ import annotations

import tempfile
from pathlib import Path

from converters.foreign_errors import describe_error, translate_foreign_errors
from converters.onnx.model_file import load_model, save_model
from edge_core.errors import InputError
from edge_core.extras import need

OPSET = 18  # the lowest that the exporter writes itself; lower ones it gets by conversion


def export_program(source: Path, out: Path) -> None:
    """Write ``source`` as ONNX. Raises InputError for a file that is no exported program,
    ConvertError for one that has no ONNX form, MissingExtra without torch."""
    torch = need("torch", "torch")
    need("onnxscript", "torch")
    if not source.is_file():
        raise InputError(f"no model at {source}")
    with translate_foreign_errors(f"{source.name} cannot be read"):
        try:
            program = torch.export.load(source)
        except Exception as error:  # zip, pickle and torch errors of many types
            raise InputError(
                f"{source} is not a program that torch.export.save wrote: {describe_error(error)}",
                hint="torch.export.save(torch.export.export(model.eval(), example), path)",
            ) from error
    hint = "export it to ONNX yourself, or change the op that the message names"
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "model.onnx"
        with translate_foreign_errors(f"torch could not export {source.name} to ONNX", hint=hint):
            torch.onnx.export(program, (), written, dynamo=True, opset_version=OPSET)
        save_model(load_model(written), out)
