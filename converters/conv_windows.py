"""Where the windows of a convolution lie, whatever the format. Pure."""

from __future__ import annotations

from collections.abc import Sequence

MAX_POSITIONS = 256  # of one feature map: an even grid shows its mean


def find_windows(sizes: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """Elements from the first to the last tap of a kernel, for each axis."""
    return [(size - 1) * dilation + 1 for size, dilation in zip(sizes, dilations, strict=True)]


def find_same_padding(
    lengths: Sequence[int], windows: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """Zeros before and after each axis so that it has as many outputs as strides (SAME).

    An odd zero goes behind, as in TensorFlow's SAME and ONNX's SAME_UPPER.
    """
    totals = [
        max((-(-length // stride) - 1) * stride + window - length, 0)
        for length, window, stride in zip(lengths, windows, strides, strict=True)
    ]
    return [(total // 2, total - total // 2) for total in totals]
