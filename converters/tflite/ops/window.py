"""The geometry that convolution and pooling share."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from converters.tflite.graph import Tensor
from converters.tflite.node import Node
from converters.tflite.ops.movement import pad_tensor

SAME, VALID = 0, 1
Pairs = tuple[tuple[int, int], ...]


class Window(msgspec.Struct, frozen=True):
    """What one output element sees, axis by axis; ``around`` are the elements padded."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    around: Pairs

    @property
    def extent(self) -> tuple[int, ...]:
        """Elements from the first to the last that are seen."""
        pairs = zip(self.kernel, self.dilations, strict=True)
        return tuple((k - 1) * d + 1 for k, d in pairs)

    @property
    def dilated(self) -> bool:
        return any(d != 1 for d in self.dilations)

    def to_image(self) -> Window:
        """The same over an image of one row, for one axis."""
        if len(self.kernel) != 1:
            return self
        return Window(
            (1, *self.kernel), (1, *self.strides), (1, *self.dilations), ((0, 0), *self.around)
        )


def read_window(node: Node, kernel: Sequence[int], size: Sequence[int]) -> Window:
    """The node's window over an input of the spatial ``size``."""
    ones = [1] * len(kernel)
    plain = Window(
        tuple(kernel),
        tuple(node.attr("strides") or ones),
        tuple(node.attr("dilations") or ones),
        (),
    )
    return msgspec.structs.replace(plain, around=_read_padding(node, plain, size))


def _read_padding(node: Node, w: Window, size: Sequence[int]) -> Pairs:
    how = node.attr("auto_pad", "NOTSET")
    if how == "SAME_UPPER":
        return same_padding(w, size)
    if how == "SAME_LOWER":
        return tuple((b, a) for a, b in same_padding(w, size))
    given = node.attr("pads") if how == "NOTSET" else None
    given = given or [0] * 2 * len(size)
    return tuple(zip(given[: len(size)], given[len(size) :], strict=True))


def same_padding(w: Window, size: Sequence[int]) -> Pairs:
    """TFLite's SAME: as many outputs as strides fit, the odd element after."""
    total = [
        max((-(-d // s) - 1) * s + e - d, 0)
        for d, e, s in zip(size, w.extent, w.strides, strict=True)
    ]
    return tuple((t // 2, t - t // 2) for t in total)


def fit_padding(node: Node, x: Tensor, w: Window, fill: float = 0.0) -> tuple[Tensor, int]:
    """The tensor (N, spatial axes, C), padded unless the operator's own padding is the same."""
    if not any(a or b for a, b in w.around):
        return x, VALID
    if w.around == same_padding(w, x.shape[1:-1]):
        return x, SAME
    return pad_tensor(node, x, [(0, 0), *w.around, (0, 0)], fill=fill), VALID


def to_image_row(node: Node, x: Tensor) -> Tensor:
    """[N, W, C] as an image of one row."""
    return node.reshape(x, (x.shape[0], 1, *x.shape[1:]))
