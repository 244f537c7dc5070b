"""What a build is asked for, and what its profiles share."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import msgspec

from converters.spec import Batch, Layout
from edge_core.errors import InputError
from edge_core.package.preprocess import ImageRecipe
from edge_core.profile import Profile
from edge_sdk.build import judge, metrics
from edge_sdk.build.convert import Prepared
from edge_sdk.build.samples import Samples
from edge_sdk.build.stages import Model


class BuildRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asked for."""

    model: Path
    profiles: tuple[Profile, ...]
    out: Path = Path("dist")
    evaluation: str = ""  # source of samples; see edge_sdk.build.samples
    calibration: str = ""
    labels: Path | None = None  # of the evaluation samples
    preprocess: ImageRecipe | None = None
    metric: str = "auto"  # auto, top1, top5, agreement, cosine, or module:function
    shapes: dict[str, int | tuple[int, ...]] = {}
    layout: Layout = "NHWC"  # of images where the format has a choice (TFLite)
    batch: Batch = "fixed"  # "dynamic": packages take any number of rows
    objective: judge.Objective = "latency"
    only: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    name: str = ""  # of the package; default: the model file's stem
    version: str = ""  # default: the first 12 hex digits of the model's SHA-256
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in ("name", "version"):  # both become part of file names
            text = getattr(self, field)
            if text and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", text):
                raise InputError(
                    f"{field} '{text}' cannot be part of a file name",
                    hint="at most 64 letters, digits and ._+-, with a letter or digit first",
                )
        names = Counter(p.name for p in self.profiles)
        if twice := [n for n, count in names.items() if count > 1]:
            raise InputError(
                f"two profiles are named '{twice[0]}'",
                hint="each makes a package of its name; give it once, or change 'name' in a copy",
            )


class Materials(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the profiles of one build share."""

    model: Model
    prepared: Prepared
    evaluation: Samples
    feeds: Path
    calibration: Path | None
    metric: str
    user_metric: metrics.UserMetric | None
    host: Profile
    rows: tuple[int, ...] = ()  # samples that a dynamic batch is tried on
