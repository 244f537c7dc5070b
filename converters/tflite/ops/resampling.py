"""Resize and Upsample: shapes are fixed, so every interpolation is a constant matrix per axis.

Where TFLite's own image operator has the same matrix (or the same indices, for "nearest"), that
operator is used; elsewhere the matrix is a FULLY_CONNECTED, and the indices a GATHER.
"""

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
# RESIZE_NEAREST_NEIGHBOR knows these types in every version; GATHER knows all.
NEAREST = (np.float32, np.uint8, np.int8)
FLAGS: tuple[Flags, ...] = ((False, True), (False, False), (True, False))
SAME = 1e-5  # two weights of pixels that are the same but for the rounding of coordinates


class Axis(msgspec.Struct, frozen=True):
    """One axis: for each new element its place among the old ones, in elements."""

    size: int
    new: int
    scale: float
    places: Array  # float32, as runtimes compute them
    cropped: bool


def lower_resize(node: Node) -> None:
    v, mode = node.value(0), node.attr("mode", "nearest")
    mode = {"bilinear": "linear"}.get(mode, mode)
    axes = {
        a: p for a, p in _read_axes(node, v).items() if p.new != p.size or p.cropped or p.scale != 1
    }
    if not axes:
        node.set_output_value(v)
        return
    if mode == "nearest":
        tensor, order = _resize_nearest(
            node, v, {a: _nearest_indices(node, p) for a, p in axes.items()}
        )
    elif v.dtype != np.float32:
        raise node.refusal(f"mode '{mode}' of {v.dtype} is not in TFLite")
    elif mode in ("linear", "cubic"):
        tensor, order = _resize_linear(
            node, v, {a: _interpolation_matrix(node, p, mode == "cubic") for a, p in axes.items()}
        )
    else:
        raise node.refusal(f"mode '{mode}' is unknown")
    node.set_output(_extrapolate(node, tensor, order, axes), order)


def _read_axes(node: Node, v: PlacedValue) -> dict[int, Axis]:
    """Every axis that the node names."""
    rank = len(v.shape)
    named = [a % rank for a in node.attr("axes") or range(rank)]
    old = node.op == "Upsample" or node.scope.opsets.get("", 11) < 11
    scales = _read_scales(node, v, named, 1 if old else 2)
    how = node.attr("coordinate_transformation_mode", "asymmetric" if old else "half_pixel")
    crop = how == "tf_crop_and_resize"
    roi = node.require_constant(1, "roi") if crop else np.zeros(0)
    found = {}
    for i, (a, scale) in enumerate(zip(named, scales, strict=True)):
        span = (float(roi[i]), float(roi[i + len(named)])) if crop else (0.0, 1.0)
        size, new = v.shape[a], node.shape[a]
        if new != size or scale != 1:
            _check_scale(node, how, size, new, scale)
        found[a] = Axis(
            size, new, float(scale), _compute_places(node, how, size, new, scale, span), crop
        )
    return found


