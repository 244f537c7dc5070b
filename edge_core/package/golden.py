"""Golden vectors: a few inputs, what the original and the packaged model made of them, tolerances.

    make(inputs, original, artifact) -> Golden     on the host, when the package is built
    check(golden, run) -> GoldenResult             on the device, before the model is used

"Fine on the host, wrong on the target" is caught here. How far may a device be off? Quantisation
has moved the outputs away from the original by some distance, which was judged acceptable. A
device whose kernels round in another way may move them by up to twice that distance from what the
host recorded; a float model, which quantisation did not move, by 0.1 % of its largest output.
Distances are root mean squares over one output of one sample, and the worst sample counts.
Integers, bools and strings are equal or wrong, unless make() is told a tolerance for them. NaN and
infinity are allowed only where the host recorded the same.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from edge_core.errors import InputError, PackageError
from edge_core.package import npz
from edge_core.tensors import DTYPES, Array, Feeds

MAX_BYTES = 256 * 1024 * 1024
MAX_SAMPLES = 1000
ROLES = ("inputs", "original", "artifact")
# Of the largest output. The optimised and the plain graph of three float networks differ by less
# than 5e-7 of it (ONNX Runtime 1.31.1, x86-64); other machines have other kernels.
PEAK_SHARE = 1e-3
QUANTISATION_FACTOR = 2.0

Samples = tuple[Feeds, ...]


class OutputResult(msgspec.Struct, frozen=True):
    """One output over all samples."""

    name: str
    ok: bool
    tolerance: float  # 0.0 for an exact output
    error: float | None  # worst RMS; worst share of wrong elements if exact; None: not comparable
    text: str


class GoldenResult(msgspec.Struct, frozen=True):
    """Did this machine reproduce the golden vectors?"""

    ok: bool
    samples: int
    outputs: tuple[OutputResult, ...]
    text: str  # one line


@dataclass(frozen=True, eq=False)
class Golden:
    """The samples in three roles."""

    inputs: Samples
    original: Samples  # outputs of the model that the user gave
    artifact: Samples  # outputs of the packaged file on the host
    tolerance: dict[str, float]  # output -> RMS; 0.0 for an exact output

    def to_bytes(self) -> bytes:
        """A .npz without pickles: same vectors, same bytes. Raises InputError beyond MAX_BYTES."""
        arrays = {
            f"{role}.{i}.{k}": array
            for role, samples in zip(
                ROLES, (self.inputs, self.original, self.artifact), strict=True
            )
            for i, sample in enumerate(samples)
            for k, array in enumerate(sample.values())
        }
        _check_size(sum(array.nbytes for array in arrays.values()))  # before they are copied
        strings = {name: array for name, array in arrays.items() if _dtype(array) == "string"}
        index = _Index(
            samples=len(self.inputs),
            inputs=tuple(self.inputs[0]),
            outputs=tuple(self.artifact[0]),
            tolerance=self.tolerance,
            strings={name: array.shape for name, array in strings.items()},
        )
        arrays |= {name: _texts(array) for name, array in strings.items()}
        head = np.frombuffer(msgspec.json.encode(index), np.uint8)
        raw = npz.dumps({"index": head, **arrays})
        _check_size(len(raw))
        return raw


def make(
    inputs: Samples,
    original: Samples,
    artifact: Samples,
    tolerance: Mapping[str, float] | None = None,  # output -> RMS, instead of the rule above
) -> Golden:
    """Golden vectors with a tolerance for each output; raises InputError if they do not match."""
    inputs, original, artifact = _match_roles(inputs, original, artifact)
    names = tuple(artifact[0])
    stated = dict(tolerance or {})
    if unknown := stated.keys() - set(names):
        raise InputError(f"no output '{min(unknown)}' for a tolerance", hint=", ".join(names))
    tolerances = {
        name: stated[name]
        if name in stated
        else _tolerance(_column(original, name), _column(artifact, name))
        for name in names
    }
    for name, value in tolerances.items():
        if not 0 <= value < sys.float_info.max:
            raise InputError(f"output '{name}': a tolerance of {value} would let anything pass")
    return Golden(inputs, original, artifact, tolerances)


def _match_roles(
    inputs: Samples, original: Samples, artifact: Samples
) -> tuple[Samples, Samples, Samples]:
    count = len(inputs)
    if not 1 <= count <= MAX_SAMPLES or not count == len(original) == len(artifact):
        raise InputError(
            f"golden vectors are 1 to {MAX_SAMPLES} samples; got {count} inputs, "
            f"{len(original)} original and {len(artifact)} artifact outputs"
        )
    if not artifact[0]:
        raise InputError("golden vectors without outputs prove nothing")
    inputs, artifact = _alike(inputs, inputs, "inputs"), _alike(artifact, artifact, "outputs")
    original = _alike(original, artifact, "the original's outputs")
    for name in artifact[0]:
        pairs = zip(_column(original, name), _column(artifact, name), strict=True)
        for i, (reference, answer) in enumerate(pairs):
            if (reference.shape, _exact(reference)) != (answer.shape, _exact(answer)):
                raise InputError(
                    f"golden sample {i}: output '{name}' is {answer.dtype} {answer.shape}, "
                    f"the original's is {reference.dtype} {reference.shape}"
                )
    return inputs, original, artifact


def _column(samples: Samples, name: str) -> list[Array]:
    """One tensor of every sample."""
    return [sample[name] for sample in samples]


def _alike(samples: Samples, like: Samples, what: str) -> Samples:
    """The samples in the order of names of ``like``'s first; raises InputError."""
    names = list(like[0])
    for i, sample in enumerate(samples):
        if set(sample) != set(names):
            raise InputError(f"golden sample {i}: {what} are {list(sample)}, not {names}")
        for name in names:
            _dtype(sample[name])
    return tuple({name: sample[name] for name in names} for sample in samples)


