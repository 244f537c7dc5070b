"""What a build is asked for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Annotated, get_args

import msgspec
from msgspec import Meta

from converters.spec import Batch, Layout, Shapes
from edge_core.errors import InputError
from edge_core.package.preprocess import ImageRecipe
from edge_core.profile import Profile
from edge_sdk.build import judge, samples

StrPath = str | PathLike[str]


class BuildOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What can be chosen for a build; raises InputError for a value that is not allowed.

    This is the only place where the options are spelled: `edge build` has an option for each
    field, and the Python interface takes the struct itself.
    """

    out: Annotated[StrPath, Meta(description="Folder for packages and reports.")] = Path("dist")
    evaluation: Annotated[
        str, Meta(description="Samples to judge on: image folder, .npz, .npy, module:function.")
    ] = ""
    calibration: Annotated[str, Meta(description="Samples for static INT8, in the same forms.")] = (
        ""
    )
    labels: Annotated[
        StrPath | None, Meta(description="Labels of the evaluation samples: .json, .npy or .txt.")
    ] = None
    preprocess: Annotated[
        ImageRecipe | str | None, Meta(description="Image recipe: a name or a .toml file.")
    ] = None
    metric: Annotated[
        str, Meta(description="auto, top1, top5, agreement, cosine or module:function.")
    ] = "auto"
    shapes: Annotated[Shapes, Meta(description="Fix a dynamic dimension, like batch=1.")] = {}
    layout: Annotated[
        Layout,
        Meta(description="Image layout of TFLite files: as cameras deliver them, or as in ONNX."),
    ] = "NHWC"
    batch: Annotated[
        Batch, Meta(description="dynamic: packages that take any number of rows at once.")
    ] = "fixed"
    objective: Annotated[
        judge.Objective, Meta(description="What decides between the candidates that fit.")
    ] = "latency"
    only: Annotated[Sequence[str], Meta(description="Build only this candidate.")] = ()
    also: Annotated[
        Sequence[str], Meta(description="Measure a candidate even if a rule refuses it.")
    ] = ()
    name: Annotated[str, Meta(description="Package name; default: the model file's.")] = ""
    version: Annotated[
        str, Meta(description="Package version; default: from the model's digest.")
    ] = ""
    class_names: Annotated[
        StrPath | Sequence[str], Meta(description="Text file with one class name per line.")
    ] = ()
    cache: Annotated[StrPath | None, Meta(description="Folder for finished candidates.")] = None
    bundle: Annotated[
        bool, Meta(description="One package for all profiles, with a variant for each.")
    ] = False
    jobs: Annotated[
        int, Meta(ge=0, description="Candidates built in parallel; 0: one per core.")
    ] = 0
    offline: Annotated[bool, Meta(description="Do not download runtime versions.")] = False

    def __post_init__(self) -> None:
        for field in ("name", "version"):  # both become part of file names
            text = getattr(self, field)
            if text and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", text):
                raise InputError(
                    f"{field} '{text}' cannot be part of a file name",
                    hint="at most 64 letters, digits and ._+-, with a letter or digit first",
                )
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise InputError(
                    f"{field} '{getattr(self, field)}' does not exist", hint=", ".join(choices)
                )
        if self.jobs < 0:
            raise InputError(f"jobs is {self.jobs}", hint="0: one for each core")


_CHOICES = {
    "layout": get_args(Layout),
    "batch": get_args(Batch),
    "objective": get_args(judge.Objective),
}


class BuildRequest(BuildOptions, frozen=True, kw_only=True):
    """A model, its profiles and the options, whose paths and files are resolved: make_request()."""

    model: Path
    profiles: tuple[Profile, ...]
    out: Path
    labels: Path | None
    preprocess: ImageRecipe | None
    class_names: tuple[str, ...]
    cache: Path | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.profiles:
            raise InputError("no profile given", hint="edge profiles list")
        names = Counter(profile.name for profile in self.profiles)
        if repeated := [name for name, count in names.items() if count > 1]:
            raise InputError(
                f"two profiles are named '{repeated[0]}'",
                hint="each makes a package of its name; give it once, or change 'name' in a copy",
            )


def make_request(
    model: StrPath, profiles: Iterable[Profile], options: BuildOptions
) -> BuildRequest:
    """Read what the options name (recipe, class names); raises InputError."""
    recipe, names = options.preprocess, options.class_names
    resolved = {
        "model": Path(model),
        "profiles": tuple(profiles),
        "out": Path(options.out),
        "labels": Path(options.labels) if options.labels else None,
        "preprocess": samples.read_recipe(recipe) if isinstance(recipe, str) else recipe,
        "class_names": (
            samples.read_class_names(Path(names))
            if isinstance(names, str | PathLike)
            else tuple(names)
        ),
        "cache": Path(options.cache) if options.cache else None,
    }
    return BuildRequest(**{**msgspec.structs.asdict(options), **resolved})
