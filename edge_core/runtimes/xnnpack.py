"""Which operators of a .tflite file run outside XNNPACK, and what that is likely to cost.

    measured(with_xnnpack, without) -> Delegation(ops=66, partitions=17,
                                                  outside={"DEPTHWISE_CONV_2D": 16}, slowdown=2.3)

Both are interpreters of the same file. The first lists the DELEGATE nodes that took operators
over, the second the operators themselves: what is met on the way back from the outputs of a
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
    """None: this version of the runtime does not tell."""

    ops: int | None
    partitions: int | None  # 1: one piece, as it should be
    outside: dict[str, int] | None  # operator -> how many run in the runtime's own kernels
    slowdown: float | None  # predicted: time now to time if XNNPACK took every operator

    def __str__(self) -> str:
        """One line for people."""
        if self.outside is None:
            return "this runtime does not tell what XNNPACK takes"
        if not self.outside:
            return f"all {self.ops} operators in XNNPACK"
        listed = ", ".join(f"{count} {name}" for name, count in sorted(self.outside.items()))
        slower = f"; predicted slow-down {self.slowdown:.2f}" if self.slowdown else ""
        pieces = f"{self.partitions} XNNPACK partitions of {self.ops} operators"
        return f"{pieces}, outside: {listed}{slower}"


def measured(with_xnnpack: Any, without: Any) -> Delegation:
    """Read the graph of both and time them: at most about a second."""
    if not hasattr(without, "_get_ops_details"):  # a private method
        return Delegation(None, None, None, None)
    nodes = [n for n in with_xnnpack._get_ops_details() if n["op_name"] == "DELEGATE"]
    ops = without._get_ops_details()
    inside = _inside(nodes, ops)
    outside = [op for i, op in enumerate(ops) if i not in inside]
    return Delegation(
        ops=len(ops),
        partitions=len(nodes),
        outside=dict(Counter(op["op_name"] for op in outside)),
        slowdown=_slowdown(with_xnnpack, without, ops, outside),
    )


def _inside(nodes: list[Any], ops: list[Any]) -> set[int]:
    made_by = {int(t): i for i, op in enumerate(ops) for t in op["outputs"]}
    inside: set[int] = set()
    for node in nodes:
        borders = {int(t) for t in node["inputs"]}
        to_do = [int(t) for t in node["outputs"]]
        while to_do:
            tensor = to_do.pop()
            i = made_by.get(tensor)
            if tensor in borders or i is None or i in inside:
                continue
            inside.add(i)
            to_do += [int(t) for t in ops[i]["inputs"]]
    return inside


def predicted(now: float, own: float, share: float) -> float | None:
    """The slow-down that two times and a share suggest: a prediction, not a measurement.

    ``now`` is the time as it is, ``own`` that of the runtime's own kernels alone, and ``share``
    what the operators outside take of ``own``. If XNNPACK is g times as fast on all operators,
    now = (1 - share) * own / g + share * own, and everything in XNNPACK would take
    own / g = (now - share * own) / (1 - share). None where that is no time at all: then the share,
    which is estimated from shapes, is wrong.

    EfficientNet-Lite0, ai-edge-litert 2.3.0, x86-64, 1 thread: dynamic INT8 with its 16 depthwise
    convolutions outside, 2.3 predicted and 2.2 measured against the file with float depthwise
    weights; INT4 convolutions, 1.2 predicted and 2.1 measured against INT8 ones.
    """
    inside = (now - share * own) / (1 - share) if share < 1 else 0.0
    return max(1.0, now / inside) if inside > 0 else None


def _slowdown(with_xnnpack: Any, without: Any, ops: list[Any], outside: list[Any]) -> float | None:
    if not outside:
        return 1.0
    if len(outside) == len(ops):  # nothing shows how fast XNNPACK is here
        return None
    shapes = {int(d["index"]): [int(n) for n in d["shape"]] for d in without.get_tensor_details()}
    total = sum(_cost(op, shapes) for op in ops)
    share = sum(_cost(op, shapes) for op in outside) / max(total, 1)
    return predicted(_best_s(with_xnnpack), _best_s(without), share)


def _cost(op: Any, shapes: dict[int, list[int]]) -> float:
    """In multiply-accumulates of a convolution in the runtime's own kernels."""
    made = sum(math.prod(shapes.get(int(t), [])) for t in op["outputs"])
    taken = [shapes.get(int(t), []) for t in op["inputs"]]
    match op["op_name"]:
        case "CONV_2D":
            return made * math.prod(taken[1][1:])
        case "DEPTHWISE_CONV_2D":
            return made * math.prod(taken[1][1:3]) * DEPTHWISE_COST
        case "FULLY_CONNECTED":
            return made * taken[1][-1]
        case "BATCH_MATMUL":
            return made * taken[0][-1]
        case "TRANSPOSE_CONV":
            return math.prod(taken[2]) * math.prod(taken[1][:3])
        case _:
            return made * ELEMENT_COST


def _best_s(interpreter: Any) -> float:
    """The shortest of some runs on fixed inputs: zeros for integers, which are often indices."""
    rng = np.random.default_rng(0)
    for d in interpreter.get_input_details():
        normal = np.dtype(d["dtype"]).kind == "f"
        values = rng.standard_normal(d["shape"]) if normal else np.zeros(d["shape"])
        interpreter.set_tensor(d["index"], values.astype(d["dtype"]))
    interpreter.invoke()  # the first run packs weights
    times: list[float] = []
    while len(times) < MAX_RUNS and sum(times) < BUDGET_S:
        start = time.perf_counter()
        interpreter.invoke()
        times.append(time.perf_counter() - start)
    return min(times)
