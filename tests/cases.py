"""Arguments that many tests give to `edge build`."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIGITS = (
    "--eval",
    "examples.data:digits_eval",
    "--calibration",
    "examples.data:digits_calibration",
)
PHOTOS = (
    "--eval", "examples.data:photo_crops_eval",
    "--calibration", "examples.data:photo_crops_calibration",
    "--preprocess", "efficientnet-lite0",
)  # fmt: skip
