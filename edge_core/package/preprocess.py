"""Preprocessing recipes: an image file in, the tensor a model takes out. Travels in packages.

    decode -> colour order -> crop and resize -> (value * scale - mean) / std -> layout -> batch 1

Pillow is the decoder (extra ``image``); everything after it is NumPy.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from edge_core.errors import InputError
from edge_core.extras import need
from edge_core.tensors import Array

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".ppm", ".pgm")
MAX_IMAGE_BYTES = 64 * 1024 * 1024
MAX_IMAGE_PIXELS = 100_000_000  # a decompression bomb is refused, not decoded


class ImageRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How an image becomes the input tensor."""

    height: Annotated[int, Meta(ge=1, le=8192)]
    width: Annotated[int, Meta(ge=1, le=8192)]
    fit: Annotated[
        Literal["stretch", "center-crop"],
        Meta(description="stretch the whole image, or resize its central part"),
    ] = "center-crop"
    crop_fraction: Annotated[
        float, Meta(gt=0, le=1, description="share of the shorter side that center-crop keeps")
    ] = 0.875
    interpolation: Literal["nearest", "bilinear", "bicubic", "box"] = "bicubic"
    color: Literal["RGB", "BGR", "L"] = "RGB"
    scale: float = 1.0  # pixel values 0..255 are multiplied first
    mean: tuple[float, ...] = (0.0,)  # one value, or one a channel
    std: tuple[float, ...] = (1.0,)
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    dtype: Literal["float32", "uint8"] = "float32"

    def __post_init__(self) -> None:
        channels = 1 if self.color == "L" else 3
        for field in ("mean", "std"):
            if len(getattr(self, field)) not in (1, channels):
                raise ValueError(f"{field} needs 1 or {channels} values for color {self.color}")
        if any(deviation == 0 for deviation in self.std):
            raise ValueError("std must not be 0")


# (x - 127) / 128 on 224 of a 224/256 central crop, bicubic: the pair's own evaluation code.
BUILT_IN: dict[str, ImageRecipe] = {
    "efficientnet-lite0": ImageRecipe(height=224, width=224, mean=(127.0,), std=(128.0,)),
    "imagenet": ImageRecipe(
        height=224, width=224, scale=1 / 255, interpolation="bilinear",
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    ),
    "mnist": ImageRecipe(
        height=28, width=28, fit="stretch", color="L", scale=1 / 255, interpolation="bilinear",
        mean=(0.1307,), std=(0.3081,),
    ),
}  # fmt: skip


def to_tensor(
    image: Path | bytes, recipe: ImageRecipe, *, max_pixels: int = MAX_IMAGE_PIXELS
) -> Array:
    """Decode and prepare one image: float32 or uint8 of shape (1, C, H, W) or (1, H, W, C).

    Raises InputError for a file that is no readable image, MissingExtra without Pillow.
    """
    pil = need("PIL.Image", "image")
    name = str(image) if isinstance(image, Path) else f"{len(image)} bytes"
    try:
        raw = image.read_bytes() if isinstance(image, Path) else image
        if len(raw) > MAX_IMAGE_BYTES:
            raise InputError(f"{name}: images of at most {MAX_IMAGE_BYTES} bytes are read")
        with warnings.catch_warnings():
            warnings.simplefilter("error", pil.DecompressionBombWarning)
            with pil.open(io.BytesIO(raw)) as opened:
                if opened.width * opened.height > max_pixels:
                    raise InputError(
                        f"{name}: {opened.width}x{opened.height} pixels; "
                        f"at most {max_pixels} are decoded"
                    )
                picture = _eight_bits(pil, opened, "L" if recipe.color == "L" else "RGB")
                # As a viewer shows it: cameras store the turn beside the pixels.
                picture = need("PIL.ImageOps", "image").exif_transpose(picture)
    except InputError:
        raise
    except pil.UnidentifiedImageError as error:
        raise InputError(f"{name} is not a readable image: no known image format") from error
    except Exception as error:  # Pillow raises many unrelated types on damaged files
        raise InputError(f"{name} is not a readable image: {error}") from error
    box = None
    if recipe.fit == "center-crop":
        side = max(1, int(recipe.crop_fraction * min(picture.size)))
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        box = (left, top, left + side, top + side)
    how = getattr(pil.Resampling, recipe.interpolation.upper())
    # Crop first, as the reference evaluation does: pixels outside the box do not bleed in.
    picture = (picture.crop(box) if box else picture).resize((recipe.width, recipe.height), how)
    return normalise(np.asarray(picture), recipe)


def _eight_bits(pil: Any, image: Any, mode: str) -> Any:
    """The image as RGB or L. Pillow itself would clip 16 bits to 255 instead of scaling them."""
    if image.mode == "F":
        raise InputError("pixels are floating-point numbers; 8 or 16 bits are read")
    if image.mode.startswith("I"):  # what Pillow makes of 16 bits, in 16 or 32
        pixels = np.clip(np.asarray(image), 0, 65535) // 257
        turned = pil.fromarray(pixels.astype(np.uint8))
        turned.info.update(image.info)
        return turned.convert(mode)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)


def normalise(pixels: Array, recipe: ImageRecipe) -> Array:
    """Turn uint8 pixels (H, W) or (H, W, 3 as RGB) into the model's tensor with a batch of 1."""
    image = pixels[..., None] if pixels.ndim == 2 else pixels
    if recipe.color == "BGR":
        image = image[..., ::-1]
    if recipe.dtype == "float32":
        mean, std = np.array(recipe.mean, np.float32), np.array(recipe.std, np.float32)
        image = (image.astype(np.float32) * np.float32(recipe.scale) - mean) / std
    image = image.transpose(2, 0, 1) if recipe.layout == "NCHW" else image
    return np.ascontiguousarray(image[None], dtype=recipe.dtype)
