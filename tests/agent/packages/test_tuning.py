"""Tuning: threads and batches are measured here, and every verdict says why in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from agent.packages import tuning
from agent.packages.slots import Tuning
from edge_core.errors import MeasureError
from edge_core.package import golden
from edge_core.package.manifest import PackagedModel, RuntimeNeed
from edge_core.runtimes import onnxruntime as adapter
from edge_core.runtimes.child import Child
from edge_core.tensors import Feeds

Tune = Callable[..., Tuning]
FLOAT = TensorProto.FLOAT


def model(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    x: tuple[int | str, ...],
    y: tuple[int | str, ...],
) -> Path:
    """An ONNX file with the input "x" and the output "y"."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, x)],
        [helper.make_tensor_value_info("y", FLOAT, y)],
        [numpy_helper.from_array(a, name) for name, a in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, path)
    return path


def dense(path: Path, rows: int | str = "batch") -> Path:
    """So small that the call costs more than the computing."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return model(path, [node], {"w": np.ones((4, 3), np.float32)}, (rows, 4), (rows, 3))


def convolution(path: Path) -> Path:
    """0.1 thousand million multiply-accumulates: the processor is busy with one row already."""
    w = np.random.default_rng(0).normal(size=(64, 64, 3, 3)).astype(np.float32) / 24
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    shape = ("batch", 64, 56, 56)
    return model(path, [node], {"w": w}, shape, shape)


@pytest.fixture
def tune(tmp_path: Path) -> Tune:
    """tune(model, feeds, threads=1, max_batch_size=8, tune_s=5): what a real child measures."""

    def run(path: Path, feeds: list[Feeds], **limits: float) -> Tuning:
        session = adapter.open(path, threads=1, options={})
        answers = tuple(session.run(one) for one in feeds)
        version = adapter.version()
        packaged = PackagedModel(
            name="model", version="1", variant="here", candidate="onnx-fp32", entry=path.name,
            runtime=RuntimeNeed("onnxruntime", version, version),
            inputs=session.inputs, outputs=session.outputs,
        )  # fmt: skip
        known = {"threads": 1, "max_batch_size": 8, "tune_s": 5.0, "timeout_s": 60.0}
        vectors = golden.make(tuple(feeds), answers, answers)
        with Child() as child:
            return tuning.tune(
                child, packaged, path, vectors, tmp_path, tuning.TuningLimits(**{**known, **limits})
            )

    return run


def normal(*shape: int, count: int = 3) -> list[Feeds]:
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=shape).astype(np.float32)} for _ in range(count)]


def test_batching_pays_where_the_call_costs_more_than_the_computing(tune, tmp_path):
    found = tune(dense(tmp_path / "dense.onnx"), normal(1, 4))
    batching = found.batching
    assert (batching.can, batching.pays) == (True, True)
    assert batching.batched_per_s > 1.15 * batching.single_per_s > 0
    assert batching.max_batch_size == batching.measured_at
    assert batching.why.startswith(f"{batching.measured_at} rows at once: ")
    assert batching.why.endswith(" times the rate of single ones")
    assert found.runtime == f"onnxruntime {adapter.version()}"


def test_batching_stays_off_where_one_row_keeps_the_processor_busy(tune, tmp_path):
    found = tune(convolution(tmp_path / "conv.onnx"), normal(1, 64, 56, 56)).batching
    assert (found.can, found.pays, found.max_batch_size) == (True, False, 1)
    assert found.measured_at in (2, 4, 8)
    assert "rows at once" in found.why
    assert found.batched_per_s < 1.15 * found.single_per_s * 1.2  # the two medians of a ratio


def test_a_fixed_first_dimension_is_named(tune, tmp_path):
    found = tune(dense(tmp_path / "dense.onnx", rows=1), normal(1, 4)).batching
    assert not found.can
    assert not found.pays
    assert found.why == "the batch dimension is fixed at 1 ('x')"
    assert (found.single_per_s, found.batched_per_s) == (0.0, 0.0)


def test_an_output_without_a_batch_dimension_is_named(tune, tmp_path):
    node = helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)
    path = model(tmp_path / "sum.onnx", [node], {}, ("batch", 4), ())
    assert tune(path, normal(1, 4)).batching.why == "'y' is a scalar"


def test_rows_that_depend_on_each_other_are_found(tune, tmp_path):
    """The first dimension is free, and yet it is no batch."""
    node = helper.make_node("Softmax", ["x"], ["y"], axis=0)
    path = model(tmp_path / "mixed.onnx", [node], {}, ("batch", 4), ("batch", 4))
    found = tune(path, normal(1, 4)).batching
    assert (found.can, found.pays) == (False, False)
    assert found.why.startswith("rows of a batch of 2 are not those of single runs: 'y'")


def test_rows_in_another_order_are_found_with_one_golden_sample_too(tune, tmp_path):
    starts, ends, axes, steps = (np.array([n], np.int64) for n in (-1, -(2**62), 0, -1))
    node = helper.make_node("Slice", ["x", "s", "e", "a", "d"], ["y"])
    weights = {"s": starts, "e": ends, "a": axes, "d": steps}
    path = model(tmp_path / "turned.onnx", [node], weights, ("batch", 4), ("batch", 4))
    found = tune(path, normal(1, 4, count=1)).batching
    assert not found.can
    assert "are not those of single runs" in found.why


def test_an_output_whose_first_dimension_is_no_batch_is_found(tune, tmp_path):
    node = helper.make_node("Transpose", ["x"], ["y"], perm=[1, 0])
    path = model(tmp_path / "turned.onnx", [node], {}, ("batch", "n"), ("n", "batch"))
    found = tune(path, normal(1, 4)).batching
    assert not found.can
    assert "'y' has shape" in found.why


def test_a_model_that_refuses_a_batch_is_tuned_without(tune, tmp_path):
    """A Reshape to one row inside, as exporters write it: a free dimension only by its name."""
    nodes = [
        helper.make_node("Shape", ["x"], ["have"]),
        helper.make_node("Mul", ["have", "keep"], ["kept"]),
        helper.make_node("Add", ["kept", "one"], ["want"]),
        helper.make_node("Reshape", ["x", "want"], ["y"]),
    ]
    weights = {"keep": np.array([0, 1], np.int64), "one": np.array([1, 0], np.int64)}
    path = model(tmp_path / "reshape.onnx", nodes, weights, ("batch", 4), ("batch", 4))
    found = tune(path, normal(1, 4))
    assert found.batching.why.startswith("a batch was refused: onnxruntime could not run")
    assert found.p50_ms["1"] > 0


def test_a_golden_sample_of_several_rows_is_left_as_it_is(tune, tmp_path):
    found = tune(dense(tmp_path / "dense.onnx"), normal(2, 4)).batching
    assert (found.can, found.why) == (False, "a golden sample has 2 rows")


def test_batches_are_not_measured_where_the_settings_allow_none(tune, tmp_path):
    found = tune(dense(tmp_path / "dense.onnx"), normal(1, 4), max_batch_size=1).batching
    assert (found.can, found.why) == (False, "max_batch_size is 1")


def test_every_thread_count_is_measured_and_one_of_them_chosen(tune, tmp_path):
    found = tune(dense(tmp_path / "dense.onnx", rows=1), normal(1, 4), threads=3)
    assert list(found.p50_ms) == ["1", "2", "3"]
    assert found.p50_ms[str(found.threads)] * 0.95 <= min(found.p50_ms.values())


def test_a_large_model_does_not_stretch_the_time(tune, lite0):
    """One load and one visit is the least; the thread counts that did not fit are left out."""
    image = [{"input": np.zeros((1, 3, 224, 224), np.float32)}]
    found = tune(lite0, image, threads=2, tune_s=0.01)
    assert (list(found.p50_ms), found.threads) == (["2"], 2)
    assert found.seconds < 10


def test_batches_that_would_take_too_long_are_not_begun(tune, tmp_path):
    found = tune(convolution(tmp_path / "conv.onnx"), normal(1, 64, 56, 56), tune_s=1.0).batching
    assert not found.pays
    assert found.why.startswith("not measured: it would take")


def test_a_child_that_hangs_is_a_measure_error(tune, tmp_path):
    with pytest.raises(MeasureError, match="in time"):
        tune(dense(tmp_path / "dense.onnx"), normal(1, 4), timeout_s=0.001)


RATES = st.dictionaries(st.integers(1, 64), st.floats(1e-3, 1e6), min_size=1)


@given(RATES)
def test_the_smallest_of_the_nearly_best_is_chosen(rates):
    """Its rate is within 5 % of the best, and no smaller one's is."""
    chosen = tuning.smallest_good(rates)
    best = max(rates.values())
    assert rates[chosen] >= 0.95 * best
    assert all(rate < 0.95 * best for n, rate in rates.items() if n < chosen)


