"""Resize and Upsample: shapes are fixed, so every interpolation is a constant matrix per axis.

TFLite's own image operator is used where it has the same matrix (for "nearest", the same indices);
elsewhere the matrix becomes a FULLY_CONNECTED, and the indices a GATHER.
"""

# structure: mathematics: x and a are the coordinate and the coefficient of ONNX's formulas

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import msgspec
import numpy as np

from converters.tflite.graph import Tensor
from converters.tflite.node import Node
from converters.tflite.ops.broadcast import emit_broadcast
from converters.tflite.ops.products import emit_fully_connected
from converters.tflite.values import Axes, PlacedValue, channels_last, memory_shape
from edge_core.tensors import Array

Flags = tuple[bool, bool]  # align_corners, half_pixel_centers of TFLite's image operators
TfliteTable = Callable[[int, int, Flags], Array]
# RESIZE_NEAREST_NEIGHBOR supports these types in every version; GATHER supports all.
NEAREST = (np.float32, np.uint8, np.int8)
FLAGS: tuple[Flags, ...] = ((False, True), (False, False), (True, False))
SAME = 1e-5  # of weights that differ only by the rounding of coordinates


class Axis(msgspec.Struct, frozen=True):
    """One axis: the position of each new element among the old ones, in elements."""

    size: int
    new: int
    scale: float
    places: Array  # float32, as runtimes compute them
    cropped: bool


def lower_resize(node: Node) -> None:
    """RESIZE_BILINEAR or RESIZE_NEAREST_NEIGHBOR where they agree, a matrix or GATHER elsewhere."""
    value, mode = node.value(0), node.attr("mode", "nearest")
    mode = {"bilinear": "linear"}.get(mode, mode)
    axes = {
        axis: geometry
        for axis, geometry in _read_axes(node, value).items()
        if geometry.new != geometry.size or geometry.cropped or geometry.scale != 1
    }
    if not axes:
        node.set_output_value(value)
        return
    if mode == "nearest":
        tensor, order = _resize_nearest(
            node, value, {axis: _nearest_indices(node, geometry) for axis, geometry in axes.items()}
        )
    elif value.dtype != np.float32:
        raise node.refusal(f"mode '{mode}' of {value.dtype} is not in TFLite")
    elif mode in ("linear", "cubic"):
        tensor, order = _resize_linear(
            node,
            value,
            {
                axis: _interpolation_matrix(node, geometry, mode == "cubic")
                for axis, geometry in axes.items()
            },
        )
    else:
        raise node.refusal(f"mode '{mode}' is unknown")
    node.set_output(_extrapolate(node, tensor, order, axes), order)


def _read_axes(node: Node, value: PlacedValue) -> dict[int, Axis]:
    """The geometry of every axis that the node names, by ONNX axis."""
    rank = len(value.shape)
    named = [axis % rank for axis in node.attr("axes") or range(rank)]
    old = node.op == "Upsample" or node.scope.opsets.get("", 11) < 11
    scales = _read_scales(node, value, named, 1 if old else 2)
    how = node.attr("coordinate_transformation_mode", "asymmetric" if old else "half_pixel")
    crop = how == "tf_crop_and_resize"
    roi = node.require_constant(1, "roi") if crop else np.zeros(0)
    geometries = {}
    for i, (axis, scale) in enumerate(zip(named, scales, strict=True)):
        span = (float(roi[i]), float(roi[i + len(named)])) if crop else (0.0, 1.0)
        size, new = value.shape[axis], node.shape[axis]
        if new != size or scale != 1:
            _check_scale(node, how, size, new, scale)
        geometries[axis] = Axis(
            size, new, float(scale), _compute_places(node, how, size, new, scale, span), crop
        )
    return geometries


