"""The model card inside a package: Markdown for people, from values that never vary.

Times and memory are not here but in the report beside the package (docs/adr/0004).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from edge_core.package.manifest import Gate, Manifest, Variant
from edge_core.tensors import TensorSpec
from edge_sdk.build.stages import Artifact


def render_card(manifest: Manifest, artifacts: Mapping[str, Artifact]) -> str:
    """The card of a package; ``artifacts`` are those of its variants, by name of the variant."""
    sections = [f"# {_text(manifest.name)} {_text(manifest.version)}", _devices(manifest)]
    for variant in manifest.variants:
        sections += _variant_sections(manifest, variant, artifacts[variant.name])
    sections += ["## How to run it\n\n" + _run(manifest), "## Limits\n\n" + _limits(manifest)]
    return "\n\n".join(sections) + "\n"


def _devices(m: Manifest) -> str:
    """What a device gets: one sentence, or a table of the variants in the order of choice."""
    if len(m.variants) == 1:
        return _summary(m.variants[0])
    rows = [(_code(v.name), _summary(v)) for v in m.variants]
    return "A device gets the first of these variants that matches it.\n\n" + _table(
        ("variant", "what it is"), rows
    )


def _variant_sections(m: Manifest, v: Variant, artifact: Artifact) -> list[str]:
    several = len(m.variants) > 1
    of = f" of {_code(v.name)}" if several else ""
    return [
        f"## The file{of}\n\n" + _table(("", ""), _file(m, v, artifact)),
        f"## Inputs and outputs{of}\n\n" + _tensors(m, v),
        f"## Preprocessing{of}\n\n" + _preprocessing(v),
        f"## How it was judged{of}\n\n" + _judged(v),
        f"## Made with{of}\n\n" + _table(("distribution", "version"), v.toolchain.items()),
    ]


def _summary(v: Variant) -> str:
    profiles = ", ".join(_code(p) for p in v.profiles)
    return (
        f"A model in {_text(v.precision)}, made by the recipe {_code(v.candidate)} for {profiles} "
        f"({_text(v.selector.arch)}, {_text(v.selector.os)}). It runs on "
        f"{_text(v.runtime.name)} {_text(v.runtime.version)}, offline."
    )


def _file(m: Manifest, v: Variant, a: Artifact) -> list[tuple[str, str]]:
    rows = [
        ("file", _code(v.entry)),
        ("bytes", f"{a.bytes:,}"),
        ("SHA-256", _code(a.sha256)),
        ("made from a model with SHA-256", _code(m.model_sha256)),
        ("written for", ", ".join(f"{k} {text}" for k, text in a.written_for.items())),
    ]
    if a.quantised_share is not None:
        rows.append(("share of the weight bytes that is quantised", f"{a.quantised_share:.1%}"))
    if v.runtime.options:
        options = ", ".join(f"{k}={v}" for k, v in sorted(v.runtime.options.items()))
        rows.append(("runtime options", _code(options)))
    return rows + [("note", _text(n)) for n in a.notes]


def _tensors(m: Manifest, v: Variant) -> str:
    def row(role: str, t: TensorSpec) -> tuple[str, ...]:
        shape = " x ".join(map(str, t.shape)) or "scalar"
        return role, _code(t.name), t.dtype, _text(shape), t.layout

    rows = [*(row("input", t) for t in v.inputs), *(row("output", t) for t in v.outputs)]
    labels = f"\n\nThe labels of {len(m.labels)} classes are in the package." if m.labels else ""
    return _table(("", "name", "type", "shape", "layout"), rows) + labels


def _preprocessing(v: Variant) -> str:
    r = v.preprocess
    if r is None:
        return "None: inputs are tensors as the model takes them."
    crop = f"the central {r.crop_fraction:.1%}" if r.fit == "center-crop" else "the whole image"
    values = f"(value x {r.scale:.6g} - {list(r.mean)}) / {list(r.std)}"
    return (
        f"An image is decoded to {r.color}; {crop} is resized to {r.width} x {r.height} "
        f"({r.interpolation}); then {_code(values)}, as {r.dtype} in {r.layout}."
    )


def _judged(v: Variant) -> str:
    if not v.gates:
        return "The profile sets no budget, so nothing was gated."
    measured = f"{_text(v.runtime.name)} {_text(v.runtime.measured_on)}"
    return (
        _table(("gate", "limit", "value", "outcome"), (_gate(g) for g in v.gates))
        + f"\n\nMeasured on {measured} against the original model, on the evaluation samples of "
        "`recipe.json`. Times and memory vary from run to run: they are in the report that was "
        "written beside the package."
    )


def _gate(g: Gate) -> tuple[str, ...]:
    unit = f" {g.unit}" if g.unit else ""
    limit = "" if g.limit is None else f"{g.limit:g}{unit}"
    value = "" if g.value is None else f"{g.value:.4g}{unit}"
    name = f"{_code(g.name)} for {_code(g.profile)}" if g.profile else _code(g.name)
    return name, limit, value, g.outcome


def _run(m: Manifest) -> str:
    source = "photo.jpg" if m.variants[0].preprocess else "inputs.npz"
    return (
        "```console\n"
        "$ edge-agent verify PACKAGE.edgepkg\n"
        f"$ edge-agent infer PACKAGE.edgepkg {source}\n"
        "```\n\n"
        "`verify` checks every digest and replays the golden vectors on the device."
    )


def _limits(m: Manifest) -> str:
    older = {
        f"- It was measured on {_text(r.name)} {_text(r.measured_on)}, the device "
        f"has {_text(r.version)}: verify it there.\n": None
        for r in (v.runtime for v in m.variants)
        if r.measured_on != r.version
    }
    return (
        "".join(older)
        + "- Accuracy is that of the evaluation samples; other data may fare worse.\n"
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
