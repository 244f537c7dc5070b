"""TensorFlow Lite on the CPU: .tflite files, by LiteRT or by the older tflite-runtime.

Both packages have the same interpreter, so one class adapts both. An interpreter is not
thread-safe (60 of 120 calls raised in ai-edge-litert 2.3.0): a session has a lock. Outputs are
copies, because a view into an interpreter blocks its next run. Variables, such as an LSTM's state,
are reset before every run: a run depends on its inputs only.
"""

from __future__ import annotations

import re
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_core.errors import InputError, MeasureError, MissingExtra
from edge_core.extras import need
from edge_core.runtimes.adapter import Options, Spec
from edge_core.runtimes.xnnpack import Delegation, measure_delegation
from edge_core.tensors import DTYPES, Array, Feeds, TensorSpec

SIGNATURE = "serving_default"
RESOLVERS = {"1": "AUTO", "0": "BUILTIN_WITHOUT_DEFAULT_DELEGATES"}  # of the option xnnpack
MAX_REASON = 300  # characters


class TfliteSession:
    """One interpreter with its tensors allocated."""

    def __init__(self, interpreter: Any, runtime: str) -> None:
        self._interpreter, self._runtime = interpreter, runtime
        self._lock = threading.Lock()
        inputs, outputs = _name_tensors(interpreter)
        self._inputs = {index: _to_spec(*named) for index, named in inputs.items()}
        self._outputs = {index: _to_spec(*named) for index, named in outputs.items()}
        self._shapes = {index: named[1]["shape"].tolist() for index, named in inputs.items()}

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What run() takes, in the graph's order."""
        return tuple(self._inputs.values())

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What run() returns, in the graph's order."""
        return tuple(self._outputs.values())

    def run(self, feeds: Feeds) -> Feeds:
        """Name -> array in, name -> copy out; MeasureError if the runtime refuses or fails."""
        expected_names = {spec.name for spec in self.inputs}
        if set(feeds) != expected_names:
            raise MeasureError(
                f"{self._runtime} was fed {', '.join(sorted(feeds))}",
                hint=f"inputs: {', '.join(sorted(expected_names))}",
            )
        with self._lock:
            try:
                return self._run(feeds)
            except Exception as e:  # the binding raises ValueError and RuntimeError
                raise MeasureError(
                    f"{self._runtime} could not run the model: {_shorten_reason(e)}"
                ) from e

    def _run(self, feeds: Feeds) -> Feeds:
        arrays = {index: np.asarray(feeds[spec.name]) for index, spec in self._inputs.items()}
        self._resize({index: list(array.shape) for index, array in arrays.items()})
        self._interpreter.reset_all_variables()
        for index, array in arrays.items():
            self._interpreter.set_tensor(index, array)
        self._interpreter.invoke()
        return {
            spec.name: _copy_tensor(self._interpreter, index)
            for index, spec in self._outputs.items()
        }

    def _resize(self, shapes: dict[int, list[int]]) -> None:
        """Only models with dynamic dimensions; others refuse a wrong shape in set_tensor()."""
        changed = [
            index
            for index, spec in self._inputs.items()
            if spec.dynamic and shapes[index] != self._shapes[index]
        ]
        for index in changed:
            self._interpreter.resize_tensor_input(index, shapes[index], strict=True)
            self._shapes[index] = shapes[index]
        if changed:
            self._interpreter.allocate_tensors()


class TfliteAdapter:
    """One of the two packages."""

    def __init__(self, spec: Spec, package: str, way_out: str = "") -> None:
        self.SPEC = spec
        self._package, self._way_out = package, way_out

    def version(self) -> str:
        """Of the package that is imported, in the index's spelling; raises MissingExtra.

        Not from the metadata of installed distributions: tflite-runtime also comes as
        tflite-runtime-nightly, and both may be on the path.
        """
        self._module()
        installed_version = str(need(self._package, self.SPEC.extra).__version__)
        return re.sub(r"(?<=\d)dev", ".dev", installed_version)  # 2.20.0dev20250409

    def open(self, path: Path, *, threads: int, options: Options) -> TfliteSession:
        """Load a model; raises MeasureError if this version refuses it, InputError on options."""
        if unknown := set(options) - set(self.SPEC.options):
            raise InputError(
                f"{self.SPEC.name} has no option '{sorted(unknown)[0]}'",
                hint=f"{', '.join(self.SPEC.options)}",
            )
        resolver = RESOLVERS.get(options.get("xnnpack", "1"))
        if resolver is None:
            raise InputError(f"xnnpack is '{options['xnnpack']}'", hint="0 or 1")
        return TfliteSession(self._interpreter(path, threads, resolver), self._label)

    def delegation(self, path: Path, threads: int) -> Delegation:
        """What runs outside XNNPACK, and what that costs; raises MeasureError if it is refused."""
        both = [self._interpreter(path, threads, RESOLVERS[option]) for option in ("1", "0")]
        try:
            return measure_delegation(*both)
        except (RuntimeError, ValueError) as e:  # what invoke() raises
            raise MeasureError(
                f"{self._label} could not run {path.name}: {_shorten_reason(e)}"
            ) from e

    @property
    def _label(self) -> str:
        return f"{self.SPEC.name} {self.version()}"

    def _module(self) -> Any:
        if find_spec(self._package) is None:
            raise MissingExtra(self.SPEC.distribution, self.SPEC.extra, hint=self._way_out)
        return need(self.SPEC.module, self.SPEC.extra)

    def _interpreter(self, path: Path, threads: int, resolver: str) -> Any:
        module = self._module()
        try:
            interpreter = module.Interpreter(
                model_path=str(path),
                num_threads=threads,
                experimental_op_resolver_type=getattr(module.OpResolverType, resolver),
            )
            interpreter.allocate_tensors()
        except SystemError as e:  # the binding was built for NumPy 1 and met NumPy 2
            raise MeasureError(
                f"{self._label} does not work with NumPy {np.__version__}",
                hint="pip install 'numpy<2'",
            ) from e
        except Exception as e:  # ValueError for bad files, RuntimeError for what it cannot run
            raise MeasureError(
                f"{self._label} cannot load {path.name}: {_shorten_reason(e)}"
            ) from e
        return interpreter


