"""Free dimensions made fixed, by the user's word. Nothing is guessed, not even a batch of 1."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from converters.onnx.model_file import iter_graphs
from edge_core.errors import InputError
from edge_core.extras import need
from edge_core.tensors import Array, Feeds

if TYPE_CHECKING:
    from onnx import ModelProto, TensorShapeProto, ValueInfoProto

Shapes = Mapping[str, int | tuple[int, ...]]


def fix_shapes(model: ModelProto, shapes: Shapes, path: Path) -> tuple[ModelProto, Feeds]:
    """A copy with every input's shape fixed, and the scalar inputs that became constants.

    Raises InputError for a name that the model does not have, a value that contradicts it, and
    dimensions that are still free.
    """
    fixed = need("onnx", "onnx").ModelProto()
    fixed.CopyFrom(model)
    _drop_constant_inputs(fixed)
    constants: Feeds = {}
    for key, value in shapes.items():
        inputs = {value.name: value for value in fixed.graph.input}
        names = [
            dim.dim_param for value in inputs.values() for dim in _read_dims(value) if dim.dim_param
        ]
        if key in names and isinstance(value, int):
            if value < 1:
                raise InputError(f"{path.name}: {key}={value} is no size", hint="give 1 or more")
            _set_named(fixed, key, value)
        elif key not in inputs:
            raise InputError(
                f"{path.name}: no dimension or input '{key}'",
                hint=f"it has: {', '.join(dict.fromkeys([*names, *inputs]))}",
            )
        elif isinstance(value, int) and not _read_dims(inputs[key]):
            constants[key] = _make_constant(fixed, inputs[key], value)
        else:
            _set_shape(fixed, inputs[key], (value,) if isinstance(value, int) else value, path)
    if free := [value for value in fixed.graph.input if _is_free(value)]:
        raise _make_free_error(free, path)
    for graph in iter_graphs(fixed.graph):
        del graph.value_info[:]  # inferred for other shapes; inferred again later
    return fixed, constants


def add_batch_of_one(model: ModelProto, shapes: Shapes) -> dict[str, int | tuple[int, ...]]:
    """``shapes``, and a batch of 1 where the first dimension of an input has a name and no size."""
    dims = [
        _read_dims(value)[0]
        for value in model.graph.input
        if _read_dims(value) and value.name not in shapes
    ]
    return {**{dim.dim_param: 1 for dim in dims if dim.dim_param}, **shapes}


def _read_dims(value: ValueInfoProto) -> list[TensorShapeProto.Dimension]:
    return list(value.type.tensor_type.shape.dim)


def _is_free(value: ValueInfoProto) -> bool:
    tensor = value.type.tensor_type
    return not tensor.HasField("shape") or any(dim.dim_value < 1 for dim in tensor.shape.dim)


def _format_shape(value: ValueInfoProto) -> str:
    return "x".join(
        str(dim.dim_value) if dim.dim_value > 0 else dim.dim_param or "?"
        for dim in _read_dims(value)
    )


def _drop_constant_inputs(model: ModelProto) -> None:
    """Before IR version 4 every initializer was an input, too; none of them is fed."""
    constant = {tensor.name for tensor in model.graph.initializer}
    fed = [value for value in model.graph.input if value.name not in constant]
    del model.graph.input[:]
    model.graph.input.extend(fed)


def _set_named(model: ModelProto, name: str, size: int) -> None:
    for graph in iter_graphs(model.graph):
        for value in (*graph.input, *graph.output):
            for dim in _read_dims(value):
                if dim.dim_param == name:
                    dim.dim_value = size  # clears dim_param: they share a oneof


def _set_shape(
    model: ModelProto, value: ValueInfoProto, sizes: tuple[int, ...], path: Path
) -> None:
    shape = value.type.tensor_type.shape
    if not value.type.tensor_type.HasField("shape"):
        shape.dim.extend([need("onnx", "onnx").TensorShapeProto.Dimension() for _ in sizes])
    wrong = InputError(
        f"{path.name}: input '{value.name}' is {_format_shape(value) or 'a scalar'}; "
        f"it cannot be {'x'.join(map(str, sizes))}",
        hint=f"--shape {value.name}={_format_shape(value)}, with a number for every name",
    )
    if len(sizes) != len(shape.dim):
        raise wrong
    for index, size in enumerate(sizes):
        dim = shape.dim[index]
        if size < 1 or dim.dim_value not in (0, -1, size):
            raise wrong
        if dim.dim_param:
            _set_named(model, dim.dim_param, size)
        dim.dim_value = size


def _make_constant(model: ModelProto, value: ValueInfoProto, size: int) -> Array:
    onnx = need("onnx", "onnx")
    kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    array: Array = np.array(size, dtype=kind)
    model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
    model.graph.input.remove(value)
    return array


def _make_free_error(free: list[ValueInfoProto], path: Path) -> InputError:
    named = list(
        dict.fromkeys(dim.dim_param for value in free for dim in _read_dims(value) if dim.dim_param)
    )
    whole = [
        value
        for value in free
        if any(dim.dim_value < 1 and not dim.dim_param for dim in _read_dims(value))
    ]
    whole += [value for value in free if not value.type.tensor_type.HasField("shape")]
    options = [f"--shape {name}=..." for name in named]
    options += [f"--shape {value.name}={_format_shape(value) or '1x...'}" for value in whole]
    names = ", ".join(f"'{value.name}' ({_format_shape(value) or 'no shape'})" for value in free)
    return InputError(
        f"{path.name}: the shape of input {names} is not fixed",
        hint=f"give the sizes the device will use, numbers for names and ?: {' '.join(options)}",
    )
