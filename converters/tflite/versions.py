"""Operator versions, so that an old runtime refuses a file instead of computing garbage.

    stamp(model)        set OperatorCode.version, guards and "min_runtime_version", in place
    min_runtime(model)  "2.17.0": the oldest TensorFlow Lite that has them all

A runtime checks every operator code of a file when it loads it, also those that no operator uses,
and knows each builtin up to one version. ai-edge-quantizer leaves every version at 1, and then old
runtimes load what their kernels cannot read: garbage, NaN, crashes
(tests/converters/tflite/test_runtime_matrix.py shows them).

stamp() gives the versions that TensorFlow's own converter gives, raised where measured runtimes
accept those and are still wrong. As there, one operator code has the highest version that its
operators need: more codes would be checked at the same moment. No version is ever lowered.
"""

from __future__ import annotations

from typing import Any

from converters.tflite import flatbuffer
from converters.tflite.op_versions import (
    count_scales,
    find_version,
    is_blockwise,
    is_hybrid,
    iter_operators,
)

METADATA = "min_runtime_version"
METADATA_BYTES = 16  # as TensorFlow writes it: zero padded
FLOOR = "2.3.0"

# Operator codes that no operator uses, for what no version of its own tells apart.
# tflite-runtime 2.14 and ai-edge-litert 1.0, which knows CONV_2D 8, compute NaN and garbage from
# 4-bit kernels. Newer ones are right, and know CAST 7.
INT4_CONV_GUARD = ("CAST", 7)
# tflite-runtime-nightly 2.20.0.dev20250409 and ai-edge-litert up to 1.2 take block scales for row
# scales. ai-edge-litert 1.4 does not, but knows no version that the nightly lacks; 2.0 does.
BLOCKWISE_EMBEDDING_GUARD = ("PAD", 5)


def stamp(model: flatbuffer.Model) -> None:
    """Set every operator code's version, add the guards and write the metadata.

    Hybrid fully connected layers with a scale per channel are also switched to asymmetric inputs:
    with symmetric ones tflite-runtime-nightly 2.20.0.dev20250409 computes garbage although it
    knows version 12; newer runtimes compute them in XNNPACK, which is asymmetric in any case.
    """
    for op in iter_operators(model):
        op.code.version = max(op.code.version, find_version(op))
        if op.name == "FULLY_CONNECTED" and is_hybrid(op, "INT8") and count_scales(op) > 1:
            op.options.asymmetricQuantizeInputs = True
        if op.name == "CONV_2D" and op.type(1) == "INT4":
            _add_guard(model, *INT4_CONV_GUARD)
        if op.name == "EMBEDDING_LOOKUP" and is_blockwise(op):
            _add_guard(model, *BLOCKWISE_EMBEDDING_GUARD)
    _write_metadata(model, find_min_runtime(model))


def find_min_runtime(model: flatbuffer.Model) -> str:
    """The oldest TensorFlow Lite release that knows every operator version of ``model``.

    In TensorFlow's numbers: ai-edge-litert counts again from 1.0, which is about 2.16. Releases
    before FLOOR are not distinguished; versions that TensorFlow does not list count as FLOOR.
    """
    numbers = flatbuffer.schema().BuiltinOperator
    newer = {
        (getattr(numbers, name), version): release for (name, version), release in RELEASES.items()
    }
    releases = [
        newer.get((_read_builtin(code), code.version), FLOOR) for code in model.operatorCodes
    ]
    return max((FLOOR, *releases), key=lambda release: [int(part) for part in release.split(".")])


def _read_builtin(code: Any) -> int:
    """Builtins above 127 have a field of their own; files of old writers have the other only."""
    return int(max(code.builtinCode, code.deprecatedBuiltinCode))


def _add_guard(model: flatbuffer.Model, name: str, version: int) -> None:
    number = getattr(flatbuffer.schema().BuiltinOperator, name)
    if any(
        _read_builtin(code) == number and code.version >= version for code in model.operatorCodes
    ):
        return
    code = flatbuffer.schema().OperatorCodeT()
    code.builtinCode, code.version = number, version
    code.deprecatedBuiltinCode = min(number, 127)
    model.operatorCodes.append(code)


def _write_metadata(model: flatbuffer.Model, release: str) -> None:
    content = list(release.encode().ljust(METADATA_BYTES, b"\0"))
    for entry in model.metadata or ():
        if entry.name in (METADATA, METADATA.encode()):
            model.buffers[entry.buffer].data = content
            return
    buffer, entry = flatbuffer.schema().BufferT(), flatbuffer.schema().MetadataT()
    buffer.data = content
    model.buffers.append(buffer)
    entry.name, entry.buffer = METADATA, len(model.buffers) - 1
    model.metadata = [*(model.metadata or ()), entry]


