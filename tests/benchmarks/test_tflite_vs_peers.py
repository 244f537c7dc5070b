"""What the TFLite benchmark reads off its measurements. The measuring itself is `make bench`."""

import sys

import numpy as np
import pytest

from benchmarks import peer_env
from benchmarks.peer_env import Cost
from benchmarks.tflite_vs_peers import (
    DYNAMIC,
    FLOAT,
    ONNX2TF,
    SEARCHED,
    STATIC,
    Figures,
    fit_layout,
    lite0_targets,
    ratio,
    table,
)
from edge_core.errors import MeasureError
from edge_core.tensors import TensorSpec


def figures(kind, *, size=100, speed=1.0, agreement=1.0):
    return Figures(kind, size, Cost(1.0, 100.0), 10.0, 9.0, speed, agreement, 0.99)


FOUND = {
    FLOAT: figures("float"),
    STATIC: figures("static", size=28, speed=1.9, agreement=0.95),
    SEARCHED: figures("static", size=29, speed=1.8, agreement=0.96),
    DYNAMIC: figures("dynamic", size=29, agreement=0.97),
    ONNX2TF: figures("float", speed=1.0),
    "peer, static": figures("static", size=28, agreement=0.90),
    "peer, dynamic": figures("dynamic", size=27, agreement=0.98),
    "another peer": "cannot be installed: no wheel",
}


def test_only_the_figure_that_is_missed_is_not_met():
    missed = [text for text, met in lite0_targets(FOUND).items() if not met]
    assert missed == [f"{DYNAMIC}: agreement 0.970 (best peer 0.980, peer, dynamic)"]


@pytest.mark.parametrize(
    ("name", "changed", "part"),
    [
        (STATIC, figures("static", size=31, speed=1.9), "INT8 has 0.310"),
        (STATIC, figures("static", size=28, speed=1.69), "INT8 is 1.69x"),
        (ONNX2TF, figures("float", speed=1.06), "float takes 1.060"),
    ],
)
def test_each_limit_is_held(name, changed, part):
    verdicts = lite0_targets({**FOUND, name: changed})
    (met,) = [met for text, met in verdicts.items() if part in text]
    assert met is False


def test_a_peer_that_did_not_run_leaves_its_comparison_open():
    verdicts = lite0_targets({**FOUND, ONNX2TF: "not installed"})
    assert [text for text, met in verdicts.items() if met is None] == [
        "EfficientNet-Lite0 float against onnx2tf: not installed"
    ]


def test_a_file_of_ours_that_was_not_made_is_a_target_not_met():
    verdicts = lite0_targets({**FOUND, STATIC: "the converter crashed"})
    assert f"{STATIC}: the converter crashed" in [
        text for text, met in verdicts.items() if met is False
    ]


def test_a_row_without_figures_says_why(capsys):
    table("a model", FOUND, 200)
    assert "another peer: cannot be installed: no wheel" in capsys.readouterr().out


def test_a_busy_round_does_not_move_the_ratio():
    ours, peer = np.full((5, 3), 10.0), np.full((5, 3), 20.0)
    ours[2] = peer[2] = 90.0  # all of a round
    peer[3, 1] = 400.0  # one run
    assert ratio(peer, ours) == 2.0


def test_a_sample_is_moved_renamed_and_quantised_as_the_file_wants_it():
    image = np.arange(24, dtype=np.float32).reshape(1, 3, 2, 4)
    spec = TensorSpec("args_0", "int8", (1, 2, 4, 3), scale=0.5, zero_point=-10)
    array = fit_layout({"input": image}, [spec])["args_0"]
    assert array.dtype == np.int8
    assert array[0, 1, 2].tolist() == [2, 18, 34]  # 6, 14, 22


def test_the_memory_is_that_of_the_program_and_not_of_its_caller(tmp_path):
    held = np.ones(40_000_000)  # 320 MB
    cost = peer_env.run([sys.executable, "-c", "x = b'1' * 100_000_000"], log=tmp_path / "log")
    assert held[0] == 1.0
    assert 100 < cost.peak_mb < 200


def test_a_program_that_fails_is_told_by_its_last_line(tmp_path):
    with pytest.raises(MeasureError, match=r"failed \(1\): ValueError: no such op"):
        peer_env.run([sys.executable, "-c", "raise ValueError('no such op')"], log=tmp_path / "log")


def test_offline_no_peer_is_installed(tmp_path):
    with pytest.raises(MeasureError, match="--offline"):
        peer_env.provide(peer_env.TENSORFLOW, tmp_path, offline=True)
    assert list(tmp_path.iterdir()) == []
