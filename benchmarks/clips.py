"""Video clips of real photos: a camera that shakes or pans and zooms, with noise and flicker.

Half of the clips hold still but for a shake. A cut is the end of a clip.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

from edge_core.extras import need
from edge_core.tensors import Array
from examples.data import PHOTOS

FRAMES = 25  # a clip


def clip(name: str, number: int, size: tuple[int, int]) -> Iterator[Array]:
    """The frames of one clip of a photo, always the same for ``number``: uint8 (H, W, 3)."""
    pil = need("PIL.Image", "image")
    rng = np.random.default_rng([zlib.crc32(name.encode()), number])
    with pil.open(PHOTOS / f"{name}.jpg") as opened:
        photo = opened.convert("RGB")
    whole = np.array(photo.size)
    side = min(photo.size) * rng.uniform(0.5, 0.9)
    place = rng.uniform(0, whole - side)
    still = rng.random() < 0.5
    speed = rng.normal(0, 0.3 if still else 1.5, 2)  # pixels of the photo a frame
    zoom = rng.normal(0, 0.0003 if still else 0.002)  # of the side a frame
    light, noise = 1.0, rng.uniform(1, 4)  # of 255
    for frame in range(FRAMES):
        light = float(np.clip(light * rng.normal(1, 0.01), 0.7, 1.3))
        shown = min(side * (1 + zoom * frame), *photo.size)
        place = np.clip(place + speed + rng.normal(0, 0.3, 2), 0, whole - shown)
        box = (*place, *(place + shown))
        picture = np.asarray(photo.resize(size, pil.Resampling.BICUBIC, box=box), np.float32)
        noisy = picture * light + rng.normal(0, noise, picture.shape)
        yield np.clip(np.round(noisy), 0, 255).astype(np.uint8)
