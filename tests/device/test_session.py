"""How the adapter opens a model: what is set, and not only what comes out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_core.errors import InputError
from edge_core.package.preprocess import ImageRecipe, normalise
from edge_core.runtimes import onnxruntime

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "data" / "detection" / "FastestDet.onnx"


def test_threads_do_not_spin_and_are_as_many_as_asked_for():
    session = onnxruntime.open(MODEL, threads=2, options={})
    chosen = session._session.get_session_options()
    assert chosen.intra_op_num_threads == 2
    assert chosen.inter_op_num_threads == 1
    assert chosen.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_options_of_a_package_reach_the_runtime():
    options = {"disable_quant_qdq": "1", "graph_optimization": "basic"}
    chosen = onnxruntime.open(MODEL, threads=1, options=options)._session.get_session_options()
    assert chosen.get_session_config_entry("session.disable_quant_qdq") == "1"
    assert chosen.graph_optimization_level.name == "ORT_ENABLE_BASIC"


def test_a_graph_optimization_that_is_none_is_refused():
    with pytest.raises(InputError, match="graph_optimization is 'most'"):
        onnxruntime.open(MODEL, threads=1, options={"graph_optimization": "most"})


def test_peak_memory_remembers_what_was_given_back():
    code = (  # in a process that has had no higher peak before
        "import numpy as np; from edge_core.runtimes.worker import peak_rss_mb;"
        "before = peak_rss_mb();"
        "spike = np.ones(25_000_000); del spike; print(peak_rss_mb() - before)"  # 200 MB
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) > 150


def test_colours_scale_layout_and_type_of_a_recipe():
    red, green, blue = 250, 100, 50
    pixels = np.full((2, 2, 3), (red, green, blue), np.uint8)
    shape = {"height": 2, "width": 2}
    first = {"RGB": red, "BGR": blue}
    for color, value in first.items():
        tensor = normalise(pixels, ImageRecipe(**shape, color=color, mean=(10.0,), std=(2.0,)))
        assert tensor.shape == (1, 3, 2, 2)
        assert tensor[0, 0, 0, 0] == (value - 10) / 2
        assert tensor[0, 1, 0, 0] == (green - 10) / 2
    wide = normalise(pixels, ImageRecipe(**shape, layout="NHWC", dtype="uint8", scale=9.0))
    assert wide.dtype == np.uint8
    assert wide[0, 0, 0].tolist() == [red, green, blue]
