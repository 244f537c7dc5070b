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
        """The elements of these axes together."""
        return math.prod(
            d for d, c in zip(self.value.shape, self.letters, strict=True) if c in letters
        )


def lower_einsum(node: Node) -> None:
    values = [node.value(i) for i in range(len(node.proto.input))]
    sides, result = parse_equation(node.attr("equation"), [len(v.shape) for v in values])
    terms = [_take_diagonals(node, Term(v, s)) for v, s in zip(values, sides, strict=True)]
    terms = _drop_broadcast_axes(node, terms)
    term = terms.pop(0)
    while terms:
        other = terms.pop(0)
        kept = set(result).union(*(t.letters for t in terms))
        left = _sum_unneeded_axes(node, term, kept.union(other.letters))
        right = _sum_unneeded_axes(node, other, kept.union(term.letters))
        term = _multiply(node, left, right, kept)
    term = _sum_unneeded_axes(node, term, result)
    order = tuple(term.letters.index(c) for c in result)
    node.set_output_value(transpose_value(term.value, order))


def parse_equation(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The letters of each operand and of the result; "..." becomes letters of its own."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    sides = left.split(",")
    free = [c for c in string.ascii_letters if c not in equation]
    wide = max([0, *(r - len(s) + 3 for s, r in zip(sides, ranks, strict=True) if "..." in s)])
    dots = "".join(free[:wide])
    expanded = []
    for s, rank in zip(sides, ranks, strict=True):
        own = rank - len(s.replace("...", ""))
        expanded.append(s.replace("...", dots[len(dots) - own :]))
    if not arrow:
        counts = Counter("".join(s.replace("...", "") for s in sides))
        right = ("..." if wide else "") + "".join(sorted(c for c in counts if counts[c] == 1))
    return expanded, right.replace("...", dots)


def _take_diagonals(node: Node, term: Term) -> Term:
    """Each letter once: of axes with the same letter only the diagonal is left."""
    value, letters = term.value, term.letters
    while repeated := [c for c in letters if letters.count(c) > 1]:
        a = letters.index(repeated[0])
        b = letters.index(repeated[0], a + 1)
        rest = [i for i in range(len(letters)) if i not in (a, b)]
        size = value.shape[a]
        moved = transpose_value(value, (*rest, a, b))
        shape = moved.shape[:-2]
        x = node.place(reshape_value(node, moved, (*shape, size * size)))
        spans = [*(range(d) for d in shape), range(0, size * size, size + 1)]
        value = PlacedValue(
            (*shape, size), value.dtype, pick_ranges(node, x, spans), identity(len(shape) + 1)
        )
        letters = "".join(letters[i] for i in rest) + repeated[0]
    return Term(value, letters)


def _drop_broadcast_axes(node: Node, terms: list[Term]) -> list[Term]:
    """Without the axes of size 1 that another operand has wider."""
    widest: dict[str, int] = {}
    for t in terms:
        for c, d in zip(t.letters, t.value.shape, strict=True):
            widest[c] = max(d, widest.get(c, 1))
    made = []
    for t in terms:
        kept = [i for i, c in enumerate(t.letters) if t.value.shape[i] == widest[c]]
        shape = tuple(t.value.shape[i] for i in kept)
        made.append(Term(reshape_value(node, t.value, shape), "".join(t.letters[i] for i in kept)))
    return made


def _sum_unneeded_axes(node: Node, term: Term, kept: Collection[str]) -> Term:
    """Without the axes whose letters nobody needs."""
    v = term.value
    axes = [i for i, c in enumerate(term.letters) if c not in kept]
    if not axes:
        return term
    x = node.place(v, v.axes or None)
    order = v.axes or identity(len(v.shape))
    y, left = reduce_axes(node, "SUM", x, order, axes, keep=False)
    shape = tuple(d for i, d in enumerate(v.shape) if i not in axes)
    return Term(PlacedValue(shape, v.dtype, y, left), "".join(c for c in term.letters if c in kept))


def _multiply(node: Node, a: Term, b: Term, kept: Collection[str]) -> Term:
    """Multiply two terms and sum what both have and nobody needs."""
    if a.value.array is not None and b.value.array is None:
        a, b = b, a
    both = [c for c in a.letters if c in b.letters]
    batch = "".join(c for c in both if c in kept)
    inner = "".join(c for c in both if c not in kept)
    rows = "".join(c for c in a.letters if c not in both)
    columns = "".join(c for c in b.letters if c not in both)
    x, y = _group_axes(node, a, (batch, rows, inner)), _group_axes(node, b, (batch, inner, columns))
    if inner and x.dtype == np.float32 and y.array is not None and y.shape[0] == 1:
        made = emit_fully_connected(node, node.place(x), y.array[0].T)
    elif inner and x.dtype == np.float32:
        made = multiply_batches(node, x, y)
    else:
        # x [batch, rows, inner, 1] times y [batch, 1, inner, columns]
        wide = node.reshape(node.place(x), (*x.shape, 1))
        other = node.reshape(node.place(y), (y.shape[0], 1, *y.shape[1:]))
        made = emit_broadcast(node, "MUL", [wide, other])
        if inner:
            made = node.emit(
                "SUM", [made, node.ints([2])], (*x.shape[:2], y.shape[2]), keep_dims=False
            )
    sizes = {c: d for t in (a, b) for c, d in zip(t.letters, t.value.shape, strict=True)}
    letters = batch + rows + columns
    shape = tuple(sizes[c] for c in letters)
    return Term(
        PlacedValue(shape, x.dtype, node.reshape(made, shape), identity(len(shape))), letters
    )


def _group_axes(node: Node, term: Term, groups: Sequence[str]) -> PlacedValue:
    """The value with one axis for each group of letters."""
    order = tuple(term.letters.index(c) for g in groups for c in g)
    return reshape_value(node, transpose_value(term.value, order), [term.size(g) for g in groups])