def _read_scales(node: Node, value: PlacedValue, named: list[int], at: int) -> list[np.float32]:
    """New elements per old one, of each named axis."""
    numbers = (
        node.require_constant(at, "scales")
        if node.has_input(at)
        else np.array(node.attr("scales", ()), np.float32)
    )
    if numbers.size:
        return [np.float32(number) for number in numbers]
    sizes = [int(number) for number in node.require_constant(3, "sizes")]
    scales = [
        np.float32(number) / np.float32(value.shape[axis])
        for number, axis in zip(sizes, named, strict=True)
    ]
    policy = node.attr("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        scales = [min(scales) if policy == "not_larger" else max(scales)] * len(scales)
    return scales


def _check_scale(node: Node, how: str, size: int, new: int, scale: np.float32) -> None:
    """Refuse scales that the standard's reference and ONNX Runtime interpret differently."""
    real = np.float32(size) * scale
    kept = node.attr("keep_aspect_ratio_policy", "stretch") != "stretch"
    if real == new or kept:
        return
    if int(real) != new:
        why = f"scale {scale} of {size} elements is {new} or {int(real)}, as one rounds"
    elif how == "align_corners" or (node.attr("antialias", 0) and new == size):
        why = f"scale {scale} of {size} elements is no whole number, and '{how}' needs one"
    else:
        return
    raise node.refusal(why, "export it with sizes instead of scales")


def _compute_places(
    node: Node, how: str, size: int, new: int, scale: np.float32, span: tuple[float, float]
) -> Array:
    """The position of each new element among the old ones: float32 [new].

    By the formulas of ONNX's Resize; raises ConvertError for a mode that it does not have.
    """
    x, one = np.arange(new, dtype=np.float32), np.float32(1)
    real = np.float32(scale * np.float32(size))  # the new length before rounding
    half = (x + np.float32(0.5)) / scale - np.float32(0.5)
    if how == "half_pixel" or (how == "pytorch_half_pixel" and new > 1):
        return half
    if how == "pytorch_half_pixel":
        return np.zeros(new, np.float32)
    if how == "half_pixel_symmetric":
        return np.asarray(np.float32(size / 2) * (one - np.float32(new) / real) + half, np.float32)
    if how == "asymmetric":
        return x / scale
    if how == "align_corners":
        return x * np.float32(size - 1) / (real - one) if real != 1 else np.zeros(new, np.float32)
    if how == "tf_crop_and_resize":
        start, end = (np.float32(bound) for bound in span)
        last = np.float32(size - 1)
        if new == 1:
            return np.full(1, (start + end) * last / 2, np.float32)
        return start * last + x * ((end - start) * last / np.float32(new - 1))
    raise node.refusal(f"coordinate_transformation_mode '{how}' is unknown")


def _nearest_indices(node: Node, geometry: Axis) -> Array:
    """The old element that each new one copies: int32 [new]."""
    old = node.op == "Upsample" or node.scope.opsets.get("", 11) < 11
    how = node.attr("nearest_mode", "floor" if old else "round_prefer_floor")
    x, half = geometry.places, np.float32(0.5)
    rounded = {
        "floor": np.floor(x), "ceil": np.ceil(x),
        "round_prefer_floor": np.ceil(x - half), "round_prefer_ceil": np.floor(x + half),
    }  # fmt: skip
    if how not in rounded:
        raise node.refusal(f"nearest_mode '{how}' is unknown")
    return np.clip(rounded[how], 0, geometry.size - 1).astype(np.int32)


def _interpolation_matrix(node: Node, geometry: Axis, cubic: bool) -> Array:
    """[new, old]: how much of each old element is in each new one."""
    shrink = min(geometry.scale, 1.0) if node.attr("antialias", 0) else 1.0
    reach = math.ceil((2 if cubic else 1) / shrink)
    x = geometry.places.astype(np.float64)[:, None]
    first = min(math.floor(x.min()), 0) - reach
    last = max(math.ceil(x.max()), geometry.size) + reach
    taps = np.arange(first, last + 1)
    far = np.abs(taps - x) * shrink
    weights = (
        _cubic_weights(far, node.attr("cubic_coeff_a", -0.75)) if cubic else np.maximum(1 - far, 0)
    )
    if node.attr("exclude_outside", 0):
        weights = weights * ((taps >= 0) & (taps < geometry.size))
    weights /= weights.sum(axis=1, keepdims=True)
    # Beyond the edge the element at the edge is repeated.
    table = np.zeros((geometry.size, geometry.new))
    np.add.at(table, np.clip(taps, 0, geometry.size - 1), weights.T)
    return table.T.astype(np.float32)


def _cubic_weights(x: Array, a: float) -> Array:
    """The cubic kernel of Keys with coefficient ``a``, at distances ``x``."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _resize_nearest(
    node: Node, value: PlacedValue, tables: Mapping[int, Array]
) -> tuple[Tensor, Axes]:
    flags = _matching_flags(value, tables, _tflite_indices, 0.0) if value.dtype in NEAREST else None
    if flags is not None:
        return _emit_resize(node, value, "RESIZE_NEAREST_NEIGHBOR", flags)
    tensor = node.place(value, value.axes)
    for axis, table in tables.items():
        if np.array_equal(table, np.arange(value.shape[axis])):
            continue
        at = value.axes.index(axis)
        shape = (*tensor.shape[:at], len(table), *tensor.shape[at + 1 :])
        tensor = node.emit("GATHER", [tensor, node.ints(table)], shape, axis=at)
    return tensor, value.axes


def _resize_linear(
    node: Node, value: PlacedValue, tables: Mapping[int, Array]
) -> tuple[Tensor, Axes]:
    flags = _matching_flags(value, tables, _tflite_matrix, SAME)
    if flags is not None:
        return _emit_resize(node, value, "RESIZE_BILINEAR", flags)
    # The axis that is stored last goes first: it need not be moved.
    for axis in sorted(tables, key=value.axes.index, reverse=True):
        if tables[axis].shape[0] == value.shape[axis] and np.array_equal(
            tables[axis], np.eye(value.shape[axis])
        ):
            continue
        order = (*(other for other in value.axes if other != axis), axis)
        result = emit_fully_connected(node, node.place(value, order), tables[axis])
        shape = (*value.shape[:axis], len(tables[axis]), *value.shape[axis + 1 :])
        value = PlacedValue(shape, value.dtype, result, order)
    return node.place(value, value.axes), value.axes


def _matching_flags(
    value: PlacedValue, tables: Mapping[int, Array], own: TfliteTable, tolerance: float
) -> Flags | None:
    """The flags with which TFLite's operator computes these tables; None if no flags do."""
    if len(value.shape) != 4 or not set(tables) <= {2, 3}:
        return None
    for flags in FLAGS:
        for axis in (2, 3):
            size = value.shape[axis]
            table = tables.get(axis)
            other = own(size, size if table is None else len(table), flags)
            mine = own(size, size, (False, False)) if table is None else table
            if not np.allclose(mine, other, rtol=0, atol=tolerance):
                break
        else:
            return flags
    return None


def _tflite_scale(size: int, new: int, flags: Flags) -> np.float32:
    """Old elements per new one."""
    if flags[0] and new > 1:
        return np.float32(size - 1) / np.float32(new - 1)
    return np.float32(size) / np.float32(new)


def _tflite_indices(size: int, new: int, flags: Flags) -> Array:
    """The old element of each new one in RESIZE_NEAREST_NEIGHBOR: int32 [new]."""
    x = np.arange(new, dtype=np.float32) + np.float32(0.5 if flags[1] else 0)
    places = x * _tflite_scale(size, new, flags)
    whole = np.floor(places + np.float32(0.5)) if flags[0] else np.floor(places)
    return np.asarray(np.clip(whole, 0, size - 1), np.int32)


def _tflite_matrix(size: int, new: int, flags: Flags) -> Array:
    """The weights that RESIZE_BILINEAR uses: [new, old]."""
    half = np.float32(0.5 if flags[1] else 0)
    x = (np.arange(new, dtype=np.float32) + half) * _tflite_scale(size, new, flags) - half
    x = np.clip(x, 0, size - 1)
    return np.asarray(np.maximum(1 - np.abs(np.arange(size) - x[:, None]), 0))


def _emit_resize(node: Node, value: PlacedValue, code: str, flags: Flags) -> tuple[Tensor, Axes]:
    last = channels_last(4)
    shape = memory_shape(node.shape, last)
    inputs = [node.place(value, last), node.ints(shape[1:3])]
    options = {"align_corners": flags[0], "half_pixel_centers": flags[1]}
    return node.emit(code, inputs, shape, **options), last


def _extrapolate(node: Node, tensor: Tensor, order: Axes, axes: Mapping[int, Axis]) -> Tensor:
    """``tensor`` with the extrapolation value where a crop extends beyond the input."""
    outside = np.zeros((1,) * len(order), bool)
    for axis, geometry in axes.items():
        if geometry.cropped:
            beyond = (geometry.places < 0) | (geometry.places > geometry.size - 1)
            outside = outside | beyond.reshape(
                [-1 if other == axis else 1 for other in range(len(order))]
            )
    if not outside.any():
        return tensor
    full = np.broadcast_to(outside, node.shape).transpose(order)
    value = node.const(
        np.full((1,) * len(order), node.attr("extrapolation_value", 0.0)), tensor.dtype
    )
    return emit_broadcast(node, "SELECT_V2", [node.const(full, bool), value, tensor], tensor.dtype)
