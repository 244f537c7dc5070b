"""The model card inside a package: Markdown for people, from values that never vary.

Times and memory are not here but in the report beside the package (docs/adr/0004).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from edge_core.package.manifest import Gate, Manifest
from edge_core.tensors import TensorSpec
from edge_sdk.build.stages import Artifact


def card(manifest: Manifest, artifact: Artifact) -> str:
    """The card of ``artifact`` as ``manifest`` packages it; ends with a newline."""
    sections = (
        f"# {_text(manifest.name)} {_text(manifest.version)}",
        _summary(manifest),
        "## The file\n\n" + _table(("", ""), _file(manifest, artifact)),
        "## Inputs and outputs\n\n" + _tensors(manifest),
        "## Preprocessing\n\n" + _preprocessing(manifest),
        "## How it was judged\n\n" + _judged(manifest),
        "## How to run it\n\n" + _run(manifest),
        "## Limits\n\n" + _limits(manifest),
        "## Made with\n\n" + _table(("distribution", "version"), manifest.toolchain.items()),
    )
    return "\n\n".join(sections) + "\n"


def _summary(m: Manifest) -> str:
    profiles = ", ".join(_code(p) for p in m.selector.profiles)
    return (
        f"A model in {_text(m.precision)}, made by the recipe {_code(m.candidate)} for {profiles} "
        f"({_text(m.selector.arch)}, {_text(m.selector.os)}). It runs on "
        f"{_text(m.runtime.name)} {_text(m.runtime.version)}, offline."
    )


def _file(m: Manifest, a: Artifact) -> list[tuple[str, str]]:
    rows = [
        ("file", _code(m.file)),
        ("bytes", f"{a.bytes:,}"),
        ("SHA-256", _code(a.sha256)),
        ("made from a model with SHA-256", _code(m.model_sha256)),
        ("written for", ", ".join(f"{k} {v}" for k, v in a.written_for.items())),
    ]
    if a.quantised_share is not None:
        rows.append(("share of the weight bytes that is quantised", f"{a.quantised_share:.1%}"))
    if m.runtime.options:
        options = ", ".join(f"{k}={v}" for k, v in sorted(m.runtime.options.items()))
        rows.append(("runtime options", _code(options)))
    return rows + [("note", _text(n)) for n in a.notes]


def _tensors(m: Manifest) -> str:
    def row(role: str, t: TensorSpec) -> tuple[str, ...]:
        shape = " x ".join(map(str, t.shape)) or "scalar"
        return role, _code(t.name), t.dtype, _text(shape), t.layout

    rows = [*(row("input", t) for t in m.inputs), *(row("output", t) for t in m.outputs)]
    labels = f"\n\nThe labels of {len(m.labels)} classes are in the package." if m.labels else ""
    return _table(("", "name", "type", "shape", "layout"), rows) + labels


def _preprocessing(m: Manifest) -> str:
    r = m.preprocess
    if r is None:
        return "None: inputs are tensors as the model takes them."
    crop = f"the central {r.crop_fraction:.1%}" if r.fit == "center-crop" else "the whole image"
    values = f"(value x {r.scale:.6g} - {list(r.mean)}) / {list(r.std)}"
    return (
        f"An image is decoded to {r.color}; {crop} is resized to {r.width} x {r.height} "
        f"({r.interpolation}); then {_code(values)}, as {r.dtype} in {r.layout}."
    )


def _judged(m: Manifest) -> str:
    if not m.gates:
        return "The profile sets no budget, so nothing was gated."
    measured = f"{_text(m.runtime.name)} {_text(m.runtime.measured_on)}"
    return (
        _table(("gate", "limit", "value", "outcome"), (_gate(g) for g in m.gates))
        + f"\n\nMeasured on {measured} against the original model, on the evaluation samples of "
        "`recipe.json`. Times and memory vary from run to run: they are in the report that was "
        "written beside the package."
    )


def _gate(g: Gate) -> tuple[str, ...]:
    unit = f" {g.unit}" if g.unit else ""
    limit = "" if g.limit is None else f"{g.limit:g}{unit}"
    value = "" if g.value is None else f"{g.value:.4g}{unit}"
    return _code(g.name), limit, value, g.outcome


def _run(m: Manifest) -> str:
    given = "photo.jpg" if m.preprocess else "inputs.npz"
    return (
        "```console\n"
        "$ edge-agent verify PACKAGE.edgepkg\n"
        f"$ edge-agent infer PACKAGE.edgepkg {given}\n"
        "```\n\n"
        "`verify` checks every digest and replays the golden vectors on the device."
    )


def _limits(m: Manifest) -> str:
    other = (
        f"- It was measured on {_text(m.runtime.name)} {_text(m.runtime.measured_on)}, the device "
        f"has {_text(m.runtime.version)}: verify it there.\n"
        if m.runtime.measured_on != m.runtime.version
        else ""
    )
    return (
        f"{other}- Accuracy is that of the evaluation samples; other data may fare worse.\n"
        "- What the original model was made for, and with which data, its author knows: the "
        "conversion adds no ability and removes no bias.\n"
        "- It was judged for the profiles named above and for no other device."
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: str) -> str:
    """One line in which nothing is markup: names and notes come from users and converters."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", " ".join(value.split()))


def _code(value: str) -> str:
    """A code span; a backtick or bar in it would end the span or the table's cell."""
    return "`" + " ".join(value.split()).replace("`", "'").replace("|", "/") + "`"
