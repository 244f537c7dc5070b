"""Image recipes: pixels as a viewer shows them, then scaled."""

import numpy as np
import pytest
from PIL import Image

from edge_core.package.preprocess import BUILT_IN, ImageRecipe, to_tensor

STRETCH = ImageRecipe(height=8, width=8, fit="stretch", interpolation="nearest")


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    gray = np.arange(64, dtype=np.uint16).reshape(8, 8) * 4 * 257
    Image.fromarray(gray).save(tmp_path / "deep.png")
    Image.fromarray((gray // 257).astype(np.uint8)).save(tmp_path / "flat.png")
    deep, flat = (to_tensor(tmp_path / name, STRETCH) for name in ("deep.png", "flat.png"))
    np.testing.assert_array_equal(deep, flat)


def test_a_turned_photo_is_read_as_it_is_shown(tmp_path):
    upright = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    upright.save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.png", exif=exif)
    shown, turned = (to_tensor(tmp_path / name, STRETCH) for name in ("a.png", "b.png"))
    np.testing.assert_array_equal(shown, turned)


def test_one_pixel_keeps_its_colour(tmp_path):
    Image.new("RGB", (1, 1), (200, 30, 30)).save(tmp_path / "one.png")
    tensor = to_tensor(tmp_path / "one.png", BUILT_IN["efficientnet-lite0"])
    assert tensor[0, 0, 0, 0] == pytest.approx((200 - 127) / 128)