# builtin, then version:release for every version that came after FLOOR; from runtime_version.cc
# beside op_version.cc.
_RELEASES = """
ABS 2:2.4.0 3:2.5.0 4:2.6.0 5:2.12.0
ADD 3:2.4.0 4:2.6.0 5:2.13.0 6:2.23.0
ARG_MAX 3:2.9.0
ARG_MIN 3:2.9.0
ATAN2 1:2.10.0
BATCH_MATMUL 3:2.4.0 4:2.5.0
BATCH_TO_SPACE_ND 4:2.12.0
BROADCAST_ARGS 1:2.6.0
BROADCAST_TO 2:2.5.0 3:2.5.0
BUCKETIZE 1:2.8.0
CAST 2:2.7.0 3:2.8.0 4:2.9.0 5:2.12.0 6:2.15.0 7:2.17.0 8:2.21.0
CONCATENATION 4:2.14.0 5:2.21.0 6:2.23.0
CONV_2D 5:2.4.0 6:2.9.0 7:2.11.0 8:2.15.0
CONV_3D 1:2.5.0
CONV_3D_TRANSPOSE 1:2.6.0
COS 2:2.23.0
CUMSUM 1:2.4.0
DEPTHWISE_CONV_2D 7:2.11.0
DEPTH_TO_SPACE 2:2.5.0
DEQUANTIZE 5:2.7.0 6:2.18.0 7:2.21.0 8:2.22.0
DILATE 1:2.15.0
DYNAMIC_UPDATE_SLICE 1:2.9.0 2:2.17.0 3:2.19.0 4:2.20.0 5:2.21.0 6:2.22.0
EMBEDDING_LOOKUP 4:2.18.0 5:2.21.0
EQUAL 4:2.13.0 5:2.21.0
EXP 2:2.12.0
FILL 3:2.5.0 4:2.12.0
FLOOR_DIV 3:2.13.0
FLOOR_MOD 2:2.13.0
FULLY_CONNECTED 10:2.11.0 11:2.15.0 12:2.17.0 13:2.18.0 14:2.21.0
GATHER 4:2.4.0 5:2.5.0 6:2.13.0 7:2.15.0
GATHER_ND 3:2.5.0 4:2.13.0 5:2.16.0
GELU 1:2.9.0 2:2.9.0
GREATER_EQUAL 3:2.13.0
LESS 3:2.13.0
LOG 2:2.15.0
MEAN 3:2.4.0
MIRROR_PAD 3:2.12.0
MUL 5:2.6.0 6:2.11.0 7:2.13.0 8:2.23.0
NOT_EQUAL 4:2.21.0
PACK 4:2.13.0
PAD 3:2.4.0 4:2.6.0 5:2.20.0
PADV2 3:2.4.0 4:2.6.0 5:2.20.0
QUANTIZE 3:2.7.0 4:2.21.0 5:2.21.0
RANGE 2:2.14.0
REDUCE_ALL 1:2.6.0
REDUCE_MAX 3:2.5.0
REDUCE_MIN 3:2.5.0
REDUCE_PROD 2:2.6.0
REDUCE_WINDOW 1:2.15.0
RELU 3:2.5.0
RELU6 3:2.5.0
RELU_0_TO_1 1:2.10.0
RESIZE_BILINEAR 4:2.5.0
RESIZE_NEAREST_NEIGHBOR 4:2.4.0
REVERSE_V2 3:2.5.0
RSQRT 2:2.5.0 3:2.15.0
SELECT 3:2.12.0 4:2.12.0
SELECT_V2 2:2.12.0
SIGN 1:2.11.0 2:2.12.0
SIN 2:2.23.0
SLICE 4:2.4.0 5:2.5.0 6:2.14.0 7:2.21.0 8:2.23.0
SOFTMAX 4:2.23.0
SPACE_TO_BATCH_ND 4:2.12.0
SQRT 2:2.21.0
SQUARED_DIFFERENCE 2:2.5.0
SQUEEZE 2:2.5.0
STRIDED_SLICE 5:2.5.0 6:2.6.0 7:2.14.0 8:2.14.0
SUB 4:2.4.0 5:2.4.0
TILE 3:2.8.0
TOPK_V2 3:2.13.0
TRANSPOSE 5:2.4.0 6:2.12.0 7:2.14.4 8:2.22.0 9:2.23.0
TRANSPOSE_CONV 4:2.13.0 5:2.15.0
UNIDIRECTIONAL_SEQUENCE_LSTM 4:2.12.0
UNPACK 5:2.22.0
WHERE 2:2.8.0
"""

RELEASES: dict[tuple[str, int], str] = {
    (name, int(version)): release
    for name, *pairs in (line.split() for line in _RELEASES.split("\n") if line)
    for version, release in (pair.split(":") for pair in pairs)
}
