"""Einsum as transposes, products of matrices and sums."""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Collection, Sequence

import msgspec
import numpy as np

from converters.tflite.node import Node, op
from converters.tflite.ops.broadcast import emit
from converters.tflite.ops.movement import picked, reshaped, transposed
from converters.tflite.ops.products import batched, fully_connected
from converters.tflite.ops.reductions import reduced
from converters.tflite.values import Value, identity


class Term(msgspec.Struct, frozen=True):
    """A value and the letter of each of its axes."""

    value: Value
    letters: str

    def size(self, letters: Collection[str]) -> int:
        """The elements of these axes together."""
        return math.prod(
            d for d, c in zip(self.value.shape, self.letters, strict=True) if c in letters
        )


@op("Einsum")
def _einsum(n: Node) -> None:
    values = [n.value(i) for i in range(len(n.proto.input))]
    sides, result = parsed(n.attr("equation"), [len(v.shape) for v in values])
    terms = [_plain(n, Term(v, s)) for v, s in zip(values, sides, strict=True)]
    terms = _unbroadcast(n, terms)
    term = terms.pop(0)
    while terms:
        other = terms.pop(0)
        kept = set(result).union(*(t.letters for t in terms))
        term = _product(n, _summed(n, term, kept.union(other.letters)),
                        _summed(n, other, kept.union(term.letters)), kept)  # fmt: skip
    term = _summed(n, term, result)
    order = tuple(term.letters.index(c) for c in result)
    n.give_value(transposed(term.value, order))


def parsed(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
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


def _plain(n: Node, term: Term) -> Term:
    """Each letter once: of axes with the same letter only the diagonal is left."""
    value, letters = term.value, term.letters
    while repeated := [c for c in letters if letters.count(c) > 1]:
        a = letters.index(repeated[0])
        b = letters.index(repeated[0], a + 1)
        rest = [i for i in range(len(letters)) if i not in (a, b)]
        size = value.shape[a]
        moved = transposed(value, (*rest, a, b))
        shape = moved.shape[:-2]
        x = n.place(reshaped(n, moved, (*shape, size * size)))
        spans = [*(range(d) for d in shape), range(0, size * size, size + 1)]
        value = Value((*shape, size), value.dtype, picked(n, x, spans), identity(len(shape) + 1))
        letters = "".join(letters[i] for i in rest) + repeated[0]
    return Term(value, letters)


def _unbroadcast(n: Node, terms: list[Term]) -> list[Term]:
    """Without the axes of size 1 that another operand has wider."""
    widest: dict[str, int] = {}
    for t in terms:
        for c, d in zip(t.letters, t.value.shape, strict=True):
            widest[c] = max(d, widest.get(c, 1))
    made = []
    for t in terms:
        kept = [i for i, c in enumerate(t.letters) if t.value.shape[i] == widest[c]]
        shape = tuple(t.value.shape[i] for i in kept)
        made.append(Term(reshaped(n, t.value, shape), "".join(t.letters[i] for i in kept)))
    return made


def _summed(n: Node, term: Term, kept: Collection[str]) -> Term:
    """Without the axes whose letters nobody needs."""
    v = term.value
    axes = [i for i, c in enumerate(term.letters) if c not in kept]
    if not axes:
        return term
    x = n.place(v, v.axes or None)
    order = v.axes or identity(len(v.shape))
    y, left = reduced(n, "SUM", x, order, axes, keep=False)
    shape = tuple(d for i, d in enumerate(v.shape) if i not in axes)
    return Term(Value(shape, v.dtype, y, left), "".join(c for c in term.letters if c in kept))


def _product(n: Node, a: Term, b: Term, kept: Collection[str]) -> Term:
    """Multiply two terms and sum what both have and nobody needs."""
    if a.value.array is not None and b.value.array is None:
        a, b = b, a
    both = [c for c in a.letters if c in b.letters]
    batch = "".join(c for c in both if c in kept)
    inner = "".join(c for c in both if c not in kept)
    rows = "".join(c for c in a.letters if c not in both)
    columns = "".join(c for c in b.letters if c not in both)
    x, y = _grouped(n, a, (batch, rows, inner)), _grouped(n, b, (batch, inner, columns))
    if inner and x.dtype == np.float32 and y.array is not None and y.shape[0] == 1:
        made = fully_connected(n, n.place(x), y.array[0].T)
    elif inner and x.dtype == np.float32:
        made = batched(n, x, y)
    else:
        # x [batch, rows, inner, 1] times y [batch, 1, inner, columns]
        wide = n.reshaped(n.place(x), (*x.shape, 1))
        other = n.reshaped(n.place(y), (y.shape[0], 1, *y.shape[1:]))
        made = emit(n, "MUL", [wide, other])
        if inner:
            made = n.emit("SUM", [made, n.ints([2])], (*x.shape[:2], y.shape[2]), keep_dims=False)
    sizes = {c: d for t in (a, b) for c, d in zip(t.letters, t.value.shape, strict=True)}
    letters = batch + rows + columns
    shape = tuple(sizes[c] for c in letters)
    return Term(Value(shape, x.dtype, n.reshaped(made, shape), identity(len(shape))), letters)


def _grouped(n: Node, term: Term, groups: Sequence[str]) -> Value:
    """The value with one axis for each group of letters."""
    order = tuple(term.letters.index(c) for g in groups for c in g)
    return reshaped(n, transposed(term.value, order), [term.size(g) for g in groups])
