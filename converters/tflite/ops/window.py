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
    """What one output element reads, per spatial axis; ``around``: padding (before, after)."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    around: Pairs

    @property
    def extent(self) -> tuple[int, ...]:
        """Elements from the first to the last that are read."""
        pairs = zip(self.kernel, self.dilations, strict=True)
        return tuple((length - 1) * dilation + 1 for length, dilation in pairs)

    @property
    def is_dilated(self) -> bool:
        """Whether any axis skips elements."""
        return any(dilation != 1 for dilation in self.dilations)

    def to_image(self) -> Window:
        """The window of a 1-D op over an image of one row."""
        if len(self.kernel) != 1:
            return self
        return Window(
            (1, *self.kernel), (1, *self.strides), (1, *self.dilations), ((0, 0), *self.around)
        )


def read_window(node: Node, kernel: Sequence[int], size: Sequence[int]) -> Window:
    """The node's window over an input of the spatial sizes ``size``."""
    ones = [1] * len(kernel)
    plain = Window(
        tuple(kernel),
        tuple(node.attr("strides") or ones),
        tuple(node.attr("dilations") or ones),
        (),
    )
    return msgspec.structs.replace(plain, around=_read_padding(node, plain, size))


def _read_padding(node: Node, window: Window, size: Sequence[int]) -> Pairs:
    how = node.attr("auto_pad", "NOTSET")
    if how == "SAME_UPPER":
        return same_padding(window, size)
    if how == "SAME_LOWER":
        return tuple((after, before) for before, after in same_padding(window, size))
    pads = node.attr("pads") if how == "NOTSET" else None
    pads = pads or [0] * 2 * len(size)
    return tuple(zip(pads[: len(size)], pads[len(size) :], strict=True))


def same_padding(window: Window, size: Sequence[int]) -> Pairs:
    """(before, after) per spatial axis of TFLite's SAME; the odd element comes after."""
    total = [
        max((-(-length // stride) - 1) * stride + extent - length, 0)
        for length, extent, stride in zip(size, window.extent, window.strides, strict=True)
    ]
    return tuple((surplus // 2, surplus - surplus // 2) for surplus in total)


def fit_padding(
    node: Node, tensor: Tensor, window: Window, fill: float = 0.0
) -> tuple[Tensor, int]:
    """The tensor [N, spatial axes, C] and the padding its operator takes: SAME or VALID.

    A PAD with ``fill`` is emitted unless the operator's own padding is the same.
    """
    if not any(before or after for before, after in window.around):
        return tensor, VALID
    if window.around == same_padding(window, tensor.shape[1:-1]):
        return tensor, SAME
    return pad_tensor(node, tensor, [(0, 0), *window.around, (0, 0)], fill=fill), VALID


def to_image_row(node: Node, tensor: Tensor) -> Tensor:
    """[N, W, C] as [N, 1, W, C]."""
    return node.reshape(tensor, (tensor.shape[0], 1, *tensor.shape[1:]))
