"""ONNX Runtime on the CPU: .onnx and .ort files.

Threads are always explicit and spinning is off: with the defaults two threads on a busy two-core
machine were 2.6 times slower than one (EfficientNet-Lite0, ONNX Runtime 1.31.1). The provider is
asserted, because asking for a missing one silently gives the CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_core.errors import InputError, MeasureError
from edge_core.extras import need
from edge_core.runtimes.adapter import Options, Spec
from edge_core.tensors import Feeds, TensorSpec

SPEC = Spec(
    name="onnxruntime",
    distribution="onnxruntime",
    module="onnxruntime",
    extra="rt-onnx",
    suffixes=(".onnx", ".ort"),
    precisions=("fp32", "fp16", "int8", "int4"),
    # disable_quant_qdq: weight-only files (DequantizeLinear before a float Conv) fold at load;
    # without it EfficientNet-Lite0 takes 20.9 instead of 7.9 ms.
    # graph_optimization: "basic" for files whose optimised graph is known to be wrong.
    options=("disable_quant_qdq", "graph_optimization"),
    numpy_1="<1.19",  # 1.16.3 does not import (_ARRAY_API)
)
PROVIDER = "CPUExecutionProvider"
LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "off": "ORT_DISABLE_ALL",
}
_DTYPES = {
    "float": "float32", "double": "float64", "float16": "float16", "bool": "bool",
    "string": "string", "int8": "int8", "uint8": "uint8", "int16": "int16", "uint16": "uint16",
    "int32": "int32", "uint32": "uint32", "int64": "int64", "uint64": "uint64",
}  # fmt: skip


def version() -> str:
    """The installed ONNX Runtime; raises MissingExtra."""
    return str(need(SPEC.module, SPEC.extra).__version__)


class OrtSession:
    """One ONNX Runtime session."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs = tuple(_to_spec(tensor) for tensor in session.get_inputs())
        self.outputs = tuple(_to_spec(tensor) for tensor in session.get_outputs())
        self._names = [tensor.name for tensor in self.outputs]

    def run(self, feeds: Feeds) -> Feeds:
        """Run once; raises MeasureError if the runtime fails."""
        try:
            return dict(zip(self._names, self._session.run(self._names, feeds), strict=True))
        except Exception as e:  # the binding raises RuntimeError subclasses of its own
            raise MeasureError(f"onnxruntime could not run the model: {_first_line(e)}") from e


def open(path: Path, *, threads: int, options: Options) -> OrtSession:
    """Load a model; raises MeasureError if this version refuses it, InputError on options."""
    ort = need(SPEC.module, SPEC.extra)
    if unknown := set(options) - set(SPEC.options):
        raise InputError(
            f"onnxruntime has no option '{sorted(unknown)[0]}'", hint=f"{', '.join(SPEC.options)}"
        )
    session_options = ort.SessionOptions()
    session_options.log_severity_level = 4
    session_options.intra_op_num_threads = threads
    session_options.inter_op_num_threads = 1
    session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if options.get("disable_quant_qdq") == "1":
        session_options.add_session_config_entry("session.disable_quant_qdq", "1")
    optimization_level = LEVELS.get(options.get("graph_optimization", "all"))
    if optimization_level is None:
        raise InputError(
            f"graph_optimization is '{options['graph_optimization']}'", hint=", ".join(LEVELS)
        )
    session_options.graph_optimization_level = getattr(
        ort.GraphOptimizationLevel, optimization_level
    )
    try:
        session = ort.InferenceSession(str(path), session_options, providers=[PROVIDER])
    except Exception as e:  # the binding raises RuntimeError subclasses of its own
        raise MeasureError(
            f"onnxruntime {ort.__version__} cannot load {path.name}: {_first_line(e)}"
        ) from e
    if session.get_providers() != [PROVIDER]:
        raise MeasureError(f"onnxruntime chose {session.get_providers()}, not {PROVIDER}")
    return OrtSession(session)


def _to_spec(tensor: Any) -> TensorSpec:
    kind = tensor.type.removeprefix("tensor(").removesuffix(")")
    if kind not in _DTYPES:
        raise MeasureError(
            f"tensor '{tensor.name}' has type {tensor.type}; only plain tensors are supported"
        )
    shape = tuple(dim if isinstance(dim, int) else str(dim or "?") for dim in tensor.shape)
    return TensorSpec(name=tensor.name, dtype=_DTYPES[kind], shape=shape)


def _first_line(e: BaseException) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0]