def _read_scales(node: Node, v: PlacedValue, named: list[int], at: int) -> list[np.float32]:
    """New elements per old one, of each named axis."""
    given = (
        node.require_constant(at, "scales")
        if node.has_input(at)
        else np.array(node.attr("scales", ()), np.float32)
    )
    if given.size:
        return [np.float32(s) for s in given]
    sizes = [int(s) for s in node.require_constant(3, "sizes")]
    scales = [np.float32(s) / np.float32(v.shape[a]) for s, a in zip(sizes, named, strict=True)]
    policy = node.attr("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        scales = [min(scales) if policy == "not_larger" else max(scales)] * len(scales)
    return scales


def _check_scale(node: Node, how: str, size: int, new: int, scale: np.float32) -> None:
    """Refuse what the standard's reference and ONNX Runtime compute differently."""
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
    """Where each new element lies among the old ones, by the formulas of the standard."""
    x, one = np.arange(new, dtype=np.float32), np.float32(1)
    real = np.float32(scale * np.float32(size))  # the new length before it was made whole
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
        start, end = (np.float32(s) for s in span)
        last = np.float32(size - 1)
        if new == 1:
            return np.full(1, (start + end) * last / 2, np.float32)
        return start * last + x * ((end - start) * last / np.float32(new - 1))
    raise node.refusal(f"coordinate_transformation_mode '{how}' is unknown")


def _nearest_indices(node: Node, p: Axis) -> Array:
    """The old element that each new one is."""
    old = node.op == "Upsample" or node.scope.opsets.get("", 11) < 11
    how = node.attr("nearest_mode", "floor" if old else "round_prefer_floor")
    x, half = p.places, np.float32(0.5)
    rounded = {
        "floor": np.floor(x), "ceil": np.ceil(x),
        "round_prefer_floor": np.ceil(x - half), "round_prefer_ceil": np.floor(x + half),
    }  # fmt: skip
    if how not in rounded:
        raise node.refusal(f"nearest_mode '{how}' is unknown")
    return np.clip(rounded[how], 0, p.size - 1).astype(np.int32)


def _interpolation_matrix(node: Node, p: Axis, cubic: bool) -> Array:
    """[new, old]: how much of each old element is in each new one."""
    shrink = min(p.scale, 1.0) if node.attr("antialias", 0) else 1.0
    reach = math.ceil((2 if cubic else 1) / shrink)
    x = p.places.astype(np.float64)[:, None]
    first, last = min(math.floor(x.min()), 0) - reach, max(math.ceil(x.max()), p.size) + reach
    taps = np.arange(first, last + 1)
    far = np.abs(taps - x) * shrink
    weights = (
        _cubic_weights(far, node.attr("cubic_coeff_a", -0.75)) if cubic else np.maximum(1 - far, 0)
    )
    if node.attr("exclude_outside", 0):
        weights = weights * ((taps >= 0) & (taps < p.size))
    weights /= weights.sum(axis=1, keepdims=True)
    # What lies outside is the element at the edge.
    table = np.zeros((p.size, p.new))
    np.add.at(table, np.clip(taps, 0, p.size - 1), weights.T)
    return table.T.astype(np.float32)


def _cubic_weights(x: Array, a: float) -> Array:
    """The kernel of Keys, at distances ``x``."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _resize_nearest(node: Node, v: PlacedValue, tables: Mapping[int, Array]) -> tuple[Tensor, Axes]:
    flags = _matching_flags(v, tables, _tflite_indices, 0.0) if v.dtype in NEAREST else None
    if flags is not None:
        return _emit_resize(node, v, "RESIZE_NEAREST_NEIGHBOR", flags)
    x = node.place(v, v.axes)
    for axis, table in tables.items():
        if np.array_equal(table, np.arange(v.shape[axis])):
            continue
        at = v.axes.index(axis)
        shape = (*x.shape[:at], len(table), *x.shape[at + 1 :])
        x = node.emit("GATHER", [x, node.ints(table)], shape, axis=at)
    return x, v.axes


def _resize_linear(node: Node, v: PlacedValue, tables: Mapping[int, Array]) -> tuple[Tensor, Axes]:
    flags = _matching_flags(v, tables, _tflite_matrix, SAME)
    if flags is not None:
        return _emit_resize(node, v, "RESIZE_BILINEAR", flags)
    # The axis that lies last goes first: it need not be moved.
    for axis in sorted(tables, key=v.axes.index, reverse=True):
        if tables[axis].shape[0] == v.shape[axis] and np.array_equal(
            tables[axis], np.eye(v.shape[axis])
        ):
            continue
        order = (*(a for a in v.axes if a != axis), axis)
        y = emit_fully_connected(node, node.place(v, order), tables[axis])
        shape = (*v.shape[:axis], len(tables[axis]), *v.shape[axis + 1 :])
        v = PlacedValue(shape, v.dtype, y, order)
    return node.place(v, v.axes), v.axes


def _matching_flags(
    v: PlacedValue, tables: Mapping[int, Array], own: TfliteTable, tolerance: float
) -> Flags | None:
    """The flags with which TFLite's operator has these tables; None: with none."""
    if len(v.shape) != 4 or not set(tables) <= {2, 3}:
        return None
    for flags in FLAGS:
        for axis in (2, 3):
            size = v.shape[axis]
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
    """What RESIZE_NEAREST_NEIGHBOR takes."""
    x = np.arange(new, dtype=np.float32) + np.float32(0.5 if flags[1] else 0)
    places = x * _tflite_scale(size, new, flags)
    whole = np.floor(places + np.float32(0.5)) if flags[0] else np.floor(places)
    return np.asarray(np.clip(whole, 0, size - 1), np.int32)


def _tflite_matrix(size: int, new: int, flags: Flags) -> Array:
    """What RESIZE_BILINEAR computes."""
    half = np.float32(0.5 if flags[1] else 0)
    x = (np.arange(new, dtype=np.float32) + half) * _tflite_scale(size, new, flags) - half
    x = np.clip(x, 0, size - 1)
    return np.asarray(np.maximum(1 - np.abs(np.arange(size) - x[:, None]), 0))


def _emit_resize(node: Node, v: PlacedValue, code: str, flags: Flags) -> tuple[Tensor, Axes]:
    last = channels_last(4)
    shape = memory_shape(node.shape, last)
    inputs = [node.place(v, last), node.ints(shape[1:3])]
    options = {"align_corners": flags[0], "half_pixel_centers": flags[1]}
    return node.emit(code, inputs, shape, **options), last


def _extrapolate(node: Node, x: Tensor, order: Axes, axes: Mapping[int, Axis]) -> Tensor:
    """A crop beyond the input has one value there."""
    outside = np.zeros((1,) * len(order), bool)
    for axis, p in axes.items():
        if p.cropped:
            beyond = (p.places < 0) | (p.places > p.size - 1)
            outside = outside | beyond.reshape([-1 if a == axis else 1 for a in range(len(order))])
    if not outside.any():
        return x
    full = np.broadcast_to(outside, node.shape).transpose(order)
    value = node.const(np.full((1,) * len(order), node.attr("extrapolation_value", 0.0)), x.dtype)
    return emit_broadcast(node, "SELECT_V2", [node.const(full, bool), value, x], x.dtype)