@pytest.mark.parametrize(
    ("p50_ms", "threads"),
    [
        ({1: 10.0, 2: 10.4, 3: 11.0, 4: 20.0}, 1),  # more threads only cost
        ({1: 10.0, 2: 6.0, 3: 5.1, 4: 5.0}, 3),  # the fourth gains 2 %
        ({1: 10.0, 2: 6.0, 3: 5.5, 4: 5.0}, 4),
        ({1: 10.4, 2: 10.0}, 1),
    ],
)
def test_threads_are_chosen_by_what_they_gain(p50_ms, threads):
    assert tuning.smallest_good({n: 1 / ms for n, ms in p50_ms.items()}) == threads


@pytest.mark.parametrize(
    ("rates", "pays", "size", "why"),
    [
        ({1: [100] * 5, 2: [114] * 5, 4: [114] * 5}, False, 1, "2 rows at once: 1.14 times"),
        ({1: [100] * 5, 2: [115] * 5}, True, 2, "2 rows at once: 1.15 times"),
        ({1: [100] * 5, 2: [150] * 5, 4: [200] * 5, 8: [205] * 5}, True, 4, "4 rows at once: 2.00"),
        ({1: [100] * 3, 2: [97] * 3}, False, 1, "2 rows at once: 0.97 of the rate"),
        # A busy moment of the machine hits all sizes of its round alike: the ratio stays.
        ({1: [100, 10, 100], 2: [200, 20, 200]}, True, 2, "2 rows at once: 2.00 times"),
        # Two moments that hit only the batches: not sure enough to change how requests are run.
        (
            {1: [100] * 5, 2: [120, 120, 120, 90, 90]},
            False,
            1,
            "2 rows at once: 1.20 times the rate of single ones, but only in 3 of 5 rounds",
        ),
        ({1: [100] * 3, 2: [200] * 2}, False, 1, "2 of 3 rounds fitted in the time"),
        ({1: [], 2: []}, False, 1, "0 of 3 rounds fitted in the time"),
    ],
)
def test_a_batch_pays_from_1_15_times_the_single_rate_on(rates, pays, size, why):
    found = tuning.judge_batching(rates)
    assert (found.can, found.pays, found.max_batch_size) == (True, pays, size)
    assert found.why.startswith(why)


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="ascii")


def test_threads_never_exceed_the_share_of_what_the_control_groups_allow(tmp_path):
    """A copied tree of /proc and /sys; the processors themselves are this machine's."""
    cores = tuning.linux.count_cores()
    assert tuning.limit_threads(1.0, tmp_path) == cores
    assert tuning.limit_threads(0.01, tmp_path) == 1
    assert tuning.limit_threads(0.5, tmp_path) == max(1, cores // 2)
    group = "sys/fs/cgroup/system.slice/edge-agent.service"
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/system.slice/edge-agent.service\n",
            f"{group}/cpu.max": "max 100000\n",
            "sys/fs/cgroup/system.slice/cpu.max": "150000 100000\n",
        },
    )
    assert tuning.linux.read_cpu_quota(tmp_path) == 1.5
    assert tuning.limit_threads(1.0, tmp_path) == 1
    write(tmp_path, {"sys/fs/cgroup/system.slice/cpu.max": "max 100000\n"})
    assert tuning.linux.read_cpu_quota(tmp_path) == math.inf