def check(golden: Golden, run: Callable[[Feeds], Feeds]) -> GoldenResult:
    """Run every input and compare the outputs with the recorded ones.

    Errors of ``run`` pass through: a runtime that refuses or crashes is no matter of tolerances.
    """
    worst: dict[str, OutputResult] = {}
    for i, (feeds, recorded) in enumerate(zip(golden.inputs, golden.artifact, strict=True)):
        outputs = run(feeds)
        for name, expected in recorded.items():
            result = _compare(name, expected, outputs.get(name), golden.tolerance[name], i)
            if name not in worst or _badness(result) > _badness(worst[name]):
                worst[name] = result
        for name in outputs.keys() - recorded.keys():
            worst[name] = OutputResult(name, False, 0.0, None, f"'{name}' was not recorded")
    results = tuple(worst.values())
    failed = [result.text for result in results if not result.ok]
    count = len(golden.inputs)
    nearest = max(results, key=_tolerance_share)
    fine = f"{count} of {count} golden samples reproduced; {nearest.text}"
    return GoldenResult(not failed, count, results, "; ".join(failed) if failed else fine)


def _compare(
    name: str, recorded: Array, answer: Array | None, tolerance: float, sample: int
) -> OutputResult:
    def fail(reason: str) -> OutputResult:
        return OutputResult(name, False, tolerance, None, f"'{name}' {reason} in sample {sample}")

    if answer is None:
        return fail("is missing")
    if answer.shape != recorded.shape:
        return fail(f"has shape {answer.shape}, not {recorded.shape},")
    if _dtype(answer) != _dtype(recorded):
        return fail(f"is {_dtype(answer)}, not {_dtype(recorded)},")
    if _dtype(recorded) == "string" or (_exact(recorded) and tolerance == 0.0):
        wrong = float(np.mean(answer != recorded)) if recorded.size else 0.0
        text = f"'{name}' has {wrong:.2%} wrong elements" if wrong else f"'{name}' is equal"
        return OutputResult(name, not wrong, tolerance, wrong, text)
    recorded_values, values = recorded.astype(np.float64), answer.astype(np.float64)
    odd = ~(np.isfinite(recorded_values) & np.isfinite(values))
    if not np.array_equal(recorded_values[odd], values[odd], equal_nan=True):
        return fail(f"has {_odd(values)}, the build recorded {_odd(recorded_values)},")
    error = _rms(recorded_values[~odd], values[~odd])
    text = f"'{name}' is off by {error:.3g} RMS ({tolerance:.3g} allowed)"
    return OutputResult(name, error <= tolerance, tolerance, error, text)


