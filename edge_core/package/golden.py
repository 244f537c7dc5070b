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
            f"{role}.{i}.{k}": a
            for role, samples in zip(
                ROLES, (self.inputs, self.original, self.artifact), strict=True
            )
            for i, sample in enumerate(samples)
            for k, a in enumerate(sample.values())
        }
        _check_size(sum(a.nbytes for a in arrays.values()))  # before they are copied
        strings = {name: a for name, a in arrays.items() if _dtype(a) == "string"}
        index = _Index(
            samples=len(self.inputs),
            inputs=tuple(self.inputs[0]),
            outputs=tuple(self.artifact[0]),
            tolerance=self.tolerance,
            strings={name: a.shape for name, a in strings.items()},
        )
        arrays |= {name: _texts(a) for name, a in strings.items()}
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
    given = dict(tolerance or {})
    if unknown := given.keys() - set(names):
        raise InputError(f"no output '{min(unknown)}' for a tolerance", hint=", ".join(names))
    found = {
        n: given[n]
        if n in given
        else _tolerance([o[n] for o in original], [a[n] for a in artifact])
        for n in names
    }
    for name, value in found.items():
        if not 0 <= value < sys.float_info.max:
            raise InputError(f"output '{name}': a tolerance of {value} would let anything pass")
    return Golden(inputs, original, artifact, found)


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
    for i, (o, a) in enumerate(zip(original, artifact, strict=True)):
        for name in a:
            if (o[name].shape, _exact(o[name])) != (a[name].shape, _exact(a[name])):
                raise InputError(
                    f"golden sample {i}: output '{name}' is {a[name].dtype} {a[name].shape}, "
                    f"the original's is {o[name].dtype} {o[name].shape}"
                )
    return inputs, original, artifact


def _alike(samples: Samples, like: Samples, what: str) -> Samples:
    """The samples in the order of names of ``like``'s first; raises InputError."""
    names = list(like[0])
    for i, s in enumerate(samples):
        if set(s) != set(names):
            raise InputError(f"golden sample {i}: {what} are {list(s)}, not {names}")
        for name in names:
            _dtype(s[name])
    return tuple({n: s[n] for n in names} for s in samples)


def check(golden: Golden, run: Callable[[Feeds], Feeds]) -> GoldenResult:
    """Run every input and hold the outputs against the recorded ones.

    Errors of ``run`` pass through: a runtime that refuses or crashes is no matter of tolerances.
    """
    worst: dict[str, OutputResult] = {}
    for i, (feeds, wanted) in enumerate(zip(golden.inputs, golden.artifact, strict=True)):
        outputs = run(feeds)
        for name, want in wanted.items():
            result = _compare(name, want, outputs.get(name), golden.tolerance[name], i)
            if name not in worst or _badness(result) > _badness(worst[name]):
                worst[name] = result
        for name in outputs.keys() - wanted.keys():
            worst[name] = OutputResult(name, False, 0.0, None, f"'{name}' was not recorded")
    results = tuple(worst.values())
    failed = [r.text for r in results if not r.ok]
    count = len(golden.inputs)
    nearest = max(results, key=lambda r: (r.error or 0.0) / max(r.tolerance, sys.float_info.min))
    fine = f"{count} of {count} golden samples reproduced; {nearest.text}"
    return GoldenResult(not failed, count, results, "; ".join(failed) if failed else fine)


def _compare(name: str, want: Array, got: Array | None, tolerance: float, i: int) -> OutputResult:
    def failed(why: str) -> OutputResult:
        return OutputResult(name, False, tolerance, None, f"'{name}' {why} in sample {i}")

    if got is None:
        return failed("is missing")
    if got.shape != want.shape:
        return failed(f"has shape {got.shape}, not {want.shape},")
    if _dtype(got) != _dtype(want):
        return failed(f"is {_dtype(got)}, not {_dtype(want)},")
    if _dtype(want) == "string" or (_exact(want) and tolerance == 0.0):
        wrong = float(np.mean(got != want)) if want.size else 0.0
        text = f"'{name}' has {wrong:.2%} wrong elements" if wrong else f"'{name}' is equal"
        return OutputResult(name, not wrong, tolerance, wrong, text)
    a, b = want.astype(np.float64), got.astype(np.float64)
    odd = ~(np.isfinite(a) & np.isfinite(b))
    if not np.array_equal(a[odd], b[odd], equal_nan=True):
        return failed(f"has {_odd(b)}, the build recorded {_odd(a)},")
    error = _rms(a[~odd], b[~odd])
    text = f"'{name}' is off by {error:.3g} RMS ({tolerance:.3g} allowed)"
    return OutputResult(name, error <= tolerance, tolerance, error, text)


def _badness(r: OutputResult) -> tuple[bool, float]:
    return not r.ok, math.inf if r.error is None else r.error


def _odd(a: Array) -> str:
    return f"{int(np.isnan(a).sum())} NaN and {int(np.isinf(a).sum())} infinite values"


def _tolerance(original: Sequence[Array], artifact: Sequence[Array]) -> float:
    """RMS that a device may be off in one output; 0.0 for integers, bools and strings."""
    if _exact(artifact[0]):
        return 0.0
    peak = moved = 0.0
    for o, a in zip(original, artifact, strict=True):
        x, y = o.astype(np.float64), a.astype(np.float64)
        peak = max(peak, float(np.max(np.abs(y[np.isfinite(y)]), initial=0.0)))
        both = np.isfinite(x) & np.isfinite(y)
        moved = max(moved, _rms(x[both], y[both]))
    return max(PEAK_SHARE * peak, QUANTISATION_FACTOR * moved)


def _rms(a: Array, b: Array) -> float:
    """Root mean square of finite differences, without overflow in the squares."""
    with np.errstate(over="ignore"):
        d = np.abs(a - b)
    top = float(np.max(d, initial=0.0))
    if top == 0.0 or math.isinf(top):
        return min(top, sys.float_info.max)
    return top * math.sqrt(float(np.mean(np.square(d / top))))


def _dtype(a: Array) -> str:
    """A name of DTYPES; raises InputError for an array that no model takes or gives."""
    name = "string" if a.dtype.kind in "OU" else a.dtype.name
    if name not in DTYPES or (name == "string" and not all(isinstance(t, str) for t in a.flat)):
        raise InputError(f"an array of {a.dtype} is no tensor", hint=f"one of: {', '.join(DTYPES)}")
    return name


def _exact(a: Array) -> bool:
    return a.dtype.kind != "f"


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
                {n: arrays[f"{role}.{i}.{k}"] for k, n in enumerate(names)}
                for i in range(index.samples)
            )
            for role, names in zip(ROLES, (index.inputs, index.outputs, index.outputs), strict=True)
        )
        golden = make(inputs, original, artifact, index.tolerance)
        same = golden.to_bytes() == raw  # one serialisation: nothing hides in it
    except (KeyError, ValueError, RecursionError, InputError) as e:  # MsgspecError is a ValueError
        raise PackageError(f"{what} is not readable: {e}") from e
    if not same:
        raise PackageError(f"{what} is not what its vectors make")
    return golden


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise InputError(
            f"the golden vectors have {size} bytes; a package holds {MAX_BYTES}",
            hint="take fewer samples",
        )


def _texts(a: Array) -> Array:
    return np.frombuffer(msgspec.json.encode([str(t) for t in a.reshape(-1)]), np.uint8)
