"""Einsum as transposes, products of matrices and sums."""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Collection, Sequence

import msgspec
import numpy as np

from converters.tflite.node import Node
from converters.tflite.ops.broadcast import emit_broadcast
from converters.tflite.ops.movement import pick_ranges, reshape_value, transpose_value
from converters.tflite.ops.products import emit_fully_connected, multiply_batches
from converters.tflite.ops.reductions import reduce_axes
from converters.tflite.values import PlacedValue, identity


class Term(msgspec.Struct, frozen=True):
    """A value and the letter of each of its axes."""

    value: PlacedValue
    letters: str

    def size(self, letters: Collection[str]) -> int:
        """The number of elements along these axes."""
        return math.prod(
            size
            for size, letter in zip(self.value.shape, self.letters, strict=True)
            if letter in letters
        )


def lower_einsum(node: Node) -> None:
    """One product after the other; axes that are no longer needed are summed first."""
    values = [node.value(i) for i in range(len(node.proto.input))]
    sides, result = parse_equation(node.attr("equation"), [len(value.shape) for value in values])
    terms = [
        _take_diagonals(node, Term(value, letters))
        for value, letters in zip(values, sides, strict=True)
    ]
    terms = _drop_broadcast_axes(node, terms)
    term = terms.pop(0)
    while terms:
        other = terms.pop(0)
        kept = set(result).union(*(later.letters for later in terms))
        left = _sum_unneeded_axes(node, term, kept.union(other.letters))
        right = _sum_unneeded_axes(node, other, kept.union(term.letters))
        term = _multiply(node, left, right, kept)
    term = _sum_unneeded_axes(node, term, result)
    order = tuple(term.letters.index(letter) for letter in result)
    node.set_output_value(transpose_value(term.value, order))


def parse_equation(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The letters of each operand and of the result; unused letters stand for "..."."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    sides = left.split(",")
    free = [letter for letter in string.ascii_letters if letter not in equation]
    wide = max(
        [
            0,
            *(
                rank - len(side) + 3
                for side, rank in zip(sides, ranks, strict=True)
                if "..." in side
            ),
        ]
    )
    dots = "".join(free[:wide])
    expanded = []
    for side, rank in zip(sides, ranks, strict=True):
        own = rank - len(side.replace("...", ""))
        expanded.append(side.replace("...", dots[len(dots) - own :]))
    if not arrow:
        counts = Counter("".join(side.replace("...", "") for side in sides))
        right = ("..." if wide else "") + "".join(
            sorted(letter for letter in counts if counts[letter] == 1)
        )
    return expanded, right.replace("...", dots)


def _take_diagonals(node: Node, term: Term) -> Term:
    """The term with each letter once: of two axes with one letter only the diagonal remains."""
    value, letters = term.value, term.letters
    while repeated := [letter for letter in letters if letters.count(letter) > 1]:
        first = letters.index(repeated[0])
        second = letters.index(repeated[0], first + 1)
        rest = [axis for axis in range(len(letters)) if axis not in (first, second)]
        size = value.shape[first]
        moved = transpose_value(value, (*rest, first, second))
        shape = moved.shape[:-2]
        tensor = node.place(reshape_value(node, moved, (*shape, size * size)))
        spans = [*(range(length) for length in shape), range(0, size * size, size + 1)]
        value = PlacedValue(
            (*shape, size), value.dtype, pick_ranges(node, tensor, spans), identity(len(shape) + 1)
        )
        letters = "".join(letters[axis] for axis in rest) + repeated[0]
    return Term(value, letters)


def _drop_broadcast_axes(node: Node, terms: list[Term]) -> list[Term]:
    """The terms without the axes of size 1 that are wider in another term."""
    widest: dict[str, int] = {}
    for term in terms:
        for letter, size in zip(term.letters, term.value.shape, strict=True):
            widest[letter] = max(size, widest.get(letter, 1))
    narrow = []
    for term in terms:
        kept = [
            axis
            for axis, letter in enumerate(term.letters)
            if term.value.shape[axis] == widest[letter]
        ]
        shape = tuple(term.value.shape[axis] for axis in kept)
        narrow.append(
            Term(
                reshape_value(node, term.value, shape), "".join(term.letters[axis] for axis in kept)
            )
        )
    return narrow


def _sum_unneeded_axes(node: Node, term: Term, kept: Collection[str]) -> Term:
    """The term summed over the axes whose letters are not in ``kept``."""
    value = term.value
    axes = [i for i, letter in enumerate(term.letters) if letter not in kept]
    if not axes:
        return term
    tensor = node.place(value, value.axes or None)
    order = value.axes or identity(len(value.shape))
    total, left = reduce_axes(node, "SUM", tensor, order, axes, keep=False)
    shape = tuple(size for i, size in enumerate(value.shape) if i not in axes)
    return Term(
        PlacedValue(shape, value.dtype, total, left),
        "".join(letter for letter in term.letters if letter in kept),
    )


def _multiply(node: Node, left: Term, right: Term, kept: Collection[str]) -> Term:
    """The product of two terms, summed over the letters that both have and ``kept`` has not."""
    if left.value.array is not None and right.value.array is None:
        left, right = right, left
    both = [letter for letter in left.letters if letter in right.letters]
    batch = "".join(letter for letter in both if letter in kept)
    inner = "".join(letter for letter in both if letter not in kept)
    rows = "".join(letter for letter in left.letters if letter not in both)
    columns = "".join(letter for letter in right.letters if letter not in both)
    left_value = _group_axes(node, left, (batch, rows, inner))
    right_value = _group_axes(node, right, (batch, inner, columns))
    if (
        inner
        and left_value.dtype == np.float32
        and right_value.array is not None
        and right_value.shape[0] == 1
    ):
        product = emit_fully_connected(node, node.place(left_value), right_value.array[0].T)
    elif inner and left_value.dtype == np.float32:
        product = multiply_batches(node, left_value, right_value)
    else:
        # x [batch, rows, inner, 1] times y [batch, 1, inner, columns]
        wide = node.reshape(node.place(left_value), (*left_value.shape, 1))
        other = node.reshape(
            node.place(right_value), (right_value.shape[0], 1, *right_value.shape[1:])
        )
        product = emit_broadcast(node, "MUL", [wide, other])
        if inner:
            product = node.emit(
                "SUM",
                [product, node.ints([2])],
                (*left_value.shape[:2], right_value.shape[2]),
                keep_dims=False,
            )
    sizes = {
        letter: size
        for term in (left, right)
        for letter, size in zip(term.letters, term.value.shape, strict=True)
    }
    letters = batch + rows + columns
    shape = tuple(sizes[letter] for letter in letters)
    return Term(
        PlacedValue(shape, left_value.dtype, node.reshape(product, shape), identity(len(shape))),
        letters,
    )


def _group_axes(node: Node, term: Term, groups: Sequence[str]) -> PlacedValue:
    """The value with one axis for each group of letters."""
    order = tuple(term.letters.index(letter) for group in groups for letter in group)
    return reshape_value(
        node, transpose_value(term.value, order), [term.size(group) for group in groups]
    )