def _tolerance_share(result: OutputResult) -> float:
    return (result.error or 0.0) / max(result.tolerance, sys.float_info.min)


def _badness(result: OutputResult) -> tuple[bool, float]:
    return not result.ok, math.inf if result.error is None else result.error


def _odd(array: Array) -> str:
    return f"{int(np.isnan(array).sum())} NaN and {int(np.isinf(array).sum())} infinite values"


def _tolerance(original: Sequence[Array], artifact: Sequence[Array]) -> float:
    """RMS that a device may be off in one output; 0.0 for integers, bools and strings."""
    if _exact(artifact[0]):
        return 0.0
    peak = moved = 0.0
    for original_array, artifact_array in zip(original, artifact, strict=True):
        exact, values = original_array.astype(np.float64), artifact_array.astype(np.float64)
        peak = max(peak, float(np.max(np.abs(values[np.isfinite(values)]), initial=0.0)))
        both = np.isfinite(exact) & np.isfinite(values)
        moved = max(moved, _rms(exact[both], values[both]))
    return max(PEAK_SHARE * peak, QUANTISATION_FACTOR * moved)


def _rms(one: Array, two: Array) -> float:
    """Root mean square of finite differences, without overflow in the squares."""
    with np.errstate(over="ignore"):
        differences = np.abs(one - two)
    top = float(np.max(differences, initial=0.0))
    if top == 0.0 or math.isinf(top):
        return min(top, sys.float_info.max)
    return top * math.sqrt(float(np.mean(np.square(differences / top))))


def _dtype(array: Array) -> str:
    """A name of DTYPES; raises InputError for an array that no model takes or gives."""
    name = "string" if array.dtype.kind in "OU" else array.dtype.name
    if name not in DTYPES or (
        name == "string" and not all(isinstance(text, str) for text in array.flat)
    ):
        raise InputError(
            f"an array of {array.dtype} is no tensor", hint=f"one of: {', '.join(DTYPES)}"
        )
    return name


def _exact(array: Array) -> bool:
    return array.dtype.kind != "f"


class _Index(msgspec.Struct, frozen=True):
    """What the arrays of the file are: index.npy, JSON as uint8. The others are ROLE.SAMPLE.K."""

    samples: Annotated[int, Meta(ge=1, le=MAX_SAMPLES)]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tolerance: dict[str, Annotated[float, Meta(ge=0)]]
    strings: dict[str, tuple[int, ...]]  # array -> its shape; stored flat, JSON as uint8


def from_bytes(raw: bytes) -> Golden:
    """What to_bytes() wrote; raises PackageError, and only that, for anything else."""
    what = "golden.npz"
    if len(raw) > MAX_BYTES:
        raise PackageError(f"{what} has {len(raw)} bytes; limit {MAX_BYTES}")
    arrays = npz.loads(raw, what)
    try:
        index = msgspec.json.decode(arrays["index"].tobytes(), type=_Index)
        for name, shape in index.strings.items():
            texts = msgspec.json.decode(arrays[name].tobytes(), type=list[str])
            arrays[name] = np.array(texts, object).reshape(shape)
        inputs, original, artifact = (
            tuple(
                {name: arrays[f"{role}.{i}.{k}"] for k, name in enumerate(names)}
                for i in range(index.samples)
            )
            for role, names in zip(ROLES, (index.inputs, index.outputs, index.outputs), strict=True)
        )
        golden = make(inputs, original, artifact, index.tolerance)
        same = golden.to_bytes() == raw  # one serialisation: nothing hides in it
    except (
        KeyError,
        ValueError,
        RecursionError,
        InputError,
    ) as error:  # MsgspecError is a ValueError
        raise PackageError(f"{what} is not readable: {error}") from error
    if not same:
        raise PackageError(f"{what} is not what its vectors make")
    return golden


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise InputError(
            f"the golden vectors have {size} bytes; a package holds {MAX_BYTES}",
            hint="take fewer samples",
        )


def _texts(array: Array) -> Array:
    return np.frombuffer(msgspec.json.encode([str(text) for text in array.reshape(-1)]), np.uint8)
