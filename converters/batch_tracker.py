"""A graph made for one row, made to take any number of them: where rows lie, op by op.

    Tracker().step(...)          tries one op alone on ROWS rows: does it keep them apart?
    reshape(where, source, target)   where the free dimension of a reshape belongs

Nothing is assumed about ops. Each is run by the real runtime, once with every row alone and once
with all of them stacked; where its results lie is what was found, and an op that does not give
each row what it gives it alone is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np

from converters.comparison import TOLERANCE, TOLERANCE_FP16, require_same_outputs
from edge_core.errors import ConvertError, EdgeError
from edge_core.tensors import Array

ROWS = 3
BATCH_NAME = "batch"  # of the free dimension
FIXED_BATCH_HINT = "build it without --batch dynamic"
Shape = tuple[int, ...]
Values = dict[str, Array]  # by tensor
RunUnit = Callable[[Values], Values]  # what depends on the rows -> results
WIDE_INTEGERS = (
    "int8",
    "uint8",
    "int16",
    "uint16",
)  # integers that stand for reals: all values are valid


class BatchAxis(msgspec.Struct, frozen=True):
    """The rows of a batch in a tensor: they lie in ``axis``, whose index counts ``outer`` first,
    then the rows, then the rest."""

    axis: int
    outer: int = 1


LEADING_AXIS = BatchAxis(0)


class BatchedTensor(msgspec.Struct, frozen=True):
    """What is known of a tensor that depends on the rows: its form for one row."""

    shape: Shape
    dtype: np.dtype[Any]
    where: BatchAxis


def make_batch_error(what: str) -> ConvertError:
    """The error for a model that cannot take batches."""
    return ConvertError(what, hint=FIXED_BATCH_HINT)


def stack_rows(rows: Sequence[Array], where: BatchAxis) -> Array:
    """One tensor of all rows."""
    shape = rows[0].shape
    split = (*shape[: where.axis], where.outer, -1, *shape[where.axis + 1 :])
    joined = np.stack([row.reshape(split) for row in rows], axis=where.axis + 1)
    return joined.reshape(_multiply_dimension(shape, where.axis, len(rows)))


def split_rows(batch: Array, where: BatchAxis, count: int) -> list[Array]:
    """The rows of a tensor, each as it is alone."""
    shape = tuple(batch.shape)
    one = (*shape[: where.axis], shape[where.axis] // count, *shape[where.axis + 1 :])
    inner = shape[where.axis] // count // where.outer
    split = (*shape[: where.axis], where.outer, count, inner, *shape[where.axis + 1 :])
    moved = np.moveaxis(batch.reshape(split), where.axis + 1, 0)
    return [row.reshape(one) for row in moved]


def locate_rows(
    alone: Sequence[Array], batch: Array, likely: Iterable[BatchAxis] = ()
) -> BatchAxis | None:
    """Where ``batch`` holds what the rows gave alone; None if it does not.

    Rows that are equal may be found in more than one place: ``likely`` ones are looked at first.
    """
    shape, count = alone[0].shape, len(alone)
    axes = [
        i
        for i, (first, second) in enumerate(zip(shape, batch.shape, strict=False))
        if first != second
    ]
    if (
        len(shape) != batch.ndim
        or len(axes) != 1
        or batch.shape != _multiply_dimension(shape, axes[0], count)
    ):
        return None
    size = shape[axes[0]]
    every = [BatchAxis(axes[0], outer) for outer in range(1, size + 1) if size % outer == 0]
    first = [place for place in likely if place in every]
    for where in dict.fromkeys([*first, *every]):
        if all(
            _are_same(first, second)
            for first, second in zip(alone, split_rows(batch, where, count), strict=True)
        ):
            return where
    return None


def find_free_dimension(where: BatchAxis, source: Shape, target: Shape) -> int | None:
    """The dimension of ``want`` that the rows of a tensor of shape ``have`` multiply.

    A reshape keeps the order of the elements, so the rows stay behind as many of them as before.
    None where they must be moved to the front: that is in the middle of a dimension, or a 1 at
    the front is what was left of them (a Transpose of one row is a reshape).
    """
    if source[: where.axis + 1] == target[: where.axis + 1]:
        return where.axis
    before = math.prod(source[: where.axis]) * where.outer
    place = next((k for k in range(len(target)) if math.prod(target[:k]) == before), None)
    waiting = before > 1 and target[0] == 1
    return None if place is None or (waiting and target[place] != 1) else place


class BatchTracker:
    """What is known of a graph's tensors so far: constants, and those that depend on the rows."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self.rows: dict[str, BatchedTensor] = {}
        self.constants: Values = {}

    def input(self, name: str, shape: Shape, dtype: Any) -> None:
        """A graph input; raises ConvertError unless it is made for one row."""
        if not shape or shape[0] != 1:
            shape_text = "x".join(map(str, shape)) or "a scalar"
            raise make_batch_error(
                f"input '{name}' is {shape_text}: its first dimension is not a batch of 1"
            )
        self.rows[name] = BatchedTensor(shape, np.dtype(dtype), LEADING_AXIS)

    def output(self, name: str) -> None:
        """A graph output; raises ConvertError unless it has one line for each row."""
        known = self.rows.get(name)
        if known is None:
            raise make_batch_error(f"output '{name}' does not depend on the rows of a batch")
        if known.where != LEADING_AXIS or known.shape[0] != 1:
            shape_text = "x".join(map(str, known.shape))
            raise make_batch_error(
                f"output '{name}' is {shape_text}: its first dimension is not the batch"
            )

    def step(
        self,
        label: str,
        inputs: Iterable[str],
        outputs: Sequence[str],
        load: Callable[[dict[str, BatchedTensor], Values], RunUnit],
    ) -> None:
        """Try one op, which ``load`` gives for its inputs: those with rows, and the constant ones.

        Results without rows become constants. Raises ConvertError naming ``label`` for an op that
        does not keep the rows apart.
        """
        names = list(dict.fromkeys(inputs))
        batched = {name: self.rows[name] for name in names if name in self.rows}
        with translate_refusal(f"{label} does not run"):
            run = load(
                batched, {name: self.constants[name] for name in names if name in self.constants}
            )
            samples = [
                {name: self.sample(tensor) for name, tensor in batched.items()} for _ in range(ROWS)
            ]
            alone = [run(sample) for sample in samples[: ROWS if batched else 1]]
        if not batched:
            self.constants |= {name: alone[0][name] for name in outputs}
            return
        with translate_refusal(f"{label} fixes the batch"):
            batch = run(
                {
                    name: stack_rows([sample[name] for sample in samples], tensor.where)
                    for name, tensor in batched.items()
                }
            )
        likely = [tensor.where for tensor in batched.values()]
        for name in outputs:
            where = locate_rows([first[name] for first in alone], batch[name], likely)
            if where is None:
                raise make_batch_error(f"{label} mixes the rows of a batch, or fixes their number")
            self.rows[name] = BatchedTensor(alone[0][name].shape, alone[0][name].dtype, where)

    def sample(self, tensor: BatchedTensor) -> Array:
        """Values for one row: normal floats; integers that are valid as indices, or all."""
        if tensor.dtype.kind == "f":
            return self._rng.standard_normal(tensor.shape).astype(tensor.dtype)
        if tensor.dtype.kind not in "iub":
            raise make_batch_error(f"tensors of type {tensor.dtype} are not batched")
        if tensor.dtype.name in WIDE_INTEGERS:
            limits = np.iinfo(tensor.dtype)
            return self._rng.integers(
                limits.min, limits.max, tensor.shape, tensor.dtype, endpoint=True
            )
        return self._rng.integers(0, 2, tensor.shape).astype(tensor.dtype)


@contextmanager
def translate_refusal(failed: str) -> Iterator[None]:
    """Say what failed, and that the model cannot take batches."""
    try:
        yield
    except EdgeError as error:
        raise make_batch_error(f"{failed}: {error.what}") from error


def free_leading_dimension(shape: Sequence[int | str]) -> tuple[int | str, ...]:
    """The shape with a free batch."""
    return (BATCH_NAME, *shape[1:])


def _are_same(first: Array, second: Array) -> bool:
    half = first.dtype == np.float16
    try:
        require_same_outputs({"": first}, {"": second}, TOLERANCE_FP16 if half else TOLERANCE)
    except ConvertError:
        return False
    return True


def _multiply_dimension(shape: Shape, axis: int, count: int) -> Shape:
    return (*shape[:axis], shape[axis] * count, *shape[axis + 1 :])