LITERT = TfliteAdapter(
    Spec(
        name="litert",
        distribution="ai-edge-litert",
        module="ai_edge_litert.interpreter",
        extra="rt-tflite",
        suffixes=(".tflite",),
        precisions=("fp32", "fp16", "int8"),
        options=("xnnpack",),  # "0": the runtime's own kernels, without the XNNPACK delegate
        numpy_1="<1.1",  # older ones load no model (SystemError)
        portable=True,  # XNNPACK
    ),
    package="ai_edge_litert",
)
TFLITE_RUNTIME = TfliteAdapter(
    msgspec.structs.replace(
        LITERT.SPEC,
        name="tflite-runtime",
        distribution="tflite-runtime",
        module="tflite_runtime.interpreter",
        numpy_1="",  # every version: it loads no model either
        prereleases="tflite-runtime-nightly",
        portable=False,
    ),
    package="tflite_runtime",
    # The extra installs LiteRT wherever that has a wheel.
    way_out="on Python up to 3.11: pip install tflite-runtime 'numpy<2'",
)

_Details = dict[str, Any]  # of one tensor, as the interpreter lists them
_Named = dict[int, tuple[str, _Details]]  # tensor index -> name, details


def _name_tensors(interpreter: Any) -> tuple[_Named, _Named]:
    """Inputs and outputs in the graph's order: named by the signature, or by their tensors."""
    inputs = {int(details["index"]): details for details in interpreter.get_input_details()}
    outputs = {int(details["index"]): details for details in interpreter.get_output_details()}
    if SIGNATURE not in interpreter.get_signature_list():
        return _name_by_tensor(inputs), _name_by_tensor(outputs)
    # A runner that lives on counts as a view into the interpreter and blocks it.
    runner = interpreter.get_signature_runner(SIGNATURE)
    named_inputs = _name_by_key(inputs, runner.get_input_details())
    if len(named_inputs) < len(inputs):
        raise MeasureError(
            f"the signature '{SIGNATURE}' does not name every input",
            hint=f"it names {', '.join(runner.get_input_details())}",
        )
    return named_inputs, _name_by_key(outputs, runner.get_output_details())


def _name_by_tensor(tensors: dict[int, _Details]) -> _Named:
    return {index: (details["name"], details) for index, details in tensors.items()}


def _name_by_key(tensors: dict[int, _Details], keys: dict[str, _Details]) -> _Named:
    names = {int(details["index"]): key for key, details in keys.items()}
    return {index: (names[index], details) for index, details in tensors.items() if index in names}


def _to_spec(name: str, details: _Details) -> TensorSpec:
    kind = np.dtype(details["dtype"])
    dtype = "string" if kind.kind == "S" else kind.name
    if dtype not in DTYPES:
        raise MeasureError(f"tensor '{name}' has type {dtype}; only plain tensors are supported")
    signature = details["shape_signature"].tolist() or details["shape"].tolist()
    shape = tuple(dim if dim >= 0 else f"{name}_{axis}" for axis, dim in enumerate(signature))
    scales = details["quantization_parameters"]["scales"]
    if len(scales) != 1:
        return TensorSpec(name=name, dtype=dtype, shape=shape)
    zero_point = int(details["quantization_parameters"]["zero_points"][0])
    return TensorSpec(name, dtype, shape, scale=float(scales[0]), zero_point=zero_point)


def _copy_tensor(interpreter: Any, index: int) -> Array:
    return np.asarray(interpreter.get_tensor(index))


def _shorten_reason(e: BaseException) -> str:
    """What the runtime says, without its paths and its advice.

    /tensorflow/lite/kernels/div.cc:9 x was not true.Node number 3 (DIV) failed to prepare.
    Didn't find op for builtin opcode 'CONV_2D' version '8'. An older version of this ...
    """
    lines = [line for line in str(e).splitlines() if line.strip()] or [type(e).__name__]
    message = re.sub(r"(?<=\w)\.?(?=Node number |Failed to apply )", ". ", lines[0])
    message = re.sub(r"^\S*/kernels/", "", message).partition(" An older version of")[0]
    return message[:MAX_REASON]
