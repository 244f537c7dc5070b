"""Where a build's time goes: planning, packaging, hashing and reporting against the real work.

    python -m benchmarks.build_overhead

EfficientNet-Lite0 for four profiles with an empty cache (runtime versions excepted: they are
installed once a machine). Overhead is everything but converters and measurements; at most 10 %.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from edge_core import console
from edge_sdk import BuildOptions, build
from edge_sdk.build.workspace import default_cache
from examples import models

PROFILES = ("raspberry-pi-4b", "raspberry-pi-5", "jetson-orin-nano", "x86-gateway-n100")
WORK = ("convert", "measure")
SET_UP = "set up runtimes"


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as folder:
        out = Path(folder)
        runtimes = default_cache() / "runtimes"
        runtimes.mkdir(parents=True, exist_ok=True)
        (out / "cache").mkdir()
        (out / "cache" / "runtimes").symlink_to(runtimes)
        built = build(
            models.lite0(out / "lite0.onnx"),
            PROFILES,
            BuildOptions(
                out=out / "dist",
                cache=out / "cache",
                calibration="examples.data:photo_crops_calibration",
                evaluation="examples.data:photo_crops_eval",
                preprocess="efficientnet-lite0",
            ),
        )
    seconds = {
        stage_name: spent_s
        for stage_name, spent_s in built[-1].seconds.items()
        if stage_name != SET_UP
    }
    work = sum(seconds[stage_s] for stage_s in WORK)
    table = console.new_table("stage", "s", "of the work", right=("s", "of the work"))
    for stage, stage_s in sorted(seconds.items(), key=lambda pair: -pair[1]):
        table.add_row(stage, f"{stage_s:.2f}", "" if stage in WORK else f"{stage_s / work:.1%}")
    console.stdout().print(table)
    overhead = sum(stage_s for stage, stage_s in seconds.items() if stage not in WORK) / work
    print(f"{'met    ' if overhead < 0.10 else 'NOT MET'} overhead {overhead:.1%} (under 10 %)")
    return 0 if overhead < 0.10 else 2


if __name__ == "__main__":
    sys.exit(main())
