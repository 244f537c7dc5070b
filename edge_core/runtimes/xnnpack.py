"""Which operators of a .tflite file run outside XNNPACK, and what that is likely to cost.

    measured(with_xnnpack, without) -> Delegation(ops=66, partitions=17,
                                                  outside={"DEPTHWISE_CONV_2D": 16}, slowdown=2.3)

Both are interpreters of the same file. The first lists the DELEGATE nodes that took operators
over, the second the operators themselves. Every operator on a path back from the outputs of a
DELEGATE node to its inputs runs in XNNPACK.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import Any

import msgspec
import numpy as np

BUDGET_S = 0.3  # of timing, for each interpreter
MAX_RUNS = 20
# Cost in the runtime's own kernels, in multiply-accumulates of a convolution. Depthwise: INT8
# EfficientNet-Lite0, 23 of 385 million multiply-accumulates take 8 of 16.8 ms (ai-edge-litert
# 2.3.0, x86-64, 1 thread). Other operators move data; they count by the elements they write.
DEPTHWISE_COST = 14
ELEMENT_COST = 10


class Delegation(msgspec.Struct, frozen=True):
    """How a runtime and XNNPACK share a graph; None where this version does not report it."""

    ops: int | None
    partitions: int | None  # 1: one piece, as it should be
    outside: dict[str, int] | None  # operator -> how many run in the runtime's own kernels
    slowdown: float | None  # predicted: time now to time if XNNPACK took every operator

    def __str__(self) -> str:
        """One line for people."""
        if self.outside is None:
            return "this runtime does not report what XNNPACK takes"
        if not self.outside:
            return f"all {self.ops} operators in XNNPACK"
        listed = ", ".join(f"{count} {name}" for name, count in sorted(self.outside.items()))
        slower = f"; predicted slow-down {self.slowdown:.2f}" if self.slowdown else ""
        pieces = f"{self.partitions} XNNPACK partitions of {self.ops} operators"
        return f"{pieces}, outside: {listed}{slower}"


def measure_delegation(with_xnnpack: Any, without: Any) -> Delegation:
    """Read both graphs and time both interpreters, for a second at most.

    ``with_xnnpack`` and ``without`` are TFLite interpreters of one file with tensors allocated.
    """
    if not hasattr(without, "_get_ops_details"):  # a private method
        return Delegation(None, None, None, None)
    nodes = [node for node in with_xnnpack._get_ops_details() if node["op_name"] == "DELEGATE"]
    ops = without._get_ops_details()
    delegated = _find_delegated(nodes, ops)
    outside = [op for i, op in enumerate(ops) if i not in delegated]
    return Delegation(
        ops=len(ops),
        partitions=len(nodes),
        outside=dict(Counter(op["op_name"] for op in outside)),
        slowdown=_estimate_slowdown(with_xnnpack, without, ops, outside),
    )


def _find_delegated(nodes: list[Any], ops: list[Any]) -> set[int]:
    """Indices of the operators in ``ops`` that the DELEGATE ``nodes`` replace."""
    producers = {int(tensor): i for i, op in enumerate(ops) for tensor in op["outputs"]}
    delegated: set[int] = set()
    for node in nodes:
        partition_inputs = {int(tensor) for tensor in node["inputs"]}
        pending = [int(tensor) for tensor in node["outputs"]]
        while pending:
            tensor = pending.pop()
            producer = producers.get(tensor)
            if tensor in partition_inputs or producer is None or producer in delegated:
                continue
            delegated.add(producer)
            pending += [int(tensor) for tensor in ops[producer]["inputs"]]
    return delegated


def predict_slowdown(now: float, own: float, share: float) -> float | None:
    """The slow-down that two times and a share imply: a prediction, not a measurement.

    ``now`` is the time of the file as it runs, ``own`` that of the runtime's own kernels alone, in
    one unit, and ``share`` (0 to 1) what the operators outside take of ``own``. If XNNPACK is g
    times as fast on all operators, now = (1 - share) * own / g + share * own, and everything in
    XNNPACK would take own / g = (now - share * own) / (1 - share). None where that is not positive:
    then the share, which is estimated from shapes, is wrong.

    EfficientNet-Lite0, ai-edge-litert 2.3.0, x86-64, 1 thread: dynamic INT8 with its 16 depthwise
    convolutions outside, 2.3 predicted and 2.2 measured against the file with float depthwise
    weights; INT4 convolutions, 1.2 predicted and 2.1 measured against INT8 ones.
    """
    inside = (now - share * own) / (1 - share) if share < 1 else 0.0
    return max(1.0, now / inside) if inside > 0 else None


def _estimate_slowdown(
    with_xnnpack: Any, without: Any, ops: list[Any], outside: list[Any]
) -> float | None:
    if not outside:
        return 1.0
    if len(outside) == len(ops):  # nothing shows how fast XNNPACK is here
        return None
    shapes = {
        int(details["index"]): [int(dim) for dim in details["shape"]]
        for details in without.get_tensor_details()
    }
    total = sum(_estimate_cost(op, shapes) for op in ops)
    share = sum(_estimate_cost(op, shapes) for op in outside) / max(total, 1)
    return predict_slowdown(_time_best_s(with_xnnpack), _time_best_s(without), share)


def _estimate_cost(op: Any, shapes: dict[int, list[int]]) -> float:
    """In multiply-accumulates of a convolution in the runtime's own kernels."""
    output_elements = sum(math.prod(shapes.get(int(tensor), [])) for tensor in op["outputs"])
    input_shapes = [shapes.get(int(tensor), []) for tensor in op["inputs"]]
    match op["op_name"]:
        case "CONV_2D":
            return output_elements * math.prod(input_shapes[1][1:])
        case "DEPTHWISE_CONV_2D":
            return output_elements * math.prod(input_shapes[1][1:3]) * DEPTHWISE_COST
        case "FULLY_CONNECTED":
            return output_elements * input_shapes[1][-1]
        case "BATCH_MATMUL":
            return output_elements * input_shapes[0][-1]
        case "TRANSPOSE_CONV":
            return math.prod(input_shapes[2]) * math.prod(input_shapes[1][:3])
        case _:
            return output_elements * ELEMENT_COST


def _time_best_s(interpreter: Any) -> float:
    """The fastest run in seconds on fixed inputs: zeros for integers, which are often indices."""
    rng = np.random.default_rng(0)
    for details in interpreter.get_input_details():
        is_float = np.dtype(details["dtype"]).kind == "f"
        values = rng.standard_normal(details["shape"]) if is_float else np.zeros(details["shape"])
        interpreter.set_tensor(details["index"], values.astype(details["dtype"]))
    interpreter.invoke()  # the first run packs weights
    times: list[float] = []
    while len(times) < MAX_RUNS and sum(times) < BUDGET_S:
        start = time.perf_counter()
        interpreter.invoke()
        times.append(time.perf_counter() - start)
    return min(times)
